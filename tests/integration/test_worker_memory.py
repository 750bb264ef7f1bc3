"""What waiting tasks cost a worker: nothing, where Celery's own delay keeps each in its memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from celery_delay.calling.calls import DelayedCall
from celery_delay.embedded import EmbeddedRedis
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until
from tests.servers import wipe

PENDING, STOCK = 200_000, 2_000
DAY = 86_400
MEGABYTE = 1 << 20


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


def memory(leader: int) -> int:
    """Bytes of a worker and its children; what they share counts once."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            group = int(status.read_text().rpartition(")")[2].split()[2])
            if group == leader:
                told = (status.parent / "smaps_rollup").read_text()
                found += int(re.findall(r"^Pss: +(\d+) kB", told, re.MULTILINE)[0]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return found


def run(here: Running, number: int) -> None:
    """Let the worker run a task.  Not by its result: an app that has once waited for one
    unsubscribes from each of 200 000."""
    here.app.tasks["add"].apply_delayed((number,), countdown=0)
    wait_until(lambda: f"add {number} 0" in here.effects, 20)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_hundred_thousand_pending_tasks_cost_a_worker_nothing(
    new_project: Callable[..., Running], redis_server: EmbeddedRedis
) -> None:
    # Given a beat and a worker that has run a task
    here = new_project(delay_audit="off")
    here.procs.beat().wait_for_log(r"leads \(term")
    worker = here.procs.worker()
    run(here, 1)
    before = memory(worker.pid)

    add = here.app.tasks["add"]

    # When 200 000 tasks wait in the store
    for _ in range(4):
        calls = (DelayedCall((number, 1)) for number in range(PENDING // 4))
        add.apply_delayed_many(calls, countdown=DAY)
    assert here.app.delayed.count() == PENDING

    # Then none of them is on the queue or in the worker, and it has not grown
    run(here, 2)
    with redis.Redis.from_url(redis_server.tcp_url) as client:
        assert client.llen("celery") == client.hlen("unacked") == 0
        ours = memory(worker.pid) - before
        assert ours < 10 * MEGABYTE, f"{ours:,} bytes"

        # And a hundredth of that number, by Celery's own countdown, costs it more
        before = memory(worker.pid)
        for number in range(STOCK):
            add.apply_async((number, 1), countdown=DAY, ignore_result=True)
        wait_until(lambda: client.hlen("unacked") == STOCK and client.llen("celery") == 0, 60)
    stock = memory(worker.pid) - before
    print(f"{PENDING} pending: {ours:,} bytes; {STOCK} by stock countdown: {stock:,} bytes")
    assert stock > 10 * MEGABYTE > ours
    wipe(redis_server)
