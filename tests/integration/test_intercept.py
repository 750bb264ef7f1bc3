"""Celery's own delays through the store: every place where Celery can delay a message."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery, chain, chord, group, signals
from celery.exceptions import TaskRevokedError

from celery_delay import DelayedResult
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import InvalidSetting, StoreUnavailable
from tests.integration.running import Running
from tests.processes import ProcessHarness, wait_until
from tests.projects import hand_off, make_app, messages
from tests.servers import RedisServers

#: Seconds of each delay.
DELAY = 0.5


@pytest.fixture(scope="module")
def here(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The project with a beat and a worker, and all its delays through the store."""
    server = redis_servers.new()
    folder = tmp_path_factory.mktemp("intercept")
    made: list[ProcessHarness] = []

    def harness(app: str, **options: Any) -> ProcessHarness:
        made.append(ProcessHarness(folder, app, **options))
        return made[-1]

    # chords' keys live for a second less than the longest delay of a header here
    project = Running(
        harness,
        server.tcp_url,
        folder,
        delay_intercept=True,
        delay_intercept_min=0.04,
        result_chord_expires=3,
    )
    try:
        yield project.start()
    finally:
        project.app.close()
        for one in made:
            one.close()
            print(one)
        server.stop()


# --- every place --------------------------------------------------------------------------


class Sent(NamedTuple):
    """A call: its result, the value expected of it, and the ids of those that must have waited."""

    result: Any
    value: Any
    waited: Sequence[str]


Ways = Callable[[Any], Sent]
WAYS: dict[str, Ways] = {}


def way(function: Ways) -> Ways:
    WAYS[function.__name__] = function
    return function


def _sent(result: Any, value: Any) -> Sent:
    return Sent(result, value, [result.id])


def _eta() -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=DELAY)


@way
def apply_async_with_a_countdown(tasks: Any) -> Sent:
    return _sent(tasks["add"].apply_async((1, 2), countdown=DELAY), 3)


@way
def apply_async_with_an_eta(tasks: Any) -> Sent:
    return _sent(tasks["add"].apply_async((1, 2), eta=_eta()), 3)


@way
def apply_async_with_an_eta_as_text(tasks: Any) -> Sent:
    return _sent(tasks["add"].apply_async((1, 2), eta=_eta().isoformat()), 3)


@way
def send_task_by_name(tasks: Any) -> Sent:
    return _sent(tasks["add"].app.send_task("add", (1, 2), countdown=DELAY), 3)


@way
def a_signature(tasks: Any) -> Sent:
    return _sent(tasks["add"].s(1, 2).set(countdown=DELAY).delay(), 3)


@way
def a_signature_by_name(tasks: Any) -> Sent:
    by_name = tasks["add"].app.signature("add", args=(1, 2))
    return _sent(by_name.apply_async(countdown=DELAY), 3)


@way
def a_map(tasks: Any) -> Sent:
    return _sent(tasks["add"].map([1, 2]).apply_async(countdown=DELAY), [1, 2])


@way
def a_group(tasks: Any) -> Sent:
    result = group(tasks["add"].s(i, i) for i in range(3)).apply_async(countdown=DELAY)
    return Sent(result, [0, 2, 4], [one.id for one in result])


@way
def a_skewed_group(tasks: Any) -> Sent:
    parts = group(tasks["add"].s(i, i) for i in range(3))
    result = parts.skew(start=DELAY / 2, stop=DELAY, step=DELAY / 4).apply_async()
    return Sent(result, [0, 2, 4], [one.id for one in result])


@way
def a_chain(tasks: Any) -> Sent:
    result = chain(tasks["add"].s(1, 2), tasks["add"].s(10)).apply_async(countdown=DELAY)
    return Sent(result, 13, [result.parent.id])


@way
def an_element_of_a_chain(tasks: Any) -> Sent:
    return _sent((tasks["add"].s(1, 2) | tasks["add"].s(10).set(countdown=DELAY)).delay(), 13)


