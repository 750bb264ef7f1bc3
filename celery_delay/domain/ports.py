"""What the services need from the outside, and the values that cross the border.

The services (elector, dispatcher, periodic, auditor) know these Protocols and nothing of
Redis, SQL or Celery.  Each method may raise :exc:`StoreUnavailable` (the store's) or
:exc:`AuditUnavailable` (the audit log's): a state of the world, not a bug.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from celery_delay.domain.entries import Due, EntryId, StoredEntry
from celery_delay.domain.events import Event
from celery_delay.domain.gates import GateStore
from celery_delay.domain.states import CancelOutcome, HoldOutcome, RescheduleOutcome, State
from celery_delay.exceptions import DelayError

__all__ = [
    "AuditLog",
    "Cancelled",
    "Change",
    "Counts",
    "DispatchStore",
    "JournalPosition",
    "JournalStore",
    "Leaderless",
    "Lease",
    "LeaseRecord",
    "Moved",
    "ReconcileStore",
    "Results",
    "RunLog",
    "StaleEpoch",
    "Steered",
    "Term",
    "Transition",
    "WaitingEntries",
]


_Outcome = TypeVar("_Outcome", RescheduleOutcome, HoldOutcome)


class StaleEpoch(Exception):
    """This Redis history has no name yet, or another than the caller knows.

    Nothing was moved.  The leader names it with ``begin_epoch``; the others wait.
    """


class Leaderless(DelayError):
    """No beat has led for ``delay_leader_grace``, and the caller did not want to store then.

    Certainly nothing was stored.
    """


class Cancelled(NamedTuple):
    """Answer to a cancellation, with the entry that was taken out by this very call."""

    outcome: CancelOutcome
    entry: StoredEntry | None


class Change(NamedTuple):
    """What is to become of a waiting entry; what is ``None`` stays as it is."""

    #: When it is due instead.
    due: Due | None = None
    #: By how much its eta moves, in ms; negative: earlier.
    shift_ms: int | None = None
    #: Whether it is kept back.
    hold: bool | None = None


class Steered(NamedTuple):
    """Answer to a change of a waiting entry, as ``steer.lua`` gives it.

    ``eta_ms`` and ``expires_ms`` (0 for never) are those it has now; 0 if nothing was changed.
    """

    answer: str
    eta_ms: int = 0
    expires_ms: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the entry is as the caller wants it."""
        return self.answer == "DONE"

    def outcome(self, success: _Outcome) -> _Outcome:
        """The answer as the enum of *success*, which stands for a change that is done."""
        return success if self.is_done else type(success)(self.answer)


class Counts(NamedTuple):
    """Hand-offs, counted: the sum of their lags in ms, how many in each bucket, and by route.

    A route is a task, a queue and a number; the same pair may come twice.
    """

    lag_ms: int
    buckets: Sequence[int]
    routes: Sequence[tuple[str, str, int]]


class Moved(NamedTuple):
    """What one pass did.  Times are the store's, in ms.

    ``unmoved``: nothing, as the store's clock has jumped.  ``openable``: some at gates may pass.
    """

    now_ms: int
    next_due_ms: int | None = None
    moved: int = 0
    max_lag_ms: int = 0
    expired: int = 0
    quarantined: int = 0
    blocked: int = 0
    failure: str = ""
    unmoved: bool = False
    gated: int = 0
    openable: bool = False
    #: ``None`` if nothing was moved, or nobody counts.
    counts: Counts | None = None

    @property
    def handled(self) -> int:
        """How many entries left the head of the schedule."""
        return self.moved + self.expired + self.quarantined + self.blocked + self.gated


class Transition(NamedTuple):
    """A move from state to state that happened outside the store; its eta where that is new."""

    entry_id: EntryId
    version: int
    state: State
    data: Mapping[str, object]
    #: Whether the broker keeps the message until the run is over (``acks_late``).
    is_kept: bool = False
    eta_ms: int | None = None


class LeaseRecord(NamedTuple):
    """The lease as one election call saw it.

    ``head_due_ms`` is ``None`` if nothing waits; ``progress_ms`` is when the leader last looked.
    """

    holder: str
    term: int
    seq: int
    now_ms: int
    head_due_ms: int | None
    progress_ms: int
    #: The same two for what is published instead of moved.
    outbound_due_ms: int | None = None
    published_ms: int = 0


class Term(NamedTuple):
    """A period of leadership, and until when (boot clock) the leader believes in it."""

    number: int
    trusted_until: float


