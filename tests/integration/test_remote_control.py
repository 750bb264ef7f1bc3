"""Celery's own tools against stored tasks: real beats, the ``celery`` command, a stock app."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.canvas import StampingVisitor

from celery_delay.domain.states import State
from celery_delay.embedded import EmbeddedRedis
from tests.brokers import OwnRabbitMQ
from tests.integration.running import Running
from tests.processes import CeleryProcess, ProcessHarness, wait_until

HOUR = 3_600
READY = r"answers as (delay-\d+@\S+)"


class Shop(StampingVisitor):  # type: ignore[misc]
    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"shop": "north", "stamped_headers": ["shop"]}


class Beats(Running):
    """The project with beats, no worker, and a stock app beside it."""

    def lead(self, name: str) -> str:
        """Start a beat; its node's name once it leads and answers."""
        beat = self.procs.beat(name)
        beat.wait_for_log(r"leads \(term")
        return beat.wait_for_log(READY)[1]

    def inspect(self, *arguments: str) -> Any:
        ran = self.procs.run("inspect", "-j", "-t", "10", *arguments)
        assert ran.returncode == 0, ran
        return json.loads(ran.stdout)

    def later(self, *args: Any, countdown: float = HOUR) -> str:
        return str(self.app.tasks["note"].apply_delayed(args, countdown=countdown).id)


@pytest.fixture
def beats(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Beats]:
    beats = Beats(harness, redis_url, tmp_path)
    yield beats
    beats.close()


@pytest.fixture
def stock(redis_url: str) -> Iterator[Celery]:
    """An app that knows nothing of us."""
    app = Celery("stock", broker=redis_url, backend=redis_url, set_as_current=False)
    yield app
    app.close()


def test_inspect_tells_of_stored_tasks_once(beats: Beats) -> None:
    """GIVEN a leader, a standby, no worker
    WHEN ``celery inspect`` asks
    THEN both answer, and the leader alone tells of the stored tasks.
    """
    leader = beats.lead("first")
    standby = beats.procs.beat("second").wait_for_log(READY)[1]
    late, early = beats.later("late", countdown=2 * HOUR), beats.later("early")
    beats.app.delayed.hold(held := beats.later("held"))

    told = beats.inspect("-d", f"{leader},{standby}", "scheduled")
    assert [one["request"]["id"] for one in told[leader]] == [early, late]
    assert told[leader][0]["request"]["args"] == ["early"]
    assert told[standby] == []
    # an end to the waiting as soon as both have answered
    asked = beats.app.control.inspect(timeout=10, limit=2)
    found = asked.query_task(early, held, "unknown")
    assert {task_id: state for task_id, (state, _) in found[leader].items()} == {
        early: "scheduled",
        held: "held",
    }
    assert found[standby] == {}
    stats = asked.stats()
    assert [(stats[one]["role"], stats[one]["pending"]) for one in (leader, standby)] == [
        ("leader", 2),
        ("standby", 2),
    ]
    assert beats.app.control.inspect(timeout=2).ping() == {
        one: {"ok": "pong"} for one in (leader, standby)
    }
    # an end is quick, and leaves no queue behind
    for name in ("first", "second"):
        beats.procs.processes[name].stop(timeout=5)
    assert beats.app.control.inspect(timeout=0.5).ping() is None


def test_a_stock_app_revokes_stored_tasks_while_no_worker_is_up(
    beats: Beats, stock: Celery
) -> None:
    """GIVEN a beat, no worker, and an app without celery-delay
    WHEN that app revokes, by id and by stamp
    THEN the tasks are gone from the store; and its purge leaves the store alone.
    """
    beats.lead("beat")
    one, two, three, kept = (beats.later(number) for number in range(4))
    stamped = beats.app.tasks["note"].s("stamped")
    stamped.stamp(visitor=Shop())
    marked = str(stamped.apply_delayed(countdown=HOUR).id)
    assert beats.app.delayed.count() == 5

    stock.control.revoke(one)
    answers = stock.control.revoke([two, three, one], reply=True, timeout=10, limit=1)
    assert "ok" in next(iter(answers[0].values()))
    stock.control.revoke_by_stamped_headers({"shop": ["north"]})

    def left() -> list[str]:
        return [entry.entry_id.task_id for entry in beats.app.delayed.list()]

    wait_until(lambda: left() == [kept], what="only one task is left")
    with pytest.raises(Exception, match="revoked"):
        stock.AsyncResult(one).get(timeout=5)
    wait_until(lambda: "CANCELLED" in str(beats.history(marked)), what="the audit knows")
    stock.send_task("note", queue="celery")
    assert stock.control.purge() == 1
    assert left() == [kept]
    entry = beats.app.delayed.get(kept)
    assert entry is not None
    assert entry.state is State.SCHEDULED


def test_the_node_comes_back_with_its_broker(
    beats: Beats, stock: Celery, redis_server: EmbeddedRedis
) -> None:
    """GIVEN a beat whose connections Redis cuts
    WHEN they are back
    THEN it answers again, and has led all the time.
    """
    name = beats.lead("beat")
    beat = beats.procs.processes["beat"]
    mark = beat.mark()
    with redis.Redis.from_url(redis_server.tcp_url) as client:
        client.client_kill_filter(_type="pubsub")
    beat.wait_for_log(READY, since=mark)

    assert stock.control.inspect(timeout=10, limit=1).ping() == {name: {"ok": "pong"}}
    assert "Traceback" not in beat.output()


def test_it_can_be_switched_off(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> None:
    beats = Beats(harness, redis_url, tmp_path, delay_remote_control=False)
    try:
        beats.procs.beat().wait_for_log(r"leads \(term")
        assert beats.app.control.inspect(timeout=1).ping() is None
    finally:
        beats.close()


def test_on_rabbitmq(
    harness: Callable[..., ProcessHarness],
    redis_url: str,
    rabbitmq: OwnRabbitMQ,
    tmp_path: Path,
) -> None:
    """GIVEN queues on RabbitMQ
    WHEN RabbitMQ is asked, breaks all connections and is asked again
    THEN the beat answers both times.
    """
    effects = str(tmp_path / "effects")
    conf = {"delay_redis_url": redis_url, "broker_url": rabbitmq.url}
    env = {"PROJECT": json.dumps({"url": redis_url, "effects": effects, **conf})}
    project = Path(__file__).parent / "project"
    beat: CeleryProcess = harness("running", path=(project,), env=env).beat()
    name = beat.wait_for_log(READY)[1]
    with Celery("stock", broker=rabbitmq.url, set_as_current=False) as stock:
        with stock.connection_for_write() as connection:
            asked = stock.control.inspect(timeout=10, limit=1, connection=connection)
            assert asked.ping() == {name: {"ok": "pong"}}
        mark = beat.mark()
        closing = 'rabbit_networking:close_connection(P, "test")'
        rabbitmq.control("eval", f"[{closing} || P <- rabbit_networking:connections()].")
        beat.wait_for_log(READY, since=mark, timeout=30)
        with stock.connection_for_write() as connection:
            asked = stock.control.inspect(timeout=10, limit=1, connection=connection)
            assert asked.stats()[name]["role"] == "leader"
    assert beat.stop(timeout=5) == 0
