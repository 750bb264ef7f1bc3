"""What is measured: every series with its name, type, labels and meaning; and how to count.

The services count through a :class:`Meter` and know nothing of who asks.  The names are those
of ``/metrics``; the table in the documentation, the alert rules and the dashboard are compared
with this list by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "LAG_BOUNDS",
    "LAG_BOUNDS_MS",
    "UNMETERED",
    "Labels",
    "Meter",
    "Series",
    "all_series",
]

Labels = tuple[str, ...]

#: Upper bounds of the lag's buckets, in seconds.
LAG_BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)
LAG_BOUNDS_MS = tuple(round(one * 1000) for one in LAG_BOUNDS)
#: Of commands and statements, in seconds.
_ANSWER_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
#: Of runs of tasks, in seconds.
_RUN_BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)


@dataclass(frozen=True, eq=False)
class Series:
    """One name under ``/metrics``.

    Attributes:
        kind: ``gauge``, ``counter`` or ``histogram``.
        of: ``store``: read from Redis, the same whoever is asked; ``beat``: what the process
            that is asked has done itself.
        bounds: upper bounds of a histogram's buckets, in the series' unit.
    """

    name: str
    kind: str
    of: str
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()


class Meter(Protocol):
    """Where things are counted.  Safe for threads; cheap; nothing here raises or waits."""

    @property
    def is_counting(self) -> bool:
        """Whether anybody can ever ask; else nothing need be gathered."""
        ...

    def count(self, series: Series, amount: float = 1, labels: Labels = ()) -> None:
        """Raise a counter."""
        ...

    def observe(self, series: Series, value: float, labels: Labels = ()) -> None:
        """Put one value into a histogram."""
        ...

    def gather(self, series: Series, counts: Sequence[int], total: float) -> None:
        """Put many values into a histogram: how many per bucket, the last one open; their sum."""
        ...

    def ask(self, series: Series, answer: Callable[[], float], labels: Labels = ()) -> None:
        """Have a gauge answered by *answer*, whenever somebody asks for it."""
        ...


class _Unmetered:
    is_counting = False

    def count(self, *_: Any) -> None: ...
    def observe(self, *_: Any) -> None: ...
    def gather(self, *_: Any) -> None: ...
    def ask(self, *_: Any) -> None: ...


#: Counts nothing.
UNMETERED: Meter = _Unmetered()


# -- the store, as Redis has it ---------------------------------------------------------------

STORE_UP = Series(
    "celery_delay_store_up", "gauge", "store",
    "Whether Redis answered when last asked; if it did not, the store's other series are absent.",
)  # fmt: skip
PENDING = Series(
    "celery_delay_pending", "gauge", "store",
    "Tasks that wait for their eta, overdue ones among them.",
)  # fmt: skip
DUE = Series(
    "celery_delay_due", "gauge", "store",
    "Tasks that are due within 1m, 5m or 15m, overdue ones among them.",
    ("within",),
)  # fmt: skip
OVERDUE = Series(
    "celery_delay_overdue", "gauge", "store",
    "Tasks that are due for more than a second and were not handed off.",
)  # fmt: skip
OLDEST_OVERDUE = Series(
    "celery_delay_oldest_overdue_seconds", "gauge", "store",
    "For how long the oldest due task has been due; 0 if none is.",
)  # fmt: skip
HELD = Series(
    "celery_delay_held", "gauge", "store", "Tasks that an operator keeps back.",
)  # fmt: skip
GATED = Series(
    "celery_delay_gated", "gauge", "store",
    "Due tasks that wait for a pause to end, a rate limit, or room in their queue.",
)  # fmt: skip
BLOCKED = Series(
    "celery_delay_blocked", "gauge", "store",
    "Due tasks that could not be handed off; they are tried again each second.",
)  # fmt: skip
CLAIMED = Series(
    "celery_delay_claimed", "gauge", "store", "Tasks that a beat is publishing now.",
)  # fmt: skip
QUARANTINE = Series(
    "celery_delay_quarantine", "gauge", "store",
    "Tasks in quarantine: they cannot be handed off as they are.",
)  # fmt: skip
COLD = Series(
    "celery_delay_cold", "gauge", "store",
    "Tasks that wait in SQL alone, until they are nearly due; 0 without a cold tier.",
)  # fmt: skip
SCHEDULES = Series(
    "celery_delay_schedules", "gauge", "store", "Periodic schedules.",
)  # fmt: skip
TERM = Series(
    "celery_delay_term", "gauge", "store",
    "Number of the leader's term; it grows with each change of the leader.",
    ("shard",),
)  # fmt: skip
JOURNAL = Series(
    "celery_delay_journal_entries", "gauge", "store",
    "Entries of the journal that SQL has not taken yet.",
)  # fmt: skip
DRAIN_LAG = Series(
    "celery_delay_drain_lag_seconds", "gauge", "store",
    "For how long the oldest transition has waited for SQL; 0 if none waits.",
)  # fmt: skip
GAP = Series(
    "celery_delay_journal_gap", "gauge", "store",
    "Transitions that a full journal had no room for, not yet written down as missing.",
)  # fmt: skip
REDIS_MEMORY = Series(
    "celery_delay_redis_memory_bytes", "gauge", "store", "Memory that Redis uses, in all.",
)  # fmt: skip
REDIS_MEMORY_LIMIT = Series(
    "celery_delay_redis_memory_limit_bytes", "gauge", "store",
    "Redis' maxmemory, or where that is 0 the memory of its machine.",
)  # fmt: skip

# -- what this process does -------------------------------------------------------------------

INFO = Series(
    "celery_delay_build_info", "gauge", "beat",
    "Always 1; the release of celery-delay.",
    ("version",),
)  # fmt: skip
LEADER = Series(
    "celery_delay_leader", "gauge", "beat",
    "Whether this beat leads the shard now, and is sure of it.",
    ("shard",),
)  # fmt: skip
ELECTIONS = Series(
    "celery_delay_elections_total", "counter", "beat",
    "How often this beat has become the leader.",
    ("shard",),
)  # fmt: skip
DISPATCHED = Series(
    "celery_delay_dispatched_total", "counter", "beat",
    "Tasks that this beat has handed to their queues.",
    ("task", "queue"),
)  # fmt: skip
LAG = Series(
    "celery_delay_lag_seconds", "histogram", "beat",
    "Time of the hand-off minus eta, by Redis' clock.",
    bounds=LAG_BOUNDS,
)  # fmt: skip
STOLEN = Series(
    "celery_delay_stolen_total", "counter", "beat",
    "Tasks that this beat has handed off as a standby, since the leader did not.",
)  # fmt: skip
RESCUED = Series(
    "celery_delay_rescued_total", "counter", "beat",
    "Tasks taken back from a beat that claimed them and fell silent.",
)  # fmt: skip
EXPIRED = Series(
    "celery_delay_expired_total", "counter", "beat",
    "Tasks whose expiry had passed when they were due.",
)  # fmt: skip
QUARANTINED = Series(
    "celery_delay_quarantined_total", "counter", "beat",
    "Tasks that this beat has put into quarantine.",
)  # fmt: skip
FIRED = Series(
    "celery_delay_fired_total", "counter", "beat",
    "Occurrences of periodic schedules that this beat has fired.",
    ("schedule",),
)  # fmt: skip
BROKER_ERRORS = Series(
    "celery_delay_broker_errors_total", "counter", "beat",
    "Messages that the broker did not confirm: it was away, declined or refused them, or sent no"
    " word (unknown).",
    ("outcome",),
)  # fmt: skip
DRAINED = Series(
    "celery_delay_drained_total", "counter", "beat",
    "Transitions that this beat has written to SQL.",
    ("state",),
)  # fmt: skip
FINISHED = Series(
    "celery_delay_finished_total", "counter", "beat",
    "Runs of delayed tasks that are over, by how they ended; seen as the journal is drained.",
    ("task", "outcome"),
)  # fmt: skip
RUN = Series(
    "celery_delay_run_seconds", "histogram", "beat",
    "How long runs of delayed tasks took in their workers.",
    ("task",),
    _RUN_BOUNDS,
)  # fmt: skip
PAST_LIMIT = Series(
    "celery_delay_past_limit_total", "counter", "beat",
    "Runs that were ended by their time limit, soft or hard.",
    ("task",),
)  # fmt: skip
REDIS = Series(
    "celery_delay_redis_seconds", "histogram", "beat",
    "How long Redis took to answer this process' commands.",
    bounds=_ANSWER_BOUNDS,
)  # fmt: skip
REDIS_ERRORS = Series(
    "celery_delay_redis_errors_total", "counter", "beat",
    "Commands that had no effect since Redis was away or refused (unavailable), or whose answer"
    " was lost.",
    ("kind",),
)  # fmt: skip
SQL = Series(
    "celery_delay_sql_seconds", "histogram", "beat",
    "How long this process' transactions in the audit database took.",
    bounds=_ANSWER_BOUNDS,
)  # fmt: skip
SQL_ERRORS = Series(
    "celery_delay_sql_errors_total", "counter", "beat",
    "Transactions that the audit database did not carry out.",
)  # fmt: skip
CRASHES = Series(
    "celery_delay_crashes_total", "counter", "beat",
    "How often a thread of this beat met an error that nobody had foreseen, and went on.",
    ("thread",),
)  # fmt: skip


def all_series() -> Iterator[Series]:
    """Every series, in the order of this module."""
    return (one for one in globals().values() if isinstance(one, Series))
