"""Three Sentinels, a primary and a replica: what becomes of tasks when the primary goes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import (
    InvalidSetting,
    OutcomeUnknown,
    StoreUnavailable,
    UnsupportedBroker,
)
from celery_delay.store.connection import Links
from tests.integration.running import Running, projects
from tests.processes import wait_until
from tests.projects import make_app
from tests.sentinels import NAME, SentinelGroup
from tests.servers import RedisServers
from tests.shards import addition, shard

#: As a user of Sentinel should have it: without a time-out kombu waits for a frozen primary
#: for ever.
OPTIONS = {"master_name": NAME, "socket_timeout": 2.0, "socket_connect_timeout": 2.0}
CONF: dict[str, Any] = {
    "broker_transport_options": OPTIONS,
    "result_backend_transport_options": OPTIONS,
    "broker_connection_max_retries": None,
}


@pytest.fixture(scope="module")
def group(redis_servers: RedisServers) -> Iterator[SentinelGroup]:
    with SentinelGroup(redis_servers) as group:
        yield group


@pytest.fixture
def sentinels(group: SentinelGroup) -> SentinelGroup:
    """Whole, and the primary empty, at the beginning of each test."""
    group.heal()
    with _raw(group.primary()) as client:
        client.flushall()
    group.await_replication()
    return group


@pytest.fixture
def project(
    sentinels: SentinelGroup, harness: Any, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, sentinels.url, tmp_path)


def _raw(server: EmbeddedRedis, database: int = 0) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), db=database, socket_timeout=5)


def nothing() -> None:
    """A task."""


class _Producer(threading.Thread):
    """Schedules without a pause; remembers what was acknowledged, and when."""

    def __init__(self, app: Celery, countdown: float) -> None:
        super().__init__(daemon=True)
        self._note, self._countdown = app.tasks["note"], countdown
        self.acknowledged: list[tuple[float, str]] = []
        self.refused = 0
        self.over = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            self.go_on.wait()
            number += 1
            name = f"task-{number}"
            try:
                self._note.apply_delayed((name,), countdown=self._countdown, task_id=name)
            except (StoreUnavailable, OutcomeUnknown):
                self.refused += 1
            else:
                self.acknowledged.append((time.monotonic(), name))
            self.over.wait(0.02)


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_tasks_outlive_the_primary(
    sentinels: SentinelGroup, project: Callable[..., Running], how: str
) -> None:
    # Given two beats, a worker and a producer at work, all through Sentinel
    running = project(**CONF)
    first_beat = running.procs.beat("first")
    running.procs.beat("second")
    running.procs.worker(pool="threads")
    first_beat.wait_for_log(r"leads \(term|beat: Starting", timeout=30)
    store = {"delay_redis_url": sentinels.url, "delay_redis_options": {"master_name": NAME}}
    idle = make_app(sentinels.url, **CONF, **store)
    rest = idle.task(nothing, name="rest", shared=False)
    rest.apply_delayed(countdown=3_600)
    # (not due before the primary has gone: a stock worker loses what it has fetched and could
    # not note down, which is the guard's matter)
    producer = _Producer(running.app, countdown=10.0)
    producer.start()
    try:
        wait_until(lambda: len(producer.acknowledged) > 40, 9, "tasks that were accepted")
        # (what the replica has not got yet is another test's matter)
        producer.go_on.clear()
        time.sleep(0.2)
        sentinels.await_replication()
        before = sentinels.primary()
        assert before.pid is not None
        # When the primary goes
        if how == "killed":
            before.kill()
        else:
            os.kill(before.pid, signal.SIGSTOP)
        gone = time.monotonic()
        producer.go_on.set()
        after = sentinels.await_promotion(before)
        wait_until(
            lambda: producer.acknowledged[-1][0] > gone, 30, "a task that the new primary accepts"
        )
        again = next(at for at, _ in producer.acknowledged if at > gone) - gone
        if how == "paused":
            assert before.pid is not None
            os.kill(before.pid, signal.SIGCONT)
        # (who slept through it must not speak to the former primary, which answers again)
        rest.apply_delayed(countdown=3_600, task_id="after")
        with _raw(after) as client:
            assert client.zscore("{celery-delay:0}:schedule", "after")
        count = len(producer.acknowledged)
        wait_until(lambda: len(producer.acknowledged) > count + 20, 30, "more tasks")
        if how == "paused":
            sentinels.heal()  # demote the former primary, and so free the worker that waits there
    finally:
        producer.over.set()
        producer.go_on.set()
        idle.close()
    producer.join(30)

    # Then every task that was accepted, before or after, runs; the producer was never lied to
    names = {name for _, name in producer.acknowledged}
    print(f"{len(names)} accepted, {producer.refused} refused, accepted again after {again:.2f} s")
    assert producer.refused or how == "paused"  # there an add may wait out the fail-over
    with contextlib.suppress(AssertionError):
        wait_until(lambda: names <= _noted(running), 60)
    assert sorted(names - _noted(running)) == [], "accepted, and never run"
    assert [one for one, times in _counted(running).items() if times > 1] == []
    # and the history of the new primary has a name of its own, which was said
    with _raw(after) as client:
        mark = client.hgetall("{celery-delay:0}:mark")
        assert mark[b"run_id"].decode() == client.info("server")["run_id"]
    said = "\n".join(one.output() for one in running.procs.processes.values())
    assert "Redis was restarted or replaced" in said


def test_what_replication_has_lost_is_said(
    sentinels: SentinelGroup, project: Callable[..., Running]
) -> None:
    # Given a replica that is cut off, and tasks that only the primary has
    running = project(**CONF)
    beat = running.procs.beat()
    note = running.app.tasks["note"]
    beat.wait_for_log(r"leads \(term")
    kept = note.apply_delayed(("kept",), countdown=3_600)
    sentinels.await_replication()
    before, replica = sentinels.primary(), sentinels.replica()
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGSTOP)
    with _raw(before) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    lost = [note.apply_delayed(("lost",), countdown=3_600) for _ in range(3)]
    wait_until(
        lambda: all(running.history(one.id) == [["SCHEDULED"]] for one in lost),
        what="the tasks in SQL",
    )
    # When the primary dies, and the replica takes its place
    before.kill()
    os.kill(replica.pid, signal.SIGCONT)
    assert sentinels.await_promotion(before) is replica

    # Then the audit, the log and the results say which are lost
    beat.wait_for_log(r"Redis was restarted or replaced", timeout=30)
    beat.wait_for_log(r"3 .*(lost|LOST)", timeout=30)
    for one in lost:
        running.wait_for_history(one.id, [["SCHEDULED", "LOST"]])
        with pytest.raises(Exception, match=r"(?i)lost"):
            one.get(timeout=30)
    assert running.history(kept.id) == [["SCHEDULED"]]
    assert running.app.delayed.get(kept.id) is not None


def test_sentinels_that_cannot_help_are_named(sentinels: SentinelGroup) -> None:
    [port, *_] = sentinels.ports
    for url, options, said in (
        (sentinels.url, {"master_name": "nobody"}, "'nobody' is.*does not know it"),
        ("sentinel://127.0.0.1:1", {"master_name": NAME}, r"127\.0\.0\.1:1.*refused"),
        (sentinels.url, {"master_name": NAME, "min_other_sentinels": 9}, "sees 2 other"),
    ):
        with pytest.raises(StoreUnavailable, match=said):
            shard(Links.from_url(url, 1.0, options)).add([addition("task")])
    with pytest.raises(UnsupportedBroker, match="is a Sentinel"):
        shard(f"redis://127.0.0.1:{port}").add([addition("task")])
    # one that answers is enough, and which one does not matter
    url = f"sentinel://127.0.0.1:1;sentinel://127.0.0.1:{port}/3?master_name={NAME}"
    links = Links.from_url(url, 1.0)
    assert links.database == 3
    assert shard(links).add([addition("task")])[0].code == "A"
    with _raw(sentinels.primary(), 3) as client:
        client.flushdb()


def test_a_user_of_sentinel_needs_what_the_page_says(sentinels: SentinelGroup) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "redis.rst").read_text()
    told = re.search(r"no more than ``([^`]*)``,\s+and ``([^`]*)`` with ``min_other", page)
    assert told
    rights = [*told[1].split(), told[2]]
    with redis.Redis(port=sentinels.ports[0]) as sentinel:
        sentinel.execute_command("ACL", "SETUSER", "asker", "reset", "on", ">pw", "-@all", *rights)
        options = {
            **OPTIONS,
            "min_other_sentinels": 2,
            "sentinel_kwargs": {"username": "asker", "password": "pw"},
        }
        app = make_app(
            f"sentinel://127.0.0.1:{sentinels.ports[0]}/0",
            result_backend=None,
            broker_transport_options=options,
        )
        task = app.task(nothing, name="asked", shared=False)
        assert task.apply_delayed(countdown=3_600).cancel()
        app.close()
        denied = {one["object"] for one in sentinel.acl_log()} - {"client|setinfo", "client"}
        sentinel.execute_command("ACL", "DELUSER", "asker")
        assert denied == set()


def test_sentinels_without_the_name_of_the_primary_are_a_wrong_configuration(
    sentinels: SentinelGroup,
) -> None:
    app = make_app(sentinels.url)
    with pytest.raises(InvalidSetting, match="broker_transport_options lacks"):
        app.delayed.check()
    app = make_app(sentinels.url, **CONF, delay_redis_url=sentinels.url)
    with pytest.raises(InvalidSetting, match="delay_redis_options"):
        app.delayed.check()


def _counted(running: Running) -> Counter[str]:
    return Counter(line.split()[-1] for line in running.effects)


def _noted(running: Running) -> set[str]:
    return set(_counted(running))
