"""The rows that belong into Redis, by position: what is compared of them, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select

from celery_delay.audit.cold import position_id
from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import payload
from celery_delay.domain.backing import HOT
from celery_delay.domain.entries import EntryId
from celery_delay.domain.states import State

__all__ = ["RowKey", "SQLComparable"]

#: Rows of one read.
_PAGE = 1_000
_COLUMNS = [payload.c[one] for one in ("task_id", "run", "version", "eta_ms", "state", "look_ms")]
_OPEN = (State.SCHEDULED.value, State.HELD.value)


class RowKey(NamedTuple):
    """What is compared of a row; *is_settled*: nobody has to look at it any more."""

    task_id: str
    run: int
    version: int
    eta_ms: int
    state: str
    is_settled: bool

    @property
    def entry_id(self) -> EntryId:
        """Its entry's identity."""
        return EntryId(self.task_id, self.run)


class SQLComparable:
    """Reading hot rows in the store's order.  Every method may raise AuditUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._id = position_id(database)

    def count(self, shard: int) -> int:
        """How many rows belong into Redis."""
        chosen = select(func.count()).select_from(payload).where(self._hot(shard))
        with self._database.reading() as connection:
            return int(connection.scalar(chosen) or 0)

    def between(
        self, shard: int, after: tuple[int, str], until: tuple[int, str] | None
    ) -> Iterator[RowKey]:
        """Those behind *after*, up to and with *until*, page by page."""
        eta, task_id = payload.c.eta_ms, self._id
        while True:
            chosen = select(*_COLUMNS).where(
                self._hot(shard),
                eta >= after[0],
                or_(eta > after[0], task_id > after[1]),
            )
            if until is not None:
                chosen = chosen.where(eta <= until[0], or_(eta < until[0], task_id <= until[1]))
            with self._database.paging() as connection:
                page = connection.execute(chosen.order_by(eta, task_id).limit(_PAGE)).all()
            for row in page:
                yield _key(row)
            if len(page) < _PAGE:
                return
            after = page[-1].eta_ms, page[-1].task_id

    def some(self, task_ids: Collection[str]) -> dict[EntryId, RowKey]:
        """The hot rows of these tasks."""
        wanted = sorted({fit_id(one) for one in task_ids})
        found: dict[EntryId, RowKey] = {}
        for some in parts(wanted):
            chosen = select(*_COLUMNS).where(
                payload.c.task_id.in_(some),
                payload.c.tier == HOT,
                payload.c.state.in_(_OPEN),
            )
            with self._database.reading() as connection:
                for row in connection.execute(chosen):
                    found[EntryId(row.task_id, row.run)] = _key(row)
        return found

    @staticmethod
    def _hot(shard: int) -> ColumnElement[bool]:
        return and_(payload.c.shard == shard, payload.c.tier == HOT, payload.c.state.in_(_OPEN))


def _key(row: Any) -> RowKey:
    return RowKey(row.task_id, row.run, row.version, row.eta_ms, row.state, row.look_ms is None)
