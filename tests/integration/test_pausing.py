"""Pauses among real beats on a real Redis: they hold whoever leads, and lose and double nobody."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner
from kombu import Connection

import celery_delay
from celery_delay.cli import delay
from celery_delay.domain.gates import Gate
from celery_delay.domain.states import CancelOutcome, RescheduleOutcome, State
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import PartlyDone, StoreUnavailable
from tests.brokers import OwnRabbitMQ
from tests.processes import CeleryProcess, ProcessHarness, wait_until
from tests.projects import make_app

APP = """
import json, os
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("pausing", broker=os.environ["URL"])
app.conf.update(json.loads(os.environ["CONF"]))
CeleryDelay(app)
"""
LEADS = r"leads \(term \d+\)"
Making = Callable[..., "Project"]


class Project:
    """Beats of a project with three shards, and a client that looks at its queues."""

    def __init__(self, redis_url: str, processes: Any, conf: dict[str, Any]) -> None:
        conf = {"delay_shards": 3, "delay_redis_url": redis_url, **conf}
        self.client = redis.Redis.from_url(redis_url, socket_timeout=5, retry=None)
        url = conf.pop("broker_url", redis_url)
        env = {"URL": url, "CONF": json.dumps(conf)}
        self.processes: ProcessHarness = processes(env)
        self.app = make_app(redis_url, broker_url=url, **conf)
        self.url = url

    def beat(self, name: str) -> CeleryProcess:
        beat = self.processes.beat(name)
        beat.wait_for_log("beat: Starting")
        return beat

    def lead(self, name: str = "first") -> CeleryProcess:
        beat = self.beat(name)
        wait_until(lambda: len({*map(self.holder, range(3))} - {b""}) == 1, what="a leader of all")
        return beat

    def holder(self, shard: int) -> bytes:
        return self.client.hget(f"{{celery-delay:{shard}}}:lease", "holder") or b""

    def send(self, count: int = 1, name: str = "shop.mail", **options: Any) -> list[str]:
        options.setdefault("countdown", 0)
        send = self.app.delayed.send_task
        return [send(name, **options).id for _ in range(count)]

    def queued(self, queue: str = "celery") -> list[str]:
        """The ids on a queue of Redis."""
        return [json.loads(one)["headers"]["id"] for one in self.client.lrange(queue, 0, -1)]

    def waiting(self) -> int:
        return sum(one.waiting for one in self.app.delayed.gates())

    def run(self, *arguments: str) -> Any:
        context = SimpleNamespace(app=self.app, no_color=True)
        return CliRunner().invoke(delay, [*arguments], obj=context)

    def close(self) -> None:
        self.client.close()
        for shard in vars(self.app.delayed).get("shards", ()):
            shard.close()
        self.app.close()


@pytest.fixture
def make(
    new_redis: Callable[..., EmbeddedRedis], harness: Callable[..., Any], tmp_path: Path
) -> Iterator[Making]:
    made: list[Project] = []
    (tmp_path / "pausing.py").write_text(APP)
    path = (tmp_path, Path(celery_delay.__file__).parents[1])

    def make(**conf: Any) -> Project:
        url = new_redis().tcp_url
        made.append(Project(url, lambda env: harness("pausing", path=path, env=env), conf))
        return made[-1]

    yield make
    for one in made:
        one.close()


PATHS = pytest.mark.parametrize("path", ["auto", "claim"])


@PATHS
def test_a_pause_outlives_leaders_and_restarts(make: Making, path: str) -> None:
    """GIVEN a paused task, many of which fall due, and another task
    WHEN the leader is killed, then all beats, and new ones start
    THEN not one of the paused tasks is handed off before the resume, and each is, once, after it.
    """
    project = make(delay_handoff=path)
    first, second = project.lead(), project.beat("second")
    project.app.delayed.pause(task="shop.mail", reason="no mail server")
    mails = project.send(40) + project.send(20, countdown=1)
    pays = project.send(10, "shop.pay")
    wait_until(lambda: project.waiting() >= 40, what="tasks at the gate")
    # what a leader is publishing when it is killed may come twice: that is another test's matter
    wait_until(lambda: len(project.queued()) >= 10 and not claimed(project), what="ten payments")

    first.kill()
    wait_until(lambda: project.waiting() == 60, what="all at the gate")
    second.kill()
    pays += project.send(10, "shop.pay")
    third = project.beat("third")
    wait_until(lambda: len(project.queued()) >= 20, 20, "what is not paused")

    assert sorted(project.queued()) == sorted(pays)
    [pause] = project.app.delayed.pauses()
    assert pause[:2] == ("task:shop.mail", "paused")
    assert (pause.reason, pause.waiting) == ("no mail server", 60)
    entry = project.app.delayed.get(mails[0])
    assert (entry.state, entry.gate) == (State.SCHEDULED, "task:shop.mail")
    assert project.app.delayed.result(mails[0]).gate == "task:shop.mail"

    assert project.app.delayed.resume(task="shop.mail") == 60
    wait_until(lambda: len(project.queued()) >= 80, 20, "what was paused")
    assert Counter(project.queued()) == Counter([*pays, *mails])
    wait_until(lambda: project.app.delayed.gates() == [], what="the end of the release")
    assert third.is_running


def claimed(project: Project) -> int:
    return sum(shard.sizes()["claimed"] for shard in project.app.delayed.shards)


@PATHS
def test_a_release_is_spread(make: Making, path: str) -> None:
    """GIVEN tasks that have gathered WHEN they come back over four seconds THEN evenly, about."""
    project = make(delay_handoff=path)
    project.lead()
    project.app.delayed.pause(all=True)
    mails = project.send(60)
    wait_until(lambda: project.waiting() == 60, what="tasks at the gate")

    project.app.delayed.resume(all=True, over=4)
    begun, seen = time.monotonic(), []
    while len(project.queued()) < 60 and time.monotonic() < begun + 30:
        seen.append((time.monotonic() - begun, len(project.queued())))
        time.sleep(0.05)
    took = time.monotonic() - begun

    assert sorted(project.queued()) == sorted(mails)
    assert took >= 3.5, "sooner than it was asked"
    for after, count in seen:
        assert count <= 60 * after / 4 + 3, "never ahead of the pace"


def test_queue_namespace_and_all(make: Making) -> None:
    project = make()
    project.lead()
    delayed = project.app.delayed
    delayed.pause(queue="slow")
    delayed.pause(namespace="acme")
    slow = project.send(queue="slow")
    acme = project.send(namespace="acme", tags=["x"])
    free = project.send(namespace="other")
    wait_until(lambda: project.waiting() == 2, what="two gates")
    wait_until(lambda: project.queued() == free, what="the third")
    delayed.pause(all=True)
    late = project.send()
    wait_until(lambda: project.waiting() == 3, what="three gates")
    assert [one.gate for one in delayed.pauses()] == ["all", "namespace:acme", "queue:slow"]

    for target in ({"all": True}, {"queue": "slow"}, {"namespace": "acme"}):
        delayed.resume(**target)

    wait_until(lambda: len(project.queued()) == 3, what="the default queue")
    assert sorted(project.queued()) == sorted(free + acme + late)
    wait_until(lambda: project.queued("slow") == slow, what="the slow queue")
    assert delayed.resume(all=True) is None


def test_changes_race_against_a_gate_that_opens_and_closes(make: Making) -> None:
    """GIVEN tasks due now, a gate that opens and closes all the time
    WHEN many cancel and reschedule them meanwhile
    THEN CANCELLED means never handed off, and each other one is handed off once.
    """
    project = make()
    project.lead()
    project.beat("second")
    delayed = project.app.delayed
    delayed.pause(task="shop.mail")
    mails = project.send(300)
    cancelled: set[str] = set()
    unclear: list[str] = []
    # by its id alone, one that has left may be unknown
    told = {RescheduleOutcome[one] for one in ("RESCHEDULED", "TOO_LATE", "NOT_FOUND")}

    def change(number: int) -> None:
        for task_id in mails[number::3]:
            if number == 2:
                if delayed.reschedule(task_id, countdown=0.2) not in told:
                    unclear.append(task_id)
            elif delayed.cancel(task_id) is CancelOutcome.CANCELLED:
                cancelled.add(task_id)

    def toggle() -> None:
        while any(one.is_alive() for one in threads):
            delayed.resume(task="shop.mail", over=0.1)
            time.sleep(0.02)
            delayed.pause(task="shop.mail")

    threads = [threading.Thread(target=change, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    toggle()
    delayed.resume(task="shop.mail")
    left = [one for one in mails if one not in cancelled]
    wait_until(lambda: len(project.queued()) >= len(left), 30, "the rest")

    time.sleep(0.5)
    assert Counter(project.queued()) == Counter(left)
    assert unclear == []
    assert delayed.count() == 0
    assert project.waiting() == 0


def test_a_pause_reaches_rabbitmq_too(make: Making, rabbitmq: OwnRabbitMQ) -> None:
    project = make(broker_url=rabbitmq.url, task_default_queue="pausing")
    project.lead()
    project.app.delayed.pause(task="shop.mail")
    mails = project.send(20)
    pays = project.send(5, "shop.pay")
    wait_until(lambda: project.waiting() == 20, what="tasks at the gate")

    with Connection(rabbitmq.url) as connection:
        queue = connection.SimpleQueue("pausing")
        try:
            got = [queue.get(timeout=20).headers["id"] for _ in pays]
            assert sorted(got) == sorted(pays)
            assert project.app.delayed.resume(task="shop.mail", over=1) == 20
            got = [queue.get(timeout=20).headers["id"] for _ in mails]
            assert sorted(got) == sorted(mails)
        finally:
            queue.close()
            connection.default_channel.queue_delete("pausing")


def test_many_overdue_paused_tasks_delay_nobody(make: Making) -> None:
    """GIVEN 20 000 overdue tasks that are paused, met at once by the first beat
    WHEN other tasks fall due meanwhile and afterwards
    THEN these go out while the paused ones are set aside, and as ever when they are.

    With 200 000 of them: ``docs/adr/0030-gates.rst``.
    """
    project = make(delay_shards=1)
    project.app.task(nothing, name="shop.mail", shared=False)
    task = project.app.tasks["shop.mail"]
    task.apply_delayed_many((() for _ in range(20_000)), countdown=0)
    project.app.delayed.pause(task="shop.mail")

    project.beat("first")
    worst = [lag_of_one(project) for _ in range(10)]
    wait_until(lambda: project.waiting() == 20_000, 30, "all at the gate")
    normal = [lag_of_one(project) for _ in range(10)]

    assert sorted(worst)[5] < 10
    assert sorted(normal)[5] < 1
    assert project.app.delayed.count(state="SCHEDULED") == 20_000


def nothing() -> None:
    """The body of tasks that nobody runs."""


def lag_of_one(project: Project) -> float:
    """Seconds from the eta of another task to its hand-off."""
    [task_id] = project.send(1, "shop.pay")
    begun = time.monotonic()
    wait_until(lambda: task_id in project.queued(), 30, "another task")
    return time.monotonic() - begun


# --- the caller's side -------------------------------------------------------------------


def test_what_reaches_some_shards_only_is_said(
    make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make()
    delayed = project.app.delayed
    good = delayed.shards[1].pause

    def away(*_: Any) -> Gate:
        raise StoreUnavailable("no route")

    monkeypatch.setattr(delayed.shards[1], "pause", away)
    with pytest.raises(PartlyDone, match=r"done in the shards 0, 2, not in 1: call again") as told:
        delayed.pause(all=True)
    assert (told.value.done, told.value.missing) == ([0, 2], [1])

    monkeypatch.setattr(delayed.shards[1], "pause", good)
    delayed.pause(all=True)
    assert [len(shard.gates()) for shard in delayed.shards] == [1, 1, 1]
    for shard in delayed.shards:
        monkeypatch.setattr(shard, "resume", away)
    with pytest.raises(StoreUnavailable, match="no route"):
        delayed.resume(all=True)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, ValueError),
        ({"task": "a", "queue": "b"}, ValueError),
        ({"all": True, "queue": "b"}, ValueError),
        ({"task": ""}, ValueError),
        ({"task": "a\nb"}, ValueError),
        ({"queue": 7}, TypeError),
    ],
)
def test_wrong_targets_change_nothing(
    make: Making, given: dict[str, Any], error: type[Exception]
) -> None:
    delayed = make().app.delayed
    with pytest.raises(error):
        delayed.pause(**given)
    with pytest.raises(error):
        delayed.resume(**given)
    assert delayed.gates() == []


@pytest.mark.parametrize("over", [-1, "soon", True, 10**9])
def test_a_wrong_span_resumes_nothing(make: Making, over: Any) -> None:
    delayed = make().app.delayed
    delayed.pause(all=True)
    with pytest.raises((TypeError, ValueError), match="over"):
        delayed.resume(all=True, over=over)
    assert [one.status for one in delayed.pauses()] == ["paused"]


def test_from_a_terminal(make: Making) -> None:
    project = make()
    assert "nothing is paused" in project.run("pause").output
    said = project.run("pause", "--task", "shop.mail", "--reason", "mail is down", "--json")
    [row] = json.loads(said.stdout)["gates"]
    assert (said.exit_code, row["gate"], row["status"]) == (0, "task:shop.mail", "paused")
    listed = project.run("pause").output
    assert "task:shop.mail" in listed
    assert "mail is down" in listed
    status = project.run("status").output
    assert "task:shop.mail is paused since" in status
    assert "resume --task shop.mail" in status

    answer = project.run("resume", "--task", "shop.mail", "--over", "10m", "--json")
    assert json.loads(answer.stdout) == {"gate": "task:shop.mail", "resumed": True, "waiting": 0}
    again = project.run("resume", "--task", "shop.mail")
    assert (again.exit_code, again.output) == (1, "task:shop.mail is not paused\n")
    assert project.run("resume", "--all", "--over", "-1").exit_code == 2


def test_listing_tells_what_is_paused(make: Making) -> None:
    project = make()
    project.lead()
    project.app.delayed.pause(all=True)
    [task_id] = project.send()
    wait_until(lambda: project.waiting() == 1, what="the gate")
    assert " all" in project.run("list").output
    shown = json.loads(project.run("show", task_id, "--json").stdout)
    assert (shown["stored"]["state"], shown["stored"]["gate"]) == ("SCHEDULED", "all")
    listed = json.loads(project.run("list", "--json").stdout)
    assert [one["gate"] for one in listed["tasks"]] == ["all"]
    assert [one.gate for one in project.app.delayed.list()] == ["all"]
    assert json.loads(project.run("stats", "--json").stdout)["gated"] == 1
    assert json.loads(project.run("forecast", "--json").stdout)["gated"] == 1
    status = json.loads(project.run("status", "--json").stdout)
    assert sum(one["gated"] for one in status["shards"]) == 1


def test_an_app_that_is_closed(make: Making) -> None:
    """A producer of its own can pause for all others."""
    project = make()
    other = Celery("other", broker=project.url, set_as_current=False)
    other.conf.update(delay_shards=3)
    try:
        celery_delay.install(other).pause(all=True)
        assert [one.gate for one in project.app.delayed.pauses()] == ["all"]
    finally:
        for shard in other.delayed.shards:
            shard.close()
        other.close()
