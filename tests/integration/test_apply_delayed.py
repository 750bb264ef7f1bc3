"""``apply_delayed`` and its relatives, as a user calls them, on a real Redis."""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from celery import Celery, group
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError

from celery_delay import CeleryDelay, DelayedResult, State
from celery_delay.calling import shapes
from celery_delay.calling.calls import DelayedCall
from celery_delay.calling.eager import EagerDelayedResult
from celery_delay.domain.clock import to_ms
from celery_delay.domain.entries import Due
from celery_delay.domain.labels import NO_LABELS, Labels
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import (
    AlreadyScheduled,
    DelayError,
    InvalidSetting,
    NotInstalled,
    StoreUnavailable,
    UnsupportedBroker,
)
from celery_delay.message.delays import Delay
from celery_delay.message.envelope import HEADER
from tests.projects import hand_off, make_app, messages

HOUR = timedelta(hours=1)


def add(x: Any, y: Any = 1) -> Any:
    return x + y


def count(*args: Any) -> int:
    return len(args)


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "celery*", "slow", "topical")


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    """Make an app with the task ``add``: ``new_app(delay_naive_eta="utc", …)``."""
    made: list[Celery] = []

    def make(url: str = redis_url, **conf: Any) -> Celery:
        app = make_app(url, **conf)
        app.add = app.task(add, shared=False, name="project.add")
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(new_app: Callable[..., Celery]) -> Celery:
    return new_app()


@pytest.fixture(params=["full way", "cached template"])
def way(request: pytest.FixtureRequest) -> Callable[[Any], AbstractContextManager[None]]:
    """Calls in its context go through Celery, or fill a template that an earlier call left."""

    def enter(task: Any, *args: Any, **options: Any) -> AbstractContextManager[None]:
        if request.param == "full way":
            return shapes.disabled()
        task.apply_delayed(args or (0, 0), countdown=HOUR, **options).cancel()
        return nullcontext()

    return enter


# --- when ---------------------------------------------------------------------------------


def test_a_countdown_is_counted_from_the_call(app: Celery, way: Any) -> None:
    with way(app.add):
        before = app.delayed.now_ms()
        result = app.add.apply_delayed((1, 2), countdown=60)
        after = app.delayed.now_ms()

    assert isinstance(result, DelayedResult)
    # now_ms() may be behind Redis' clock by the way of one answer; never ahead
    assert before + 60_000 <= result.eta.timestamp() * 1000 <= after + 60_000 + 1_000
    assert result.delay_state is State.SCHEDULED
    assert messages(app) == []


@pytest.mark.parametrize(
    "countdown", [0, -3, timedelta(0), timedelta(seconds=-1), Decimal(-1), 0.0, -0.0]
)
def test_zero_or_less_is_at_once(app: Celery, way: Any, countdown: Any) -> None:
    with way(app.add):
        result = app.add.apply_delayed((1, 2), countdown=countdown)

    assert hand_off(app) == 1
    [message] = messages(app)
    assert message["headers"]["id"] == result.id


@pytest.mark.parametrize("eta", ["1999-01-01T00:00Z", "0001-01-01T00:00:00+05:00"])
def test_a_past_eta_is_at_once(app: Celery, way: Any, eta: str) -> None:
    with way(app.add):
        app.add.apply_delayed((1, 2), eta=eta)

    assert hand_off(app) == 1


def test_an_eta_is_kept_to_the_ms_and_never_early(app: Celery, way: Any) -> None:
    eta = datetime(2031, 5, 4, 3, 2, 1, 4_001, tzinfo=timezone(timedelta(hours=2)))

    with way(app.add):
        result = app.add.apply_delayed((1, 2), eta=eta)

    assert result.eta == eta.replace(microsecond=5_000)
    assert app.delayed.get(result.id).eta_ms == result.eta.timestamp() * 1000
    assert hand_off(app, until=app.delayed.get(result.id).eta_ms - 1) == 0
    assert hand_off(app, until=app.delayed.get(result.id).eta_ms) == 1


