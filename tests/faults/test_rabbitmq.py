"""RabbitMQ fails under load, and beats fail while they publish: nothing is lost, or early.

Doubled is at most what was under way without the broker's word, or without the store knowing of
it: one window of :data:`celery_delay.services.handoff.ACK_WINDOW` for each time that something
broke. What was handed off is told by a consumer of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_delay.embedded import EmbeddedRedis
from celery_delay.services.handoff import ACK_WINDOW
from celery_delay.store.inspection import inspect_shard
from celery_delay.store.scripts import load, sha1
from tests.brokers import OwnRabbitMQ
from tests.faults.run import publish
from tests.faults.tap import RabbitMQTap
from tests.faults_proxy import FaultyProxy
from tests.processes import CeleryProcess, ProcessHarness, wait_until
from tests.projects import make_app
from tests.servers import RedisServers

APP = """
import json, os
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("hurried", broker=os.environ["URL"])
app.conf.update(json.loads(os.environ["CONF"]))
CeleryDelay(app)
"""
QUEUE = "hurried"
#: How long a fault lasts, in seconds; longer than a claim.
AWAY = 4.0
#: How late a task may be that no fault concerns, in ms: the machine may be busy.
LATE_MS = 5_000


class Site:
    """Two beats on RabbitMQ behind a proxy, with a store of their own, and a tap."""

    def __init__(self, rabbitmq: OwnRabbitMQ, redis: EmbeddedRedis, folder: Path) -> None:
        self.rabbitmq, self.redis = rabbitmq, redis
        self.proxy = FaultyProxy(rabbitmq.port)
        self.store_proxy = FaultyProxy(redis.port or 0)
        self.tap = RabbitMQTap(rabbitmq.url, QUEUE)
        (folder / "hurried.py").write_text(APP)
        conf = {"delay_audit": "off", "task_default_queue": QUEUE, "broker_heartbeat": 0}
        self._stack = contextlib.ExitStack()
        proxy = self._stack.enter_context(self.proxy)
        store_proxy = self._stack.enter_context(self.store_proxy)
        self._stack.enter_context(self.tap)
        seen = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
        env = {
            "URL": seen,
            "CONF": json.dumps({**conf, "delay_redis_url": store_proxy.url}),
        }
        self.processes = ProcessHarness(folder, "hurried", path=(folder,), env=env)
        self.app = make_app(
            seen, result_backend=redis.tcp_url, delay_redis_url=redis.tcp_url, **conf
        )
        self._link = self.app.delayed.links().link()
        self.beats = [self.processes.beat(name) for name in ("one", "two")]
        self._numbers = itertools.count()

    def leader(self, seconds: float = 20) -> CeleryProcess:
        """The beat that leads."""

        def leading() -> CeleryProcess | None:
            holder = self.report().holder
            pids = {one.pid: one for one in self.beats if one.is_running}
            return pids.get(int(holder.split(":")[1])) if holder else None

        return wait_until(leading, seconds, "a leader")  # type: ignore[return-value]

    def report(self) -> Any:
        """The shard, as `status` sees it."""
        return inspect_shard(self._link, self.app.delayed.shard_keys[0])

    def schedule(self, countdown: float) -> tuple[str, int]:
        """Schedule a task; its id and its eta in ms."""
        task_id = f"task-{next(self._numbers)}"
        result = self.app.delayed.send_task("any", task_id=task_id, countdown=countdown)
        return task_id, result._eta_ms

    def close(self) -> None:
        self.processes.close()
        self._stack.close()
        self._link.close()
        self.app.close()
        print(self.processes)


@pytest.fixture(scope="module")
def site(
    rabbitmq_node: OwnRabbitMQ, redis_servers: RedisServers, tmp_path_factory: Any
) -> Iterator[Site]:
    redis = redis_servers.new()
    site = Site(rabbitmq_node, redis, tmp_path_factory.mktemp("rabbitmq"))
    try:
        site.leader()
        yield site
    finally:
        site.close()
        redis.stop()


@pytest.fixture(autouse=True)
def whole(site: Site, rabbitmq: OwnRabbitMQ) -> Iterator[None]:
    yield
    for beat in site.beats:
        if beat.is_running:
            beat.resume()
        else:
            beat.start()
    site.proxy.fail("ok")
    site.store_proxy.fail("ok")


class Load:
    """Schedules tasks all the time, by some each time; a context manager.

    Attributes:
        etas: task id → eta in ms.
    """

    def __init__(self, site: Site, rate: float = 60) -> None:
        self._site, self._rate = site, rate
        self.etas: dict[str, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        wait_until(lambda: len(self._site.tap.ids() & self.etas.keys()) > 20, 20, "tasks flow")
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(10 / self._rate):
            for _ in range(10):
                task_id, eta = self._site.schedule(random.uniform(0.1, 1.5))
                self.etas[task_id] = eta

    def flows(self, count: int = 30) -> None:
        """Until so many more have come that were not due before now."""
        now = time.time() * 1000
        wait_until(
            lambda: sum(eta > now for one, eta in list(self.etas.items())
                        if one in self._site.tap.ids()) > count,
            40, "tasks flow again",
        )  # fmt: skip


def judged(site: Site, name: str, etas: dict[str, int], faults: int, away: Any = None) -> Any:
    """Wait for the last task, judge, and report.

    Arguments:
        faults: how often something broke: as many windows may have doubled.
        away: begin and end of the time, in ms, in which the broker was away.
    """
    tap = site.tap
    with contextlib.suppress(AssertionError):
        wait_until(lambda: etas.keys() <= tap.ids(), 30)
        wait_until(lambda: (site.report().claimed, site.report().pending) == (0, 0), 10)
    lost = etas.keys() - tap.ids()
    time.sleep(0.5)  # what is on its way to the tap
    taken = [one for one in list(tap.taken) if one.task_id in etas]
    first: dict[str, float] = {}
    for one in taken:
        first.setdefault(one.task_id, one.at_ms)
    early = [one for one in first if first[one] < etas[one] - 1]
    doubled = tap.doubled(etas)
    begun, ended = away or (0, 0)
    concerned = {one for one in first if begun - 500 < etas[one] < ended + 1_000}
    late = sorted(first[one] - etas[one] for one in first.keys() - concerned) or [0.0]
    worst = max(first[one] - etas[one] for one in first)
    publish(
        {
            "variant": f"RabbitMQ: {name}",
            "scheduled": len(etas),
            "handed_off": len(first),
            "lost": len(lost),
            "early": len(early),
            "doubled": sum(doubled.values()),
            "attempts": max(one.attempt for one in taken),
            "lateness_ms": {
                "p50": round(late[len(late) // 2]),
                "max beside the fault": round(late[-1]),
                "max": round(worst),
            },
        }
    )
    assert not lost
    assert early == []
    assert sum(doubled.values()) <= faults * ACK_WINDOW
    # what came twice says so
    again = {one.task_id for one in taken if one.attempt}
    assert doubled.keys() <= again
    assert late[-1] < LATE_MS
    report = site.report()
    assert (report.claimed, report.pending) == (0, 0)
    return doubled


@contextlib.contextmanager
def _killed(site: Site) -> Iterator[None]:
    site.rabbitmq.kill()
    yield
    site.rabbitmq.start()


@contextlib.contextmanager
def _stopped(site: Site) -> Iterator[None]:
    site.rabbitmq.pause()
    yield
    site.rabbitmq.resume()


@contextlib.contextmanager
def _alarmed(site: Site) -> Iterator[None]:
    site.rabbitmq.alarm(on=True)
    yield
    site.rabbitmq.alarm(on=False)


@contextlib.contextmanager
def _stopped_and_killed(site: Site) -> Iterator[None]:
    site.rabbitmq.pause()
    yield
    site.rabbitmq.kill()
    site.rabbitmq.start()


@contextlib.contextmanager
def _cut_off(site: Site) -> Iterator[None]:
    site.proxy.fail("blackhole", 1_000_000)
    yield
    site.proxy.fail("ok")


FAULTS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "killed": (_killed, "refused|closed|reset|Connection|connect"),
    "stopped": (_stopped, "timed out|no confirm came|TimeoutError"),
    "stopped and killed": (_stopped_and_killed, "timed out|no confirm came|TimeoutError"),
    "memory alarm": (_alarmed, "blocks publishers"),
    "unreachable": (_cut_off, "timed out|no confirm came|TimeoutError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broker_that_goes_away_under_load_loses_nothing(site: Site, name: str) -> None:
    fault, says = FAULTS[name]
    marks = {one.name: one.mark() for one in site.beats}
    with Load(site) as load:
        # When it is away for a while
        begun = time.time() * 1000
        with fault(site):
            # Then `status` says so
            failure = wait_until(lambda: site.report().broker_failure, 10, "the failure is told")
            assert any(one in failure for one in says.split("|")), failure
            if name == "memory alarm":
                told = site.processes.run("delay", "status")
                assert "blocks publishers" in told.stdout
            time.sleep(max(0.0, AWAY - (time.time() - begun / 1000)))
        ended = time.time() * 1000
        # and when it is back tasks go on
        load.flows()
    # a standby may have been the first to hand off again
    wait_until(lambda: site.report().broker_failure == "", 10, "the failure is over")

    # and all came, never early; at most one window of each beat came twice
    judged(site, name, load.etas, 1, (begun, ended))
    for beat in site.beats:
        assert _times(beat, "no message can be published", marks) <= 1
    wait_until(
        lambda: all(
            _times(beat, "takes messages again", marks)
            == _times(beat, "no message can be published", marks)
            for beat in site.beats
        ),
        10,
        "each beat has recovered",
    )


def _times(beat: CeleryProcess, what: str, marks: dict[str, int]) -> int:
    return beat.output().count(what, marks[beat.name])


def test_connections_that_break_in_the_middle_lose_nothing(site: Site) -> None:
    with Load(site) as load:
        begun = time.time() * 1000
        for fault in ("reset", "drop-reply", "reset", "drop-reply"):
            site.proxy.fail(fault)
            wait_until(lambda: not site.proxy._times, 10, "a request meets it")
            load.flows(10)
        ended = time.time() * 1000
    judged(site, "connections broken", load.etas, 4, (begun, ended))


def test_a_beat_that_is_killed_between_the_publish_and_the_ack_doubles_one_window(
    site: Site,
) -> None:
    # Given a leader whose word to the store that messages are out gets lost
    ack = load("ack")
    shas = {sha1(ack.text(version)).encode() for version in ((7, 0), (6, 2))}
    leader = site.leader()
    etas = {}
    met = len(site.store_proxy.met)
    for sha in shas:
        site.store_proxy.fail("blackhole", 1_000, only=sha)
        due = time.time() + 1
        etas.update(site.schedule(due - time.time()) for _ in range(100))
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(site.store_proxy.met) > met, 5)
            break
    assert len(site.store_proxy.met) > met

    # When it is killed
    leader.kill()
    site.store_proxy.fail("ok")

    # Then another rescues them
    doubled = judged(site, "beat killed before the ack", etas, 1, _around(etas))
    assert doubled


def test_a_beat_that_is_told_to_end_in_the_middle_doubles_nothing(site: Site) -> None:
    leader = site.leader()
    due = time.time() + 3
    etas = dict(site.schedule(due - time.time()) for _ in range(1500))
    wait_until(lambda: len(site.tap.ids() & etas.keys()) > 100, 20, "it is at it")

    assert leader.stop() == 0

    assert not judged(site, "beat told to end", etas, 0, _around(etas))


def test_a_beat_that_sleeps_through_its_claims_does_not_publish_them(site: Site) -> None:
    leader = site.leader()
    etas = dict(site.schedule(1.0) for _ in range(600))
    wait_until(lambda: len(site.tap.ids() & etas.keys()) > 50, 20, "it is at it")

    leader.pause()
    wait_until(lambda: etas.keys() <= site.tap.ids(), 30, "the other does its work")
    leader.resume()

    judged(site, "beat stopped", etas, 1, _around(etas))


def _around(etas: dict[str, int]) -> tuple[int, int]:
    return min(etas.values()), max(etas.values())
