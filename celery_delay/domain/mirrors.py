"""The two sides of what SQL backs: the rows, which are the truth, and their mirror in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from celery_delay.domain.backing import BackedRow
from celery_delay.domain.entries import Added, EntryId
from celery_delay.domain.ports import Cancelled, Transition
from celery_delay.exceptions import DelayError

__all__ = ["BackedRows", "BackedStore", "ColdRows", "Looked", "Refused"]


class Refused(Exception):
    """Redis has refused an addition for what it says, and not for the state of the world.

    Attributes:
        error: what the caller is to be told.
    """

    def __init__(self, error: DelayError) -> None:
        super().__init__(error)
        self.error = error


class Looked(NamedTuple):
    """What Redis has of some entries, at one instant.

    ``places``: a letter (``L`` live, ``C`` being published, ``P`` parked, ``-`` absent) and the
    version.
    """

    now_ms: int
    places: list[tuple[str, int]]


class BackedStore(Protocol):
    """The mirror: one shard in Redis.  Each method may raise StoreUnavailable or OutcomeUnknown.

    Every one that takes an *epoch* does nothing in another Redis history, and says so.
    """

    def now_ms(self) -> int: ...

    def is_led(self, grace_ms: int) -> bool:
        """Whether a beat gave a sign of life in the last *grace_ms*."""
        ...

    def leader(self) -> tuple[str, int, int]:
        """Holder, term and epoch, as the shard bears them."""
        ...

    def named(self) -> int:
        """The epoch of this Redis history, as far as the connection knows; 0 for none."""
        ...

    def compared(self) -> tuple[int, bool]:
        """The epoch (0 for none), and whether it was compared with SQL."""
        ...

    def is_still(self, epoch: int) -> bool:
        """Whether this is still the history of that name; asked for now."""
        ...

    def add_backed(
        self, rows: Sequence[BackedRow], epoch: int, *, patient: bool = True
    ) -> list[Added] | None:
        """Add *rows*, all or none; ``None``: in this history, or so late, they do not count.

        Arguments:
            patient: wait for what is being published, where a key depends on how that ends.

        Raises:
            Refused: none was added, for what one of them says.
        """
        ...

    def note_cold(self, number: int, epoch: int) -> None:
        """Note how many entries wait in SQL alone, for whoever watches Redis."""
        ...

    def taken(self, task_ids: Sequence[str]) -> list[str]:
        """Those of *task_ids* of which there is a live entry, whichever run."""
        ...

    def scheduled(self) -> int:
        """How many entries wait for their eta in Redis."""
        ...

    def apply(
        self, row: BackedRow, epoch: int, data: Mapping[str, object], *, release: bool = False
    ) -> str:
        """Bring a live entry to the version of *row*; see ``apply.lua`` for the answer."""
        ...

    def cancel_backed(
        self, entry_id: EntryId, epoch: int, data: Mapping[str, object]
    ) -> Cancelled | None:
        """Take an entry out, or keep all its versions out; ``None``: in another history."""
        ...

    def record(self, transitions: Sequence[Transition]) -> None:
        """Journal what happened outside of Redis."""
        ...

    def look(self, entry_ids: Sequence[EntryId], epoch: int) -> Looked | None:
        """Where entries are; ``None``: in another history."""
        ...

    def told_of(self, entry_id: EntryId) -> set[str]:
        """The states of an entry that its journal tells of and that are not in SQL yet."""
        ...

    def live(self) -> Iterator[list[tuple[EntryId, int]]]:
        """All entries that are live or parked, page by page, with their versions."""
        ...

    def drop(self, entries: Sequence[tuple[EntryId, int]], epoch: int) -> int:
        """Take out what is over, up to the given versions; how many."""
        ...

    def begin_named(self, *, term: int, epoch: int) -> bool:
        """Give this history the name that SQL has for it; nothing is moved before it is ready."""
        ...

    def ready(self, epoch: int) -> None:
        """Say that the history was compared with SQL."""
        ...


class BackedRows(Protocol):
    """The truth: the rows in SQL.  Each method is a transaction and may raise AuditUnavailable."""

    def clock_ms(self) -> int:
        """SQL's own clock."""
        ...

    def insert(self, rows: Sequence[BackedRow]) -> None:
        """Write new rows, all or none; AlreadyScheduled if an entry id has one."""
        ...

    def read(self, task_id: str) -> BackedRow | None:
        """The row of the latest run of a task."""
        ...

    def some(self, entry_ids: Sequence[EntryId]) -> dict[EntryId, BackedRow]: ...

    def change(self, pairs: Sequence[tuple[BackedRow, BackedRow]]) -> list[BackedRow]:
        """Replace rows that are as they were seen (version, state and tier); those replaced."""
        ...

    def confirm(self, rows: Sequence[BackedRow]) -> None:
        """Note that Redis has the versions of *rows*, so that nobody need look again."""
        ...

    def look_again(self, rows: Sequence[BackedRow]) -> None:
        """Let the relay look at *rows* again at their ``look_ms``, if they are as they were
        seen."""
        ...

    def forget(self, rows: Sequence[BackedRow]) -> None:
        """Delete rows of additions that Redis has refused, if they are as they were seen."""
        ...

    def to_look_at(self, shard: int, after_ms: int, before_ms: int, limit: int) -> list[BackedRow]:
        """Rows whose ``look_ms`` lies between the two, the earliest first."""
        ...

    def hot(self, shard: int, after: EntryId | None, limit: int) -> list[BackedRow]:
        """A page of all open rows that belong into Redis, in the order of their ids."""
        ...

    def latest(
        self, shard: int, after_ms: int, behind: tuple[int, str] | None, limit: int
    ) -> list[BackedRow]:
        """Hot rows that Redis is known to have, the latest first, those due after that instant.

        Arguments:
            behind: eta and task id of the last one of the page before.
        """
        ...

    def count_cold(self, shard: int) -> int:
        """How many rows wait in SQL alone."""
        ...

    def has_any(self, shard: int) -> bool:
        """Whether the shard has rows at all."""
        ...

    def over(self, entry_ids: Sequence[EntryId]) -> dict[EntryId, int]:
        """Those entries that must not be in Redis, by their rows or by the audit: up to which
        version."""
        ...

    def begin_epoch(self, shard: int, at_least: int, now_ms: int) -> int:
        """A name for a Redis history, higher than all before it and *at_least* that; kept."""
        ...


class ColdRows(BackedRows, Protocol):
    """The same, for whoever must know what waits in SQL alone."""

    def waiting(self, task_ids: Sequence[str], now_ms: int) -> list[BackedRow]:
        """Rows of these tasks that wait for certain: cold, held, or not due yet."""
        ...
