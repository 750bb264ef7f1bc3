"""Delays beyond the visibility time-out: one run through the store, several on stock Celery.

Both worlds run side by side, each on a Redis of its own with three workers: a message that a
worker holds for longer than ``visibility_timeout`` is given to another one, which holds it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_delay import CeleryDelay
from tests.processes import ProcessHarness, wait_until
from tests.servers import RedisServers

DELAY = 10.0
CONF: dict[str, Any] = {
    "broker_transport_options": {
        "visibility_timeout": 2,
        # how often a worker looks for messages that others hold for too long
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    "worker_prefetch_multiplier": 4,
    "task_ignore_result": True,
    "broker_connection_retry_on_startup": True,
}
APP = """
import json, os, pathlib, uuid
from celery import Celery

settings = json.loads(os.environ["WORLD"])
app = Celery("world", broker=settings["url"])
app.conf.update(settings["conf"])
if settings["ours"]:
    from celery_delay import CeleryDelay
    CeleryDelay(app)

@app.task(name="effect")
def effect(name):
    (pathlib.Path(settings["effects"]) / f"{name} {uuid.uuid4()}").touch()

@app.task(name="retries", bind=True)
def retries(self, name, countdown):
    if self.request.retries == 0:
        raise self.retry(countdown=countdown)
    effect(name)
"""


class World:
    """Three workers on one Redis, and a producer."""

    def __init__(self, folder: Path, url: str, *, ours: bool) -> None:
        self._effects = folder / "effects"
        self._effects.mkdir(parents=True)
        (folder / "world.py").write_text(APP)
        conf = {**CONF, "delay_intercept": True} if ours else CONF
        settings = {"url": url, "conf": conf, "ours": ours, "effects": str(self._effects)}
        self.procs = ProcessHarness(
            folder, "world", path=(folder,), env={"WORLD": json.dumps(settings)}
        )
        self.app = Celery("producer", broker=url, set_as_current=False)
        self.app.conf.update(conf)
        if ours:
            CeleryDelay(self.app)

    def workers(self) -> None:
        started = [
            self.procs.start(f"worker{i}", *f"worker -n w{i}@world -P solo -l info".split())
            for i in range(3)
        ]
        for worker in started:
            worker.wait_for_log(r"\bready\.$", timeout=40)

    def runs(self, name: str) -> int:
        return len(list(self._effects.glob(f"{name} *")))

    def close(self) -> None:
        self.app.close()
        self.procs.close()
        print(*self.procs.processes.values(), sep="\n")


@pytest.fixture
def new_world(redis_servers: RedisServers, tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []
    servers = []

    def make(name: str, *, ours: bool) -> World:
        servers.append(redis_servers.new())
        made.append(World(tmp_path / name, servers[-1].tcp_url, ours=ours))
        return made[-1]

    yield make
    for world in made:
        world.close()
    for server in servers:
        server.stop()


def test_one_run_through_the_store_and_more_on_stock_celery(
    new_world: Callable[..., World],
) -> None:
    # Given a visibility time-out of 2 s, three workers on stock Celery, and three on ours
    stock, ours = new_world("stock", ours=False), new_world("ours", ours=True)
    beat = ours.procs.beat()
    stock.workers()
    ours.workers()
    beat.wait_for_log(r"leads \(term", timeout=30)

    # When tasks are delayed by 10 s in each way
    started = time.monotonic()
    for world in (stock, ours):
        world.app.send_task("effect", ("countdown",), countdown=DELAY)
        world.app.send_task("retries", ("retry", DELAY))
    ours.app.delayed.send_task("effect", ("apply_delayed",), countdown=DELAY)

    # Then stock Celery runs them several times
    for name in ("countdown", "retry"):
        wait_until(lambda: stock.runs(name) > 1, 40, f"stock's {name}")  # noqa: B023
    # and the store once, also a good while later
    ways = ("countdown", "retry", "apply_delayed")
    wait_until(lambda: all(ours.runs(name) for name in ways), 30, "ours")
    assert time.monotonic() - started >= DELAY
    until = max(time.monotonic(), started + DELAY) + 3
    wait_until(lambda: time.monotonic() > until, 20)
    assert {name: ours.runs(name) for name in ways} == dict.fromkeys(ways, 1)
