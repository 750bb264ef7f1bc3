"""Questions to an audit of millions: the plan, how many rows it looks at, and the time it takes.

A table that is read from one end to the other ends the run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import select

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.tables import task
from tests.contract.audit_rows import Journal, take
from tests.plans import plan_of, recorded
from tests.questions import Question, questions
from tests.sql_servers import OwnMariaDB, OwnPostgreSQL
from tests.synthetic import fill

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

__all__ = ["KINDS", "history"]

KINDS = ("sqlite", "postgresql", "mariadb")
#: A database that is filled already, and stays: ``BENCH_HISTORY_POSTGRESQL`` and so on.
_READY = "BENCH_HISTORY_{}"

_POSTGRESQL = {
    "shared_buffers": "512MB", "maintenance_work_mem": "256MB", "max_wal_size": "4GB",
    "fsync": "off",
}  # fmt: skip
_MARIADB = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M",
            "--innodb-flush-log-at-trx-commit=2", "--innodb-sort-buffer-size=64M")  # fmt: skip


def history(bench: Bench) -> dict[str, Any]:
    """Each question on each kind of database."""
    tasks = bench.rows or bench.size(200_000, 20_000)
    figures: dict[str, Any] = {"tasks": tasks}
    for kind in bench.kinds or KINDS:
        with _database(bench, kind) as database:
            begun = time.perf_counter()
            if _is_empty(database):
                fill(database, tasks)
                figures[f"{kind}: filled_s"] = time.perf_counter() - begun
            for question in questions(database, tasks):
                for name, value in _ask(database, question).items():
                    figures[f"{kind}: {question.name}: {name}"] = value
            figures[f"{kind}: drained_tasks_per_s"] = _drained(database)
    return figures


@contextmanager
def _database(bench: Bench, kind: str) -> Iterator[Database]:
    url = os.environ.get(_READY.format(kind.upper()))
    own: Any = None
    if url is None and kind == "postgresql":
        own = OwnPostgreSQL(*(w for name in _POSTGRESQL.items() for w in ("-c", "=".join(name))))
    elif url is None and kind == "mariadb":
        own = OwnMariaDB(*_MARIADB)
    elif url is None:
        url = f"sqlite:///{bench.folder}/history.db"
    database = Database(url or own.url, timeout=60)
    try:
        SQLAuditLog(database).migrate()
        yield database
    finally:
        database.close()
        if own is not None:
            own.close()


def _is_empty(database: Database) -> bool:
    with database.reading() as connection:
        return connection.execute(select(task.c.task_id).limit(1)).first() is None


def _ask(database: Database, question: Question) -> dict[str, Any]:
    with recorded(database) as statements:
        question.ask()  # also fetches pages from the disk, and has SQLAlchemy make its statements
    rows, steps, scanned = 0, set(), set()
    for one in statements:
        with database.reading() as connection:
            plan = plan_of(connection, one)
            connection.rollback()
        rows += plan.rows or 0
        steps.update(plan.steps)
        scanned |= plan.scanned
    if scanned:
        raise SystemExit(f"{question.name}: reads all of {', '.join(scanned)}: {sorted(steps)}")
    if rows > question.rows and not question.counts:
        raise SystemExit(f"{question.name}: looks at {rows} rows: {sorted(steps)}")
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        question.ask()
        seconds.append(time.perf_counter() - begun)
    told = sorted(one for one in steps if "anon" not in one)
    figures: dict[str, Any] = {"ms": statistics.median(seconds) * 1000, "plan": "; ".join(told)}
    return figures | ({"rows": rows} if rows else {})


def _drained(database: Database, tasks: int = 5_000) -> float:
    """Tasks per second through four states that meet in one batch, as when they are short."""
    log, journal = SQLAuditLog(database), Journal(epoch=time.time_ns() // 1_000_000)
    batches = [
        [one for _ in range(250) for one in journal.life(str(uuid4()))] for _ in range(tasks // 250)
    ]
    begun = time.perf_counter()
    for events in batches:
        take(log, events, epoch=journal.epoch)
    return tasks / (time.perf_counter() - begun)
