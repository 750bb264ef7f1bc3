"""What the periodic service needs of a shard, and the values that cross that border."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from celery_delay.domain.entries import Addition

__all__ = [
    "ENDED",
    "UNKNOWN",
    "DueSchedules",
    "Listed",
    "PeriodicStore",
    "Standing",
    "Stored",
    "Wanted",
]

#: In place of a next occurrence: there is none; it is not known, so what is stored stays.
ENDED, UNKNOWN = -1, -2


class DueSchedules(NamedTuple):
    """What one look at the schedules tells.  Instants are the store's, in ms.

    ``due``: the (name, nominal instant) that are due.  ``next_ms``: the first occurrence after
    now.  ``revision``: changes with each change that somebody makes to a schedule.
    """

    now_ms: int
    due: list[tuple[str, int]]
    next_ms: int | None
    revision: int


class Standing(NamedTuple):
    """Where a schedule stands.  Instants are the store's, in ms.

    ``cursor_ms``: the last nominal instant that fired, or fell into a pause; before the first,
    when it was first seen.  ``resumed_ms``: what was due before that was paused.
    """

    cursor_ms: int | None = None
    paused: bool = False
    resumed_ms: int = 0

    def skips(self, nominal_ms: int) -> bool:
        """Whether an occurrence falls into a pause."""
        return self.paused or nominal_ms < self.resumed_ms


class Stored(NamedTuple):
    """A schedule that was added at run time, as it is stored.

    ``version``: +1 with each change.  ``anchor_ms``: since when it has these times.  ``timing`` and
    ``call``: JSON, see :mod:`celery_delay.periodic.definitions`.
    """

    version: int
    anchor_ms: int
    timing: str
    call: str


class Listed(NamedTuple):
    """All that the store knows of one schedule.  Instants are the store's, in ms.

    ``static``: timing and call of one that code owns, as the leader last told them; ``stored``: one
    that was added at run time.  ``since_ms``: when its present times began.  ``gaps``: the instants
    since then that were passed over, from … to.
    """

    name: str
    static: tuple[str, str] | None
    stored: Stored | None
    next_ms: int | None
    fired_ms: int | None
    since_ms: int | None
    paused_ms: int | None
    paused_by: str
    reason: str
    gaps: list[tuple[int, int]]
    #: That of the times with which it stands there.
    version: str

    def was_fired(self, nominal_ms: int) -> bool:
        """Whether that occurrence of the past was fired, by all that is known."""
        if self.since_ms is None or nominal_ms < self.since_ms:
            return False
        return not any(begin <= nominal_ms < end for begin, end in self.gaps)


class Wanted(NamedTuple):
    """A schedule as the leader wants it stored.

    ``next_ms`` may be :data:`ENDED` or :data:`UNKNOWN`.  ``description``: of a schedule that code
    owns, what others may know of it, as JSON; "" for one that was added at run time.
    """

    version: str
    next_ms: int
    description: str = ""


class PeriodicStore(Protocol):
    """What the periodic service needs of a shard.

    ``sync_schedules`` and ``fire`` do nothing, and answer False, if *term* leads no more or if
    the schedules are of another revision by now.
    """

    def due_schedules(self) -> DueSchedules: ...

    def standing(self, name: str) -> Standing: ...

    def sync_schedules(
        self, *, term: int, revision: int, schedules: Mapping[str, Wanted]
    ) -> bool: ...

    def fire(
        self,
        *,
        term: int,
        revision: int,
        name: str,
        expected_ms: int,
        cursor_ms: int,
        next_ms: int | None,
        missed: tuple[int, int] | None,
        addition: Addition | None,
    ) -> bool: ...
