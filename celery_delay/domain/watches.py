"""The ports of the watchdog: what was handed off, and which workers report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from celery_delay.domain.entries import EntryId

__all__ = ["Fleet", "Look", "WatchStore"]


class Look(NamedTuple):
    """What one look has found.  Times are the store's, in ms.

    Attributes:
        looked: how many entries were due for a look.
        missing: found nowhere for the first time.
        unsearched: on queues that are too long to search.
        spared: on queues that were to be left alone, or that no reporting worker serves.
        sent, given_up: the entries that were sent again, and those that were often enough.
        failure: why something could not be looked at or sent; "" for nothing.
        unwatched: how many were handed off unwatched since the look before.
        max_lag_ms: of those that were sent again, from their eta.
    """

    now_ms: int
    next_look_ms: int | None = None
    looked: int = 0
    missing: int = 0
    unsearched: int = 0
    spared: int = 0
    sent: Sequence[EntryId] = ()
    given_up: Sequence[EntryId] = ()
    failure: str = ""
    unwatched: int = 0
    max_lag_ms: int = 0


class WatchStore(Protocol):
    """What the watchdog needs of a shard."""

    def watch_over(
        self, *, term: int, spared: Collection[str] = (), traceparent: str = ""
    ) -> Look | None: ...

    def forget_marks(self, *, term: int) -> int: ...


class Fleet(Protocol):
    """The workers, as they answer when they are asked."""

    def strangers(self) -> Mapping[str, Sequence[str]]:
        """Queue → the workers that take messages from it and do not report what they begin."""
        ...
