"""Reading the audit back: which tasks, what became of them, and how far the story goes.

What is read is as old as the last drain; callers say so.  Nothing here writes, makes a
table, or creates an SQLite file.  Every method may raise AuditUnavailable, and
SchemaOutdated where the tables are not those of this release.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from celery_delay.audit import schema
from celery_delay.audit.database import Database
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import entry, event, task
from celery_delay.entries import EntryId, Event
from celery_delay.exceptions import SchemaOutdated

__all__ = ["AuditQueries", "RunRow", "SchemaState", "TaskRow"]


_PRIORITY = "\x06\x16"


class SchemaState(NamedTuple):
    """The database as it is: ``state`` is missing, outdated, current or newer."""

    state: str
    uuid: str | None


class TaskRow(NamedTuple):
    """A task as its latest run left it.  Instants are ms, UTC, by the store's clock."""

    task_id: str
    run: int
    version: int
    state: str
    name: str | None
    queue: str | None
    args: str | None
    kwargs: str | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    eta_ms: int | None
    created_ms: int
    updated_ms: int
    result: str | None
    error: str | None


class RunRow(NamedTuple):
    """One run of a task.  ``lag_ms`` is its dispatch minus its eta."""

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


_TASK = [
    task.c[{"args": "argsrepr", "kwargs": "kwargsrepr"}.get(name, name)] for name in TaskRow._fields
]
_RUN = [entry.c[name] for name in RunRow._fields]


class AuditQueries:
    """Questions to the audit database.

    Arguments:
        database: may be shared with an :class:`~celery_delay.audit.log.SQLAuditLog`.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def schema(self) -> SchemaState:
        """Which tables the database has; answers for every database that can be reached."""
        if self._has_no_file():
            return SchemaState("missing", None)
        with self.database.reading() as connection:
            if not schema.has_tables(connection):
                return SchemaState("missing", None)
            uuid = schema.read_uuid(connection)
            try:
                current = schema.is_current(connection)
            except SchemaOutdated:
                return SchemaState("newer", uuid)
            return SchemaState("current" if current else "outdated", uuid)

    def tasks(
        self,
        *,
        states: Sequence[str],
        name: str | None = None,
        queue: str | None = None,
        after_ms: int | None = None,
        before_ms: int | None = None,
        latest_first: bool = False,
        limit: int = 100,
    ) -> list[TaskRow]:
        """Tasks whose latest run is in one of *states*, by eta.

        Arguments:
            name, queue: exactly this one; a queue with all its priorities.
            after_ms, before_ms: bounds of the eta; a task without one is then left out.
        """
        wanted: list[ColumnElement[bool]] = [task.c.state.in_(list(states))]
        if name is not None:
            wanted.append(task.c.name == name)
        if queue is not None:
            # a list of another priority than the first has a suffix of kombu's
            suffixed = task.c.queue.startswith(queue + _PRIORITY, autoescape=True)
            wanted.append(or_(task.c.queue == queue, suffixed))
        if after_ms is not None:
            wanted.append(task.c.eta_ms >= after_ms)
        if before_ms is not None:
            wanted.append(task.c.eta_ms <= before_ms)
        order: list[ColumnElement[Any]] = [task.c.eta_ms, task.c.task_id]
        if latest_first:
            order = [one.desc() for one in order]
        with self._reading() as connection:
            query = select(*_TASK).where(and_(*wanted)).order_by(*order).limit(limit)
            return [TaskRow(*row) for row in connection.execute(query)]

    def task(self, task_id: str) -> TaskRow | None:
        """One task; ``None`` if the audit has not heard of it (yet)."""
        with self._reading() as connection:
            query = select(*_TASK).where(task.c.task_id == fit_id(task_id))
            row = connection.execute(query).one_or_none()
        return TaskRow(*row) if row is not None else None

    def counts(self) -> dict[str, int]:
        """How many tasks are in each state; a state without any is left out."""
        with self._reading() as connection:
            query = select(task.c.state, func.count()).group_by(task.c.state)
            return {row.state: row[1] for row in connection.execute(query)}

    def runs(self, task_id: str) -> list[RunRow]:
        """All runs of a task, the first one first."""
        with self._reading() as connection:
            query = select(*_RUN).where(entry.c.task_id == fit_id(task_id)).order_by(entry.c.run)
            return [RunRow(*row) for row in connection.execute(query)]

    def events(self, task_id: str) -> list[Event]:
        """All transitions of a task, of all its runs, in the journal's order."""
        order = (event.c.epoch, event.c.stream_ms, event.c.stream_seq, event.c.position)
        with self._reading() as connection:
            query = select(event).where(event.c.task_id == fit_id(task_id)).order_by(*order)
            return [_event(row) for row in connection.execute(query)]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._has_no_file():
            raise SchemaOutdated(self._remedy("do not exist yet"))
        with self.database.reading() as connection:
            if not schema.is_current(connection):
                found = schema.has_tables(connection)
                raise SchemaOutdated(
                    self._remedy("are of an older release" if found else "do not exist yet")
                )
            yield connection

    def _remedy(self, fault: str) -> str:
        return (
            f"the audit tables in {self.database} {fault}: run `celery -A proj delay migrate`"
            + (" (a leading beat does so by itself)" if self.database.is_sqlite else "")
        )

    def _has_no_file(self) -> bool:
        """Whether connecting would create an SQLite file, which then has the wrong owner."""
        path = self.database.url.database or ""
        return self.database.is_sqlite and not path.startswith("file:") and not os.path.exists(path)


def _event(row: Any) -> Event:
    return Event(
        row.shard,
        row.epoch,
        f"{row.stream_ms}-{row.stream_seq}",
        row.position,
        row.state,
        EntryId(row.task_id, row.run),
        row.version,
        row.at_ms,
        row.eta_ms,
        json.loads(row.data),
    )
