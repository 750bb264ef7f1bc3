"""Rate limits and full queues among real beats: no more than allowed, and nobody else is late."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection

from celery_delay.broker.publisher import BrokerPublisher
from celery_delay.services.handoff import ACK_WINDOW
from celery_delay.services.rooms import Rooms
from tests.brokers import OwnRabbitMQ
from tests.integration.test_pausing import Making, Project, make, nothing
from tests.processes import wait_until
from tests.projects import make_app

__all__ = ["make"]


@pytest.mark.parametrize("path", ["auto", "claim"])
def test_a_rate_is_kept_by_all_beats_together(make: Making, path: str) -> None:
    """GIVEN 400 due tasks of a rate of 100 a second, two beats, and other tasks
    WHEN the leader is killed amid them
    THEN they take four seconds, no second has many more than 110, and the others are not late;
    none comes twice, but for what a killed beat had published and not yet acked (claim path only).
    """
    conf = {"delay_rate_limits": {"task:shop.mail": "100/s"}, "delay_handoff": path}
    project = make(delay_shards=1, **conf)
    first, _ = project.lead(), project.beat("second")
    project.app.task(nothing, name="shop.mail", shared=False)
    mails = project.app.tasks["shop.mail"].apply_delayed_many((() for _ in range(400)), countdown=0)
    begun, seen, lags = time.monotonic(), [(0.0, 0)], []
    killed = False
    sent = {one.id for one in mails}
    while not sent <= set(project.queued()) and time.monotonic() < begun + 60:
        lags.append(_lag(project))
        seen.append((time.monotonic() - begun, project.client.llen("celery")))
        if not killed and seen[-1][1] > 150:
            killed = True
            first.kill()

    assert set(project.queued()) == sent
    doubled = Counter(project.queued()) - Counter(sent)
    assert doubled.total() <= (ACK_WINDOW if path == "claim" else 0)
    assert seen[-1][0] > 3.5, "faster than it may"
    for number, (at, count) in enumerate(seen):
        for later, more in seen[number:]:
            # what is seen was handed off some time before: as much as one look takes
            assert more - count <= 100 * (later - at + 0.5) + 10
    assert sorted(lags)[len(lags) // 2] < 1


def _lag(project: Project) -> float:
    """Seconds until another task is on a queue of its own."""
    queue = uuid4().hex
    begun = time.monotonic()
    project.send(1, "shop.pay", queue=queue)
    wait_until(lambda: project.client.llen(queue), 30, "another task")
    return time.monotonic() - begun


def test_dispatch_waits_for_the_workers(make: Making) -> None:
    project = make(delay_queue_high_water={"celery": 20})
    project.lead()
    mails = project.send(50)
    wait_until(lambda: project.client.llen("celery") == 20, what="a full queue")
    taken: list[str] = []
    other = project.send(1, queue="free")
    wait_until(lambda: project.queued("free") == other, what="another queue")
    while len(taken) < 50:
        assert project.client.llen("celery") <= 20
        some = project.queued()[-5:]
        if some:
            project.client.rpop("celery", len(some))
            taken += some
        time.sleep(0.02)
    assert sorted(taken) == sorted(mails)
    wait_until(lambda: project.app.delayed.gates() == [], what="the end")


@pytest.fixture
def queue(rabbitmq: OwnRabbitMQ) -> Iterator[str]:
    name = f"bursts-{uuid4().hex[:8]}"
    yield name
    with Connection(rabbitmq.url) as connection:
        connection.default_channel.queue_delete(name)


def test_dispatch_waits_for_a_queue_of_rabbitmq(
    make: Making, rabbitmq: OwnRabbitMQ, queue: str
) -> None:
    conf: dict[str, Any] = {"broker_url": rabbitmq.url, "task_default_queue": queue}
    project = make(delay_shards=1, delay_queue_high_water={queue: 10}, **conf)
    project.lead()
    mails = project.send(40)
    with Connection(rabbitmq.url) as connection:
        channel = connection.default_channel

        def length() -> int:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)

        wait_until(lambda: project.waiting() > 0, 20, "tasks that wait")
        wait_until(lambda: length() >= 10, 20, "a full queue")
        time.sleep(1.5)
        assert length() <= 20, "about as long as it may be"
        got: list[str] = []

        def take() -> bool:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                got.append(message.headers["id"])
            return len(got) >= 40

        wait_until(take, 60, "all of them")
    assert sorted(got) == sorted(mails)


def test_lengths_are_asked_for_without_harm(
    new_redis: Callable[..., Any], rabbitmq: OwnRabbitMQ, queue: str
) -> None:
    """A queue that is not there is empty, and asking for it closes nothing."""
    url = new_redis().tcp_url
    for broker in (rabbitmq.url, url):
        app = make_app(url, broker_url=broker, delay_redis_url=url)
        publisher = BrokerPublisher(app, app.delayed.settings, app.delayed.clock)
        try:
            assert publisher.length(f"{queue}-none") == 0
            with app.connection_for_write() as connection:
                simple = connection.SimpleQueue(queue)
                simple.put("one")
                simple.close()
            wait_until(lambda: publisher.length(queue) == 1, what="one message")  # noqa: B023
            assert publisher.probe() == ""
            rooms = Rooms({queue: 5}, publisher, app.delayed.clock)
            assert rooms.known() == {queue: 4}
        finally:
            publisher.close()
            app.close()


def test_a_broker_that_is_away_cannot_tell(new_redis: Callable[..., Any]) -> None:
    url = new_redis().tcp_url
    app = make_app(url, broker_url="amqp://guest@127.0.0.1:1//", delay_redis_url=url)
    publisher = BrokerPublisher(app, app.delayed.settings, app.delayed.clock)
    assert publisher.length("any") is None
    app.close()
