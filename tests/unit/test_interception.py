"""Which of Celery's own delays the store takes, and which way back the others have."""

from __future__ import annotations

import logging
import math
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from kombu import Connection, Exchange

from celery_delay.calling.fallback import Fallback
from celery_delay.calling.interception import own_due, redelivered_after, taken_by_the_store
from celery_delay.domain.entries import Due, EntryId
from celery_delay.domain.ports import Leaderless
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import (
    AlreadyScheduled,
    InvalidSetting,
    JournalFull,
    OutcomeUnknown,
    StoreUnavailable,
    UnsupportedBroker,
)
from tests.shards import SetClock

NOW = 1_800_000_000.0


def _nothing() -> None: ...


@pytest.fixture
def clock() -> SetClock:
    clock = SetClock()
    clock.now = NOW
    return clock


@pytest.fixture
def app() -> Celery:
    app = Celery("project", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"
    app.conf.task_annotations = {"annotated": {"delay_intercept": False}}
    for name, options in {
        "plain": {},
        "never": {"delay_intercept": False},
        "retries": {"delay_intercept": "retry"},
        "always": {"delay_intercept": True},
        "wrong": {"delay_intercept": "yes"},
        "zero": {"delay_intercept": 0},
        "annotated": {},
    }.items():
        app.task(_nothing, shared=False, name=name, **options)
    return app


class Message(SimpleNamespace):
    """Celery's task message as far as it is looked at."""

    def __getitem__(self, at: int) -> Any:
        return [self.headers][at]


def message(task: str = "plain", retries: int = 0, **when: Any) -> Message:
    headers = {"task": task, "id": when.pop("task_id", "id"), "retries": retries}
    return Message(headers=headers, countdown=when.get("countdown"), eta=when.get("eta"))


# --- when ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"countdown": 60}, Due(60_000, True)),
        ({"countdown": 0.0001}, Due(1, True)),
        ({"countdown": 60, "eta": "2031-01-01"}, Due(60_000, True)),
        ({"eta": datetime(2031, 1, 1, tzinfo=timezone.utc)}, Due(1_924_992_000_000, False)),
        ({"eta": "2031-01-01T00:00:00Z"}, Due(1_924_992_000_000, False)),
        ({"eta": "2031-01-01T01:00:00+01:00"}, Due(1_924_992_000_000, False)),
        # without a zone it is in the app's
        (
            {"eta": datetime.fromisoformat("2031-01-01T00:00:00")},
            Due(1_924_992_000_000 - 3_600_000, False),
        ),
        ({"eta": "2031-07-01T00:00:00"}, Due(1_940_630_400_000 - 7_200_000, False)),
        ({}, None),
        ({"countdown": 0}, None),
        ({"countdown": -5}, None),
        ({"countdown": math.inf}, None),
        ({"eta": "next week"}, None),
        ({"eta": 5}, None),
    ],
)
def test_when_a_message_is_due(app: Celery, when: dict[str, Any], expected: Due | None) -> None:
    assert own_due(app, message(**when)) == expected


# --- which --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "task", "calls", "retries"),
    [
        (False, "plain", False, False),
        ("retry", "plain", False, True),
        (True, "plain", True, True),
        # the attribute goes before the setting
        (True, "never", False, False),
        (True, "retries", False, True),
        (False, "retries", False, True),
        (False, "always", True, True),
        ("retry", "always", True, True),
        (True, "annotated", False, False),
        (True, "of another project", True, True),
    ],
)
def test_which_tasks(
    app: Celery, clock: SetClock, setting: Any, task: str, calls: bool, retries: bool
) -> None:
    settings = Settings(intercept=setting)

    def taken(number: int) -> bool:
        one = message(task, number, countdown=60)
        return taken_by_the_store(app, settings, clock, one, {}) is not None

    assert (taken(0), taken(1)) == (calls, retries)


@pytest.mark.parametrize("task", ["wrong", "zero"])
def test_a_wrong_attribute_is_named(app: Celery, clock: SetClock, task: str) -> None:
    with pytest.raises(InvalidSetting, match=f"delay_intercept of the task {task} must be one of"):
        taken_by_the_store(app, Settings(), clock, message(task, countdown=60), {})


@pytest.mark.parametrize(
    ("name", "excluded"),
    [
        ("shop.pay", True),
        ("metrics.cpu", True),
        ("metrics.", True),
        ("Metrics.cpu", False),
        ("my.metrics.cpu", False),
        ("always", True),
    ],
)
def test_excluded_names(app: Celery, clock: SetClock, name: str, excluded: bool) -> None:
    settings = Settings(intercept=True, intercept_exclude=["shop.pay", "metrics.*", "alw?ys"])  # type: ignore[arg-type]

    due = taken_by_the_store(app, settings, clock, message(name, countdown=60), {})

    assert (due is None) is excluded