@pytest.mark.parametrize(
    ("naive_eta", "hour"),
    [("app", 7), ("utc", 9)],  # the app is in Berlin, in summer
)
def test_a_naive_eta_is_read_as_delay_naive_eta_says(
    new_app: Callable[..., Celery], way: Any, naive_eta: str, hour: int
) -> None:
    app = new_app(timezone="Europe/Berlin", delay_naive_eta=naive_eta)

    with way(app.add):
        result = app.add.apply_delayed((1, 2), eta=datetime(2031, 6, 1, 9))  # noqa: DTZ001

    assert result.eta == datetime(2031, 6, 1, hour, tzinfo=timezone.utc)


def test_a_naive_eta_can_be_refused(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_naive_eta="reject")

    with pytest.raises(ValueError, match="eta"):
        app.add.apply_delayed((1, 2), eta="2031-06-01T09:00")
    with_tz = app.add.apply_delayed((1, 2), eta="2031-06-01T09:00", tz="America/New_York")

    assert with_tz.eta == datetime(2031, 6, 1, 13, tzinfo=timezone.utc)
    assert app.delayed.count() == 1


@pytest.mark.parametrize(
    ("error", "named", "when"),
    [
        (ValueError, "countdown", {"countdown": math.nan}),
        (ValueError, "countdown", {"countdown": math.inf}),
        (ValueError, "countdown", {"countdown": Decimal("NaN")}),
        (ValueError, "countdown", {"countdown": 10**12}),
        (ValueError, "eta", {"eta": "9999-12-31T23:59:59.999999-01:00"}),
        (ValueError, "eta", {"eta": "soon"}),
        (ValueError, "countdown and eta", {"countdown": 1, "eta": "2031-01-01T00:00Z"}),
        (ValueError, "tz", {"eta": "2031-01-01T00:00", "tz": "Nowhere"}),
        (TypeError, "countdown", {}),
        (TypeError, "countdown", {"countdown": "60"}),
        (TypeError, "countdown", {"countdown": True}),
        (TypeError, "eta", {"eta": 60}),
        (TypeError, "task_id", {"countdown": 1, "task_id": 5}),
        (ValueError, "task_id", {"countdown": 1, "task_id": ""}),
        (ValueError, "task_id", {"countdown": 1, "task_id": "a\nb"}),
        (ValueError, "task_id", {"countdown": 1, "task_id": "x" * 256}),
    ],
)
def test_a_wrong_word_is_named_and_nothing_is_stored(
    app: Celery, error: type[Exception], named: str, when: dict[str, Any]
) -> None:
    general = {name: value for name, value in when.items() if name != "task_id"}
    each = DelayedCall((3, 4), task_id=when.get("task_id"))
    for call in (
        lambda: app.add.apply_delayed((1, 2), **when),
        lambda: app.add.s(1, 2).apply_delayed(**when),
        lambda: app.delayed.send_task("project.add", (1, 2), **when),
        lambda: app.add.apply_delayed_many([(1, 2), each], **general),
    ):
        with pytest.raises(error, match=named):
            call()

    assert app.delayed.count() == 0
    assert messages(app) == []


# --- the short forms ----------------------------------------------------------------------


def test_delay_for_and_delay_until_take_the_tasks_arguments(app: Celery, way: Any) -> None:
    with way(app.add):
        short = app.add.delay_for(HOUR, 1, y=2)
        until = app.add.delay_until("2031-01-01T00:00Z", 3, y=4)

    assert until.eta == datetime(2031, 1, 1, tzinfo=timezone.utc)
    assert [app.delayed.get(one.id).headers["argsrepr"] for one in (short, until)] == [
        "(1,)",
        "(3,)",
    ]
    assert [app.delayed.get(one.id).headers["kwargsrepr"] for one in (short, until)] == [
        "{'y': 2}",
        "{'y': 4}",
    ]


