"""Very many tasks over a month, an hour of them in Redis: memory, and the lag of what is due."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery
from sqlalchemy import make_url

from celery_delay import CeleryDelay
from celery_delay.calling.calls import DelayedCall
from celery_delay.domain.clock import from_ms
from tests.benchmarks.resident import alone, resident_mib
from tests.processes import wait_until
from tests.sql import administrator, run_sql

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

__all__ = ["cold"]

_HOUR, _MONTH = 3_600, 30 * 86_400
#: Seconds until which the tables are filled, and none of those tasks is due.
_FILLED = 1_800
_TEXT = "x" * 80


def cold(bench: Bench) -> dict[str, float]:
    """``delay_hot_window`` of an hour; on PostgreSQL where DELAY_TESTS_POSTGRES_URL names one."""
    n, due = bench.size(1_000_000, 50_000), bench.size(500, 150)
    bench.empty()
    base = bench.client.info("memory")["used_memory"]
    figures: dict[str, float] = {"tasks": n}
    server = os.environ.get("DELAY_TESTS_POSTGRES_URL")
    url = f"sqlite:///{bench.folder}/cold.sqlite"
    if server:
        name = f"delay_cold_{os.getpid()}"
        with administrator(make_url(server)) as engine:
            run_sql(engine, f"CREATE DATABASE {name}")
        url = make_url(server).set(database=name).render_as_string(hide_password=False)
    app = Celery("ours", broker=bench.server.tcp_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True, task_default_queue="ours", delay_database_url=url,
        delay_hot_window=_HOUR,
    )  # fmt: skip
    CeleryDelay(app)
    note = app.task(name="note", shared=False)(_nothing)
    try:
        app.delayed.audit_log.migrate()
        environment = {"BENCH_DATABASE": url, "BENCH_HOT_WINDOW": str(_HOUR)}
        for run in ("without", "with"):
            ledger = bench.folder / f"cold-{run}"
            with bench.processes(BENCH_LEDGER=str(ledger), **environment) as processes:
                beat = alone(processes)
                processes.worker(concurrency=1, queues="ours")
                if run == "with":
                    begun, spent = time.perf_counter(), time.process_time()
                    _fill(note, n)
                    figures["schedule_us"] = (time.process_time() - spent) / n * 1e6
                    figures["filled_s"] = time.perf_counter() - begun
                    # what the audit has still to hear of is in Redis, and no pending task
                    wait_until(lambda: _journal(bench) < 1_000, timeout=1_800, what="the drain")
                    figures["audited_s"] = time.perf_counter() - begun
                    time.sleep(5.0)
                    used = bench.client.info("memory")["used_memory"]
                    figures["redis_mb"] = (used - base) / 1e6
                _call(note, due, 4.0 if bench.quick else 10.0)
                wait_until(lambda: _lines(ledger) >= due, timeout=90, what="all to run")  # noqa: B023
                figures[f"{run}_beat_mib"] = resident_mib(beat.pid)
            late = sorted(float(line.split()[0]) * 1000 for line in ledger.open())
            for percent in (50, 95, 99):
                at = min(len(late) - 1, len(late) * percent // 100)
                figures[f"{run}_p{percent}_ms"] = late[at]
            figures[f"{run}_earliest_ms"] = late[0]
        stats = app.delayed.stats()
        figures["in_redis"], figures["in_sql"] = stats.scheduled, stats.cold or 0
        figures["p50_of_without"] = figures["with_p50_ms"] / figures["without_p50_ms"]
    finally:
        app.delayed.audit_log.database.close()
        app.close()
        if server:
            with administrator(make_url(server)) as engine:
                run_sql(engine, f"DROP DATABASE {name} WITH (FORCE)")
    return figures


def _journal(bench: Bench) -> int:
    """How many transitions the audit has not heard of yet."""
    return int(bench.client.xlen("{celery-delay:0}:journal"))


def _nothing(eta: float, number: int, text: str = "") -> None:
    """In the place of the worker's task."""


def _fill(note: object, n: int) -> None:
    chosen = random.Random(1)
    now = time.time() + 60
    for start in range(0, n, 1_000):
        calls = [
            DelayedCall((0.0, number), {"text": _TEXT}, eta=from_ms(_in_a_month(now, chosen)))
            for number in range(start, min(start + 1_000, n))
        ]
        note.apply_delayed_many(calls, chunk=1_000)  # type: ignore[attr-defined]


def _in_a_month(now: float, chosen: random.Random) -> int:
    return round((now + chosen.uniform(_FILLED, _MONTH)) * 1000)


def _call(note: object, due: int, seconds: float) -> None:
    begun = time.time() + 1.0
    for number in range(due):
        eta = begun + number * seconds / due
        instant = from_ms(round(eta * 1000))
        note.apply_delayed((eta, number), {"text": _TEXT}, eta=instant)  # type: ignore[attr-defined]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
