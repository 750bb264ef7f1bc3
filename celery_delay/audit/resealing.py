"""Payloads in SQL, sealed anew with the key of today, a page at a time."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import and_, bindparam, select, update

from celery_delay.audit.database import Database
from celery_delay.audit.tables import payload
from celery_delay.domain.entries import EntryId
from celery_delay.domain.sealing import Seal
from celery_delay.exceptions import PayloadUnreadable

__all__ = ["Page", "reseal"]

#: One that was changed since has another version, and the key of today.
_UPDATE = (
    update(payload)
    .where(
        payload.c.task_id == bindparam("key_task_id"),
        payload.c.run == bindparam("key_run"),
        payload.c.version == bindparam("key_version"),
    )
    .values(record=bindparam("new_record"))
)


class Page(NamedTuple):
    """What became of some rows, and the last of them; ``None``: there are no more."""

    resealed: int
    current: int
    unreadable: int
    last: EntryId | None


def reseal(database: Database, seal: Seal, after: EntryId | None, limit: int) -> Page:
    """Seal the records of at most *limit* rows behind *after* anew; one short transaction.

    What cannot be opened stays as it is.

    Raises:
        AuditUnavailable: nothing was changed.
    """
    task_id, run = payload.c.task_id, payload.c.run
    chosen = select(task_id, run, payload.c.version, payload.c.record)
    if after is not None:
        later = and_(task_id == after.task_id, run > after.run)
        chosen = chosen.where((task_id > after.task_id) | later)
    with database.reading() as connection:
        found = connection.execute(chosen.order_by(task_id, run).limit(limit)).all()
    new, unreadable = [], 0
    for one in found:
        record = bytes(one.record)
        if not record or seal.is_current(record):
            continue
        try:
            sealed = seal.reseal(record)
        except PayloadUnreadable:
            unreadable += 1
            continue
        key = {"key_task_id": one.task_id, "key_run": one.run, "key_version": one.version}
        new.append({**key, "new_record": sealed})
    if new:
        database.write(lambda connection: connection.execute(_UPDATE, new) and None)
    last = EntryId(found[-1].task_id, found[-1].run) if len(found) == limit else None
    return Page(len(new), len(found) - len(new) - unreadable, unreadable, last)
