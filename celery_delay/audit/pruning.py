"""Deleting what nobody has to know any more: old tasks in batches, and one task by its id.

A batch is one short transaction.  Its candidates are found by an index, in the order of
their last change; then their rows are locked by their keys and looked at once more, so that a
task that has just changed stays whole.  A crash leaves whole tasks, or none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
)

from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import entry, event, metadata, task
from celery_delay.domain.events import GAP_ID
from celery_delay.domain.retention import ALIVE, GAP
from celery_delay.domain.states import State
from celery_delay.exceptions import StillAlive

__all__ = ["BATCH", "SQLPruning", "candidates"]

#: Tasks deleted in one transaction.
BATCH = 500

#: Tables with rows of tasks, those of ``task`` last: it is what is looked for.
_TABLES: list[Table] = [
    one for one in metadata.tables.values() if "task_id" in one.c and one is not task
] + [task]
_MAY_RUN = {State.DISPATCHED.value, State.STARTED.value, State.RETRIED.value}


class SQLPruning:
    """See :class:`celery_delay.domain.ports.PrunedLog`; may raise AuditUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prune(self, state: str, before_ms: int, limit: int = BATCH) -> int:
        """Delete tasks in *state* that nothing was told of since then; or GAP events.

        A task that may run yet must also have been due before.

        Returns:
            How many; fewer than *limit* when no more are left.
        """
        prune = _prune_gaps if state == GAP else partial(_prune, state=state)
        return self._database.write(lambda one: prune(one, before_ms=before_ms, limit=limit))

    def count(self, state: str, before_ms: int) -> int:
        """How many :meth:`prune` would delete in all."""
        if state == GAP:
            query = select(func.count()).select_from(event).where(_is_old_gap(before_ms))
        else:
            query = select(func.count()).select_from(task).where(_is_old(state, before_ms))
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)

    def forget(self, task_id: str, *, force: bool = False) -> bool:
        """Delete all rows of one task, in one transaction; whether there were any.

        Raises:
            StillAlive: it waits; or, unless *force*, its end is not known.
        """
        return self._database.write(lambda one: _forget(one, fit_id(task_id), force))


def candidates(state: str, before_ms: int, limit: int) -> Select[tuple[str]]:
    """The query for the ids of tasks that are old, the oldest first."""
    query = select(task.c.task_id).where(_is_old(state, before_ms))
    return query.order_by(task.c.updated_ms).limit(limit)


def _is_old(state: str, before_ms: int) -> ColumnElement[bool]:
    # a number, and not whether there is any: MariaDB would first gather all that wait
    waiting = select(func.count()).where(
        entry.c.task_id == task.c.task_id, entry.c.state.in_(sorted(ALIVE))
    )
    waits = waiting.correlate(task).scalar_subquery() > 0
    old = and_(task.c.state == state, task.c.updated_ms < before_ms, ~waits)
    if state in _MAY_RUN:
        # a worker may hold it until then
        old = and_(old, or_(task.c.eta_ms < before_ms, task.c.eta_ms.is_(None)))
    return old


def _is_old_gap(before_ms: int) -> ColumnElement[bool]:
    # by the index of task ids: all of them have this one, and few events are any
    return and_(event.c.task_id == GAP_ID, event.c.state == GAP, event.c.at_ms < before_ms)


def _prune_gaps(connection: Connection, before_ms: int, limit: int) -> int:
    key = list(event.primary_key.columns)
    found = connection.execute(select(*key).where(_is_old_gap(before_ms)).limit(limit)).all()
    if not found:
        return 0
    one = delete(event).where(*(column == bindparam(f"_{column.name}") for column in key))
    names = [f"_{column.name}" for column in key]
    connection.execute(one, [dict(zip(names, row, strict=True)) for row in found])
    return len(found)


def _prune(connection: Connection, state: str, before_ms: int, limit: int) -> int:
    found: list[str] = list(connection.scalars(candidates(state, before_ms, limit)))
    deleted = 0
    for some in parts(found):
        if ids := _still_old(connection, some, state, before_ms):
            _delete(connection, ids)
            deleted += len(ids)
    return deleted


def _still_old(
    connection: Connection, ids: Sequence[str], state: str, before_ms: int
) -> Sequence[str]:
    """Those of *ids* that are old now; they are locked, and cannot change before the end.

    Looked for by nothing but their keys: to lock a range of an index would hold up those who write
    to it, and a planner that knew more to look for would read more.
    """
    rows = connection.execute(
        select(task.c.task_id, task.c.state, task.c.updated_ms, task.c.eta_ms)
        .where(task.c.task_id.in_(ids))
        .with_for_update()
    ).all()
    found = select(entry.c.task_id, entry.c.state).where(entry.c.task_id.in_(ids))
    waiting = {row.task_id for row in connection.execute(found) if row.state in ALIVE}
    due = state in _MAY_RUN
    return [
        row.task_id
        for row in rows
        if row.state == state
        and row.updated_ms < before_ms
        and not (due and (row.eta_ms or 0) >= before_ms)
        and row.task_id not in waiting
    ]


def _forget(connection: Connection, task_id: str, force: bool) -> bool:
    query = select(entry.c.state).where(entry.c.task_id == task_id)
    states = {*connection.scalars(query)}
    if waiting := states & ALIVE:
        raise StillAlive(task_id, min(waiting))
    latest = connection.scalar(
        select(task.c.state).where(task.c.task_id == task_id).with_for_update()
    )
    if latest in _MAY_RUN and not force:
        raise StillAlive(task_id, latest)
    return _delete(connection, [task_id]) > 0


def _delete(connection: Connection, ids: Sequence[str]) -> int:
    return sum(
        connection.execute(delete(one).where(one.c.task_id.in_(ids))).rowcount for one in _TABLES
    )
