"""Which entries the audit believes to be waiting in the store."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, exists, or_, select, text, union_all

from celery_delay.audit.database import Database
from celery_delay.audit.lists import parts
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import IS_WAITING, entry, payload
from celery_delay.domain.backing import OVER
from celery_delay.domain.entries import EntryId
from celery_delay.domain.states import State

__all__ = ["SQLWaitingEntries"]

_WAITING = (State.SCHEDULED.value, State.HELD.value)
#: Of what SQL backs nothing is lost with Redis: the relay brings it back.
_UNBACKED = ~exists().where(
    payload.c.task_id == entry.c.task_id, payload.c.run == entry.c.run, payload.c.tier != OVER
)


class SQLWaitingEntries:
    """See :class:`celery_delay.domain.ports.WaitingEntries`; may raise AuditUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, after: EntryId | None, limit: int) -> list[EntryId]:
        """A page of waiting entries, in the order of their ids, behind *after*."""
        # state by state, as the index has them: so much as a page is read, and no more
        parts = [
            select(entry.c.task_id, entry.c.run)
            .where(entry.c.state == state, text(IS_WAITING), *_behind(after))
            .order_by(entry.c.task_id, entry.c.run)
            .limit(limit)
            .subquery()
            for state in _WAITING
        ]
        found = union_all(*(select(one.c.task_id, one.c.run) for one in parts)).subquery()
        chosen = select(found).order_by(found.c.task_id, found.c.run).limit(limit)
        with self._database.reading() as connection:
            return [EntryId(row.task_id, row.run) for row in connection.execute(chosen)]

    def still_waiting(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        """Those of *entry_ids* that are waiting still."""
        found: set[EntryId] = set()
        with self._database.reading() as connection:
            for part in parts(entry_ids):
                some = [fit_id(one.task_id) for one in part]
                rows = connection.execute(
                    select(entry.c.task_id, entry.c.run).where(
                        entry.c.task_id.in_(some), entry.c.state.in_(_WAITING), _UNBACKED
                    )
                )
                found.update(EntryId(row.task_id, row.run) for row in rows)
        return [one for one in entry_ids if EntryId(fit_id(one.task_id), one.run) in found]


def _behind(after: EntryId | None) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    # said so that every database begins to read there
    key, run = entry.c.task_id, entry.c.run
    return [key >= after.task_id, or_(key > after.task_id, run > after.run)]
