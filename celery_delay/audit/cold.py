"""Reading what SQL has and Redis has not, or not for certain: in the store's order, and counted.

Every statement goes by an index and returns a page or numbers, however many rows there are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, collate, func, or_, select, true

from celery_delay.audit.backed import SQLBackedRows
from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import payload
from celery_delay.domain.backing import COLD, HOT, OVER, BackedRow
from celery_delay.domain.filters import LAST_MS, WAITING
from celery_delay.domain.states import State

__all__ = ["UNCONFIRMED_MOST", "SQLColdRows", "position_id"]

#: Hot rows that nobody has confirmed to be in Redis, as many as are read at once.
UNCONFIRMED_MOST = 10_000


class SQLColdRows(SQLBackedRows):
    """Questions about rows that wait.  Every method may raise AuditUnavailable."""

    def page(
        self,
        shard: int,
        states: Collection[State],
        *,
        after: tuple[int, str],
        before_ms: int,
        limit: int,
    ) -> list[BackedRow]:
        """Cold rows behind the position *after* (eta, task id), in that order."""
        eta_ms, after_id = after
        eta, task_id = payload.c.eta_ms, position_id(self.database)
        chosen = self._cold(shard, states).where(
            eta >= eta_ms, or_(eta > eta_ms, task_id > after_id), eta <= before_ms
        )
        return self._rows(chosen.order_by(eta, task_id).limit(limit), in_order=True)

    def cold_before(
        self, shard: int, after: tuple[int, str], before_ms: int, limit: int
    ) -> list[BackedRow]:
        """Cold rows, held or not, by eta up to *before_ms*."""
        states = [State.SCHEDULED, State.HELD]
        return self.page(shard, states, after=after, before_ms=before_ms, limit=limit)

    def unconfirmed(self, shard: int, states: Collection[State], now_ms: int) -> list[BackedRow]:
        """Hot rows that Redis may not have yet, and whose time has not come; by eta."""
        chosen = select(payload).where(
            payload.c.shard == shard,
            payload.c.look_ms > 0,
            payload.c.tier == HOT,
            payload.c.state.in_(sorted(one.value for one in states)),
            payload.c.eta_ms > now_ms,
        )
        rows = self._rows(chosen.order_by(payload.c.look_ms).limit(UNCONFIRMED_MOST))
        return sorted(rows, key=lambda one: (one.eta_ms, one.entry_id.task_id.encode()))

    def waiting(self, task_ids: Sequence[str], now_ms: int) -> list[BackedRow]:
        """See :class:`celery_delay.domain.mirrors.ColdRows`."""
        is_held = payload.c.state == State.HELD.value
        certain = or_(payload.c.tier == COLD, payload.c.eta_ms > now_ms, is_held)
        states = sorted(one.value for one in WAITING)
        found: list[BackedRow] = []
        for some in parts(sorted({fit_id(one) for one in task_ids})):
            chosen = select(payload).where(payload.c.task_id.in_(some), certain)
            found += self._rows(chosen.where(payload.c.tier != OVER, payload.c.state.in_(states)))
        return found

    def count(self, shard: int, states: Collection[State], after_ms: int, before_ms: int) -> int:
        """How many cold rows there are with ``after_ms <= eta <= before_ms``."""
        # a bound that bounds nothing would be looked up row by row, in the order of the etas
        low = after_ms if after_ms > 0 else None
        high = before_ms + 1 if before_ms < LAST_MS else None
        chosen = self._cold(shard, states, func.count()).where(_within(payload.c.eta_ms, low, high))
        with self.database.reading() as connection:
            return int(connection.scalar(chosen) or 0)

    def due_between(self, shard: int, bounds: Sequence[int]) -> list[int]:
        """How many cold, not held, are due before, between and from *bounds* on, in ms."""
        eta = payload.c.eta_ms
        lows, highs = [None, *bounds], [*bounds, None]
        sums = [
            func.sum(case((_within(eta, low, high), 1), else_=0))
            for low, high in zip(lows, highs, strict=True)
        ]
        counts: list[int] = []
        with self.database.reading() as connection:
            # a statement has a limit of columns; each reads the index of the cold once
            for start in range(0, len(sums), 200):
                some = self._cold(shard, [State.SCHEDULED], *sums[start : start + 200])
                counts += [int(one or 0) for one in connection.execute(some).one()]
        return counts

    def _cold(self, shard: int, states: Collection[State], *columns: Any) -> Any:
        chosen = select(*columns) if columns else select(payload)
        return chosen.select_from(payload).where(
            payload.c.shard == shard,
            payload.c.tier == COLD,
            payload.c.state.in_(sorted(one.value for one in states)),
        )


def position_id(database: Database) -> ColumnElement[Any]:
    """The task id as it takes part in the order of positions.

    Redis compares ids byte by byte, and so do our tables everywhere but in PostgreSQL.
    """
    is_postgres = database.url.get_backend_name() == "postgresql"
    return collate(payload.c.task_id, "C") if is_postgres else payload.c.task_id


def _within(column: Any, low: int | None, high: int | None) -> Any:
    conditions = []
    if low is not None:
        conditions.append(column >= low)
    if high is not None:
        conditions.append(column < high)
    return and_(true(), *conditions)