def test_send_task_goes_by_name(app: Celery) -> None:
    result = app.delayed.send_task("elsewhere.do", (1,), {"a": 2}, countdown=60, queue="slow")

    entry = app.delayed.get(result.id)
    assert (entry.task, entry.queue) == ("elsewhere.do", "slow")
    assert hand_off(app, until=result) == 1
    [message] = messages(app, "slow")
    assert message["headers"]["task"] == "elsewhere.do"


# --- Celery's ways ------------------------------------------------------------------------


def test_arguments_that_do_not_fit_raise_at_the_call(app: Celery, way: Any) -> None:
    with way(app.add), pytest.raises(TypeError, match="missing 1 required positional argument"):
        app.add.apply_delayed((), countdown=60)
    with way(app.add), pytest.raises(TypeError):
        app.add.apply_delayed((1, 2, 3, 4), countdown=60)

    assert app.delayed.count() == 0


def test_arguments_that_cannot_be_serialised_raise_at_the_call(app: Celery, way: Any) -> None:
    with way(app.add), pytest.raises(EncodeError):
        app.add.apply_delayed((object(),), countdown=60)

    assert app.delayed.count() == 0


def test_eager_tasks_run_at_once(new_app: Callable[..., Celery]) -> None:
    app = new_app(task_always_eager=True)

    for result in (
        app.add.apply_delayed((1, 2), countdown=60),
        app.add.delay_for(60, 1, 2),
        app.add.s(1, 2).apply_delayed(countdown=60),
        *app.add.apply_delayed_many([(1, 2)], countdown=60),
        *app.add.apply_delayed_many([DelayedCall((1, 2), countdown=5)]),
    ):
        assert isinstance(result, EagerDelayedResult)
        assert result.get() == 3
        assert (result.eta, result.delay_state) == (None, State.SUCCEEDED)
        assert result.cancel() == "TOO_LATE"
    assert app.delayed.count() == 0

    with pytest.raises(ValueError, match="countdown"):
        app.add.apply_delayed((1, 2), countdown=math.nan)


