"""The ``delay_*`` settings as a project gives them to its app, in its own spelling.

Celery is silent about names that it does not know, so what was really given is looked at: with
the namespace taken off, and in capitals where a project writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from celery_delay.domain.settings import PREFIX, Settings
from celery_delay.exceptions import InvalidSetting

__all__ = ["read"]

#: What begins with this can only be meant for us, also where no namespace was named.
_UNMISTAKABLE = f"CELERY_{PREFIX.upper()}"


def read(app: Any) -> Settings:
    """The settings of *app*, checked; its configuration is loaded now, if it was not yet.

    Raises:
        InvalidSetting: see there.  The text has the names as the project spells them
            (``CELERY_DELAY_…`` in Django).
    """
    _ = app.conf.task_protocol  # the first look at a setting loads the configuration
    spellings: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, spelling, value in _given(app.conf):
        if name not in values:  # the maps come in the order in which Celery asks them
            values[name], spellings[name] = value, spelling
    try:
        return Settings.from_mapping(values)
    except InvalidSetting as exc:
        prefix = app.conf.prefix or ""

        def spelled(match: re.Match[str]) -> str:
            name = prefix + match[0]
            return spellings.get(match[0]) or (name.upper() if prefix.isupper() else name)

        raise InvalidSetting(re.sub(rf"\b{PREFIX}\w+", spelled, str(exc))) from None


def _given(conf: Any) -> Iterator[tuple[str, str, Any]]:
    """Name, spelling and value of each setting that looks like ours."""
    prefix = (conf.prefix or "").lower()
    for number, mapping in enumerate(conf.maps):
        for spelling in map(str, mapping):
            name = spelling
            if prefix and name.lower().startswith(prefix):
                name = name[len(prefix) :].lower()
            elif prefix and number > 0:
                continue  # a namespace keeps everything else in the project's settings out
            elif name.startswith(_UNMISTAKABLE):
                name = name.lower().removeprefix("celery_")
            elif name.isupper() and name.lower() in _KNOWN:
                name = name.lower()
            if name.startswith(PREFIX):
                yield name, spelling, mapping[spelling]


_KNOWN = frozenset(Settings.names())
