"""The rows of entries that SQL backs: read, and changed by compare-and-set.

A change locks its rows, in the order of their ids, and compares them with what its caller has
seen.  So of two who change the same row one comes second, sees that, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Update,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from celery_delay.audit.clocks import clock_of
from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import cursor, entry, epoch, payload
from celery_delay.domain.backing import COLD, HOT, OVER, UNREADABLE, BackedRow
from celery_delay.domain.entries import EntryId
from celery_delay.domain.sealing import Seal
from celery_delay.domain.states import State
from celery_delay.exceptions import (
    AlreadyScheduled,
    AuditUnavailable,
    OutcomeUnknown,
    PayloadUnreadable,
)

__all__ = ["SQLBackedRows"]

#: States of the audit in which an entry must not be in Redis (any more).
_ENDED = tuple(
    one.value for one in State if one.rank >= State.EXPIRED.rank and one is not State.LOST
)
_HIGHEST = 2**31 - 1
_KEY = and_(payload.c.task_id == bindparam("key_task_id"), payload.c.run == bindparam("key_run"))
_SAME = and_(_KEY, payload.c.version == bindparam("key_version"))


class SQLBackedRows:
    """See :class:`celery_delay.domain.mirrors.BackedRows`.  Safe for threads and across a fork.

    Arguments:
        seal: what the records are sealed with; without, they are written plain.
    """

    def __init__(self, database: Database, seal: Seal | None = None) -> None:
        self.database = database
        self._seal = seal or Seal()

    def clock_ms(self) -> int:
        """See the port."""
        with self.database.reading() as connection:
            return clock_of(connection)

    def insert(self, rows: Sequence[BackedRow]) -> None:
        """See the port; ValueError about a task id that no column takes.

        OutcomeUnknown: the connection broke, perhaps amid the commit, and nobody can be asked.
        """
        try:
            with self.database.writing() as connection:
                self.insert_by(connection, rows)
        except AuditUnavailable as exc:
            cause, ids = exc.__cause__, [one.entry_id for one in rows]
            if isinstance(cause, IntegrityError):
                there = next(iter(self.some(ids)), ids[0])
                raise AlreadyScheduled(there.task_id) from exc
            lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
            if not lost or not self._are_there(ids, exc):
                raise

    def _are_there(self, entry_ids: Sequence[EntryId], exc: AuditUnavailable) -> bool:
        """Whether a transaction was committed whose connection broke."""
        try:
            return len(self.some(entry_ids)) == len(entry_ids)
        except AuditUnavailable:
            raise OutcomeUnknown(entry_ids[0], str(exc)) from exc

    def insert_by(self, connection: Connection, rows: Sequence[BackedRow]) -> None:
        """:meth:`insert` in the transaction of *connection*, whose errors are the driver's."""
        connection.execute(insert(payload), self.new_values(rows))

    def new_values(self, rows: Sequence[BackedRow]) -> list[dict[str, Any]]:
        """New rows as the table takes them, in the order in which everybody writes them.

        Raises:
            ValueError: a task id that no column takes.
        """
        for one in rows:
            task_id = one.entry_id.task_id
            if fit_id(task_id) != task_id:
                text = repr(task_id[:300])
                raise ValueError(f"the task id {text} cannot be kept in SQL: use a shorter one")
        return [self.values_of(one) for one in _sorted(rows)]

    def read(self, task_id: str) -> BackedRow | None:
        """See the port."""
        chosen = select(payload).where(payload.c.task_id == fit_id(task_id))
        with self.database.reading() as connection:
            found = connection.execute(chosen.order_by(payload.c.run.desc()).limit(1)).first()
        return self._row(found) if found else None

    def some(self, entry_ids: Sequence[EntryId]) -> dict[EntryId, BackedRow]:
        """See the port."""
        with self.database.reading() as connection:
            return self._some(connection, entry_ids)

    def change(self, pairs: Sequence[tuple[BackedRow, BackedRow]]) -> list[BackedRow]:
        """See the port.  What Redis was seen to have since stays."""
        return self.database.write(lambda one: self._change(one, pairs)) if pairs else []

    def confirm(self, rows: Sequence[BackedRow]) -> None:
        """See the port."""
        values = {"seen": payload.c.version, "look_ms": None}
        self._each(update(payload).where(_SAME, payload.c.tier != OVER).values(values), rows)

    def look_again(self, rows: Sequence[BackedRow]) -> None:
        """See the port."""
        same = update(payload).where(_SAME, payload.c.tier != OVER)
        self._each(same.values(look_ms=bindparam("key_look")), rows)

    def forget(self, rows: Sequence[BackedRow]) -> None:
        """See the port."""
        self._each(delete(payload).where(_SAME), rows)

    def to_look_at(self, shard: int, after_ms: int, before_ms: int, limit: int) -> list[BackedRow]:
        """See the port."""
        look = payload.c.look_ms.between(after_ms, before_ms)
        chosen = select(payload).where(payload.c.shard == shard, look)
        return self._rows(chosen.order_by(payload.c.look_ms).limit(limit))

    def hot(self, shard: int, after: EntryId | None, limit: int) -> list[BackedRow]:
        """See the port."""
        wanted: list[ColumnElement[bool]] = [payload.c.shard == shard, payload.c.tier == HOT]
        if after is not None:
            task_id, run = payload.c.task_id, payload.c.run
            later = and_(task_id == after.task_id, run > after.run)
            wanted.append((task_id > after.task_id) | later)
        chosen = select(payload).where(*wanted).order_by(payload.c.task_id, payload.c.run)
        return self._rows(chosen.limit(limit))

    def latest(
        self, shard: int, after_ms: int, behind: tuple[int, str] | None, limit: int
    ) -> list[BackedRow]:
        """See the port."""
        eta, task_id = payload.c.eta_ms, payload.c.task_id
        wanted = [
            payload.c.shard == shard,
            payload.c.tier == HOT,
            eta > after_ms,
            payload.c.look_ms.is_(None),
        ]
        if behind is not None:
            wanted += [eta <= behind[0], (eta < behind[0]) | (task_id < behind[1])]
        chosen = select(payload).where(*wanted).order_by(eta.desc(), task_id.desc())
        return self._rows(chosen.limit(limit), in_order=True)

    def count_cold(self, shard: int) -> int:
        """See the port."""
        chosen = select(func.count()).select_from(payload)
        with self.database.reading() as connection:
            found = connection.scalar(
                chosen.where(payload.c.shard == shard, payload.c.tier == COLD)
            )
        return int(found or 0)

    def has_any(self, shard: int) -> bool:
        """See the port."""
        chosen = select(payload.c.task_id).where(payload.c.shard == shard).limit(1)
        with self.database.reading() as connection:
            return connection.scalar(chosen) is not None

    def over(self, entry_ids: Sequence[EntryId]) -> dict[EntryId, int]:
        """See the port.  Of an entry without a row, the audit knows whether it has ended."""
        with self.database.reading() as connection:
            rows = self._some(connection, entry_ids)
            ended = _ended(connection, [one for one in entry_ids if one not in rows])
        found = {one: row.version for one, row in rows.items() if row.tier != HOT}
        return found | dict.fromkeys(ended, _HIGHEST)

    def begin_epoch(self, shard: int, at_least: int, now_ms: int) -> int:
        """See the port."""

        def begin(connection: Connection) -> int:
            known = [
                connection.scalar(select(func.max(one.c.epoch)).where(one.c.shard == shard)) or 0
                for one in (epoch, cursor)
            ]
            number = max(max(known) + 1, at_least, now_ms)
            row = {"shard": shard, "epoch": number, "first_ms": now_ms}
            connection.execute(insert(epoch), row)
            return number

        return self.database.write(begin)

    # -- parts --------------------------------------------------------------------------

    def _each(self, statement: Update | Delete, rows: Sequence[BackedRow]) -> None:
        if rows:
            given = [
                {**_key(one), "key_version": one.version, "key_look": one.look_ms}
                for one in _sorted(rows)
            ]
            self.database.write(lambda one: one.execute(statement, given) and None)

    def _change(
        self, connection: Connection, pairs: Sequence[tuple[BackedRow, BackedRow]]
    ) -> list[BackedRow]:
        there = self._some(connection, [seen.entry_id for seen, _ in pairs], lock=True)
        same = [
            (seen, wanted._replace(seen=max(wanted.seen, there[seen.entry_id].seen)))
            for seen, wanted in pairs
            if seen.entry_id in there and _state(there[seen.entry_id]) == _state(seen)
        ]
        # a message that stays is not written again
        for is_new in (False, True):
            rows = [new for old, new in same if (old.record != new.record) is is_new]
            if rows:
                connection.execute(_UPDATES[is_new], [self._changes(one, is_new) for one in rows])
        return [wanted for _, wanted in same]

    def _changes(self, row: BackedRow, with_record: bool) -> dict[str, Any]:
        values = self.values_of(row if with_record else row._replace(record=b""))
        return {**_key(row), **{f"new_{name}": values[name] for name in _NAMES}} | (
            {"new_record": values["record"]} if with_record else {}
        )

    def _some(
        self, connection: Connection, entry_ids: Sequence[EntryId], *, lock: bool = False
    ) -> dict[EntryId, BackedRow]:
        found: dict[EntryId, BackedRow] = {}
        for some in parts(sorted({one.task_id for one in entry_ids})):
            chosen = select(payload).where(payload.c.task_id.in_(some))
            if lock:
                chosen = chosen.order_by(payload.c.task_id, payload.c.run).with_for_update()
            rows = map(self._row, connection.execute(chosen))
            found.update((one.entry_id, one) for one in rows)
        return {one: found[one] for one in entry_ids if one in found}

    def _rows(self, chosen: Any, *, in_order: bool = False) -> list[BackedRow]:
        """The rows; *in_order*: a page of what an index has in that order."""
        connect = self.database.paging if in_order else self.database.reading
        with connect() as connection:
            return [self._row(one) for one in connection.execute(chosen)]

    def _row(self, found: Any) -> BackedRow:
        values = dict(found._mapping)
        entry_id = EntryId(values.pop("task_id"), values.pop("run"))
        values["state"], record = State(values["state"]), bytes(values["record"])
        try:
            values["record"] = self._seal.open(record) if record else b""
        except PayloadUnreadable as exc:
            values["record"] = UNREADABLE + str(exc).encode()
        return BackedRow(entry_id=entry_id, **values)

    def values_of(self, row: BackedRow) -> dict[str, Any]:
        """A row as the table takes it."""
        if row.record.startswith(UNREADABLE):
            raise AuditUnavailable(row.record[len(UNREADABLE) :].decode())
        values = row._asdict()
        task_id, run = values.pop("entry_id")
        record = self._seal.seal(row.record) if row.record else b""
        return {**values, "task_id": task_id, "run": run, "state": row.state.value} | {
            "record": record
        }


