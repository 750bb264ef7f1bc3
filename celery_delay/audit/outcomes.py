"""Which task a run was of, and when it began: for whoever counts how runs end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import and_, select

from celery_delay.audit.database import Database
from celery_delay.audit.merge import fit_id
from celery_delay.audit.tables import entry, task
from celery_delay.domain.entries import EntryId

__all__ = ["SQLRunLog"]

#: Ids in one query.
_TOGETHER = 500


class SQLRunLog:
    """Asks the tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def runs(self, entry_ids: Sequence[EntryId]) -> Mapping[EntryId, tuple[str, int | None]]:
        """See :meth:`celery_delay.domain.ports.RunLog.runs`; raises AuditUnavailable."""
        wanted = {(fit_id(one.task_id), one.run): one for one in entry_ids}
        ids = sorted({task_id for task_id, _ in wanted})
        found: dict[EntryId, tuple[str, int | None]] = {}
        with self._database.reading() as connection:
            for start in range(0, len(ids), _TOGETHER):
                query = (
                    select(task.c.name, entry.c.task_id, entry.c.run, entry.c.started_ms)
                    .join(entry, and_(entry.c.task_id == task.c.task_id))
                    .where(entry.c.task_id.in_(ids[start : start + _TOGETHER]))
                )
                for row in connection.execute(query):
                    one = wanted.get((row.task_id, row.run))
                    if one is not None:
                        found[one] = row.name or "", row.started_ms
        return found
