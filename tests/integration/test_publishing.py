"""Real beats and workers where no move reaches the queues: RabbitMQ, another Redis, and others."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from celery_delay.embedded import EmbeddedRedis
from tests.brokers import OwnRabbitMQ
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until

DONE = ["SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED"]


@pytest.fixture
def known_keys() -> tuple[str, ...]:
    return ("*delay*", "_kombu.*", "unacked*", "celery*", "*.celery.pidbox", "eu", "all", "/0.*")


@pytest.fixture
def project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    """Make projects whose store is in Redis; the broker too, unless settings say otherwise."""
    yield from projects(harness, redis_url, tmp_path)


def started(site: Running, queues: str) -> Running:
    """A beat and a worker on these queues."""
    site.start_beat()
    site.procs.worker(pool="threads", queues=queues)
    return site


def ran(site: Running, effect: str) -> None:
    """Wait for the effect, and that it is the only one of its kind."""
    wait_until(lambda: effect in site.effects, 20, effect)
    assert site.effects.count(effect) == 1


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_life_of_tasks_on_rabbitmq(
    project: Callable[..., Running], rabbitmq: OwnRabbitMQ, redis_url: str, kind: str
) -> None:
    # Given a project whose messages go to RabbitMQ
    queue = f"test-{uuid.uuid4().hex[:8]}"
    site = project(
        broker_url=rabbitmq.url,
        delay_redis_url=redis_url,
        delay_intercept="retry",
        delay_intercept_min=0.0,
        task_default_queue=queue,
        task_default_queue_type=kind,
        beat_schedule={"often": {"task": "note", "schedule": 1.0, "args": ["periodic"]}},
    )
    started(site, queue)
    tasks = site.app.tasks

    # When tasks wait
    first = tasks["add"].apply_delayed([1, 2], countdown=0.5)
    retried = tasks["flaky"].apply_delayed([2], countdown=0.2)
    never = tasks["note"].apply_delayed(["never"], countdown=60)
    lost = tasks["note"].apply_delayed(
        ["lost"], countdown=0.2, exchange=f"{queue}-x", routing_key="k"
    )
    # Then they can be seen, and called off
    assert site.app.delayed.get(never.id).task == "note"
    assert never.id in {one.entry_id.task_id for one in site.app.delayed.list()}
    assert never.cancel()

    # and those that are due run, once, retries too, and their story is told
    assert first.get(timeout=20) == 3
    assert retried.get(timeout=20) == 2
    ran(site, "add 1 2")
    assert [one for one in site.effects if "flaky" in one] == ["flaky 0", "flaky 1", "flaky 2"]
    site.wait_for_history(first.id, [DONE])
    again = ["SCHEDULED", "DISPATCHED", "STARTED", "RETRIED"]
    site.wait_for_history(retried.id, [again, again, DONE])
    wait_until(lambda: site.effects.count("note periodic") >= 2, 20, "a periodic task")

    # One whose exchange is missing is kept back, and says why
    wait_until(lambda: lost.id in site.app.delayed.quarantined(), 20, "quarantine")
    assert "NOT_FOUND" in site.app.delayed.quarantined()[lost.id]
    site.wait_for_history(lost.id, [["SCHEDULED", "QUARANTINED"]])
    # until that is mended, and somebody releases it
    with Connection(rabbitmq.url) as connection:
        channel = connection.channel()
        channel.exchange_declare(f"{queue}-x", "topic", durable=True, auto_delete=False)
        channel.queue_bind(queue, f"{queue}-x", "#")
    told = site.procs.run("delay", "release", "--all", "--yes", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["released"] == 1
    ran(site, "note lost")
    assert "note never" not in site.effects


@pytest.mark.parametrize("where", ["another Redis", "one Redis, by claims"])
def test_the_life_of_tasks_that_are_published_to_a_redis(
    project: Callable[..., Running],
    new_redis: Callable[..., EmbeddedRedis],
    redis_url: str,
    where: str,
) -> None:
    conf: dict[str, Any] = {"delay_handoff": "claim"}
    if where == "another Redis":
        conf = {"broker_url": new_redis().tcp_url, "delay_redis_url": redis_url}
    site = project(delay_intercept="retry", delay_intercept_min=0.0, **conf)
    site.start(pool="threads")

    plain = site.app.tasks["add"].apply_delayed([1, 2], countdown=0.5, priority=3)
    retried = site.app.tasks["flaky"].apply_delayed([1], countdown=0.2)

    assert plain.get(timeout=20) == 3
    assert retried.get(timeout=20) == 1
    ran(site, "add 1 2")
    site.wait_for_history(plain.id, [DONE])
    assert "by claim, publish and ack" in site.procs.processes["beat"].output()


@pytest.mark.parametrize("broker", ["Redis", "RabbitMQ"])
def test_topic_and_fanout_exchanges(
    project: Callable[..., Running], request: pytest.FixtureRequest, redis_url: str, broker: str
) -> None:
    # Given queues that are bound to a topic and to a fanout exchange
    conf: dict[str, Any] = {}
    if broker == "RabbitMQ":
        conf = {
            "broker_url": request.getfixturevalue("rabbitmq").url,
            "delay_redis_url": redis_url,
        }
    suffix = uuid.uuid4().hex[:6] if broker == "RabbitMQ" else ""
    topic, fanout, eu, everybody = (
        name + suffix for name in ("celery-topic", "celery-fanout", "eu", "all")
    )
    queues = {
        eu: {"exchange": topic, "exchange_type": "topic", "routing_key": "orders.*.eu"},
        everybody: {"exchange": fanout, "exchange_type": "fanout"},
    }
    site = started(project(task_queues=queues, task_default_queue=eu, **conf), f"{eu},{everybody}")
    note = site.app.tasks["note"]

    # When tasks are delayed for each, and one for a key that nobody is bound by
    note.apply_delayed(["topic"], countdown=0.3, exchange=topic, routing_key="orders.1.eu")
    note.apply_delayed(["fanout"], countdown=0.3, queue=everybody)
    nobody = note.apply_delayed(["us"], countdown=0.3, exchange=topic, routing_key="orders.1.us")

    # Then they run, and that one is kept back
    ran(site, "note topic")
    ran(site, "note fanout")
    wait_until(lambda: nobody.id in site.app.delayed.quarantined(), 20, "quarantine")
    assert "no queue is bound" in site.app.delayed.quarantined()[nobody.id]
