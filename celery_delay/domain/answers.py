"""What ``app.delayed`` answers about the whole: how much is due when, how it stands, what was.

Instants are in ms since 1970, UTC, by the store's clock; ``clock.from_ms`` makes a datetime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from celery_delay.domain.events import Event

__all__ = ["Forecast", "History", "Lag", "Period", "RecentPast", "RunRow", "Stats"]


class Period(NamedTuple):
    """How many *entries* become due from *start_ms* up to, and without, *end_ms*."""

    start_ms: int
    end_ms: int
    entries: int


class Forecast(NamedTuple):
    """How much becomes due when.

    Attributes:
        by: ``minute``, ``hour`` or ``day``.
        now_ms: when it was asked.
        overdue: entries whose eta has passed, and that are not handed off yet.
        periods: one after the other, the first one from *now_ms* to the end of its unit.
        later: entries that are due after the last period.
        held, blocked, gated: entries that wait for something else than their eta: an operator,
            what keeps them from their queue, a pause or limit.  They are in none of the other
            numbers.
    """

    by: str
    now_ms: int
    overdue: int
    periods: Sequence[Period]
    later: int
    held: int
    blocked: int
    gated: int = 0

    @property
    def total(self) -> int:
        """How many entries wait for their eta."""
        return self.overdue + sum(one.entries for one in self.periods) + self.later


class Lag(NamedTuple):
    """By how much hand-offs were later than their eta, in ms: percentiles of that many."""

    handoffs: int
    p50: int
    p95: int
    p99: int
    max: int


class RecentPast(NamedTuple):
    """What the audit tells of the recent past.

    Attributes:
        since_ms: how far back the numbers go: an hour, or less where more has happened in it
            than is looked at.
        reached: state → how many entries have come to it since then.
        lag: of the hand-offs since then; ``None`` if there were none.
        lags: how many of them were later than their eta by how much: pairs of a bound in ms,
            which is included, and a number; the last bound is ``None``.
    """

    since_ms: int
    reached: Mapping[str, int]
    lag: Lag | None
    lags: Sequence[tuple[int | None, int]] = ()


class Stats(NamedTuple):
    """Numbers of now, and of the recent past.

    Attributes:
        scheduled: entries that wait for their eta, the overdue ones among them.
        overdue: those that are due for more than a second.
        next_due_ms: the earliest eta.
        held: kept back by an operator.
        blocked: due and set aside; tried again each second.
        gated: due and kept back by a pause, a rate limit or a full queue.
        quarantined: parked, since they cannot be handed off.
        claimed: being published to the broker now.
        journal: transitions that SQL has not taken; *drain_lag_ms* is the age of the oldest.
        gap: transitions that a full journal had no room for.
        templates: shapes of messages that are stored once for many entries.
        schedules: periodic entries.
        memory: bytes that all but the journal takes in Redis, estimated from samples; ``None``
            where Redis does not allow to ask (``MEMORY USAGE``).
        cold: entries that wait in SQL alone, as their time is far; in none of the other numbers.
            ``None`` if SQL cannot be asked.
        past: from the audit; ``None`` without one, or where it cannot be asked: *past_error*
            says why.
    """

    now_ms: int
    scheduled: int
    overdue: int
    next_due_ms: int | None
    held: int
    blocked: int
    quarantined: int
    claimed: int
    journal: int
    drain_lag_ms: int
    gap: int
    templates: int
    schedules: int
    memory: int | None
    past: RecentPast | None = None
    past_error: str = ""
    gated: int = 0
    cold: int | None = 0

    @property
    def entries(self) -> int:
        """All entries that Redis has."""
        kept = self.held + self.blocked + self.gated + self.quarantined
        return self.scheduled + kept + self.claimed

    @property
    def entry_bytes(self) -> int | None:
        """Bytes for each entry, about; ``None`` if that is not known, or there is none."""
        if self.memory is None or not self.entries:
            return None
        return round(self.memory / self.entries)


class RunRow(NamedTuple):
    """One run of a task, by the audit.  ``lag_ms`` is its dispatch minus its eta."""

    run: int
    version: int
    state: str
    eta_ms: int | None
    scheduled_ms: int | None
    dispatched_ms: int | None
    started_ms: int | None
    ended_ms: int | None
    lag_ms: int | None
    worker: str | None
    error: str | None


class History(NamedTuple):
    """What has happened to a task, by the audit.

    Attributes:
        runs: one for each run, the first one first; a retry is a run of its own.
        events: all transitions, in their order.
        audit_lag_ms: how far the audit may be behind; ``None`` if Redis cannot tell.
    """

    task_id: str
    runs: Sequence[RunRow]
    events: Sequence[Event]
    audit_lag_ms: int | None
