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

from sqlalchemy import ColumnElement, Connection, Subquery, func, select, text

from celery_delay.audit import version
from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import fit_id
from celery_delay.audit.recent import recent_past
from celery_delay.audit.tables import entry, event, tag, task
from celery_delay.audit.which import everyone, page, starts, tagged, which
from celery_delay.domain.answers import RecentPast, RunRow
from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.filters import STORED
from celery_delay.domain.states import State
from celery_delay.exceptions import SchemaOutdated

__all__ = ["AuditQueries", "RunRow", "SchemaState", "TaskRow"]


#: An entry in one of these is in the store, or should be.
_WAITING = [one.value for one in (*STORED, State.LOST)]
#: The clock in ms, by kind of server.
_CLOCKS = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp()) * 1000",
    "mysql": "SELECT unix_timestamp(sysdate(3)) * 1000",
    "mariadb": "SELECT unix_timestamp(sysdate(3)) * 1000",
}


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
            if not version.has_tables(connection):
                return SchemaState("missing", None)
            uuid = version.read_uuid(connection)
            try:
                current = version.is_current(connection)
            except SchemaOutdated:
                return SchemaState("newer", uuid)
            return SchemaState("current" if current else "outdated", uuid)

    def require(self) -> None:
        """Make sure that the tables are those of this release.

        Raises:
            SchemaOutdated: they are not.
        """
        with self._reading():
            pass

    def oldest_ms(self, shards: int) -> int | None:
        """When the oldest transition that is kept happened; ``None`` for none.

        By the events' key, shard by shard: as quick on a table of any size.
        """
        order = (event.c.epoch, event.c.stream_ms, event.c.stream_seq, event.c.position)
        with self._reading() as connection:
            found = [
                connection.scalar(
                    select(event.c.at_ms).where(event.c.shard == one).order_by(*order).limit(1)
                )
                for one in range(shards)
            ]
        return min((one for one in found if one is not None), default=None)

    def clock_ms(self) -> int | None:
        """The database server's clock; ``None`` for SQLite, which has none of its own."""
        words = _CLOCKS.get(self.database.url.get_backend_name())
        if words is None:
            return None
        with self.database.reading() as connection:
            return int(connection.scalar(text(words)))

    def autovacuum(self) -> bool | None:
        """Whether PostgreSQL tidies its tables by itself; ``None`` for other databases."""
        if self.database.url.get_backend_name() != "postgresql":
            return None
        with self.database.reading() as connection:
            return str(connection.scalar(text("SHOW autovacuum"))) == "on"

    def tasks(
        self,
        *,
        states: Sequence[str],
        name: str | None = None,
        pattern: str | None = None,
        queue: str | None = None,
        namespace: str | None = None,
        tags: Sequence[str] = (),
        after_ms: int | None = None,
        before_ms: int | None = None,
        latest_first: bool = False,
        limit: int = 100,
        behind: tuple[int, str] | None = None,
    ) -> list[TaskRow]:
        """Tasks whose latest run is in one of *states*, by eta, and those of one eta by id.

        Arguments:
            name, queue, namespace: exactly this one; a queue with all its priorities.
            pattern: a shell pattern of names; tasks of other names may be among those found.
            tags: any run of it has had all of these.
            after_ms, before_ms: bounds of the eta; a task without one is then left out.
            behind: eta and id of the last task of the page before.
        """
        with self._reading() as connection:
            begin = starts(connection, states, name, queue, namespace)
            conditions = which(name, pattern, queue, namespace, after_ms, before_ms)
            conditions += tagged(connection, tags)
            query = page(_TASK, begin, conditions, latest_first, limit, behind)
            return [TaskRow(*row) for row in connection.execute(query)]

    def labels(self, task_ids: Sequence[str]) -> dict[str, tuple[str | None, list[str]]]:
        """Namespace and tags of those of *task_ids* that are known; the tags of all their runs."""
        found: dict[str, tuple[str | None, list[str]]] = {}
        with self._reading() as connection:
            for some in parts(task_ids):
                spaces = select(task.c.task_id, task.c.namespace).where(task.c.task_id.in_(some))
                found |= {one: (namespace, []) for one, namespace in connection.execute(spaces)}
                tags = select(tag.c.task_id, tag.c.tag).where(tag.c.task_id.in_(some))
                for one, name in connection.execute(tags.order_by(tag.c.task_id, tag.c.tag)):
                    found.setdefault(one, (None, []))[1].append(name)
        return found

    def number(self, **asked: Any) -> int:
        """How many tasks there are; arguments as for :meth:`tasks`, without a pattern."""
        with self._reading() as connection:
            found = self._everyone(connection, task.c.task_id, **asked)
            return connection.scalar(select(func.count()).select_from(found)) or 0

    def numbers(self, **asked: Any) -> list[tuple[str | None, int]]:
        """How many tasks there are of each name; arguments as for :meth:`tasks`."""
        with self._reading() as connection:
            found = self._everyone(connection, task.c.name, **asked)
            query = select(found.c.name, func.count()).group_by(found.c.name)
            return [(row[0], row[1]) for row in connection.execute(query)]

    def _everyone(
        self,
        connection: Connection,
        column: ColumnElement[Any],
        *,
        states: Sequence[str],
        queue: str | None,
        namespace: str | None,
        tags: Sequence[str],
        after_ms: int | None,
        before_ms: int | None,
        name: str | None = None,
        pattern: str | None = None,
    ) -> Subquery:
        begin = starts(connection, states, name, queue, namespace)
        conditions = which(name, pattern, queue, namespace, after_ms, before_ms)
        return everyone(column, begin, [*conditions, *tagged(connection, tags)])

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

    def over(self, entry_ids: Sequence[EntryId]) -> set[EntryId]:
        """Those of *entry_ids* that do not wait any more: handed off, or ended before that.

        One that was lost is not among them.
        """
        found: set[EntryId] = set()
        for part in parts(entry_ids):
            some = [fit_id(one.task_id) for one in part]
            query = select(entry.c.task_id, entry.c.run).where(
                entry.c.task_id.in_(some), entry.c.state.not_in(_WAITING)
            )
            with self._reading() as connection:
                found.update(EntryId(*row) for row in connection.execute(query))
        return {one for one in entry_ids if EntryId(fit_id(one.task_id), one.run) in found}

    def recent(self, shards: int, since_ms: int) -> RecentPast:
        """What has happened since then, or later: see :mod:`celery_delay.audit.recent`."""
        with self._reading() as connection:
            return recent_past(connection, shards, since_ms)

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
            if not version.is_current(connection):
                found = version.has_tables(connection)
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