class JournalPosition(NamedTuple):
    """How far SQL has taken a shard's journal: the epoch, and the stream id in it."""

    shard: int
    epoch: int
    last_id: str


class Lease(Protocol):
    """Leadership over one shard."""

    def elect(self, *, seen: LeaseRecord | None, may_take: bool) -> LeaseRecord:
        """Renew if we hold the lease, take it if it is free or *may_take*; tell its state."""
        ...

    def release(self, term: int) -> bool:
        """Give *term* back and wake one standby; False if it was not ours any more."""
        ...


class DispatchStore(GateStore, Protocol):
    """What the dispatcher needs of a shard."""

    def move(
        self, *, hold_ms: int = 0, steal_ms: int = 0, latest_ms: int = 0, traceparent: str = ""
    ) -> Moved: ...

    def has_epoch(self) -> bool:
        """Whether this Redis history has a name."""
        ...

    def begin_epoch(self, *, term: int, known_epoch: int) -> tuple[int, str] | None: ...

    def merge_back(self, *, term: int) -> int: ...


class JournalStore(Protocol):
    """What the auditor needs of a shard."""

    def read_journal(self, after: str, limit: int) -> list[tuple[str, list[Event]]]: ...

    def trim_journal(self, position: JournalPosition, *, term: int) -> int: ...

    def trimmed(self) -> JournalPosition | None:
        """How far the journal was forgotten because SQL had it; ``None``: never."""
        ...

    def leader(self) -> tuple[str, int, int]: ...

    def audit_id(self, proposed: str | None = None) -> str | None: ...


class ReconcileStore(Protocol):
    """What the reconciler needs of a shard."""

    def history(self) -> tuple[int, int]:
        """The present epoch (0 for none), and the one that was reconciled last."""
        ...

    def missing(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        """Those of *entry_ids* that belong to this shard, and that it does not have."""
        ...

    def record(self, transitions: Sequence[Transition]) -> None: ...

    def reconciled(self, epoch: int) -> None:
        """Remember that *epoch* was reconciled."""
        ...


class WaitingEntries(Protocol):
    """Which entries SQL believes to be waiting in the store."""

    def waiting(self, after: EntryId | None, limit: int) -> list[EntryId]: ...

    def still_waiting(self, entry_ids: Sequence[EntryId]) -> list[EntryId]: ...


class RunLog(Protocol):
    """What SQL knows of runs, for those who count them."""

    def runs(self, entry_ids: Sequence[EntryId]) -> Mapping[EntryId, tuple[str, int | None]]:
        """The task's name and when the run began (ms, ``None`` if nobody said) of those known."""
        ...


class PrunedLog(Protocol):
    """What the SQL side offers to the pruner."""

    def prune(self, state: str, before_ms: int, limit: int) -> int:
        """Delete at most *limit* tasks in *state* that are older than the instant; how many."""
        ...


class AuditLog(Protocol):
    """The SQL side."""

    def prepare(self) -> str:
        """Make sure that the tables can be used; the database's uuid.

        SQLite's are made or migrated here; a server's need ``celery delay migrate``.

        Raises:
            SchemaOutdated: the tables are missing or of another version.
        """
        ...

    def position(self, shard: int, epoch: int) -> JournalPosition:
        """How far the journal of *shard* is in SQL; ``last_id`` is "0" in a new epoch.

        A position in a higher epoch than the given one says that SQL knows a later history.
        """
        ...

    def take(
        self, expected: JournalPosition, events: Sequence[Event], last_id: str
    ) -> list[Ending] | None:
        """Write *events* and advance the cursor from *expected* to *last_id*, or do nothing.

        Events that are in SQL already are left alone.  One transaction.

        Returns:
            The entries among *events*, old ones included, that ended before any worker saw
            them and have not been overtaken since: a result must be written for them.
            ``None`` if another drainer was first; nothing was written.
        """
        ...


class Ending(NamedTuple):
    """An entry that ended before dispatch, with what its result needs.

    ``chord`` is the chord's signature as a mapping if the task is part of one; ``None`` else.
    """

    entry_id: EntryId
    state: State
    task: str
    group: str | None
    group_index: int | None
    chord: Mapping[str, object] | None
    ignore_result: bool
    reason: str


class Results(Protocol):
    """The result backend, for tasks that no worker will ever see."""

    def end(self, ending: Ending) -> None:
        """Write REVOKED (or FAILURE) unless a final result is there; never raises."""
        ...
