"""The journal's way to PostgreSQL, through all states, beside a bare COPY of the same rows."""

from __future__ import annotations

import gc
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.tables import entry, event, task
from celery_delay.domain.clock import SystemClock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Ending, Transition
from celery_delay.domain.states import State
from celery_delay.services.auditor import Auditor
from celery_delay.store.redis import RedisStore
from tests.shards import SETTINGS, addition, lead, shard
from tests.sql_servers import OwnPostgreSQL
from tests.synthetic import fill

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

__all__ = ["draining"]

_POSTGRESQL = ("-c", "shared_buffers=256MB", "-c", "max_wal_size=2GB")
_STORY = {
    "name": "shop.tasks.remind", "queue": "celery", "args": "('" + "x" * 70 + "', 1)",
    "kwargs": "{}",
}  # fmt: skip
#: How many tasks are in one state together.
_GROUP = 100


class _Spent(NamedTuple):
    """Seconds: on the wall, of our CPU, of the server's."""

    wall: float
    ours: float
    theirs: float

    @classmethod
    def now(cls, backend: int) -> _Spent:
        ran = int(Path(f"/proc/{backend}/schedstat").read_text().split()[0])
        return cls(time.perf_counter(), time.process_time(), ran / 1e9)


class _NoResults:
    def end(self, ending: Ending) -> None:
        raise AssertionError(ending)


def draining(bench: Bench) -> dict[str, Any]:
    """Tasks whose states meet in a batch, and such as reach each state in a batch of its own."""
    history, n = bench.rows or bench.size(200_000, 20_000), bench.size(5_000, 2_000)
    figures: dict[str, Any] = {"history": history, "tasks": n}
    server = OwnPostgreSQL(*_POSTGRESQL)
    database = Database(server.url, timeout=60)
    try:
        log = SQLAuditLog(database)
        log.migrate()
        fill(database, history)
        gc.freeze()  # as a beat does
        for name, together in (("warm", _GROUP), ("together", _GROUP), ("apart", n)):
            figures |= _drained(bench, log, name, n, together)
        figures |= _copied(server.url, n)
    finally:
        database.close()
        server.close()
    for name in ("together", "apart"):
        figures[f"{name}_of_copy"] = figures[f"{name}: rate"] / figures["copy: rate"]
        figures[f"{name}_cpu_of_copy"] = figures[f"{name}: us"] / figures["copy: us"]
    return {name: value for name, value in figures.items() if not name.startswith("warm")}


def _drained(bench: Bench, log: SQLAuditLog, name: str, n: int, together: int) -> dict[str, float]:
    bench.empty()
    store = shard(bench.server.url)
    term = lead(store)
    ids = [str(uuid.uuid4()) for _ in range(n)]
    for start in range(0, n, together):
        _live(store, ids[start : start + together])
    auditor = Auditor(0, store, log, _NoResults(), SETTINGS, SystemClock())
    with log.database.reading() as connection:
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    before = _Spent.now(backend)
    while auditor.run_once(term):
        pass
    figures = _figures(name, n, before, _Spent.now(backend))
    store.close()
    return figures


def _live(store: RedisStore, ids: Sequence[str]) -> None:
    """Each state of these tasks, one state after the other."""
    run = store.now_ms()
    for some in _groups(ids):
        store.add([addition(one, run=run, story=json.dumps(_STORY)) for one in some])
    while store.move().moved:
        pass
    for state in (State.STARTED, State.SUCCEEDED):
        data = {"worker": "celery@shop-1"} if state is State.STARTED else {}
        for some in _groups(ids):
            store.record([Transition(EntryId(one, run), 1, state, data) for one in some])


def _groups(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _GROUP):
        yield ids[start : start + _GROUP]


def _copied(url: str, n: int) -> dict[str, float]:
    """As many rows as *n* tasks have left, taken from the tables, given new keys and copied in."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        run = connection.execute
        names = run(f"SELECT task_id FROM {task.name} WHERE name = %s LIMIT {n}", [_STORY["name"]])
        renamed = {row[0]: str(uuid.uuid4()) for row in names}
        rows: dict[str, list[list[Any]]] = {}
        for table in (event, entry, task):
            at = [one.name for one in table.c].index("task_id")
            found = run(
                f"SELECT * FROM {table.name} WHERE task_id = ANY(%s)", [list(renamed)]
            ).fetchall()
            rows[table.name] = [[*row[:at], renamed[row[at]], *row[at + 1 :]] for row in found]
        for row in rows[event.name]:
            row[1] += 1  # another epoch
        connection.commit()
        backend = connection.info.backend_pid
        before = _Spent.now(backend)
        for start in range(0, n, 250):
            for name, whole in rows.items():
                size = len(whole) // n
                with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
                    for row in whole[start * size : (start + 250) * size]:
                        copy.write_row(row)
            connection.commit()
        return _figures("copy", n, before, _Spent.now(backend))


def _figures(name: str, n: int, before: _Spent, after: _Spent) -> dict[str, float]:
    wall, ours, theirs = (b - a for a, b in zip(before, after, strict=True))
    return {
        f"{name}: rate": n / wall,
        f"{name}: us": (ours + theirs) / n * 1e6,
        f"{name}: us of ours": ours / n * 1e6,
    }
