"""How much waits, how much becomes due when, and what has happened.

Redis answers with counts, never with a walk over entries; SQL with bounded queries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import tzinfo
from typing import TYPE_CHECKING, TypeVar

from celery_delay.delayed.steering import Parts
from celery_delay.domain.answers import Forecast, History, Period, RecentPast, Stats
from celery_delay.domain.filters import LAST_MS, WAITING
from celery_delay.domain.periods import UNITS, bounds
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable, DelayError, InvalidSetting, StoreUnavailable
from celery_delay.message.instants import zone_of
from celery_delay.store.connection import Link
from celery_delay.store.inspection import ShardReport, due_between, inspect_shard, memory_of
from celery_delay.store.keys import ShardKeys

if TYPE_CHECKING:
    from celery_delay.audit.queries import AuditQueries

__all__ = ["MOST_PERIODS", "Overview"]

_T = TypeVar("_T")

#: As many periods as a day has minutes.
MOST_PERIODS = 1_440
#: How far back the numbers of the past go, in ms.
_PAST_MS = 3_600_000


class Overview(Parts):
    """The part of ``app.delayed`` that tells numbers and stories."""

    def forecast(
        self, by: str = "hour", periods: int = 24, *, tz: str | tzinfo | None = None
    ) -> Forecast:
        """How many entries become due in each of the periods to come.

        Redis only counts, so it is as quick with millions of entries as with ten.  While entries
        come, go and move, the numbers need not add up exactly.

        Arguments:
            by: ``minute``, ``hour`` or ``day``.
            periods: how many, up to 1 440.  The first one is what is left of the current unit.
            tz: where days and hours begin, by name or as a tzinfo; ``None``: in the app's
                ``timezone``.

        Raises:
            ValueError, TypeError: about the argument they name.
            StoreUnavailable: Redis could not be reached.
            AuditUnavailable: SQL, which has those that are due later, could not.
        """
        if by not in UNITS:
            raise ValueError(f"by={by!r} must be one of {', '.join(UNITS)}")
        if isinstance(periods, bool) or not isinstance(periods, int):
            raise TypeError(f"periods must be a whole number, not {periods!r}")
        if not 1 <= periods <= MOST_PERIODS:
            raise ValueError(f"periods={periods} must be from 1 to {MOST_PERIODS}")
        zone = zone_of(tz) if tz is not None else self.app.timezone
        now_ms = self.shards[0].time_ms()
        ends = bounds(by, periods, now_ms, zone)
        cold_held = 0
        counts = self._each_shard(lambda link, keys: due_between(link, keys, ends))
        if self.settings.is_backed:
            counts += [self.cold_rows.due_between(one, ends) for one in range(self.settings.shards)]
            cold_held = self._waiting_in_sql({State.HELD})
        overdue, *dues, later = map(sum, zip(*counts, strict=True))
        sizes = [one.sizes() for one in self.shards]
        return Forecast(
            by,
            now_ms,
            overdue,
            [Period(*one) for one in zip(ends[:-1], ends[1:], dues, strict=True)],
            later,
            held=sum(one["held"] for one in sizes) + cold_held,
            blocked=sum(one["blocked"] for one in sizes),
            gated=sum(one["gated"] for one in sizes),
        )

    def stats(self) -> Stats:
        """Numbers of now from Redis, and of the last hour from the audit where there is one.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        reports = self.inspect_shards()
        memory = self._each_shard(memory_of)
        past, why = self.recent(reports[0].now_ms - _PAST_MS)
        return Stats(
            now_ms=reports[0].now_ms,
            scheduled=sum(one.pending for one in reports),
            overdue=sum(one.overdue for one in reports),
            next_due_ms=min(
                (one.next_due_ms for one in reports if one.next_due_ms is not None), default=None
            ),
            held=sum(one.held for one in reports),
            blocked=sum(one.blocked for one in reports),
            gated=sum(one.gated for one in reports),
            quarantined=sum(one.quarantined for one in reports),
            claimed=sum(one.claimed for one in reports),
            journal=sum(one.journal for one in reports),
            drain_lag_ms=max(one.drain_lag_ms for one in reports),
            gap=sum(one.gap for one in reports),
            templates=sum(one.templates for one in reports),
            schedules=sum(one.schedules for one in reports),
            memory=None if None in memory else sum(filter(None, memory)),
            past=past,
            past_error=why,
            cold=self._cold(),
        )

    def history(self, task_id: str) -> History:
        """What has happened to a task: all its runs and transitions, by the audit.

        It is as old as the last drain: ``audit_lag_ms`` tells.  Without any transition the
        audit has not heard of the task (yet).

        Raises:
            InvalidSetting: the project keeps no audit.
            AuditUnavailable: its database cannot be asked.
        """
        queries = self.audit_queries()
        lag_ms = self.audit_lag_ms()  # before the rows: they are at least that fresh
        return History(task_id, queries.runs(task_id), queries.events(task_id), lag_ms)

    # -- for the command line and for other parts -----------------------------------------

    def audit_queries(self) -> AuditQueries:
        """Questions to the project's audit; SQLAlchemy is imported now.

        Raises:
            InvalidSetting: the project keeps none.
        """
        if not self.settings.has_database:
            raise InvalidSetting(
                "this needs the audit, and delay_database_url is not set"
                " (without it: `celery delay list` for what waits, `show ID` for one task)"
            )
        from celery_delay.audit.queries import AuditQueries

        return AuditQueries(self.audit_log.database)

    def audit_lag_ms(self) -> int | None:
        """How old the audit's answers may be; ``None`` if Redis cannot tell."""
        try:
            return max(one.drain_lag_ms for one in self.inspect_shards())
        except StoreUnavailable:
            return None

    def inspect_shards(self) -> list[ShardReport]:
        """Every shard as it is now.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        return self._each_shard(inspect_shard)

    def _each_shard(self, question: Callable[[Link, ShardKeys], _T]) -> list[_T]:
        link = self.links().link()
        try:
            return [question(link, keys) for keys in self.shard_keys]
        finally:
            link.close()

    def _cold(self) -> int | None:
        """How many wait in SQL alone; ``None`` if it cannot be asked."""
        if not self.settings.is_backed:
            return 0
        try:
            return self._waiting_in_sql(WAITING)
        except AuditUnavailable:
            return None

    def _waiting_in_sql(self, states: Collection[State]) -> int:
        shards = range(self.settings.shards)
        return sum(int(self.cold_rows.count(one, states, 0, LAST_MS)) for one in shards)

    def recent(self, since_ms: int) -> tuple[RecentPast | None, str]:
        """What the audit tells of the time since then, or why it cannot ("": there is none)."""
        if not self.settings.audited:
            return None, ""
        try:
            return self.audit_queries().recent(self.settings.shards, since_ms), ""
        except DelayError as exc:
            return None, str(exc)
