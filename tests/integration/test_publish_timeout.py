"""Every call that schedules ends in time, whatever does not answer, and says what it did."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from tests.faults_proxy import FaultyProxy
from tests.projects import hand_off, make_app, messages
from tests.servers import RedisServers

#: What the calls here may take, and what a loaded machine may add.
TIMEOUT, SLACK = 2.0, 2.0
SETTINGS = {
    "delay_intercept": True,
    "delay_publish_timeout": TIMEOUT,
    "delay_redis_timeout": 0.2,
    "delay_add_window": 1.0,
    "broker_transport_options": {"visibility_timeout": 20},
}


@pytest.fixture
def new_app() -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(url: str, **conf: Any) -> Celery:
        # a result backend has time-outs of its own
        app = make_app(url, result_backend="cache+memory://", **{**SETTINGS, **conf})
        app.task(_add, shared=False, name="add")
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def _add(x: int = 0, y: int = 0) -> int:
    return x + y


@contextmanager
def in_time(*expected: type[BaseException] | None) -> Iterator[None]:
    """The block ends in time, with one of the exceptions (``None``: without any)."""
    started = time.monotonic()
    raised: type[BaseException] | None = None
    try:
        yield
    except Exception as exc:
        raised = type(exc)
        if not any(one is not None and issubclass(raised, one) for one in expected):
            raise
    assert raised is not None or None in expected
    assert time.monotonic() - started < TIMEOUT + SLACK


def _all_ways(app: Celery) -> None:
    """All of them raise, for neither store nor broker answers; and all at once, to save time."""
    add = app.tasks["add"]

    def call(function: Any, expected: Any, **options: Any) -> None:
        with in_time(*expected):
            function(**options)

    with ThreadPoolExecutor(5) as pool:
        calls = [
            pool.submit(call, add.apply_delayed, (StoreUnavailable, OutcomeUnknown), countdown=9),
            pool.submit(call, add.apply_async, (OperationalError, OutcomeUnknown), countdown=9),
            pool.submit(
                call,
                add.apply_async,
                (OperationalError, StoreUnavailable, OutcomeUnknown),
                countdown=11,
            ),
            # the one that has nowhere to go: as in Celery
            pool.submit(call, add.apply_async, (OperationalError, None), countdown=9, retries=1),
            pool.submit(
                call,
                (add.s(1) | add.s(2)).apply_delayed,
                (StoreUnavailable, OutcomeUnknown),
                countdown=9,
            ),
        ]
    for one in calls:
        one.result()


@pytest.mark.parametrize("connected", [False, True])
def test_a_redis_that_swallows_everything(
    new_app: Callable[..., Celery], redis_url: str, connected: bool
) -> None:
    with FaultyProxy(urlsplit(redis_url).port or 0) as proxy:
        app = new_app(proxy.url)
        if connected:
            app.tasks["add"].apply_delayed(countdown=60)
            app.tasks["add"].apply_async(countdown=60)
        proxy.fail("blackhole", 1_000_000)

        _all_ways(app)


@pytest.mark.parametrize("connected", [False, True])
def test_a_redis_that_is_stopped(
    new_app: Callable[..., Celery], redis_servers: RedisServers, connected: bool
) -> None:
    server = redis_servers.new()
    assert server.pid is not None
    try:
        app = new_app(server.tcp_url)
        if connected:
            app.tasks["add"].apply_delayed(countdown=60)
            app.tasks["add"].apply_async(countdown=60)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            _all_ways(app)
        finally:
            os.kill(server.pid, signal.SIGCONT)
    finally:
        server.stop()


@pytest.mark.parametrize("connected", [False, True])
def test_a_store_that_swallows_everything_before_a_broker_that_works(
    new_app: Callable[..., Celery], redis_url: str, connected: bool
) -> None:
    with FaultyProxy(urlsplit(redis_url).port or 0) as proxy:
        app = new_app(redis_url, delay_redis_url=proxy.url)
        add = app.tasks["add"]
        if connected:
            hand_off(app)
            add.apply_async(countdown=60)
            assert (app.delayed.count(), messages(app)) == (1, [])
        proxy.fail("blackhole", 1_000_000)

        # the command that is under way when it begins may have been taken, and is not sent
        with in_time(OutcomeUnknown if connected else StoreUnavailable):
            add.apply_delayed(countdown=9)
        with in_time(None):
            add.apply_async(countdown=9)
        with in_time(StoreUnavailable):
            add.apply_async(countdown=11)
        with in_time(None):
            add.apply_async(countdown=11, retries=1)

        assert [one["headers"]["retries"] for one in messages(app)] == [0, 1]


def test_a_broker_that_swallows_everything_before_a_store_that_works(
    new_app: Callable[..., Celery], redis_url: str, redis_servers: RedisServers
) -> None:
    # Given a broker on another Redis, of which nothing is known yet
    with FaultyProxy(urlsplit(redis_url).port or 0) as proxy:
        server = redis_servers.new()
        try:
            app = new_app(proxy.url, delay_redis_url=server.tcp_url)
            proxy.fail("blackhole", 1_000_000)

            # Then a task can be scheduled all the same: a beat will publish it
            with in_time(None):
                app.tasks["add"].apply_delayed(countdown=9)
            with in_time(None):
                app.tasks["add"].apply_async(countdown=11)
            assert app.delayed.count() == 2
            app.close()
        finally:
            server.stop()


def test_a_retry_whose_outcome_is_unknown_is_neither_sent_nor_raised(
    new_app: Callable[..., Celery], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a store that takes the retry, and whose answers are lost
    with FaultyProxy(urlsplit(redis_url).port or 0) as proxy:
        app = new_app(redis_url, delay_redis_url=proxy.url)
        hand_off(app)
        app.tasks["add"].apply_async(countdown=60, retries=1)  # the shape is known from now on
        proxy.fail("drop-reply", 1_000_000)

        with in_time(None):
            app.tasks["add"].apply_async(countdown=9, retries=1, task_id="mine")

        proxy.fail("ok")
        assert messages(app) == []
        assert app.delayed.get("mine") is not None
        assert [one.event for one in caplog.records] == ["retry_in_doubt"]


def test_a_native_way_back_that_may_have_worked_is_not_taken_twice(
    new_app: Callable[..., Celery], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given no leader, so that calls are sent, and a broker that takes them without an answer
    with FaultyProxy(urlsplit(redis_url).port or 0) as proxy:
        app = new_app(proxy.url, delay_redis_url=redis_url)
        app.tasks["add"].apply_async(countdown=9)
        proxy.fail("drop-reply", 2, only=b"LPUSH")

        with in_time(OutcomeUnknown):
            app.tasks["add"].apply_async(countdown=9)
        with in_time(None):
            app.tasks["add"].apply_async(countdown=9, retries=1)

        assert [one["headers"]["retries"] for one in messages(app)] == [0, 0, 1]
        assert app.delayed.count() == 0
        assert caplog.records[-1].event == "retry_in_doubt"


def test_a_retry_outlasts_a_restart_of_redis(
    new_app: Callable[..., Celery], redis_servers: RedisServers
) -> None:
    # Given store and broker on one Redis, which is down for a second
    server = redis_servers.new()
    try:
        app = new_app(server.tcp_url, delay_publish_timeout=20.0)
        app.tasks["add"].apply_async(countdown=9)
        server.kill()

        # When a task retries itself meanwhile
        with ThreadPoolExecutor(1) as pool:
            retry = pool.submit(
                app.tasks["add"].apply_async, countdown=11, retries=1, task_id="mine"
            )
            time.sleep(1.0)
            assert not retry.done()
            server.start()
            retry.result(20)

        # Then the retry is not lost
        assert app.delayed.get("mine") is not None
        app.close()
    finally:
        server.stop()
