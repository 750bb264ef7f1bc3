"""What is stored of a schedule, and what becomes of occurrences that nobody fired in time."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab

from celery_delay.domain.timetable import Stored
from celery_delay.exceptions import StoreUnavailable
from celery_delay.periodic.definitions import LONGEST, Definition, check_name, checked, described
from celery_delay.periodic.plans import SchedulePlan, StoredPlans, of_store
from celery_delay.periodic.times import Once, build

APP = Celery("schedules", set_as_current=False)
EVERY = {"kind": "every", "seconds": 10.0}


def of(**given: Any) -> Definition:
    words = {"task": "shop.report", "args": None, "kwargs": None, "options": {}, **given}
    return checked(words.pop("task"), words.pop("times", EVERY), **words)


# --- definitions ---------------------------------------------------------------------------


def test_a_definition_comes_back_as_it_was() -> None:
    made = of(args=(1, [2]), kwargs={"a": None}, options={"queue": "slow", "expires": 60},
              misfire="fire_all", grace=5)  # fmt: skip
    assert made.args == [1, [2]]
    assert Definition.read(made.timing(), made.call()) == made
    assert "\n" not in made.timing() + made.call()


def test_a_task_goes_by_its_name() -> None:
    assert of(task=APP.tasks["celery.backend_cleanup"]).task == "celery.backend_cleanup"


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"task": ""}, TypeError, "task must be"),
        ({"task": 7}, TypeError, "task must be"),
        ({"args": "text"}, TypeError, "args must be a list"),
        ({"args": 7}, TypeError, "args must be a list"),
        ({"args": [object()]}, TypeError, "args must be JSON"),
        ({"args": [float("nan")]}, TypeError, "args must be JSON"),
        ({"kwargs": [1]}, TypeError, "kwargs must be a mapping"),
        ({"kwargs": {1: 2}}, TypeError, "kwargs has the key 1"),
        ({"kwargs": {"a": [{2: 3}]}}, TypeError, "kwargs has the key 2"),
        ({"options": {"que": "x"}}, TypeError, "no option 'que'; did you mean queue"),
        ({"options": {"link": "x"}}, TypeError, "no option 'link'"),
        ({"options": {"eta": "x"}}, TypeError, "no option 'eta'"),
        ({"options": {"task_id": "x"}}, TypeError, "no option 'task_id'"),
        ({"options": {"countdown": "3"}}, TypeError, "countdown must be a number"),
        ({"options": {"headers": {"a": object()}}}, TypeError, "options must be JSON"),
        ({"misfire": "later"}, ValueError, "misfire='later' must be one of"),
        ({"grace": -1}, ValueError, "grace=-1 must be 0 or more"),
        ({"grace": "1"}, TypeError, "grace must be a number"),
        ({"args": ["x" * LONGEST]}, ValueError, "characters of JSON, at most"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(given: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        of(**given)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256, 7, None])
def test_a_name_that_cannot_be_kept_is_refused(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        check_name(name)


def test_what_code_has_is_described_as_far_as_it_is_json() -> None:
    found = described("x", crontab(app=APP), (object(),), {"a": 1}, None)
    assert (found.args, found.kwargs, found.options) == (None, {"a": 1}, {})
    assert described("x", crontab(app=APP), ("x" * LONGEST,), None, None).args is None


# --- plans ---------------------------------------------------------------------------------


def plan(times: Any = EVERY, **options: Any) -> SchedulePlan:
    return SchedulePlan(build(times, APP), "", **options)


S = 1_000


@pytest.mark.parametrize(
    ("options", "first", "now", "wanted"),
    [
        # the latest of those that were missed, however late
        ({}, 10 * S, 35 * S, (30 * S, 40 * S)),
        ({"grace": 5}, 10 * S, 35 * S, (30 * S, 40 * S)),
        ({"grace": 4}, 10 * S, 35 * S, (None, 40 * S)),
        # each, in order
        ({"misfire": "fire_all"}, 10 * S, 35 * S, (10 * S, 20 * S)),
        ({"misfire": "fire_all"}, 30 * S, 35 * S, (30 * S, 40 * S)),
        ({"misfire": "fire_all", "grace": 15}, 10 * S, 35 * S, (20 * S, 30 * S)),
        ({"misfire": "fire_all", "grace": 14}, 10 * S, 35 * S, (30 * S, 40 * S)),
        ({"misfire": "fire_all", "grace": 4}, 10 * S, 35 * S, (None, 40 * S)),
        # none; but one that is a bit late is not missed
        ({"misfire": "skip"}, 10 * S, 10 * S, (10 * S, 20 * S)),
        ({"misfire": "skip", "grace": 0}, 10 * S, 10 * S, (10 * S, 20 * S)),
        ({"misfire": "skip", "grace": 0}, 10 * S, 10 * S + 1, (None, 20 * S)),
        ({"misfire": "skip", "grace": 5}, 10 * S, 35 * S, (30 * S, 40 * S)),
    ],
)
def test_missed_occurrences_of_an_interval(
    options: Any, first: int, now: int, wanted: tuple[int | None, int | None]
) -> None:
    assert plan(**options).firing(first, now, 0) == wanted


def test_missed_occurrences_of_a_rare_schedule_are_skipped_after_a_minute() -> None:
    daily = plan({"kind": "crontab", "minute": "0", "hour": "2", "tz": "UTC"}, misfire="skip")
    first = 26 * 3_600 * S
    assert daily.firing(first, first + 60 * S, 0)[0] == first
    assert daily.firing(first, first + 61 * S, 0) == (None, first + 24 * 3_600 * S)


@pytest.mark.parametrize(
    ("options", "now", "nominal"),
    [
        ({}, 99 * S, 5 * S),
        ({"misfire": "fire_all"}, 99 * S, 5 * S),
        ({"misfire": "fire_all", "grace": 3}, 99 * S, None),
        ({"misfire": "skip"}, 99 * S, None),
        ({"misfire": "skip"}, 50 * S, 5 * S),
    ],
)
def test_a_single_occurrence_runs_once_or_not_at_all(
    options: Any, now: int, nominal: int | None
) -> None:
    assert SchedulePlan(Once(5 * S), "", **options).firing(5 * S, now, 0) == (nominal, None)


# --- those of the store ----------------------------------------------------------------------


def stored(definition: Definition | None = None, **more: Any) -> Stored:
    made = definition or of()
    return Stored(1, 500, made.timing(), made.call())._replace(**more)


def test_a_stored_schedule_counts_from_when_it_was_added() -> None:
    found, definition = of_store(APP, stored())
    assert definition.task == "shop.report"
    assert found.start_ms == 500
    assert found.next_after(found.start_ms) == 10_500
    # added again it has occurrences of its own, with another call it keeps them
    assert of_store(APP, stored(anchor_ms=600))[0].version != found.version
    assert of_store(APP, stored(of(args=[1])))[0].version == found.version


class Read:
    """The store, as far as it is read."""

    def __init__(self) -> None:
        self.found: dict[str, Stored | None] = {}
        self.times = 0
        self.away = False

    def __call__(self) -> dict[str, Stored | None]:
        if self.away:
            raise StoreUnavailable("away")
        self.times += 1
        return self.found


def test_they_are_read_again_when_they_have_changed_and_only_then() -> None:
    read = Read()
    plans = StoredPlans(APP, read)
    assert plans.of(0) == {}
    read.found = {"a": stored()}
    assert plans.of(0) == {}
    assert plans.of(1).keys() == {"a"}
    read.away = True
    with pytest.raises(StoreUnavailable):
        plans.of(2)
    read.away, read.found = False, {}
    assert plans.of(2) == {}
    assert read.times == 3


def test_only_those_that_have_changed_are_made_again() -> None:
    read = Read()
    read.found = {"a": stored(), "b": stored()}
    plans = StoredPlans(APP, read)
    before = dict(plans.of(1))
    read.found = {"a": stored(), "b": stored(of(args=[1])), "c": stored()}
    after = plans.of(2)
    assert after["a"] is before["a"]
    assert after["b"] != before["b"]
    assert after.keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    "bad",
    [
        None,
        stored(timing="{}"),
        stored(timing="null"),
        stored(timing="{"),
        stored(timing='{"kind":"lunar"}'),
        stored(call="{"),
        stored(call="[]"),
        stored(call='{"task":"x","text":"","colour":"red"}'),
        stored(call='{"task":"x","text":"","misfire":"maybe"}'),
    ],
)
def test_one_that_cannot_be_used_is_said_once_and_stops_no_other(
    bad: Stored | None, caplog: pytest.LogCaptureFixture
) -> None:
    read = Read()
    read.found = {"bad": bad, "good": stored()}
    plans = StoredPlans(APP, read)
    for revision in (1, 2):
        found = plans.of(revision)
        assert found["bad"] is None
        assert found["good"] is not None
    assert [one.event for one in caplog.records] == ["schedule_unreadable"]  # type: ignore[attr-defined]
    # until it is mended, or breaks again
    caplog.set_level(logging.INFO)
    read.found = {"bad": stored()}
    assert plans.of(3)["bad"] is not None
    read.found = {"bad": bad}
    assert plans.of(4)["bad"] is None
    assert len(caplog.records) == 2
