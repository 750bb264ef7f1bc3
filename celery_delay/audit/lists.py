"""Long lists of values, in pieces that one statement takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["parts"]

_T = TypeVar("_T")

#: Values in one IN (…); SQLite before 3.32 takes 999 parameters.
_IN_LIMIT = 400


def parts(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """*values* in their order, as many at a time as go into one IN (…)."""
    for start in range(0, len(values), _IN_LIMIT):
        yield values[start : start + _IN_LIMIT]
