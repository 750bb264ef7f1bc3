"""The move tried out before a beat relies on it: what it finds, and that it leaves nothing."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from celery_delay.beats.path import HandoffPath
from celery_delay.broker import probe
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.redis import RedisStore
from tests.projects import make_app


def identity(x: Any) -> Any:
    return x


@pytest.fixture
def raw(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(redis_server.socket), decode_responses=True) as client:
        yield client


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(url: str = redis_url, **conf: Any) -> Celery:
        made.append(make_app(url, **conf))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.mark.redis62
@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"broker_transport_options": {"global_keyprefix": "delay-shop:"}},
        {"broker_transport_options": {"priority_steps": [0, 5], "sep": ":"}},
        {"other_db": True},
        {"delay_hot_window": 60, "delay_hot_max": 1_000, "delay_database_url": "sqlite://"},
        {"delay_audit": "sync", "delay_hot_max": 1_000, "delay_database_url": "sqlite://"},
    ],
    ids=["plain", "key prefix", "priorities", "store in another DB", "cold", "backed"],
)
def test_the_move_makes_what_kombu_makes_and_nothing_is_left(
    new_app: Callable[..., Celery], raw: redis.Redis, redis_url: str, conf: dict[str, Any]
) -> None:
    if "other_db" in conf:
        conf = {"delay_redis_url": redis_url.rpartition("/")[0] + "/3"}
    app = new_app(**conf)

    assert app.delayed.moves()
    assert app.delayed.move_differs() == ""
    assert [one for one in raw.scan_iter() if "probe" in one] == []
    raw.select(3)
    try:
        assert raw.dbsize() == 0
    finally:
        raw.select(0)


def test_another_envelope_is_a_difference(
    new_app: Callable[..., Celery], raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    original = probe.moved

    def forgetful(*args: Any, **options: Any) -> Any:
        addition, shape = original(*args, **options)
        return addition._replace(template=addition.template.replace("utf-8", "utf-7")), shape

    monkeypatch.setattr(probe, "moved", forgetful)

    assert "utf-7" in app.delayed.move_differs()
    assert [one for one in raw.scan_iter() if "probe" in one] == []


def test_a_user_who_may_not_reach_the_queues_publishes(
    new_app: Callable[..., Celery],
    redis_server: EmbeddedRedis,
    raw: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw.execute_command(
        *"ACL SETUSER shy on >secret ~{celery-delay:* ~_kombu.* +@all -lpush &*".split()
    )
    try:
        url = redis_server.tcp_url.replace("redis://", "redis://shy:secret@")
        app = new_app(url)

        assert "lpush" in app.delayed.move_differs()
        path = HandoffPath(app.delayed)
        with caplog.at_level(logging.INFO):
            path.choose()
    finally:
        raw.execute_command("ACL", "DELUSER", "shy")

    assert path.chosen == "claim"
    [told] = [one for one in caplog.records if getattr(one, "event", "") == "path_chosen"]
    assert told.levelno == logging.WARNING


def test_a_restart_in_the_middle_decides_nothing(
    new_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    monkeypatch.setattr(RedisStore, "begin_epoch", lambda *_, **__: None)  # that history is gone

    with pytest.raises(StoreUnavailable, match="restarted"):
        app.delayed.move_differs()


def test_a_silence_in_the_middle_decides_nothing(
    new_app: Callable[..., Celery], redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a Redis that falls silent at the trial's add, for longer than that waits
    WHEN it answers again
    THEN the beat moves: what it would publish all its life, nobody would watch.
    """
    app = new_app(delay_add_window=0.5, delay_redis_timeout=0.2)
    path, original = HandoffPath(app.delayed), RedisStore._call
    pid = redis_server.pid
    assert pid is not None

    def silent(self: RedisStore, name: str, *rest: Any, **how: Any) -> Any:
        if name == "add":
            os.kill(pid, signal.SIGSTOP)
        return original(self, name, *rest, **how)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(RedisStore, "_call", silent)
            with pytest.raises(StoreUnavailable):
                path.choose()
    finally:
        os.kill(pid, signal.SIGCONT)

    assert path.chosen is None
    path.choose()
    assert path.chosen == "move"


def test_the_way_is_the_claim_where_it_is_asked_for_or_the_broker_is_elsewhere(
    new_app: Callable[..., Celery],
    new_redis: Callable[..., EmbeddedRedis],
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = new_app(delay_handoff="claim")
    other = new_redis()
    elsewhere = new_app(other.tcp_url, delay_redis_url=redis_url)
    rabbit = new_app("amqp://nowhere.invalid", delay_redis_url=redis_url)

    for app in (asked, elsewhere, rabbit):
        assert not app.delayed.moves()
        path = HandoffPath(app.delayed)
        path.choose()
        assert path.chosen == "claim"
    assert "watch" not in caplog.text

    HandoffPath(new_app(delay_handoff="claim", delay_guard="track").delayed).choose()
    assert [one.event for one in caplog.records if one.levelno == logging.WARNING] == ["watch_off"]  # type: ignore[attr-defined]


def test_a_store_that_is_away_decides_nothing(
    new_app: Callable[..., Celery], new_redis: Callable[..., EmbeddedRedis]
) -> None:
    server = new_redis()
    app = new_app(server.tcp_url)
    path = HandoffPath(app.delayed)
    server.kill()

    with pytest.raises(StoreUnavailable):
        path.choose()

    assert path.chosen is None
    server.start()
    path.choose()
    assert path.chosen == "move"


def test_a_broker_that_is_silent_is_not_asked_for_each_call(
    new_app: Callable[..., Celery], new_redis: Callable[..., EmbeddedRedis], redis_url: str
) -> None:
    broker = new_redis()
    app = new_app(broker.tcp_url, result_backend=redis_url, delay_redis_url=redis_url)
    task = app.task(identity, shared=False, name="project.identity")
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        results = [
            task.apply_delayed((1,), countdown=60, headers={"n": number}) for number in range(8)
        ]
    finally:
        os.kill(broker.pid, signal.SIGCONT)

    # each would have waited for a second
    created = [one.entry_id.run for one in results]
    assert max(created) - min(created) < 5_000
    assert app.delayed.count() == 8
    assert all(one.cancel() for one in results)
