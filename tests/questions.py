"""Every question that the product asks its audit, on the audit of :mod:`tests.synthetic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.outcomes import SQLRunLog
from celery_delay.audit.pruning import SQLPruning
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.domain.entries import EntryId
from celery_delay.domain.filters import LAST_MS, WAITING
from celery_delay.domain.states import State
from tests.contract.audit_rows import Journal, take
from tests.synthetic import BURST_MS, EPOCH, MONTH_MS, T0, T1, task_id

__all__ = ["PAGE", "Question", "questions"]

#: Rows of a page, and of a batch.
PAGE = 100

_PAST = sorted({one.value for one in State} - {one.value for one in WAITING})
_WAITS = sorted(one.value for one in WAITING)


class Question(NamedTuple):
    """One call of the product.

    Attributes:
        ask: makes the call.
        rows: how many rows of tables and indexes it may look at, however large they are.
        counts: it tells a number of all rows of a kind, so that it has to read all of those.
    """

    name: str
    ask: Callable[[], Any]
    rows: int = 5_000
    counts: bool = False


def questions(database: Database, tasks: int) -> list[Question]:
    """All of them; *tasks* is what the tables were filled with."""
    queries, pruning = AuditQueries(database), SQLPruning(database)
    waits, log = SQLWaitingEntries(database), SQLAuditLog(database)
    ran = SQLRunLog(database)
    middle = task_id(tasks // 2)
    old_ms = T0 + MONTH_MS // 3

    def page(states: list[str] = _PAST, **asked: Any) -> Callable[[], Any]:
        given = {"after_ms": 0, "before_ms": LAST_MS, "latest_first": states != _WAITS, **asked}
        return lambda: queries.tasks(states=states, limit=PAGE, **given)

    def drained() -> None:
        # others each time, a part of which are in the table
        journal = Journal(epoch=EPOCH + len(taken))
        taken.append(journal)
        names = [task_id(tasks - 50 + number) for number in range(PAGE)]
        take(log, [one for name in names for one in journal.life(name)], epoch=journal.epoch)

    taken: list[Journal] = []
    burst = {"behind": (BURST_MS, middle)}
    return [
        Question("past", page()),
        Question("past, deep", page(behind=(T0 + MONTH_MS // 10, middle))),
        Question("past, deep among one eta", page(**burst)),
        Question("past, of an hour", page(after_ms=old_ms, before_ms=old_ms + 3_600_000)),
        Question("waiting", page(_WAITS)),
        Question("waiting, deep", page(_WAITS, behind=(T1 - MONTH_MS // 200, middle))),
        Question("state", page(["FAILED"])),
        Question("state, rare", page(["LOST"])),
        Question("states", page(["FAILED", "LOST", "REVOKED"])),
        Question("task", page(name="shop.task_7")),
        Question("task, rare", page(name="shop.rare")),
        Question("task, deep among one eta", page(name="shop.task_8", **burst)),
        Question("task, rare, waiting", page(_WAITS, name="shop.rare")),
        Question("tasks by pattern", page(pattern="shop.*")),
        Question("queue", page(queue="celery")),
        Question("queue, rare", page(queue="once")),
        Question("queue, deep among one eta", page(queue="mail", **burst)),
        Question("namespace", page(namespace="tenant-8")),
        Question("namespace, rare", page(namespace="tiny")),
        Question("tag", page(["SUCCEEDED"], tags=["vip"]), 20_000),
        Question("tag, rare", page(tags=["rare"])),
        Question("how many wait", lambda: queries.number(states=_WAITS, queue=None,
                 namespace=None, tags=(), after_ms=0, before_ms=LAST_MS), counts=True),
        Question("one task", lambda: queries.task(middle)),
        Question("one task's runs", lambda: queries.runs(middle)),
        Question("one task's story", lambda: queries.events(middle)),
        Question("the oldest transition", lambda: queries.oldest_ms(2)),
        # as many as it looks at, of each shard
        Question("the recent past", lambda: queries.recent(2, T1), 25_000),
        Question("believed to wait", lambda: waits.waiting(None, PAGE)),
        Question("believed to wait, deep", lambda: waits.waiting(EntryId(middle, 1), PAGE)),
        Question("still waiting", lambda: waits.still_waiting(
                 [EntryId(task_id(one), EPOCH) for one in range(PAGE)])),
        Question("what ran", lambda: ran.runs(
                 [EntryId(task_id(one), EPOCH) for one in range(PAGE)])),
        Question("drain", drained, 20_000),
        Question("prune", lambda: pruning.prune("SUCCEEDED", old_ms, PAGE)),
        Question("prune, cancelled", lambda: pruning.prune("CANCELLED", old_ms, PAGE)),
        Question("prune, may run", lambda: pruning.prune("DISPATCHED", old_ms, PAGE)),
        Question("prune, nothing", lambda: pruning.prune("SUCCEEDED", T0, PAGE)),
        Question("prune, gaps", lambda: pruning.prune("GAP", old_ms, PAGE)),
    ]  # fmt: skip
