"""Cursors: a position in the order of the eta, and who has told it, as a text."""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

__all__ = ["Cursor"]


class Cursor(NamedTuple):
    """Behind which entry a page begins.

    ``source`` orders ids in its own way, so that the next page must come from the same.
    """

    source: str
    eta_ms: int
    task_id: str

    def encode(self) -> str:
        """As a text for links and forms."""
        return base64.urlsafe_b64encode(json.dumps(self).encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: object, *sources: str) -> Cursor | None:
        """What :meth:`encode` has written, for one of *sources*; ``None`` for ``None``.

        Raises:
            TypeError, ValueError: it is no cursor of theirs.
        """
        if text is None:
            return None
        if not isinstance(text, str):
            raise TypeError(f"cursor must be the next of another page, not {text!r}")
        try:
            raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            source, eta_ms, task_id = json.loads(raw)
            found = cls(str(source), int(eta_ms), str(task_id))
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise ValueError(f"cursor={text!r} is not the next of any page") from None
        if found.source not in sources:
            raise ValueError(f"cursor={text!r} is of a list of another kind")
        return found
