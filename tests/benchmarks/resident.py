"""What a beat takes of memory, with each database that is there, beside Celery's own beat.

Both import all that the environment's plugins of the ``celery`` command bring (Flower's web
server, for one), so an environment with no more than a beat needs gives the figures that count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from celery_delay.audit.log import SQLAuditLog
from tests.sql import administrator, run_sql

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

__all__ = ["resident", "resident_mb"]

#: Seconds until all threads of a beat have done all that they do.
_SETTLED = 20.0


def resident(bench: Bench) -> dict[str, float]:
    """Resident megabytes, in the beats' own processes."""
    figures = {"stock_mb": _measured(bench, "bench_app:stock", "celery.beat:PersistentScheduler")}
    ours = ("bench_app:app", "celery_delay.Scheduler")
    figures["without_sql_mb"] = _measured(bench, *ours)
    for kind, url in _urls(bench):
        with _database(url) as place:
            log = SQLAuditLog(place)
            log.migrate()
            log.database.close()
            figures[f"{kind}_mb"] = _measured(bench, *ours, BENCH_DATABASE=place)
            figures[f"{kind}_of_stock"] = figures[f"{kind}_mb"] / figures["stock_mb"]
    return figures


def resident_mb(pid: int) -> float:
    """Of the process, in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return 0.0


def _measured(bench: Bench, app: str, scheduler: str, **env: str) -> float:
    bench.empty()
    with bench.processes(**env) as processes:
        processes.app = app
        beat = processes.beat(scheduler=scheduler)
        if scheduler == "celery_delay.Scheduler":
            beat.wait_for_log(r"due tasks go to their queues", timeout=60)
        time.sleep(_SETTLED)
        return resident_mb(beat.pid)


def _urls(bench: Bench) -> Iterator[tuple[str, str]]:
    yield "sqlite", f"sqlite:///{bench.folder}/resident.sqlite"
    for name in ("POSTGRES", "MYSQL"):
        if url := os.environ.get(f"DELAY_TESTS_{name}_URL"):
            yield make_url(url).drivername, url


@contextmanager
def _database(url: str) -> Iterator[str]:
    """A database of its own on that server."""
    if url.startswith("sqlite"):
        yield url
        return
    name = f"delay_resident_{os.getpid()}"
    with administrator(make_url(url)) as engine:
        run_sql(engine, f"CREATE DATABASE {name}")
    try:
        yield make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with administrator(make_url(url)) as engine:
            force = " WITH (FORCE)" if engine.dialect.name == "postgresql" else ""
            run_sql(engine, f"DROP DATABASE {name}{force}")
