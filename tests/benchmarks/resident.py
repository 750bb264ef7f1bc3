"""What a beat takes of memory, with each database that is there, beside Celery's own beat.

Started by the ``celery`` command, both import all that the environment's plugins of it bring
(Flower's web server, for one); started alone, ours does not.  OpenTelemetry and the like are
imported where they are installed, so an environment with no more than a beat needs gives the
figures that count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from celery_delay.audit.log import SQLAuditLog
from tests.sql import administrator, run_sql

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench
    from tests.processes import CeleryProcess, ProcessHarness

__all__ = ["alone", "resident", "resident_mib"]

#: Seconds until all threads of a beat have done all that they do.
_SETTLED = 20.0


def resident(bench: Bench) -> dict[str, float]:
    """Resident MiB, in the beats' own processes."""
    figures = {"stock": _measured(bench, _stock)}
    figures["without_sql"] = _measured(bench, _ours)
    figures["without_sql_alone"] = _measured(bench, alone)
    for kind, url in _urls(bench):
        with _database(url) as place:
            log = SQLAuditLog(place)
            log.migrate()
            log.database.close()
            figures[kind] = _measured(bench, _ours, BENCH_DATABASE=place)
            figures[f"{kind}_alone"] = _measured(bench, alone, BENCH_DATABASE=place)
            figures[f"{kind}_alone_of_stock"] = figures[f"{kind}_alone"] / figures["stock"]
    return figures


def alone(processes: ProcessHarness) -> CeleryProcess:
    """A beat that the ``celery`` command did not start."""
    return processes.python("beat", "-m", "celery_delay", "-A", processes.app, "-l", "info")


def _ours(processes: ProcessHarness) -> CeleryProcess:
    return processes.beat()


def _stock(processes: ProcessHarness) -> CeleryProcess:
    processes.app = "bench_app:stock"
    return processes.beat(scheduler="celery.beat:PersistentScheduler")


def resident_mib(pid: int) -> float:
    """Of the process, in 1 048 576 bytes, as ``top`` tells it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _measured(bench: Bench, start: Callable[[ProcessHarness], CeleryProcess], **env: str) -> float:
    bench.empty()
    with bench.processes(**env) as processes:
        beat = start(processes)
        if start is not _stock:
            beat.wait_for_log(r"due tasks go to their queues", timeout=60)
        time.sleep(_SETTLED)
        return resident_mib(beat.pid)


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