@way
def a_chord(tasks: Any) -> Sent:
    header = [tasks["add"].s(i, i) for i in range(3)]
    result = chord(header, tasks["total"].s()).apply_async(countdown=DELAY)
    return Sent(result, 6, [one.id for one in result.parent])


@way
def a_part_of_a_chords_header(tasks: Any) -> Sent:
    header = [tasks["add"].s(1, 1), tasks["add"].s(2, 2).set(countdown=DELAY)]
    result = chord(header, tasks["total"].s()).apply_async()
    return Sent(result, 6, [result.parent[1].id])


@way
def a_chords_body(tasks: Any) -> Sent:
    body = tasks["total"].s().set(countdown=DELAY)
    return _sent(chord([tasks["add"].s(i, i) for i in range(3)], body).apply_async(), 6)


@way
def a_link(tasks: Any) -> Sent:
    linked = tasks["add"].s(10).set(countdown=DELAY)
    result = linked.freeze()
    tasks["add"].apply_async((1, 2), link=linked)
    return _sent(result, 13)


@way
def a_link_error(tasks: Any) -> Sent:
    linked = tasks["note"].si("it failed").set(countdown=DELAY)
    result = linked.freeze()
    tasks["fails"].apply_async(link_error=linked)
    return _sent(result, "it failed")


@way
def a_retry(tasks: Any) -> Sent:
    return _sent(tasks["flaky"].apply_async((1, DELAY)), 1)


@way
def an_automatic_retry(tasks: Any) -> Sent:
    return _sent(tasks["autoretried"].apply_async((1,)), 1)


@way
def the_retry_of_a_lost_worker(tasks: Any) -> Sent:
    flag = Path(tasks["add"].app.flags) / f"flag{time.monotonic_ns()}"
    return _sent(tasks["dies_retried_late"].apply_async(("killed", str(flag))), "survived")


#: Shorter than the others in the project.
SHORT = {"an_automatic_retry": 0.05}


@pytest.mark.parametrize("name", WAYS)
def test_a_delay_waits_in_the_store(here: Running, tmp_path: Path, name: str) -> None:
    here.app.flags = tmp_path
    started = time.time()

    result, value, waited = WAYS[name](here.app.tasks)

    assert result.get(timeout=30) == value
    assert time.time() - started >= SHORT.get(name, DELAY), "early"
    for task_id in waited:
        wait_until(lambda: any("SCHEDULED" in run for run in here.history(task_id)), 15)  # noqa: B023


def test_meanwhile_no_queue_and_no_worker_has_them(here: Running) -> None:
    # Given one delayed task by each way that starts here, and far from due
    add, total = here.app.tasks["add"], here.app.tasks["total"]
    results = [
        add.apply_async((1, 2), countdown=600),
        here.app.send_task("add", (1, 2), eta=datetime.now(timezone.utc) + timedelta(hours=1)),
        group(add.s(1), add.s(2)).apply_async(countdown=600),
        chord([add.s(1), add.s(2)], total.s()).apply_async(countdown=600).parent,
    ]

    # Then the store has all of them
    assert here.app.delayed.count() == 6
    client = redis.Redis.from_url(here.app.conf.broker_url)
    assert client.llen("celery") == client.hlen("unacked") == 0
    told = here.app.control.inspect(timeout=3).scheduled()
    assert told.pop("worker@test") == []
    assert [len(stored) for stored in told.values()] == [6], "beat tells of them"

    # and revoke reaches them
    for one in results:
        one.revoke()
    assert here.app.delayed.count() == 0
    with pytest.raises(TaskRevokedError):
        results[0].get(timeout=10)
    client.close()


def test_a_task_sees_the_message_that_celery_would_have_sent(here: Running) -> None:
    eta = datetime.now(timezone.utc) + timedelta(seconds=0.2)
    sig = here.app.tasks["tells"].s().set(time_limit=60, soft_time_limit=50, expires=900)
    sig.stamp(order="o1")
    undelayed = sig.clone().apply_async().get(timeout=20)

    result = sig.apply_async(eta=eta)

    assert type(result) is here.app.AsyncResult
    told = result.get(timeout=20)
    assert datetime.fromisoformat(told["eta"]) == eta
    assert told["timelimit"] == undelayed["timelimit"] == [60, 50]
    assert told["stamps"] == undelayed["stamps"] != {}
    assert told["expires"] is not None
    assert (told["id"], told["root_id"], told["parent_id"]) == (result.id, result.id, None)


