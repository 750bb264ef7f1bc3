"""Our templates before Flower's, and one more entry in its navigation bar."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tornado.template import BaseLoader, Loader, Template

__all__ = ["Templates"]

logger = logging.getLogger(__name__)

#: Where ours are.
FOLDER = Path(__file__).parent / "templates"
#: The template of Flower that the entry goes into, and the one that has it.
_NAVIGATION, _TAB = "navbar.html", "delayed_tab.html"
#: The end of the first list of the bar.
_LIST_END = "</ul>"


class Templates(Loader):
    """Loads ours; what we have not got is another loader's to load.

    Arguments:
        flower: the folder of Flower's templates.
        other: the loader that Flower had been given, if any.
    """

    def __init__(self, flower: str, other: BaseLoader | None, **options: Any) -> None:
        super().__init__(str(FOLDER), **options)
        self._flower = Path(flower)
        self._other = other

    @classmethod
    def over(cls, settings: Mapping[str, Any]) -> Templates:
        """Over what Flower's *settings* say."""
        return cls(settings["template_path"], settings.get("template_loader"))

    def _create_template(self, name: str) -> Template:
        if (FOLDER / name).is_file():
            return super()._create_template(name)
        path = self._flower / name
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        if name == _NAVIGATION and text is not None:
            return Template(_with_tab(text), name=name, loader=self)
        if self._other is not None:
            return self._other.load(name)
        return Template(path.read_bytes() if text is None else text, name=name, loader=self)


def _with_tab(text: str) -> str:
    """Flower's navigation bar with our entry behind those of its first list."""
    before, end, after = text.partition(_LIST_END)
    if not end:
        logger.warning(
            "this Flower's navigation bar has no list: the page is at /delayed",
            extra={"event": "tab_missing"},
        )
        return text
    return f'{before}{{% include "{_TAB}" %}}\n{end}{after}'
