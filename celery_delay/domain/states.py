"""The life of an entry: its states, and which may follow which.

Audit, logs, metrics, command line and Flower use these names.  The journal may
deliver events of several processes out of order (a worker can report STARTED before
the hand-off is drained), so SQL merges by :attr:`State.rank`, never by arrival.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "LEGAL",
    "CancelOutcome",
    "HoldOutcome",
    "ReleaseOutcome",
    "RescheduleOutcome",
    "State",
    "UpdateOutcome",
    "seen_by_backend",
]


class State(str, Enum):
    """Where an entry stands."""

    #: Stored in Redis, waiting for its eta.
    SCHEDULED = "SCHEDULED"
    #: Due or not, kept back by an operator.
    HELD = "HELD"
    #: Its message is on the ordinary Celery queue.
    DISPATCHED = "DISPATCHED"
    #: A worker runs it.
    STARTED = "STARTED"
    #: The run asked for another one; that is an entry of its own (run + 1).
    RETRIED = "RETRIED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    #: Revoked after the hand-off, by a worker, or taken off its queue before one had it.
    REVOKED = "REVOKED"
    #: The worker refused the message.
    REJECTED = "REJECTED"
    #: Taken out before the hand-off: it never runs.
    CANCELLED = "CANCELLED"
    #: Its ``expires`` passed before its eta came.
    EXPIRED = "EXPIRED"
    #: Its record cannot be read or handed off: parked, never dropped.
    QUARANTINED = "QUARANTINED"
    #: Redis lost it; said loudly.
    LOST = "LOST"

    @property
    def rank(self) -> int:
        """Position in an entry's life; of two events the higher one tells its state."""
        return _RANK[self]

    @property
    def is_final(self) -> bool:
        """Whether nothing follows for this entry."""
        return not LEGAL[self]

    @property
    def ended_before_dispatch(self) -> bool:
        """Whether no worker will ever report a result for this entry."""
        return self in (State.CANCELLED, State.EXPIRED, State.LOST)

    def may_become(self, following: State) -> bool:
        """Whether *following* is a legal next state of the same entry."""
        return following in LEGAL[self]


_ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.REVOKED, State.REJECTED, State.RETRIED})

#: state → the states that may directly follow it, for one entry.  SCHEDULED and HELD may follow
#: themselves: with another eta or message; QUARANTINED: with another message.  So may STARTED: a
#: broker redelivers the message of a worker that died; and DISPATCHED: what no worker began is
#: sent again (``delay_guard``).
LEGAL: dict[State, frozenset[State]] = {
    State.SCHEDULED: frozenset(
        {
            State.SCHEDULED,
            State.DISPATCHED,
            State.HELD,
            State.CANCELLED,
            State.EXPIRED,
            State.QUARANTINED,
            State.LOST,
        }
    ),
    State.HELD: frozenset(
        {State.HELD, State.SCHEDULED, State.CANCELLED, State.EXPIRED, State.LOST}
    ),
    State.QUARANTINED: frozenset({State.QUARANTINED, State.SCHEDULED, State.CANCELLED, State.LOST}),
    State.DISPATCHED: frozenset(
        {State.DISPATCHED, State.STARTED, State.REVOKED, State.REJECTED, State.FAILED}
    ),
    State.STARTED: _ENDS | {State.STARTED},
    State.RETRIED: frozenset(),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.REVOKED: frozenset(),
    State.REJECTED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
    State.LOST: frozenset(),
}

_RANK = {
    State.SCHEDULED: 10,
    State.HELD: 11,
    State.QUARANTINED: 20,
    State.LOST: 25,
    State.EXPIRED: 30,
    State.CANCELLED: 30,
    State.DISPATCHED: 40,
    State.STARTED: 50,
    State.REVOKED: 60,
    State.REJECTED: 60,
    State.RETRIED: 60,
    State.FAILED: 70,
    State.SUCCEEDED: 70,
}


class CancelOutcome(str, Enum):
    """The three answers to a cancellation.  True only for CANCELLED."""

    #: It was taken out; it never runs.
    CANCELLED = "CANCELLED"
    #: It has been handed to its queue; it may run.
    TOO_LATE = "TOO_LATE"
    #: No such entry; should an add still be under way, it will be refused.
    NOT_FOUND = "NOT_FOUND"

    def __bool__(self) -> bool:
        return self is CancelOutcome.CANCELLED


class RescheduleOutcome(str, Enum):
    """The answers to ``reschedule`` and ``run_now``.  True only for RESCHEDULED."""

    #: It has its new eta; of several calls the last accepted one counts.
    RESCHEDULED = "RESCHEDULED"
    #: It has been handed to its queue, or is on its way there: it runs as it was due.
    TOO_LATE = "TOO_LATE"
    #: No such entry; nothing has changed.
    NOT_FOUND = "NOT_FOUND"
    #: It cannot be handed off and is parked: ``release`` it first.
    QUARANTINED = "QUARANTINED"
    #: Its record is damaged, or of a newer release: it can only be cancelled.
    DAMAGED = "DAMAGED"

    def __bool__(self) -> bool:
        return self is RescheduleOutcome.RESCHEDULED


class UpdateOutcome(str, Enum):
    """The answers to ``update``.  True only for UPDATED."""

    #: It goes out with its new message; one that is held or quarantined stays so.
    UPDATED = "UPDATED"
    #: It has been handed to its queue, or is on its way there: it runs as it was.
    TOO_LATE = "TOO_LATE"
    #: No such entry; nothing has changed.
    NOT_FOUND = "NOT_FOUND"
    #: Its record is damaged, or of a newer release: it can only be cancelled.
    DAMAGED = "DAMAGED"

    def __bool__(self) -> bool:
        return self is UpdateOutcome.UPDATED


class HoldOutcome(str, Enum):
    """The answers to ``hold``.  True only for HELD."""

    #: It does not run before it is released.
    HELD = "HELD"
    #: It has been handed to its queue, or is on its way there: it may run.
    TOO_LATE = "TOO_LATE"
    #: No such entry; nothing has changed.
    NOT_FOUND = "NOT_FOUND"
    #: It cannot be handed off and is parked, which keeps it back already.
    QUARANTINED = "QUARANTINED"
    #: Its record is damaged, or of a newer release: it can only be cancelled.
    DAMAGED = "DAMAGED"

    def __bool__(self) -> bool:
        return self is HoldOutcome.HELD


class ReleaseOutcome(str, Enum):
    """The answers to ``release``.  True only for RELEASED."""

    #: It is back in its schedule, and due as it was.
    RELEASED = "RELEASED"
    #: It is neither held nor quarantined.
    NOT_FOUND = "NOT_FOUND"
    #: Its record or template is damaged: it cannot be sent, only cancelled.
    DAMAGED = "DAMAGED"
    #: Another entry with this task id is live.
    CONFLICT = "CONFLICT"

    def __bool__(self) -> bool:
        return self is ReleaseOutcome.RELEASED


_BACKEND = {
    "RECEIVED": State.DISPATCHED,
    "STARTED": State.STARTED,
    "SUCCESS": State.SUCCEEDED,
    "FAILURE": State.FAILED,
    "RETRY": State.RETRIED,
    "REVOKED": State.REVOKED,
    "REJECTED": State.REJECTED,
}


def seen_by_backend(name: str) -> State | None:
    """The state that Celery's result backend calls *name*; ``None`` if it knows nothing."""
    return _BACKEND.get(name)