def test_expiry_before_the_eta_is_warned_of(
    app: Celery, way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with way(app.add, expires=60), caplog.at_level(logging.WARNING, "celery_delay"):
        caplog.clear()
        app.add.apply_delayed((1, 2), countdown=HOUR, expires=60, task_id="early")
        app.add.apply_delayed((1, 2), countdown=1, expires=60)
        app.add.apply_delayed((1, 2), countdown=HOUR)

    [record] = [one for one in caplog.records if one.event == "expires_before_eta"]
    assert record.task_id == "early"


def test_a_task_id_in_use_is_refused(app: Celery, way: Any) -> None:
    with way(app.add):
        first = app.add.apply_delayed((1, 2), countdown=60, task_id="mine")
        with pytest.raises(AlreadyScheduled, match="'mine'") as raised:
            app.add.apply_delayed((3, 4), countdown=1, task_id="mine")

    assert raised.value.task_id == "mine"
    assert app.delayed.get("mine").headers["argsrepr"] == "(1, 2)"
    assert first.eta.timestamp() * 1000 == app.delayed.get("mine").eta_ms


def test_a_task_id_can_be_used_again_once_it_has_left(app: Celery, way: Any) -> None:
    with way(app.add):
        first = app.add.apply_delayed((1, 2), countdown=0, task_id="mine")
        hand_off(app)
        second = app.add.apply_delayed((3, 4), countdown=0, task_id="mine")
        hand_off(app)

    assert first.entry_id.run < second.entry_id.run
    assert [one["headers"]["argsrepr"] for one in messages(app)] == ["(1, 2)", "(3, 4)"]


def test_a_message_that_is_too_large_is_refused(new_app: Callable[..., Celery], way: Any) -> None:
    app = new_app(delay_max_payload=2_000)

    with way(app.add):
        app.add.apply_delayed(("x" * 1_000, 1), countdown=60)
        with pytest.raises(ValueError, match=r"\d+ bytes, more than delay_max_payload \(2000\)"):
            app.add.apply_delayed(("x" * 2_000, 1), countdown=60)

    assert app.delayed.count() == 1


def test_protocol_1_is_refused(new_app: Callable[..., Celery]) -> None:
    app = new_app(task_protocol=1)

    with pytest.raises(DelayError, match="task_protocol"):
        app.add.apply_delayed((1, 2), countdown=60)

    assert messages(app) == []


def test_an_unreachable_redis_is_said_and_nothing_is_sent(
    app: Celery, way: Any, new_redis: Callable[..., EmbeddedRedis]
) -> None:
    server = new_redis()
    lonely = make_app(server.tcp_url, result_backend="disabled://", task_publish_retry=False)
    lonely.add = lonely.task(add, shared=False, name="project.add")
    with way(lonely.add):
        server.kill()
        with pytest.raises(StoreUnavailable):
            lonely.add.apply_delayed((1, 2), countdown=60)
    lonely.close()


def test_a_wrong_setting_is_said_at_the_first_call(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_shads=2)

    with pytest.raises(InvalidSetting, match="delay_shards"):
        app.add.apply_delayed((1, 2), countdown=60)

    assert messages(app) == []


# --- brokers and exchanges that no move reaches; see also test_publishing.py ----------------


@pytest.mark.parametrize("kind", ["topic", "fanout"])
def test_an_exchange_that_may_reach_several_queues_waits_to_be_published(
    new_app: Callable[..., Celery], kind: str
) -> None:
    queue = Queue("topical", Exchange("topical", type=kind), routing_key="news.*")
    app = new_app(task_queues=(Queue("celery"), queue))
    with app.connection_for_write() as connection:
        queue(connection.channel()).declare()

    result = app.add.apply_delayed(
        (1, 2), countdown=0, exchange="topical", exchange_type=kind, routing_key="news.key"
    )

    [shard] = app.delayed.shards
    assert shard.sizes()["pending"] == app.delayed.count() == 1
    assert hand_off(app) == 0
    assert messages(app) == messages(app, "topical") == []
    assert result.cancel()


@pytest.mark.parametrize("broker", ["memory://", "filesystem://", "amqp://nowhere.invalid"])
def test_another_broker_needs_a_redis_for_the_store(redis_url: str, broker: str) -> None:
    app = Celery("project", broker=broker, set_as_current=False)
    CeleryDelay(app)
    task = app.task(add, shared=False, name="project.add")

    for _ in range(2):
        with pytest.raises(UnsupportedBroker, match="delay_redis_url must say"):
            task.apply_delayed((1, 2), countdown=0)

    app.close()


def test_a_task_is_scheduled_while_its_broker_is_down(redis_url: str) -> None:
    app = Celery("project", broker="amqp://127.0.0.1:1", set_as_current=False)
    app.conf.delay_redis_url = redis_url
    CeleryDelay(app)
    task = app.task(add, shared=False, name="project.add")

    result = task.apply_delayed((1, 2), countdown=60)

    assert app.delayed.get(result.id).task == "project.add"
    assert result.cancel()
    app.close()


def test_an_app_without_celery_delay_says_what_to_do(redis_url: str) -> None:
    app = Celery("project", broker=redis_url, set_as_current=False)
    task = app.task(add, shared=False, name="project.add")

    for call in (
        lambda: task.apply_delayed((1, 2), countdown=60),
        lambda: task.delay_for(60, 1, 2),
        lambda: task.s(1, 2).apply_delayed(countdown=60),
        lambda: task.apply_delayed_many([(1, 2)], countdown=60),
    ):
        with pytest.raises(NotInstalled, match=r"CeleryDelay\(app\)"):
            call()

    assert messages(app) == []
    app.close()


def test_an_apply_async_that_loses_the_delay_is_told(app: Celery) -> None:
    class Forgetful(app.Task):  # type: ignore[name-defined, misc]
        def apply_async(self, args: Any = None, kwargs: Any = None, **_: Any) -> Any:
            return super().apply_async(args, kwargs)

    forgetful = app.task(count, shared=False, name="forgetful", base=Forgetful)

    with pytest.raises(NotInstalled, match="did not pass its options on"):
        forgetful.apply_delayed((1,), countdown=60)


def test_an_apply_async_that_adds_options_takes_part_each_time(app: Celery) -> None:
    class Urgent(app.Task):  # type: ignore[name-defined, misc]
        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            return super().apply_async(args, kwargs, **{**options, "headers": {"n": len(args)}})

    urgent = app.task(count, shared=False, name="urgent", base=Urgent)

    for number in (1, 2, 3):
        entry = app.delayed.get(urgent.apply_delayed([0] * number, countdown=60).id)
        assert entry.headers["n"] == number


# --- many at a time -----------------------------------------------------------------------


def test_many_calls_each_with_its_own_time(app: Celery, way: Any) -> None:
    with way(app.add):
        found = app.add.apply_delayed_many(
            [
                (1, 2),
                DelayedCall((3,), {"y": 4}, countdown=HOUR),
                DelayedCall((5, 6), eta="2031-01-01T00:00Z", task_id="mine"),
                DelayedCall((7, 8), countdown=0),
            ],
            countdown=60,
            priority=3,
        )

    assert found[2].id == "mine"
    assert found[2].eta == datetime(2031, 1, 1, tzinfo=timezone.utc)
    assert found[0].eta < found[1].eta < found[2].eta
    assert [app.delayed.get(one.id).headers["argsrepr"] for one in found] == [
        "(1, 2)",
        "(3,)",
        "(5, 6)",
        "(7, 8)",
    ]
    assert {app.delayed.get(one.id).envelope["properties"]["priority"] for one in found} == {3}
    assert app.delayed.count() == 4
    assert hand_off(app) == 1


def test_many_calls_are_stored_in_chunks(app: Celery, way: Any) -> None:
    with way(app.add):
        found = app.add.apply_delayed_many(((i, i) for i in range(1_201)), countdown=60, chunk=100)

    assert len({one.id for one in found}) == app.delayed.count() == 1_201
    assert hand_off(app, until=found[-1]) == 300  # a batch


def test_one_task_id_cannot_be_that_of_many(app: Celery) -> None:
    with pytest.raises(TypeError, match="task_id"):
        app.add.apply_delayed_many([(1, 2)], countdown=60, task_id="mine")

    assert app.delayed.count() == 0


def test_many_calls_with_ids_that_json_escapes(app: Celery, way: Any) -> None:
    ids = ["plain", 'quo"te', "käse", "back\\slash", "100%"]
    with way(app.add):
        app.add.apply_delayed_many([DelayedCall((1, 2), task_id=one) for one in ids], countdown=0)

    assert hand_off(app) == 5
    assert {one["headers"]["id"] for one in messages(app)} == set(ids)
    assert {one["headers"]["root_id"] for one in messages(app)} == set(ids)


def test_no_call_is_no_error(app: Celery) -> None:
    assert app.add.apply_delayed_many([], countdown=60) == []


@pytest.mark.parametrize("shards", [1, 4])
def test_a_chunk_is_stored_whole_or_not_at_all(
    new_app: Callable[..., Celery], way: Any, shards: int
) -> None:
    # Given an entry with the task id of the last of many calls
    app = new_app(delay_shards=shards)
    with way(app.add):
        app.add.apply_delayed((0, 0), countdown=60, task_id="taken")
        calls = [DelayedCall((i, i), task_id=f"t{i}") for i in range(7)]
        # When they are scheduled in one chunk
        with pytest.raises(AlreadyScheduled, match="taken") as caught:
            app.add.apply_delayed_many([*calls, DelayedCall((8, 8), task_id="taken")], countdown=60)
        # Then none is left, and the same call can be made again
        assert caught.value.stored == 0
        assert [one.entry_id.task_id for one in app.delayed.list()] == ["taken"]
        assert len(app.add.apply_delayed_many(calls, countdown=60)) == 7

    assert app.delayed.count() == 8


def test_the_same_task_id_twice_in_one_call_is_refused(app: Celery) -> None:
    with pytest.raises(AlreadyScheduled, match="twin"):
        app.add.apply_delayed_many([DelayedCall((1, 2), task_id="twin")] * 2, countdown=60)

    assert app.delayed.count() == 0


def test_nothing_of_a_chunk_is_stored_when_one_of_its_calls_cannot_be_built(
    app: Celery, way: Any
) -> None:
    with way(app.add), pytest.raises(EncodeError):
        app.add.apply_delayed_many([(1, 2)] * 5 + [(object(), 1)], countdown=60)

    assert app.delayed.count() == 0


# --- clocks -------------------------------------------------------------------------------

SHIM = r"""
/* The wall clock of the process, OFFSET seconds off.  Boot and monotonic time stay true. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t offset(void) {
    const char *given = getenv("OFFSET");
    return given ? atol(given) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
"""

PRODUCER = """
    import sys, time
    from celery import Celery
    from celery_delay import CeleryDelay

    app = Celery("project", broker=sys.argv[1])
    CeleryDelay(app)

    @app.task
    def add(x, y): ...

    for n in range(3):  # by the full way, then by the template
        add.apply_delayed((n, n), countdown=30, task_id=f"t{n}", expires=40_000)
    print(time.time())
"""


@pytest.mark.parametrize("offset", [-3_600, 3_600])
def test_a_countdown_does_not_see_the_producers_wall_clock(
    app: Celery, redis_url: str, tmp_path: Path, offset: int
) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not (compiler and sys.platform == "linux"):
        pytest.skip("a wall clock of its own for one process needs Linux and a C compiler")
    # Given a producer whose wall clock is an hour off
    (tmp_path / "clock.c").write_text(SHIM)
    shim = tmp_path / "clock.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(shim), str(tmp_path / "clock.c")], check=True
    )
    script = tmp_path / "producer.py"
    script.write_text(dedent(PRODUCER))
    before = app.delayed.now_ms()

    # When it delays tasks by 30 seconds
    said = subprocess.run(
        [sys.executable, str(script), redis_url],
        env={"LD_PRELOAD": str(shim), "OFFSET": str(offset)},
        check=True,
        capture_output=True,
        text=True,
    )

    # Then they are due 30 seconds after the call, by Redis' clock
    after = app.delayed.now_ms()
    assert abs(float(said.stdout) * 1000 - after) > 3_000_000, "the shim had no effect"
    etas = [app.delayed.get(f"t{n}").eta_ms for n in range(3)]
    assert all(before + 30_000 <= eta <= after + 31_000 for eta in etas)
    assert hand_off(app, until=min(etas) - 1) == 0