def test_a_chord_fires_however_long_its_header_waits(here: Running) -> None:
    # Given parts of a header that are further apart than the life of the chord's keys (3 s)
    add, total = here.app.tasks["add"], here.app.tasks["total"]
    last_is_late = chord([add.s(1, 1), add.s(2, 2).set(countdown=5)], total.s()).apply_async()
    first_is_late = chord(
        [add.s(1, 1).set(countdown=5), add.s(2, 2).set(countdown=1), add.s(3, 3)], total.s()
    ).apply_async()
    chains = chord(
        [add.s(1).set(countdown=5) | add.s(1), add.s(2) | add.s(2)], total.s()
    ).apply_async()
    explicit = chord([add.s(1), add.s(2).set(countdown=4)], total.s()).apply_delayed(countdown=1)

    assert last_is_late.get(timeout=30) == 6
    assert first_is_late.get(timeout=30) == 12
    assert chains.get(timeout=30) == 6
    assert explicit.get(timeout=30) == 3


# --- without processes --------------------------------------------------------------------


@pytest.fixture
def new_app(redis_server: EmbeddedRedis) -> Iterator[Callable[..., Celery]]:
    """An app whose own delays go through the store, with nobody who leads."""
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        conf = {"delay_intercept": True, "broker_url": redis_server.tcp_url, **conf}
        app = make_app(conf.pop("broker_url"), result_backend="cache+memory://", **conf)
        app.task(_add, shared=False, name="add")
        app.task(_add, shared=False, name="never", delay_intercept=False)
        app.task(_add, shared=False, name="wrong", delay_intercept="no")
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def _add(x: int = 0, y: int = 0) -> int:
    return x + y


def _lead(app: Celery) -> None:
    hand_off(app)


def _where(app: Celery) -> tuple[int, int]:
    """How many wait in the store, and how many were sent."""
    return app.delayed.count(), len(messages(app))


def test_what_is_not_delayed_or_not_wanted_is_sent(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_intercept_exclude=["add*"], delay_intercept_min=5)
    _lead(app)

    app.tasks["never"].apply_async(countdown=60)
    app.send_task("adding", countdown=60)
    app.send_task("other", countdown=4.9)
    app.send_task("other")
    app.send_task("other", eta=datetime.now(timezone.utc) - timedelta(days=1))
    assert _where(app) == (0, 5)
    assert [one["headers"]["eta"] is None for one in messages(app)] == [0, 0, 0, 1, 0]

    app.send_task("other", countdown=5.1)
    assert _where(app) == (1, 5)


