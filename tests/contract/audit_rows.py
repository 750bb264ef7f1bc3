"""Events, and the rows they make, as the audit's tests use them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from sqlalchemy import select

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.tables import cursor, entry, epoch, event, tag, task
from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.ports import Ending

__all__ = ["EPOCH", "STORY", "T0", "Journal", "rows", "take"]

T0 = 1_700_000_000_000
EPOCH = T0 - 5_000
STORY = {
    "name": "shop.tasks.cancel_unpaid",
    "queue": "celery",
    "args": "(12345,)",
    "kwargs": "{'reason': 'unpaid'}",
    "root_id": "root",
}


class Journal:
    """Makes events with stream ids as Redis would draw them: a millisecond apart, in pairs."""

    def __init__(self, shard: int = 0, epoch: int = EPOCH) -> None:
        self.shard, self.epoch = shard, epoch
        self._numbers = count()

    def event(
        self,
        state: str,
        task_id: str = "one",
        data: Mapping[str, object] | None = None,
        **fields: Any,
    ) -> Event:
        """The next event; ``run``, ``version``, ``at_ms``, ``eta_ms``… may be given."""
        number = next(self._numbers)
        at_ms = T0 + number // 2
        values = {
            "shard": self.shard,
            "epoch": self.epoch,
            "stream_id": f"{at_ms}-{number % 2}",
            "position": 0,
            "at_ms": at_ms,
            "version": 1,
            "eta_ms": T0 + 60_000 if state in ("SCHEDULED", "DISPATCHED") else None,
        }
        values.update(fields)
        entry_id = EntryId(task_id, values.pop("run", T0))
        if data is None:
            data = STORY if state == "SCHEDULED" else {}
        return Event(state=state, entry_id=entry_id, data=data, **values)

    def life(self, task_id: str = "one", *states: str, **fields: Any) -> list[Event]:
        """Events of one entry in *states*, by default of one that succeeded."""
        states = states or ("SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED")
        return [self.event(state, task_id, **fields) for state in states]


def take(log: SQLAuditLog, events: list[Event], shard: int = 0, epoch: int = EPOCH) -> list[Ending]:
    """Take *events* from where the cursor is."""
    last_id = events[-1].stream_id if events else "0"
    endings = log.take(log.position(shard, epoch), events, last_id)
    assert endings is not None, "the cursor has moved"
    return endings


def rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, by table, in the order of their keys."""
    with database.reading() as connection:
        return {
            table.name.removeprefix("celery_delay_"): [
                dict(row._mapping)
                for row in connection.execute(select(table).order_by(*table.primary_key))
            ]
            for table in (task, tag, entry, event, epoch, cursor)
        }