@pytest.mark.parametrize(
    ("task", "when", "taken"),
    [
        ("plain", {"countdown": 1.0}, True),
        ("plain", {"countdown": 0.999}, False),
        ("plain", {"eta": datetime.fromtimestamp(NOW + 1, timezone.utc)}, True),
        ("plain", {"eta": datetime.fromtimestamp(NOW + 0.9, ZoneInfo("Asia/Kolkata"))}, False),
        ("plain", {"eta": datetime.fromtimestamp(NOW, timezone.utc) - timedelta(9)}, False),
        # Celery's own poll of chords comes every second
        ("celery.chord_unlock", {"countdown": 1.0}, False),
        ("celery.chord_unlock", {"countdown": 1.1}, True),
    ],
)
def test_short_delays_stay_native(
    app: Celery, clock: SetClock, task: str, when: dict[str, Any], taken: bool
) -> None:
    due = taken_by_the_store(app, Settings(intercept=True), clock, message(task, **when), {})

    assert (due is not None) is taken


def test_even_with_no_minimum_the_past_is_now(app: Celery, clock: SetClock) -> None:
    settings = Settings(intercept=True, intercept_min=0)
    past = message(eta=datetime.fromtimestamp(NOW - 1, timezone.utc))
    soon = message(countdown=0.001)

    assert taken_by_the_store(app, settings, clock, past, {}) is None
    assert taken_by_the_store(app, settings, clock, soon, {}) == Due(1, True)


@pytest.mark.parametrize("exchange", ["celery_delayed_27", Exchange("celery_delayed_27", "topic")])
def test_what_rabbitmq_delays_itself_is_left_alone(
    app: Celery, clock: SetClock, exchange: Any
) -> None:
    options = {"exchange": exchange, "routing_key": "0.1.celery"}
    settings = Settings(intercept=True)

    assert taken_by_the_store(app, settings, clock, message(countdown=60), options) is None


def test_an_id_that_the_store_cannot_have_is_left_alone(app: Celery, clock: SetClock) -> None:
    one = message(countdown=60, task_id=5)

    assert taken_by_the_store(app, Settings(intercept=True), clock, one, {}) is None


# --- the way back -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "seconds"),
    [
        ("redis://", {}, 3600),
        ("redis://", {"visibility_timeout": 20}, 20),
        # RabbitMQ's delivery acknowledgement time-out
        ("amqp://", {}, 1800),
        ("amqp://", {"visibility_timeout": 20}, 1800),
        ("memory://", {}, math.inf),
    ],
)
def test_how_long_a_worker_may_hold_a_message(
    url: str, options: dict[str, Any], seconds: float
) -> None:
    assert redelivered_after(Connection(url, transport_options=options)) == seconds


DOUBT = OutcomeUnknown(EntryId("id", 1), "no answer")


@pytest.mark.parametrize(
    ("error", "short", "long", "store", "retry"),
    [
        (Leaderless("no beat"), True, True, True, True),
        (StoreUnavailable("down"), True, False, False, True),
        (JournalFull("full"), True, False, False, True),
        (AlreadyScheduled("id"), True, True, True, True),
        (UnsupportedBroker("fanout"), True, True, True, True),
        (ValueError("too large"), True, True, True, True),
        (DOUBT, False, False, False, False),
    ],
)
def test_what_goes_native(
    clock: SetClock,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    short: bool,
    long: bool,
    store: bool,
    retry: bool,
) -> None:
    def native(wait: float, retries: int = 0, **settings: Any) -> bool:
        connection = Connection("redis://", transport_options={"visibility_timeout": 20})
        due = Due(round(wait * 1000), True)
        fallback = Fallback(Settings(**settings), clock, message(retries=retries), due, connection)
        return fallback.goes_native(error)

    with caplog.at_level(logging.WARNING):
        assert native(9.9) is short
        assert native(10) is long
        assert native(9.9, intercept_fallback="store") is store
        assert native(9.9, 1) is native(10, 1) is native(10, 1, intercept_fallback="store") is retry
    events = [record.event for record in caplog.records]
    assert events.count("call_went_native") == short + long + store
    assert events.count("retry_went_native") == 3 * retry


@pytest.mark.parametrize(
    ("wait", "setting", "needs"),
    [(9.9, "native", True), (10, "native", False), (9.9, "store", False)],
)
def test_a_leader_is_needed_where_a_worker_could_do(
    clock: SetClock, wait: float, setting: str, needs: bool
) -> None:
    connection = Connection("redis://", transport_options={"visibility_timeout": 20})
    settings = Settings(intercept_fallback=setting)
    due = Due(round((NOW + wait) * 1000), False)

    assert Fallback(settings, clock, message(), due, connection).needs_leader is needs