# --- what is said beside the task -----------------------------------------------------------


def test_labels_are_stored_and_travel_in_our_header(app: Celery, way: Any) -> None:
    words = {"namespace": "acme", "tags": ["urgent", "käse"]}
    with way(app.add, **words):
        result = app.add.apply_delayed((1, 2), countdown=60, **words)
        plain = app.add.apply_delayed((1, 2), countdown=60)

    assert app.delayed.get(result.id).labels == Labels("acme", ("urgent", "käse"))
    assert app.delayed.get(plain.id).labels == NO_LABELS
    assert hand_off(app, until=plain) == 2
    headers = {one["headers"]["id"]: one["headers"][HEADER] for one in messages(app)}
    assert headers[result.id]["labels"] == words
    assert "labels" not in headers[plain.id]


def test_a_label_that_looks_like_a_record_does_no_harm(app: Celery, way: Any) -> None:
    words = {"namespace": '~"\\\x7e%{}', "tags": ["\\n~", '"']}
    with way(app.add, **words):
        result = app.add.apply_delayed(('~{"tags":[]}',), countdown=0, **words)

    assert app.delayed.get(result.id).labels == Labels('~"\\~%{}', ("\\n~", '"'))
    assert hand_off(app) == 1
    assert messages(app)[0]["headers"][HEADER]["labels"] == {**words, "namespace": '~"\\~%{}'}


