"""How long it takes to look at much that waits, and what that costs others."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from celery_delay.calling.calls import DelayedCall
from tests.benchmarks import bench_app

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

__all__ = ["finding"]

#: Far enough that nothing of it becomes due during the run, in seconds.
_FAR = 86_400.0


def finding(bench: Bench) -> dict[str, float]:
    """``list --limit 20`` beside Celery's own start, and walks over all that waits."""
    n = bench.size(200_000, 20_000)
    bench.empty()
    tagged = {"tags": ["rare"], "countdown": _FAR}
    bench_app.note_ours.apply_delayed_many([DelayedCall((0.0, 0))], **tagged)
    for start in range(1, n, 1_000):
        calls = [DelayedCall((0.0, number)) for number in range(start, min(start + 1_000, n))]
        bench_app.note_ours.apply_delayed_many(calls, countdown=_FAR)
    figures: dict[str, float] = {"tasks": n}
    command = ("-A", "bench_app:app", "delay")
    # what any Celery command takes to start, of whatever app
    figures["celery_cpu_s"] = _cpu_s(bench, "--version")
    figures["list_20_cpu_s"] = _cpu_s(bench, *command, "list", "--limit", "20")
    figures["list_20_beyond_celery_s"] = figures["list_20_cpu_s"] - figures["celery_cpu_s"]

    delayed = bench_app.app.delayed
    bench.client.config_set("slowlog-log-slower-than", 0)
    bench.client.config_set("slowlog-max-len", 20_000)
    bench.client.slowlog_reset()
    assert sum(1 for _ in delayed.iterate(task="nobody")) == 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    assert sum(1 for _ in delayed.iterate(tag="rare")) == 1
    figures["filtered_walk_s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    assert sum(1 for _ in delayed.iterate()) == n
    figures["walk_s"] = time.perf_counter() - begun
    figures["walks_grew_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    slow = bench.client.slowlog_get(20_000)
    figures["slowest_command_ms"] = max(one["duration"] for one in slow) / 1000
    bench.client.config_set("slowlog-log-slower-than", 10_000)
    return figures


def _cpu_s(bench: Bench, *arguments: str) -> float:
    """CPU of one process, the least of three: the machine may be busy with other things."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _run(bench, *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent)


def _run(bench: Bench, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        env=environment,
        cwd=bench.folder,
        check=True,
        capture_output=True,
    )
