"""A column's values as one PostgreSQL array, written as text.

The drivers write arrays value by value, with a look at the type of each, which was half of the
drain's work.  Here a column's values, which are of one type, are joined first and then escaped all
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import String
from sqlalchemy.types import TypeEngine

__all__ = ["array_text"]

#: Stand between two texts, and for NULL, until the texts are escaped.
_BETWEEN, _NULL = "\x1f", "\x1e"


def array_text(kind: TypeEngine[Any], values: Sequence[Any]) -> str:
    """*values*, numbers or texts, as PostgreSQL reads an array of *kind*."""
    if not isinstance(kind, String):
        return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"
    missing = values.count(None)
    if missing == len(values):
        return "{" + ",".join(["NULL"] * missing) + "}"
    texts = [_NULL if one is None else one for one in values] if missing else values
    joined = _BETWEEN.join(texts)
    if joined.count(_BETWEEN) >= len(values) or joined.count(_NULL) > missing:
        # a text has one of these two itself
        return "{" + ",".join("NULL" if one is None else _quoted(one) for one in values) + "}"
    listed = _quoted(joined).replace(_BETWEEN, '","')
    return "{" + (listed.replace(f'"{_NULL}"', "NULL") if missing else listed) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