_NAMES = [one.name for one in payload.c if not one.primary_key and one.name != "record"]
#: By whether the record is written too.
_UPDATES = {
    with_record: update(payload).where(_KEY).values({one: bindparam(f"new_{one}") for one in names})
    for with_record, names in ((False, _NAMES), (True, [*_NAMES, "record"]))
}


def _state(row: BackedRow) -> tuple[object, ...]:
    return row.version, row.state, row.tier


def _ended(connection: Connection, entry_ids: Sequence[EntryId]) -> list[EntryId]:
    wanted = {(fit_id(one.task_id), one.run): one for one in entry_ids}
    ended: list[EntryId] = []
    for some in parts(sorted({task_id for task_id, _ in wanted})):
        chosen = select(entry.c.task_id, entry.c.run).where(
            entry.c.task_id.in_(some), entry.c.state.in_(_ENDED)
        )
        found = [(one.task_id, one.run) for one in connection.execute(chosen)]
        ended += [wanted[one] for one in found if one in wanted]
    return ended


def _key(row: BackedRow) -> dict[str, Any]:
    return {"key_task_id": row.entry_id.task_id, "key_run": row.entry_id.run}


def _sorted(rows: Iterable[BackedRow]) -> list[BackedRow]:
    # in one order, so that two who write the same rows do not wait for each other
    return sorted(rows, key=lambda one: one.entry_id)
