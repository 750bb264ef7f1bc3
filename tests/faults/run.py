"""A ledger run: everything started, disturbed, brought to rest and judged."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

import celery_delay
from celery_delay.embedded import EmbeddedRedis, die_with_parent
from celery_delay.store.keys import ShardKeys
from tests.faults import checker
from tests.faults.nemesis import Nemesis
from tests.faults.processes.book import Page, persist, read
from tests.processes import ProcessHarness, wait_until

__all__ = ["run"]

PROCESSES = Path(__file__).parent / "processes"
PRODUCERS = 3
KEYS = ShardKeys("celery-delay:", 0)


def run(
    folder: Path,
    server: EmbeddedRedis,
    harness: Callable[..., ProcessHarness],
    *,
    seed: int,
    seconds: float,
    disturb_redis: bool,
) -> dict[str, Any]:
    """Run for *seconds*, bring everything to rest, and return the report."""
    database = folder / "audit.db"
    env = {
        "LEDGER_FOLDER": str(folder),
        "LEDGER_REDIS_URL": server.tcp_url,
        "LEDGER_DATABASE_URL": f"sqlite:///{database}",
    }
    # the processes use the celery_delay that this process uses
    path = (PROCESSES, Path(celery_delay.__file__).parents[1])
    processes = harness("ledger_app", path=path, env=env)
    with redis.Redis.from_url(server.url, retry=None, socket_timeout=5) as client:
        beats = [processes.beat(f"beat{number}") for number in range(3)]
        for beat in beats:
            beat.wait_for_log("beat: Starting")
        worker = processes.worker("worker", queues="work")
        nemesis = Nemesis(
            seed,
            beats,
            Page(folder / "nemesis.jsonl"),
            lambda: _leading_pid(client),
            server if disturb_redis else None,
        )
        with _script(processes, folder, "tap") as tap:
            with contextlib.ExitStack() as producing:
                producers = [
                    producing.enter_context(
                        _script(processes, folder, "producer", f"producer{n}", seed, seconds)
                    )
                    for n in range(PRODUCERS)
                ]
                while any(one.poll() is None for one in producers):
                    nemesis.step()
                    time.sleep(0.02)
                failed = [one.returncode for one in producers if one.returncode]
                assert not failed, "a producer failed: see producer*.log"
            nemesis.rest()
            rested = time.monotonic()
            _wait_for_rest(client, folder, worker_too=not disturb_redis)
            (folder / "tap.stop").touch()
            assert tap.wait(20) == 0
        assert worker.is_running
        leftovers = _leftovers(client)
        for process in processes.processes.values():
            process.stop()
    ledger = checker.Ledger.of(folder, effects_count=not disturb_redis)
    return {
        "variant": "beats and Redis" if disturb_redis else "beats",
        "seed": seed,
        "seconds": seconds,
        "scheduled": _count(ledger.additions, "op", "added"),
        "outcome_unknown": _count(ledger.additions, "op", "unknown"),
        "refused": _count(ledger.additions, "op", "refused"),
        "handed_off": len(ledger.handed),
        "effects": len(ledger.effects),
        "cancelled": _count(ledger.cancellations, "outcome", "CANCELLED"),
        "too_late": _count(ledger.cancellations, "outcome", "TOO_LATE"),
        "faults": dict(nemesis.caused),
        "lateness_ms": checker.lateness(ledger),
        "rest_after_s": round(time.monotonic() - rested, 1),
        "slowest_stop_s": round(nemesis.slowest_stop, 2),
        "wrong": checker.judge(ledger),
        "audit": checker.audit_mismatches(ledger, database),
        "leftovers": leftovers,
    }


@contextlib.contextmanager
def _script(
    processes: ProcessHarness, folder: Path, name: str, *arguments: object
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(PROCESSES / f"{name}.py"), *map(str, arguments)]
    log = processes.folder / f"{'-'.join(map(str, (name, *arguments[:1])))}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            die_with_parent(command),
            cwd=processes.folder,
            env=processes.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if said := log.read_text(errors="replace"):
            print(f"--- {log.name}\n{said[-4_000:]}")


def _leading_pid(client: redis.Redis) -> int | None:
    """The pid in the lease; the election itself is not asked."""
    try:
        holder = client.hget(KEYS.lease, "holder")
    except redis.RedisError:
        return None
    return int(holder.split(b":")[1]) if holder else None


def _wait_for_rest(client: redis.Redis, folder: Path, *, worker_too: bool) -> None:
    """Until nothing waits, nothing runs, and the audit has taken it all.

    Arguments:
        worker_too: wait for the worker's queue to be empty.  A worker whose Redis was killed
            under it may leave a message unacked for Celery's visibility timeout, an hour.
    """
    quiet_since = time.monotonic()
    seen: list[int] = []

    def at_rest() -> bool:
        nonlocal seen, quiet_since
        waiting = persist(
            lambda: [
                client.zcard(KEYS.schedule),
                client.zcard(KEYS.blocked),
                client.llen("tap"),
                client.xlen(KEYS.journal),
            ]
        )
        celerys = persist(lambda: [client.llen("work"), client.hlen("unacked")])
        # a task that asks to be retried leaves the queue before its retry is in the store
        done = [*celerys, len(read(folder / "effects.jsonl"))]
        if any(waiting) or done != seen or (worker_too and any(celerys)):
            seen, quiet_since = done, time.monotonic()
        time.sleep(0.1)
        return time.monotonic() - quiet_since > (1.5 if worker_too else 6)

    wait_until(at_rest, timeout=60, what="rest: all due, run and audited")


def _leftovers(client: redis.Redis) -> dict[str, int]:
    """What our keys still hold; all of it must be gone."""
    found = {
        "schedule": client.zcard(KEYS.schedule),
        "entries": client.hlen(KEYS.entries),
        "blocked": client.zcard(KEYS.blocked),
        "quarantine": client.hlen(KEYS.quarantine),
        "journal": client.xlen(KEYS.journal),
        "template uses": sum(abs(int(one)) for one in client.hvals(KEYS.template_uses)),
    }
    return {name: count for name, count in found.items() if count}


def _count(lines: Any, name: str, value: str) -> int:
    return sum(line[name] == value for line in lines)


def publish(report: dict[str, Any]) -> None:
    """Print one JSON line; with ``DELAY_FAULTS_REPORT`` keep it in that file too, by variant."""
    print("\n" + json.dumps(report))
    if kept := os.environ.get("DELAY_FAULTS_REPORT"):
        path = Path(kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        reports = json.loads(path.read_text()) if path.exists() else {}
        reports[report["variant"]] = report
        path.write_text(json.dumps(reports, indent=2, sort_keys=True) + "\n")