def test_labels_go_to_each_part_of_a_canvas_and_of_many(app: Celery) -> None:
    group(app.add.s(1, n) for n in range(3)).apply_delayed(countdown=60, namespace="acme")
    app.add.apply_delayed_many([(1, 2)] * 3, countdown=60, namespace="acme", tags=["many"])
    app.delayed.send_task("elsewhere", countdown=60, namespace="acme")

    found = app.delayed.list()
    assert [one.labels.namespace for one in found] == ["acme"] * 7
    assert sum(one.labels.tags == ("many",) for one in found) == 3


@pytest.mark.parametrize("bad", [{"tags": "word"}, {"window": -1}, {"expires_from": "then"}])
def test_bad_words_about_the_delay_store_nothing(app: Celery, bad: Any) -> None:
    for call in (
        lambda: app.add.apply_delayed((1, 2), countdown=60, **bad),
        lambda: app.add.s(1, 2).apply_delayed(countdown=60, **bad),
        lambda: app.add.apply_delayed_many([(1, 2)], countdown=60, **bad),
        lambda: app.delayed.send_task("elsewhere", countdown=60, **bad),
    ):
        with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
            call()
    assert app.delayed.count() == 0


def test_a_window_spreads_calls_for_one_instant(app: Celery, way: Any) -> None:
    eta = datetime(2031, 1, 1, tzinfo=timezone.utc)
    with way(app.add):
        found = app.add.apply_delayed_many([(1, 2)] * 1_000, eta=eta, window=60)
        app.add.apply_delayed((1, 2), eta=eta, window=60, task_id="one")
        app.add.s(1, 2).apply_delayed(eta=eta, window=60, task_id="two")

    per_second = Counter(int((one.eta - eta).total_seconds()) for one in found)
    assert set(per_second) <= set(range(61))
    assert max(per_second.values()) <= 40
    for one in ("one", "two"):
        due = Delay(Due(to_ms(eta), False), 60_000).due_of(one)
        assert app.delayed.get(one).eta_ms == due.ms


@pytest.mark.parametrize("when", [{"countdown": 3_600}, {"eta": "2031-01-01T00:00Z"}])
def test_an_expiry_from_the_eta(app: Celery, caplog: pytest.LogCaptureFixture, when: Any) -> None:
    with caplog.at_level(logging.WARNING, "celery_delay.message.expiry"):
        for _ in range(2):
            result = app.add.apply_delayed((1, 2), expires=60, expires_from="eta", **when)

    entry = app.delayed.get(result.id)
    # a countdown is Redis' to count, its expiry ours
    assert abs(entry.expires_ms - entry.eta_ms - 60_000) < 5_000
    expires = datetime.fromisoformat(str(entry.headers["expires"]))
    assert to_ms(expires) == entry.expires_ms
    assert not [one for one in caplog.records if one.event == "expires_before_eta"]


def test_an_expiry_from_the_eta_in_many_calls(app: Celery) -> None:
    calls = [DelayedCall((1,), countdown=delay) for delay in (600, 1_200)]

    app.add.apply_delayed_many(calls, expires=60, expires_from="eta")

    for one in app.delayed.list():
        assert abs(one.expires_ms - one.eta_ms - 60_000) < 5_000
