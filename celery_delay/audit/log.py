"""The audit log: what the journal says, written to SQL exactly once.

A batch is one transaction.  It begins by moving the shard's cursor from where the drainer
believes it to be; whoever comes second finds it elsewhere and writes nothing.  That row
also serves as the lock under which the batch's events are compared with those in the table:
after a crash, or in a new Redis history, the same stretch of the journal is read again.

A crash before the commit leaves nothing; a crash after it leaves the journal untrimmed,
and its events are recognised when they come again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlalchemy import URL, Connection, and_, or_, select, update

from celery_delay.audit import version
from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import (
    Row,
    event_row,
    fit_id,
    fold,
    is_storable,
    stream_numbers,
    tags,
)
from celery_delay.audit.rows import insert_absent, insert_rows, merge_rows
from celery_delay.audit.settling import settle
from celery_delay.audit.tables import cursor, entry, epoch, event, tag, task
from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.ports import Ending, JournalPosition
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import State
from celery_delay.exceptions import SchemaOutdated

__all__ = ["SQLAuditLog"]

logger = logging.getLogger(__name__)

_ENDED = {one.value for one in State if one.ended_before_dispatch}
_REVOKED = State.REVOKED.value
_ROW_KEY = ("epoch", "stream_ms", "stream_seq", "position")


class SQLAuditLog:
    """The audit log in a database; see :class:`celery_delay.domain.ports.AuditLog`.

    Every method may raise AuditUnavailable.  Safe for threads and across a fork.

    Arguments:
        database: an SQLAlchemy URL, or a :class:`Database` to share.
    """

    def __init__(self, database: str | URL | Database) -> None:
        self.database = database if isinstance(database, Database) else Database(database)

    @classmethod
    def of(cls, settings: Settings) -> SQLAuditLog:
        """The log in the database that the settings name; raises InvalidSetting."""
        return cls(Database.of(settings))

    # -- the schema ---------------------------------------------------------------------

    def prepare(self) -> str:
        """See :meth:`celery_delay.domain.ports.AuditLog.prepare`."""
        with self.database.reading() as connection:
            if version.is_current(connection):
                uuid = version.read_uuid(connection)
                if uuid is not None:
                    return uuid
        if not self.database.is_sqlite:
            raise SchemaOutdated(
                f"the audit tables in {self.database} are missing or of an older release:"
                " run `celery -A proj delay migrate`"
            )
        return self.migrate()

    def migrate(self, adopt: str | None = None) -> str:
        """Make the tables, or bring them to this release's version; the database's uuid.

        Safe to repeat.

        Arguments:
            adopt: the uuid under which a store knows its audit database (its ``audit_id``).
                The database bears it from now on, and a store that owned it before will
                find it foreign.
        """
        from celery_delay.audit import schema  # loads Alembic, which nothing else here needs

        if self.database.is_sqlite:
            self.database.use_wal()
        with self.database.migrating() as connection:
            uuid = schema.upgrade(connection)
            if adopt is not None and adopt != uuid:
                schema.adopt(connection, adopt)
                uuid = adopt
        return uuid

    def uuid(self) -> str | None:
        """The database's uuid; ``None`` if it has no tables of ours."""
        with self.database.reading() as connection:
            known = version.has_tables(connection)
            return version.read_uuid(connection) if known else None

    # -- the journal --------------------------------------------------------------------

    def position(self, shard: int, epoch: int) -> JournalPosition:
        """See :meth:`celery_delay.domain.ports.AuditLog.position`.

        Where the table already has a higher epoch, that one's position is told: the
        caller's Redis history is older than what was audited.
        """
        with self.database.reading() as connection:
            found = connection.execute(
                select(cursor.c.epoch, cursor.c.last_id).where(cursor.c.shard == shard)
            ).one_or_none()
        if found is None or found.epoch < epoch:
            return JournalPosition(shard, epoch, "0")
        return JournalPosition(shard, found.epoch, found.last_id)

    def highest_epoch(self, shard: int) -> int:
        """The highest epoch of *shard* that was audited; 0 for none."""
        with self.database.reading() as connection:
            found = connection.scalar(select(cursor.c.epoch).where(cursor.c.shard == shard))
        return found or 0

    def take(
        self, expected: JournalPosition, events: Sequence[Event], last_id: str
    ) -> list[Ending] | None:
        """See :meth:`celery_delay.domain.ports.AuditLog.take`.

        An event that no table can hold is left out, and said: it must not keep all the
        others from being drained.
        """
        sound = [one for one in events if is_storable(one)]
        if len(sound) < len(events):
            logger.error(
                "left %d unreadable events of the journal out of the audit",
                len(events) - len(sound),
                extra={"event": "events_unreadable"},
            )
            events = sound
        return self.database.write(lambda one: _take(one, expected, events, last_id))

    def close(self) -> None:
        """Close this process' connections."""
        self.database.close()


