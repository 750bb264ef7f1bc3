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

from celery_delay.domain.entries import Added, Addition, Due
from celery_delay.message.delays import Delay
from celery_delay.message.envelope import Shape

__all__ = ["OPTION", "Call", "Collection", "collecting", "collection"]

#: The option by which a call's delay travels through ``Task.apply_async``.
OPTION = "celery_delay_call"


class Call:
    """One delayed call: the delay goes in, what became of it comes out.

    Attributes:
        delay: when the task is due, and what else is said of its waiting.
        addition: the entry that was made of the call.
        shape: how its message was split.
        added: the store's answer; ``None`` while the entry waits in a collection.
    """

    def __init__(self, delay: Delay) -> None:
        self.delay = delay
        self.addition: Addition | None = None
        self.shape: Shape | None = None
        self.added: Added | None = None


class Collection:
    """Entries of one call that are stored together at its end (a canvas, a bulk call).

    Attributes:
        delay: of the tasks that bring none of their own.
        until: when (boot clock) the call ends at the latest.
        at_once: whether the first entry, which is the only one, is stored at once: then nothing
            is told of a message that is not sent because another task has its key.
        added: the answers to those that were.
    """

    def __init__(self, delay: Delay, until: float, at_once: bool) -> None:
        self.delay = delay
        self.until = until
        self.at_once = at_once
        self.additions: list[Addition] = []
        self.added: list[Added] = []

    def delay_with(self, own: Due | None) -> Delay:
        """The delay of a part that brings one of its own: a countdown counts from the
        collection's, an eta stands for itself."""
        if own is None:
            return self.delay
        due = self.delay.due
        return self.delay._replace(due=Due(due.ms + own.ms, due.is_delay) if own.is_delay else own)


_current: ContextVar[Collection | None] = ContextVar("celery_delay_collection", default=None)


@contextmanager
def collecting(
    delay: Delay, until: float = math.inf, *, at_once: bool = False
) -> Iterator[Collection]:
    """Delay every task message sent in this context, and collect instead of storing."""
    one = Collection(delay, until, at_once)
    token = _current.set(one)
    try:
        yield one
    finally:
        _current.reset(token)


def collection() -> Collection | None:
    """The collection that messages sent in this context go to."""
    return _current.get()