def test_a_wrong_attribute_raises_at_the_call_but_never_in_a_retry(
    new_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app()

    with pytest.raises(InvalidSetting, match="delay_intercept of the task wrong"):
        app.tasks["wrong"].apply_async(countdown=60)
    assert _where(app) == (0, 0)

    app.tasks["wrong"].apply_async(countdown=60, retries=1)
    assert _where(app) == (0, 1)
    assert [one.event for one in caplog.records] == ["retry_went_native"]


def test_an_eager_app_runs_at_once(new_app: Callable[..., Celery]) -> None:
    app = new_app(task_always_eager=True)

    assert app.tasks["add"].apply_async((1, 2), countdown=60).get() == 3
    assert app.delayed.count() == 0


def test_receivers_of_the_publish_signals_take_part(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    _lead(app)
    seen: list[Any] = []

    def before(headers: Any = None, **_: Any) -> None:
        headers["mine"] = "x"
        seen.append(("before", headers["eta"]))

    def after(headers: Any = None, **_: Any) -> None:
        seen.append(("after", headers["eta"]))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        result = app.tasks["add"].apply_async((1,), countdown=60)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    entry = app.delayed.get(result.id)
    assert entry.headers["mine"] == "x"
    assert seen == [("before", entry.headers["eta"]), ("after", entry.headers["eta"])]
    assert entry.headers["eta"] is not None


def test_a_task_id_that_waits_already_is_sent_as_before(
    new_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app()
    _lead(app)

    for countdown in (60, 61):
        app.tasks["add"].apply_async(countdown=countdown, task_id="mine")

    assert _where(app) == (1, 1)
    assert [one.event for one in caplog.records] == ["call_went_native"]


def test_a_stored_retry_of_a_native_task_can_be_revoked(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_intercept="retry")
    _lead(app)
    app.tasks["add"].apply_async(countdown=60, task_id="mine", retries=1)
    assert _where(app) == (1, 0)

    app.control.revoke("mine")

    assert _where(app) == (0, 0)


# --- no beat, no loss ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fallback", "countdown", "retries", "stored"),
    [
        ("native", 9, 0, False),
        ("native", 11, 0, True),
        ("native", 9, 1, False),
        ("native", 11, 1, True),
        ("store", 9, 0, True),
        ("store", 9, 1, True),
    ],
)
def test_without_a_leader(
    new_app: Callable[..., Celery],
    caplog: pytest.LogCaptureFixture,
    fallback: str,
    countdown: float,
    retries: int,
    stored: bool,
) -> None:
    # Given no beat, and a broker that gives a held message away after 20 s
    options = {"visibility_timeout": 20}
    app = new_app(delay_intercept_fallback=fallback, broker_transport_options=options)

    app.tasks["add"].apply_async(countdown=countdown, retries=retries)

    # Then what a worker can hold is sent, and all else is stored with a warning
    assert _where(app) == ((1, 0) if stored else (0, 1))
    native = "retry_went_native" if retries else "call_went_native"
    assert [one.event for one in caplog.records] == ["no_leader" if stored else native]
    if not stored:
        assert messages(app)[0]["headers"]["eta"] is not None


def test_with_a_leader_all_is_stored_and_without_one_again_explicit_delays_are(
    new_app: Callable[..., Celery], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app(delay_leader_grace=1.0)
    _lead(app)
    app.tasks["add"].apply_async(countdown=60)
    assert _where(app) == (1, 0)
    assert caplog.records == []

    # when the leader's last sign of life is older than its grace
    with redis.Redis.from_url(redis_url) as client:
        client.hincrby(app.delayed.shard_keys[0].mark, "alive", -1_500)
    app.tasks["add"].apply_async(countdown=60)
    assert _where(app) == (1, 1)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        results = [app.tasks["add"].apply_delayed(countdown=60) for _ in range(3)]
    assert all(isinstance(one, DelayedResult) for one in results)
    assert _where(app) == (4, 1)
    assert [one.event for one in caplog.records] == ["no_leader"]


def test_a_store_that_refuses(
    new_app: Callable[..., Celery], redis_server: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a store that certainly takes nothing, and a broker that works
    url = redis_server.tcp_url
    with redis.Redis.from_url(url) as client:
        rights = ["+ping", "+info", "+time"]
        client.acl_setuser("store", enabled=True, passwords=["+secret"], commands=rights)
        try:
            app = new_app(
                delay_redis_url=url.replace("//", "//store:secret@"),
                broker_transport_options={"visibility_timeout": 20},
            )
            add = app.tasks["add"]
            # When Celery's own delays meet it
            add.apply_async(countdown=9)
            add.apply_async(countdown=9, retries=1)
            add.apply_async(countdown=11, retries=1)
            with pytest.raises(StoreUnavailable):
                add.apply_async(countdown=11)
            with pytest.raises(StoreUnavailable):
                add.apply_delayed(countdown=9)
        finally:
            client.acl_deluser("store")
    # Then what a worker can hold is sent, and so is every retry
    assert [(one["headers"]["retries"]) for one in messages(app)] == [0, 1, 1]
    events = [one.event for one in caplog.records]
    assert events == ["call_went_native", "retry_went_native", "retry_went_native"]