def _take(
    connection: Connection, expected: JournalPosition, events: Sequence[Event], last_id: str
) -> list[Ending] | None:
    """One batch, within a transaction that may be repeated."""
    if not _advance(connection, expected, events, last_id):
        return None
    rows = _unseen(connection, expected.shard, events)
    if rows:
        insert_rows(connection, event, map(event_row, rows))
        _fold(connection, rows)
        if labelled := tags(rows):
            insert_absent(connection, tag, *labelled)
        settle(connection, rows)
    return list(_endings(connection, events))


def _advance(
    connection: Connection, expected: JournalPosition, events: Sequence[Event], last_id: str
) -> bool:
    """Compare-and-set of the cursor, which never goes back; also the lock of its shard."""
    shard, now, before = expected
    values: Row = {"epoch": now, "last_id": before}
    if stream_numbers(last_id) > stream_numbers(before):
        values["last_id"] = last_id
        if events:
            values["at_ms"] = events[-1].at_ms
    here = and_(cursor.c.epoch == now, cursor.c.last_id == before)
    if before == "0":
        here = or_(here, cursor.c.epoch < now)
    move = update(cursor).where(cursor.c.shard == shard, here).values(values)
    moved = connection.execute(move).rowcount
    if not moved and before == "0":
        # perhaps the shard has no row yet; an insert could not say whether it did anything
        none = {"shard": shard, "epoch": -1, "last_id": "0", "at_ms": 0}
        insert_absent(connection, cursor, none)
        moved = connection.execute(move).rowcount
    if not moved:
        return False
    if before == "0":
        seen = {"shard": shard, "epoch": now, "first_ms": events[0].at_ms if events else now}
        insert_absent(connection, epoch, seen)
    return True


def _unseen(connection: Connection, shard: int, events: Sequence[Event]) -> list[Event]:
    """Those of *events*, which are one stretch of the journal, that the table has not."""
    keyed = {(one.epoch, *stream_numbers(one.stream_id), one.position): one for one in events}
    for number in {key[0] for key in keyed}:
        instants = [key[1] for key in keyed if key[0] == number]
        there = connection.execute(
            select(*(event.c[name] for name in _ROW_KEY)).where(
                event.c.shard == shard,
                event.c.epoch == number,
                event.c.stream_ms.between(min(instants), max(instants)),
            )
        )
        for key in there:
            keyed.pop(tuple(key), None)
    return list(keyed.values())


def _fold(connection: Connection, events: Sequence[Event]) -> None:
    """Bring entries and tasks to what *events* say; the memory for it is free again after it."""
    entries, tasks = fold(events, _known_runs(connection, events))
    merge_rows(connection, entry, entries)
    merge_rows(connection, task, tasks)


def _known_runs(connection: Connection, events: Iterable[Event]) -> dict[str, int]:
    """The runs in the table of the tasks whose events could not name theirs."""
    nameless = {fit_id(one.entry_id.task_id) for one in events if not one.entry_id.run}
    return {
        row.task_id: row.run
        for some in parts(sorted(nameless))
        for row in connection.execute(
            select(task.c.task_id, task.c.run).where(task.c.task_id.in_(some))
        )
    }


def _endings(connection: Connection, events: Iterable[Event]) -> Iterator[Ending]:
    """The ended entries among *events*, unless the table knows better by now.

    A result belongs to the task id, not to the run, so that an ending which a later run or
    a hand-off has overtaken must not write one.  REVOKED ends one too, where no worker says so
    but who took the message off its queue.
    """
    ends = [one for one in events if _is_ending(one)]
    ended = {fit_id(one.entry_id.task_id): one.entry_id for one in ends}
    states = sorted({*_ENDED, *(one.state for one in ends)})
    for some in parts(sorted(ended)):
        for row in connection.execute(
            select(task.c.name, entry)
            .join(entry, and_(entry.c.task_id == task.c.task_id, entry.c.run == task.c.run))
            .where(task.c.task_id.in_(some), entry.c.state.in_(states))
        ):
            yield Ending(
                EntryId(ended[row.task_id].task_id, row.run),
                State(row.state),
                row.name or "",
                row.group_id,
                row.group_index,
                json.loads(row.chord) if row.chord else None,
                bool(row.ignore_result),
                row.error or "",
            )


def _is_ending(event: Event) -> bool:
    if event.state in _ENDED:
        return True
    taken = event.state == _REVOKED and isinstance(event.data, Mapping)
    return taken and event.data.get("taken") is True
