"""Which entries the audit believes to be waiting in the store."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, or_, select

from celery_delay.audit.database import Database
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import entry
from celery_delay.entries import EntryId
from celery_delay.states import State

__all__ = ["SQLWaitingEntries"]

_WAITING = (State.SCHEDULED.value, State.HELD.value)
#: Values in one IN (…); SQLite before 3.32 takes 999 parameters.
_IN_LIMIT = 400


class SQLWaitingEntries:
    """See :class:`celery_delay.ports.WaitingEntries`; may raise AuditUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waiting(self, after: EntryId | None, limit: int) -> list[EntryId]:
        """A page of waiting entries, in the order of their ids, behind *after*."""
        chosen = select(entry.c.task_id, entry.c.run).where(entry.c.state.in_(_WAITING))
        if after is not None:
            chosen = chosen.where(
                or_(
                    entry.c.task_id > after.task_id,
                    and_(entry.c.task_id == after.task_id, entry.c.run > after.run),
                )
            )
        with self._database.reading() as connection:
            rows = connection.execute(chosen.order_by(entry.c.task_id, entry.c.run).limit(limit))
            return [EntryId(row.task_id, row.run) for row in rows]

    def still_waiting(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        """Those of *entry_ids* that are waiting still."""
        found: set[EntryId] = set()
        with self._database.reading() as connection:
            for start in range(0, len(entry_ids), _IN_LIMIT):
                some = [fit_id(one.task_id) for one in entry_ids[start : start + _IN_LIMIT]]
                rows = connection.execute(
                    select(entry.c.task_id, entry.c.run).where(
                        entry.c.task_id.in_(some), entry.c.state.in_(_WAITING)
                    )
                )
                found.update(EntryId(row.task_id, row.run) for row in rows)
        return [one for one in entry_ids if EntryId(fit_id(one.task_id), one.run) in found]
