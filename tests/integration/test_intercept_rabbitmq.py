"""Celery's own delays over RabbitMQ: through the store, and the ways back."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport.native_delayed_delivery import (
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

from celery_delay.exceptions import StoreUnavailable
from tests.faults_proxy import FaultyProxy
from tests.projects import hand_off, make_app


@pytest.fixture
def new_app(rabbitmq_url: str, redis_url: str) -> Iterator[Callable[..., Celery]]:
    """An app on RabbitMQ with a queue of its own, ``app.queue``, and its store on Redis."""
    made: list[Celery] = []

    def make(broker: str = rabbitmq_url, **conf: Any) -> Celery:
        name = f"delay-{uuid4().hex}"
        conf = {
            "delay_intercept": True,
            "delay_redis_url": redis_url,
            "task_default_queue": name,
            "result_backend": "cache+memory://",
            **conf,
        }
        app = make_app(broker, **conf)
        app.queue = name
        made.append(app)
        return app

    yield make
    for app in made:
        with Celery(broker=rabbitmq_url, set_as_current=False).connection_for_write() as connection:
            connection.default_channel.queue_delete(app.queue)
            connection.default_channel.exchange_delete(app.queue)
        app.close()


def _sent(app: Celery, broker: str) -> list[int]:
    """The retries of each message on the app's queue; they are taken off it."""
    found = []
    with Celery(broker=broker, set_as_current=False).connection_for_read() as connection:
        channel = connection.default_channel
        channel.queue_declare(app.queue, durable=True, auto_delete=False)
        while (message := channel.basic_get(app.queue, no_ack=True)) is not None:
            found.append(message.headers["retries"])
    return found


def test_with_a_leader_all_is_stored(new_app: Callable[..., Celery], rabbitmq_url: str) -> None:
    app = new_app()
    hand_off(app)

    app.send_task("any", countdown=60)
    app.send_task("any", countdown=60, retries=1)

    assert (app.delayed.count(), _sent(app, rabbitmq_url)) == (2, [])


def test_without_one_what_rabbitmq_lets_a_worker_hold_is_sent(
    new_app: Callable[..., Celery], rabbitmq_url: str
) -> None:
    app = new_app()

    app.send_task("any", countdown=890)
    app.send_task("any", countdown=890, retries=1)
    app.send_task("any", countdown=910)

    assert (app.delayed.count(), _sent(app, rabbitmq_url)) == (1, [0, 1])


def test_without_a_store_as_well(
    new_app: Callable[..., Celery], rabbitmq_url: str, redis_url: str
) -> None:
    with FaultyProxy(urlsplit(redis_url).port or 0) as proxy:
        proxy.fail("blackhole", 1_000_000)
        app = new_app(delay_redis_url=proxy.url)

        app.send_task("any", countdown=890)
        app.send_task("any", countdown=9_000, retries=1)
        with pytest.raises(StoreUnavailable):
            app.send_task("any", countdown=910)

    assert _sent(app, rabbitmq_url) == [0, 1]


def test_the_broker_may_be_away_and_the_way_back_ends_in_time(
    new_app: Callable[..., Celery],
) -> None:
    # Given a broker that takes connections and says nothing
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = new_app(
            f"amqp://127.0.0.1:{silent.getsockname()[1]}//",
            delay_publish_timeout=2.0,
            delay_redis_timeout=0.2,
            delay_add_window=1.0,
        )
        # without a leader the call wants the broker, with one it does not
        started = time.monotonic()
        for retries in (0, 1):
            with pytest.raises(OperationalError):
                app.send_task("any", countdown=60, retries=retries)
        assert time.monotonic() - started < 2 * 2.0 + 4.0
        app.delayed.shards[0]._read("HSET", app.delayed.shard_keys[0].mark, "alive", _now(app))
        app.send_task("any", countdown=60)
        assert app.delayed.count() == 1


def _now(app: Celery) -> int:
    return int(app.delayed.now_ms())


def test_what_rabbitmq_delays_itself_is_left_to_it(
    new_app: Callable[..., Celery], rabbitmq_url: str
) -> None:
    # Given a quorum queue, for which Celery sends delayed messages to RabbitMQ's own delay
    app = new_app(task_default_queue_type="quorum")
    exchange = Exchange(app.queue, type="topic")
    queue = Queue(
        app.queue, exchange, routing_key=app.queue, queue_arguments={"x-queue-type": "quorum"}
    )
    app.conf.task_queues = [queue]
    app.conf.task_default_exchange, app.conf.task_default_exchange_type = app.queue, "topic"
    levels = [level_name(number) for number in range(MAX_LEVEL + 1)]
    with Celery(broker=rabbitmq_url, set_as_current=False).connection_for_write() as connection:
        channel = connection.default_channel
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
        try:
            queue(channel).declare()
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)
            hand_off(app)

            # When a task is delayed, and when a retry is
            app.send_task("any", countdown=1.5)
            app.send_task("any", countdown=1.5, retries=1)

            # Then they come by themselves, without the store
            assert app.delayed.count() == 0
            found: list[int] = []
            until = time.monotonic() + 15
            while len(found) < 2 and time.monotonic() < until:
                message = channel.basic_get(app.queue, no_ack=True)
                found += [] if message is None else [message.headers["retries"]]
                time.sleep(0.02)
            assert sorted(found) == [0, 1]
        finally:
            for one in levels:
                channel.queue_delete(one)
                channel.exchange_delete(one)
            channel.exchange_delete("celery_delayed_delivery")
