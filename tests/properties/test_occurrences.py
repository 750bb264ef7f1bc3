"""Occurrences: Celery's where Celery's are right, consistent with themselves everywhere."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from celery import Celery
from celery.schedules import crontab, schedule
from hypothesis import assume, given
from hypothesis import strategies as st

from celery_delay.domain.clock import from_ms, to_ms
from celery_delay.periodic.occurrences import latest, next_after

APP = Celery("occurrences", set_as_current=False)
DAY = timedelta(days=1)
#: North and south, by half an hour, at midnight, one that never changes.
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "America/New_York",
        "Australia/Lord_Howe",
        "Africa/Cairo",
        "America/Havana",
        "America/Santiago",
        "Asia/Kolkata",
    )
]


def field(first: int, last: int) -> st.SearchStrategy[str]:
    one = st.integers(first, last).map(str)
    some = st.sets(st.integers(first, last), min_size=1, max_size=5).map(
        lambda chosen: ",".join(map(str, sorted(chosen)))
    )
    span = st.tuples(st.integers(first, last), st.integers(first, last)).map(
        lambda ends: f"{min(ends)}-{max(ends)}"
    )
    return st.one_of(st.just("*"), one, some, span, st.integers(2, 20).map("*/{}".format))


def instants() -> st.SearchStrategy[int]:
    span = (
        to_ms(datetime(2024, 1, 1, tzinfo=timezone.utc)),
        to_ms(datetime(2030, 1, 1, tzinfo=timezone.utc)),
    )
    return st.integers(*span)


@st.composite
def crontabs(draw: Any, *, rare: bool = True) -> crontab:
    days = {"day_of_month": draw(field(1, 28)), "month_of_year": draw(field(1, 12))} if rare else {}
    plan = crontab(
        minute=draw(field(0, 59)),
        hour=draw(field(0, 23)),
        day_of_week=draw(field(0, 6)),
        app=APP,
        **days,
    )
    plan.tz = draw(st.sampled_from(ZONES))
    return plan


def celerys_next(plan: Any, after_ms: int) -> int:
    """When Celery would run it that ran last at *after_ms*."""
    last = from_ms(after_ms).astimezone(plan.tz)
    plan.nowfun = lambda: last
    return to_ms(from_ms(after_ms) + plan.remaining_estimate(last))


def is_steady(zone: tzinfo, first_ms: int, last_ms: int) -> bool:
    """Whether the clocks do not change between two instants, nor within a day of them."""
    instant, end = from_ms(first_ms) - DAY, from_ms(last_ms) + DAY
    offset = instant.astimezone(zone).utcoffset()
    while instant <= end:
        instant += DAY
        if instant.astimezone(zone).utcoffset() != offset:
            return False
    return True


@given(crontabs(), instants())
def test_a_crontab_runs_when_celery_would_run_it(plan: crontab, after_ms: int) -> None:
    found = next_after(plan, after_ms)
    # 28 days at most in each month: each combination but with weekdays comes within years
    assert found is not None
    assume(is_steady(plan.tz, after_ms, min(found, after_ms + 400 * 86_400_000)))
    assert found == celerys_next(plan, after_ms)


@given(st.floats(0.001, 400_000), st.booleans(), st.sampled_from(ZONES), instants())
def test_an_interval_runs_when_celery_would_run_it(
    seconds: float, relative: bool, zone: tzinfo, after_ms: int
) -> None:
    plan = schedule(seconds, relative, app=APP)
    plan.tz = zone
    found = next_after(plan, after_ms)
    # rounded up to a millisecond, and later than the last one
    assert found == max(celerys_next(plan, after_ms), after_ms + 1)


@given(crontabs(rare=False), instants(), st.integers(0, 3 * 86_400_000))
def test_no_occurrence_is_left_out(plan: crontab, after_ms: int, later: int) -> None:
    # Given any zone, at and around the changes of its clocks too
    found = next_after(plan, after_ms)
    assert found is not None
    assert found > after_ms
    between = after_ms + later
    if between < found:
        assert next_after(plan, between) == found
    else:
        assert (next_after(plan, between) or 0) > between
    assert next_after(plan, found - 1) == found


@given(crontabs(rare=False), instants(), st.integers(0, 40 * 86_400_000))
def test_the_latest_is_the_last_until_now(plan: crontab, first_ms: int, absence: int) -> None:
    first = next_after(plan, first_ms)
    assert first is not None
    now = first + absence
    found = latest(plan, first, now)
    assert first <= found <= now
    assert next_after(plan, found - 1) == found
    assert (next_after(plan, found) or now + 1) > now
