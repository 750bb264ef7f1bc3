"""One file of Celery's tests on one leg, with servers of its own; jobs can run side by side."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import sdist
from verdict import EVERYTHING, INTERCEPTED, SCHEDULER, STOCK

from celery_delay.embedded import EmbeddedRedis, die_with_parent

HERE = Path(__file__).resolve().parent
PLUGINS = {
    STOCK: ("outcomes",),
    INTERCEPTED: ("outcomes", "interception"),
    EVERYTHING: ("outcomes", "interception", "everything"),
    SCHEDULER: ("outcomes", "interception", "own_scheduler"),
}
#: Where a beat of ours runs beside the tests.
BESIDE_BEAT = (INTERCEPTED, EVERYTHING)
#: How long a job may take, beat may take to lead, and beat may take to stop, in seconds.
JOB_WITHIN, LEADS_WITHIN, STOPS_WITHIN = 3600, 60, 20
#: How no entry of these tests ends, unless we are wrong.
BAD_ENDS = ("QUARANTINED", "LOST")


class Job(NamedTuple):
    """What to run; of the file's tests all, or those of *only*."""

    file: str
    leg: str
    only: Sequence[str] = ()
    number: int = 0

    @property
    def label(self) -> str:
        _, kind, *_, name = Path(self.file).with_suffix("").parts
        return f"{self.leg}-{kind}-{name}" + (f"-{self.number}" if self.number else "")


class Ran(NamedTuple):
    """What it came to.

    Attributes:
        tests: outcomes by id; empty if pytest did not come to its end.
        entries: how many tasks went through the store, by their last state.
        failures: what is wrong besides the tests.
    """

    tests: dict[str, str]
    seconds: float
    entries: dict[str, int]
    failures: list[str]


def run(job: Job, archive: Path, logs: Path) -> Ran:
    """Run *job* to its end.  The logs of pytest and of beat are left in *logs*."""
    with tempfile.TemporaryDirectory() as name, EmbeddedRedis(port=None) as server:
        folder, failures = Path(name), list[str]()
        sdist.unpack(archive, folder)
        outcomes, database = folder / "outcomes.json", folder / "audit.sqlite"
        warnings = logs / f"{job.label}.warnings"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DELAY_")},
            "PYTHONPATH": str(HERE),
            "SUITE_OUTCOMES": str(outcomes),
            "SUITE_WARNINGS": str(warnings),
            "TEST_BROKER": server.tcp_url,
            "TEST_BACKEND": server.tcp_url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "WORKER_LOGLEVEL": "INFO",
        }
        with contextlib.ExitStack() as beside:
            if job.leg in BESIDE_BEAT:
                environment["SUITE_DATABASE"] = f"sqlite:///{database}"
                log = logs / f"{job.label}.beat.log"
                beside.enter_context(_beat(environment, folder, log, failures))
            code = _pytest(job, environment, folder, logs / f"{job.label}.log")
        if code not in (0, 1):  # some tests may have failed: that is judged elsewhere
            return Ran({}, 0.0, {}, [*failures, f"pytest ended with {code}"])
        found = json.loads(outcomes.read_text())
        entries = _ends(database) if database.exists() else {}
        failures += [f"{entries[bad]} entries are {bad}" for bad in BAD_ENDS if bad in entries]
        if warnings.exists():
            lines = warnings.read_text().splitlines()
            failures.append(f"we warned {len(lines)} times: {lines[0]}")
        return Ran(found["tests"], found["seconds"], entries, failures)


def _pytest(job: Job, environment: Mapping[str, str], folder: Path, log: Path) -> int:
    plugins = [part for name in PLUGINS[job.leg] for part in ("-p", name)]
    options = ["-v", "-r", "fE", "-p", "no:cacheprovider", "--timeout", "300"]
    command = [sys.executable, "-m", "pytest", *plugins, *options, *(job.only or [job.file])]
    with log.open("wb") as output, _process(command, environment, folder, output) as process:
        try:
            return process.wait(JOB_WITHIN)
        except subprocess.TimeoutExpired:
            return -1


@contextlib.contextmanager
def _beat(
    environment: Mapping[str, str], folder: Path, log: Path, failures: list[str]
) -> Iterator[None]:
    """A real beat: it leads before the tests begin, and lives and is content until they end."""
    options = ["-S", "celery_delay.Scheduler", "-l", "INFO", "--pidfile", str(folder / "beat.pid")]
    command = [sys.executable, "-m", "celery", "-A", "beat_app", "beat", *options]
    with log.open("wb") as output, _process(command, environment, folder, output) as process:
        begun = time.monotonic()
        while " leads (" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() - begun > LEADS_WITHIN:
                raise RuntimeError(f"beat does not lead: see {log}")
            time.sleep(0.1)
        yield
        if process.poll() is not None:
            failures.append(f"beat died: see {log}")
        process.terminate()
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            failures.append(f"beat did not stop: see {log}")
    lines = log.read_text(errors="replace").splitlines()
    wrong = [line for line in lines if ": ERROR/" in line or ": CRITICAL/" in line]
    failures += [f"beat logged {len(wrong)} errors: {line}" for line in wrong[:1]]


@contextlib.contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, output: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards, and when we are."""
    process = subprocess.Popen(
        die_with_parent(command),
        cwd=folder,
        env=environment,
        stdout=output,  # type: ignore[arg-type]
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ends(database: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "select state, count(*) from celery_delay_entry group by state order by state"
        )
        return dict(rows.fetchall())
