"""A delayed call on its way through Celery, and calls whose entries are stored together.

The delay of one task's call travels as an option, through ``apply_async`` and
``send_task``.  A canvas hands its options on to parts that have nothing to do with the
delay; so there a context says that everything sent in it waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from celery_delay.entries import Addition, Due
from celery_delay.envelope import Shape
from celery_delay.ports import Added

__all__ = ["OPTION", "Call", "Collection", "collecting", "collection"]

#: The option by which a call's delay travels through ``Task.apply_async``.
OPTION = "celery_delay_call"


class Call:
    """One delayed call: the delay goes in, what became of it comes out.

    Attributes:
        due: when the task is due.
        addition: the entry that was made of the call.
        shape: how its message was split.
        added: the store's answer; ``None`` while the entry waits in a collection.
    """

    def __init__(self, due: Due) -> None:
        self.due = due
        self.addition: Addition | None = None
        self.shape: Shape | None = None
        self.added: Added | None = None


class Collection:
    """Entries of one call that are stored together at its end (a canvas, a bulk call).

    Attributes:
        due: when the tasks are due that bring no delay of their own.
        until: when (boot clock) the call ends at the latest.
    """

    def __init__(self, due: Due, until: float) -> None:
        self.due = due
        self.until = until
        self.additions: list[Addition] = []

    def due_with(self, own: Due | None) -> Due:
        """When a part is due that brings a delay of its own: a countdown counts from the
        collection's, an eta stands for itself."""
        if own is None:
            return self.due
        return Due(self.due.ms + own.ms, self.due.is_delay) if own.is_delay else own


_current: ContextVar[Collection | None] = ContextVar("celery_delay_collection", default=None)


@contextmanager
def collecting(due: Due, until: float = math.inf) -> Iterator[Collection]:
    """Delay every task message sent in this context, and collect instead of storing."""
    one = Collection(due, until)
    token = _current.set(one)
    try:
        yield one
    finally:
        _current.reset(token)


def collection() -> Collection | None:
    """The collection that messages sent in this context go to."""
    return _current.get()
