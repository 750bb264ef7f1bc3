"""A store that does not answer: tasks go on, the worker stays awake, the audit knows of the gap."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from tests.faults_proxy import FaultyProxy
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until

RAN = ["SCHEDULED", "DISPATCHED", "STARTED"]
#: Requests; more than any test makes.
ALL = 1_000_000


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


@pytest.fixture
def proxy(redis_server: EmbeddedRedis) -> Iterator[FaultyProxy]:
    with FaultyProxy(redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_tasks_go_on_while_the_store_is_silent(
    new_project: Callable[..., Running], proxy: FaultyProxy, pool: str
) -> None:
    # Given a worker whose way to the store, and nobody else's, leads through a proxy
    here = new_project(delay_redis_timeout=1.0)
    beat = here.procs.beat()
    conf = json.loads(here.procs.env["PROJECT"]) | {"delay_redis_url": proxy.url}
    worker = here.procs.worker(pool=pool, concurrency=4, env={"PROJECT": json.dumps(conf)})
    beat.wait_for_log(r"leads \(term")
    first = here.app.tasks["add"].apply_delayed((1,), countdown=0)
    here.wait_for_history(first.id, [[*RAN, "SUCCEEDED"]])

    # When that falls silent, and tasks end, some of which only the main process can tell of
    proxy.fail("blackhole", ALL)
    tasks = here.app.tasks
    for number in range(100):
        tasks["note"].apply_delayed((number,), countdown=0)
    lost = [here.app.delayed.send_task("unheard.of", countdown=0) for _ in range(4)]

    # Then all of them run, and the worker answers meanwhile
    wait_until(lambda: len(here.effects) == 101, 60)
    answers = here.app.control.ping(timeout=10, destination=["worker@test"])
    assert answers == [{"worker@test": {"ok": "pong"}}]
    for one in lost:
        with pytest.raises(Exception, match="unheard"):
            one.get(timeout=30)

    # And once the store is back, the audit says how much it misses
    proxy.fail("ok", 0)
    assert worker.stop() == os.EX_OK
    missing = 2 * 100 + 4
    wait_until(lambda: sum(gaps(here)) == missing, 20, "the gaps")
    # each process has told its own number once
    assert len(gaps(here)) <= (5 if pool == "prefork" else 1)
    assert worker.output().count("the audit misses what workers do") == len(gaps(here))


def test_runs_that_a_lost_connection_ends_are_neither_retried_nor_failed(
    new_project: Callable[..., Running], redis_server: EmbeddedRedis
) -> None:
    # Given a worker that stops tasks whose message it can no longer acknowledge, and a broker
    # that then delivers them again
    here = new_project(
        worker_cancel_long_running_tasks_on_connection_loss=True,
        broker_transport_options={
            "visibility_timeout": 6,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    ).start()
    early, late = (
        here.app.tasks[name].apply_delayed((seconds,), countdown=0)
        for name, seconds in (("waits", 3), ("waits_late", 4))
    )
    for task in (early, late):
        here.wait_for_history(task.id, [RAN])

    # When all connections are cut
    with redis.Redis.from_url(redis_server.url) as client:
        client.client_kill_filter(_type="normal", skipme=True)

    # Then one goes on, and the other starts again
    here.wait_for_history(early.id, [[*RAN, "SUCCEEDED"]])
    here.wait_for_history(late.id, [[*RAN, "STARTED", "SUCCEEDED"]])


def gaps(here: Running) -> list[int]:
    """The numbers in the audit's GAP events."""
    return [one.data["missing"] for one in here.audit.events("-") if one.state == "GAP"]
