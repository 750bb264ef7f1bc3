"""When a schedule fires next: the table of daylight saving, and Celery's own demands."""

# ruff: noqa: DTZ001  # local times, whose zone stands beside them

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from dateutil import tz as dateutil_tz

from celery_delay.domain.clock import from_ms, to_ms
from celery_delay.periodic import occurrences
from celery_delay.periodic.occurrences import Firing, definition, firing, latest, next_after

APP = Celery("occurrences", set_as_current=False)
UTC = timezone.utc
NEW_YORK = ZoneInfo("America/New_York")
DAY = 86_400_000


def at(*fields: int, zone: tzinfo = UTC, fold: int = 0) -> int:
    """An instant in ms by the local time of a zone."""
    return to_ms(datetime(*fields, tzinfo=zone, fold=fold))  # type: ignore[misc, arg-type]


def in_zone(plan: Any, zone: tzinfo) -> Any:
    plan.app = APP
    plan.tz = zone
    return plan


def cron(zone: tzinfo = UTC, **fields: Any) -> crontab:
    return in_zone(crontab(**fields), zone)  # type: ignore[no-any-return]


def from_to(plan: BaseSchedule, after_ms: int, until_ms: int) -> list[datetime]:
    """The occurrences after the one instant and until the other."""
    found = []
    following = next_after(plan, after_ms)
    while following is not None and following <= until_ms:
        found.append(from_ms(following))
        following = next_after(plan, following)
    return found


# --- the table of daylight saving, over all zones --------------------------------------------


def changes(zone: tzinfo, year: int) -> Iterator[datetime]:
    """The instants at which a zone's clocks change."""
    day = datetime(year, 1, 1, tzinfo=UTC)
    while day.year == year:
        low, high = day, day + timedelta(days=1)
        before, after = (one.astimezone(zone).utcoffset() for one in (low, high))
        while before != after and high - low > timedelta(minutes=1):
            middle = low + (high - low) / 2
            if middle.astimezone(zone).utcoffset() == before:
                low = middle
            else:
                high = middle
        if before != after:
            yield high.replace(second=0, microsecond=0)
        day += timedelta(days=1)


def walls(zone: tzinfo, change: datetime) -> dict[datetime, datetime]:
    """Each minute around a change → what the clock on the wall shows then."""
    minutes = (change + timedelta(minutes=number) for number in range(-240, 241))
    return {one: one.astimezone(zone).replace(tzinfo=None) for one in minutes}


def by_the_table(
    zone: tzinfo, change: datetime, minutes: set[int], every_hour: bool
) -> list[datetime]:
    """What the table promises, by looking at each minute."""
    shown = walls(zone, change)
    if every_hour:
        return [instant for instant, wall in shown.items() if wall.minute in minutes]
    found, seen = [], set()
    first, last = min(shown.values()), max(shown.values())
    for instant, wall in shown.items():
        if wall not in seen and wall.minute in minutes:
            found.append(instant)
        seen.add(wall)
    wall = first
    while wall < last:  # a time of day that no clock has shown: at the first valid moment
        if wall not in seen and wall.minute in minutes:
            found.append(change)
        wall += timedelta(minutes=1)
    return sorted(set(found))


def shift(zone: tzinfo, change: datetime) -> timedelta:
    before, after = (
        (change + timedelta(minutes=one)).astimezone(zone).utcoffset() for one in (-1, 1)
    )
    assert before is not None
    assert after is not None
    return after - before


#: Changes of rare kinds: around midnight, by half an hour, by three hours, for good.
RARE = [
    ("America/Goose_Bay", 2000),
    ("Antarctica/Casey", 2009),
    ("Asia/Beirut", 2010),
    ("America/Asuncion", 2010),
    ("America/Caracas", 2007),
    ("Asia/Pyongyang", 2018),
]
ALL = [(name, 2026) for name in sorted(available_timezones() - {"localtime", "Factory"})]


@pytest.fixture(scope="module")
def edges() -> list[tuple[str, datetime]]:
    """A zone and a change of its clocks; of zones that change alike, one."""
    found = {}
    for name, year in ALL + RARE:
        zone = ZoneInfo(name)
        for change in changes(zone, year):
            found[change, change.astimezone(zone).utcoffset(), shift(zone, change)] = name, change
    assert len(found) > 50
    return list(found.values())


@pytest.mark.parametrize("hour", ["*", "0-23"], ids=["every hour", "fixed hours"])
def test_a_change_of_the_clocks_follows_the_table(
    edges: list[tuple[str, datetime]], hour: str
) -> None:
    wrong = []
    for name, change in edges:
        zone = ZoneInfo(name)
        plan = cron(zone, minute="0,20,45", hour=hour)
        expected = by_the_table(zone, change, {0, 20, 45}, hour == "*")
        begin, end = (to_ms(change + timedelta(minutes=one)) for one in (-240, 240))
        all_after = occurrences._after(plan, begin - 1)  # next_after() is the first of them
        found = [from_ms(one) for one in takewhile(lambda one: one <= end, all_after)]  # noqa: B023
        if found != expected:
            wrong.append((name, change, found, expected))
    assert wrong[:3] == []


def test_a_day_that_does_not_exist_is_made_up_for_at_its_end() -> None:
    # Given Samoa, which had no 30 December 2011
    zone = ZoneInfo("Pacific/Apia")
    found = from_to(cron(zone, minute=0, hour=4), at(2011, 12, 29, 5, zone=zone), at(2011, 12, 31))
    assert [one.astimezone(zone).replace(tzinfo=None) for one in found] == [
        datetime(2011, 12, 31, 0),
        datetime(2011, 12, 31, 4),
    ]


@pytest.mark.parametrize("zone", [NEW_YORK, dateutil_tz.gettz("America/New_York")], ids=repr)
def test_the_rows_of_the_table(zone: tzinfo) -> None:
    # Given the night of 8 March 2026, in which there is no 02:30, and 1 November, with two 01:30
    spring = at(2026, 3, 7, 23, 0, zone=zone), at(2026, 3, 8, 3, 45, zone=zone)
    autumn = at(2026, 10, 31, 23, 45, zone=zone), at(2026, 11, 1, 2, 45, zone=zone)

    def local(found: list[datetime]) -> list[str]:
        return [one.astimezone(zone).strftime("%H:%M%z") for one in found]

    nightly, hourly = cron(zone, minute=30, hour=2), cron(zone, minute=30)
    # Then fixed hours run at the first valid moment, and once
    assert local(from_to(nightly, *spring)) == ["03:00-0400"]
    assert local(from_to(cron(zone, minute=30, hour=1), *autumn)) == ["01:30-0400"]
    # and each hour that there is
    spring_hours = ["23:30-0500", "00:30-0500", "01:30-0500", "03:30-0400"]
    autumn_hours = ["00:30-0400", "01:30-0400", "01:30-0500", "02:30-0500"]
    assert local(from_to(hourly, *spring)) == spring_hours
    assert local(from_to(hourly, *autumn)) == autumn_hours


# --- interval --------------------------------------------------------------------------------

# zone, interval, relative, last run, due, next due
INTERVALS: dict[str, tuple[str, timedelta, bool, list[datetime]]] = {
    "daily, clocks back": (
        "America/New_York", timedelta(days=1), True,
        [datetime(2026, 11, 1, 0, 30), datetime(2026, 11, 2), datetime(2026, 11, 3)],
    ),
    "daily, clocks forward": (
        "America/New_York", timedelta(days=1), True,
        [datetime(2026, 3, 7, 23, 30), datetime(2026, 3, 8), datetime(2026, 3, 9)],
    ),
    "hourly, clocks forward": (
        "America/New_York", timedelta(hours=1), True,
        [datetime(2026, 3, 8, 1, 30), datetime(2026, 3, 8, 3), datetime(2026, 3, 8, 4)],
    ),
    "hourly, by half an hour": (
        "Australia/Lord_Howe", timedelta(hours=1), True,
        [datetime(2026, 10, 4, 1, 15), datetime(2026, 10, 4, 2, 30), datetime(2026, 10, 4, 3)],
    ),
    "hourly, back by half an hour": (
        "Australia/Lord_Howe", timedelta(hours=1), True,
        [datetime(2026, 4, 5, 1), datetime(2026, 4, 5, 2), datetime(2026, 4, 5, 3)],
    ),
    "daily, no midnight": (
        "Africa/Cairo", timedelta(days=1), True,
        [datetime(2026, 4, 23, 23, 30), datetime(2026, 4, 24, 1), datetime(2026, 4, 25)],
    ),
    "daily, midnight twice": (
        "America/Goose_Bay", timedelta(days=1), True,
        [
            datetime(2000, 10, 28, 23, 30, fold=1),
            datetime(2000, 10, 29, fold=1),
            datetime(2000, 10, 30),
        ],
    ),
    "two hours, a time that comes twice": (
        "Pacific/Chatham", timedelta(hours=2), True,
        [datetime(2026, 4, 5, 2, 45), datetime(2026, 4, 5, 3, fold=1), datetime(2026, 4, 5, 5)],
    ),
    "24 hours, clocks back": (
        "America/New_York", timedelta(days=1), False,
        [
            datetime(2026, 11, 1, 0, 30),
            datetime(2026, 11, 1, 23, 30),
            datetime(2026, 11, 2, 23, 30),
        ],
    ),
    "24 hours, clocks forward": (
        "America/New_York", timedelta(days=1), False,
        [datetime(2026, 3, 7, 23, 30), datetime(2026, 3, 9, 0, 30), datetime(2026, 3, 10, 0, 30)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("make_zone", [ZoneInfo, dateutil_tz.gettz], ids=["zoneinfo", "dateutil"])
@pytest.mark.parametrize("case", INTERVALS.values(), ids=INTERVALS.keys())
def test_an_interval_over_a_change_of_the_clocks(
    case: tuple[str, timedelta, bool, list[datetime]], make_zone: Callable[[str], tzinfo]
) -> None:
    name, every, relative, (last, due, following) = case
    zone = make_zone(name)
    plan = in_zone(schedule(every, relative), zone)

    first = next_after(plan, to_ms(last.replace(tzinfo=zone)))

    assert first == to_ms(due.replace(tzinfo=zone))
    assert next_after(plan, first) == to_ms(following.replace(tzinfo=zone))


def test_an_interval_keeps_its_phase_over_an_absence() -> None:
    plan = in_zone(schedule(90.0), UTC)
    assert latest(plan, 1_000, 1_000) == 1_000
    assert latest(plan, 1_000, 90_999) == 1_000
    assert latest(plan, 1_000, 91_000) == 91_000
    assert latest(plan, 1_000, 10 * DAY) == 1_000 + (10 * DAY - 1_000) // 90_000 * 90_000


def test_an_interval_of_nothing_advances() -> None:
    assert next_after(in_zone(schedule(0), UTC), 5) == 6
    assert next_after(in_zone(schedule(0.0001), UTC), 5) == 6


# --- crontab ---------------------------------------------------------------------------------


def test_day_of_month_month_and_weekday_must_all_match() -> None:
    # Given Friday the 13th
    plan = cron(minute=0, hour=9, day_of_month=13, day_of_week="fri")
    assert from_to(plan, at(2026, 1, 1), at(2026, 12, 31)) == [
        datetime(2026, month, 13, 9, tzinfo=UTC) for month in (2, 3, 11)
    ]


def test_a_date_that_comes_every_forty_years() -> None:
    plan = cron(minute=0, hour=0, day_of_month=29, month_of_year=2, day_of_week="sun")
    assert next_after(plan, at(2088, 3, 1)) == at(2128, 2, 29)


def test_a_date_that_never_comes() -> None:
    plan = cron(minute=0, hour=0)
    plan.day_of_month, plan.month_of_year = {31}, {2}  # Celery refuses it when it is made
    assert next_after(plan, at(2026, 1, 1)) is None


@pytest.mark.parametrize(
    "plan",
    [
        cron(NEW_YORK),
        cron(NEW_YORK, minute="*", hour="0-22"),
        cron(NEW_YORK, minute=0, hour=4, day_of_month=1),
        in_zone(schedule(1.0, relative=True), NEW_YORK),
        in_zone(schedule(90.0, relative=True), NEW_YORK),
        in_zone(solar("sunset", 52, 13), UTC),
    ],
    ids=repr,
)
def test_after_weeks_the_latest_is_found_in_few_steps(
    plan: BaseSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a schedule that nobody has fired for eight weeks
    now = at(2026, 6, 20, 12, 0, 30)
    first = next_after(plan, now - 56 * DAY)
    assert first is not None
    steps = []

    def counted(*args: Any) -> int | None:
        steps.append(args)
        return next_after(*args)

    monkeypatch.setattr(occurrences, "next_after", counted)
    # When asked for the latest
    found = latest(plan, first, now)
    # Then it is the last one, and not all of them were looked at
    assert first < found <= now < (next_after(plan, found) or 0)
    assert len(steps) < 100


# --- missed ones -----------------------------------------------------------------------------


@pytest.fixture
def deadline() -> Iterator[Callable[[float | None], None]]:
    yield lambda seconds: setattr(APP.conf, "beat_cron_starting_deadline", seconds)
    APP.conf.beat_cron_starting_deadline = None


def test_of_missed_occurrences_the_latest_runs(deadline: Callable[[float | None], None]) -> None:
    plan = cron(minute="*/10")
    found = firing(plan, at(2026, 5, 1, 8, 0), at(2026, 5, 1, 11, 11, 20), 0)
    assert found == Firing(at(2026, 5, 1, 11, 10), at(2026, 5, 1, 11, 20))


def test_one_that_is_too_old_is_skipped(deadline: Callable[[float | None], None]) -> None:
    # Given 00 and 30 of each hour, missed since 08:00, and a deadline in seconds
    plan, first = cron(minute="0,30"), at(2026, 5, 1, 8, 0)
    now = at(2026, 5, 1, 11, 20)
    following = at(2026, 5, 1, 11, 30)
    deadline(19 * 60)
    assert firing(plan, first, now, 0) == Firing(None, following)
    deadline(20 * 60)  # on the boundary
    assert firing(plan, first, now, 0) == Firing(at(2026, 5, 1, 11, 0), following)
    deadline(60 * 60)
    assert firing(plan, first, now, 0) == Firing(at(2026, 5, 1, 11, 0), following)


def test_the_deadline_is_for_crontabs(deadline: Callable[[float | None], None]) -> None:
    deadline(1)
    assert firing(in_zone(schedule(10.0), UTC), 0, 5_000, 0) == Firing(0, 10_000)


# --- solar -----------------------------------------------------------------------------------


def test_the_sun_rises_once_a_day_over_a_change_of_the_clocks() -> None:
    plan = in_zone(solar("sunrise", 40.7, -74.0), NEW_YORK)
    for begin in (at(2026, 3, 5), at(2026, 10, 29)):
        found = from_to(plan, begin, begin + 7 * DAY)
        assert len(found) == 7
        steps = [later - earlier for earlier, later in pairwise(found)]
        assert all(abs(one - timedelta(days=1)) < timedelta(minutes=3) for one in steps)


def test_the_instant_after_which_is_asked_counts_and_not_the_clock() -> None:
    plan = in_zone(solar("sunset", 52, 13), UTC)
    plan.nowfun = lambda: datetime(2031, 1, 1, tzinfo=UTC)
    found = from_ms(next_after(plan, at(2026, 6, 1)) or 0)
    assert datetime(2026, 6, 1, 19, tzinfo=UTC) < found < datetime(2026, 6, 1, 20, tzinfo=UTC)


def test_an_event_that_is_found_again_is_not_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a search that is not exact: from an event on it finds the same, a bit later
    plan = in_zone(solar("sunset", 52, 13), UTC)
    search = plan._next_event
    first = next_after(plan, at(2026, 6, 1))
    assert first is not None
    monkeypatch.setattr(
        plan, "_next_event", lambda start: search(plan.ephem.Date(start - 2 * plan.ephem.second))
    )
    assert (next_after(plan, first) or 0) > first + DAY // 2


def test_beyond_the_polar_circle_the_next_event_is_months_away() -> None:
    plan = in_zone(solar("sunset", 78.2, 15.6), UTC)  # no sunset from April to August
    found = from_ms(next_after(plan, at(2026, 5, 1)) or 0)
    assert found.month == 8


# --- a schedule of the user's own ------------------------------------------------------------


class Every(BaseSchedule):
    """Every some seconds since the last run, by the user's own code."""

    def __init__(self, seconds: float, **options: Any) -> None:
        self.every = seconds
        super().__init__(**options)

    def is_due(self, last_run_at: datetime) -> Any:
        gone = (self.now() - last_run_at).total_seconds()
        if gone >= self.every:
            return schedstate(True, self.every)
        return schedstate(False, self.every - gone)


def own(seconds: float, now_ms: int) -> Every:
    return in_zone(Every(seconds, nowfun=lambda: from_ms(now_ms)), UTC)  # type: ignore[no-any-return]


def test_an_own_schedule_is_asked_with_its_last_run() -> None:
    last = at(2026, 5, 1)
    assert firing(own(3, last + 3_004), last + 3_000, last + 3_004, last) == Firing(
        last + 3_000, last + 6_000
    )


def test_an_own_schedule_that_is_not_due_is_asked_again() -> None:
    # Given a clock that is 100 ms behind Redis'
    last = at(2026, 5, 1)
    found = firing(own(3, last + 2_900), last + 3_000, last + 3_000, last)
    assert found == Firing(None, last + 3_100)


def test_an_own_schedule_after_a_long_absence_runs_once() -> None:
    last, now = at(2026, 5, 1), at(2026, 5, 9)
    assert firing(own(3, now), last + 3_000, now, last) == Firing(now, now + 3_000)


class Answers(BaseSchedule):
    def __init__(self, *answer: Any) -> None:
        self.answer = answer
        super().__init__()

    def is_due(self, last_run_at: datetime) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((True, 60), Firing(1_000, 61_000)),
        ((False, 60), Firing(None, 61_000)),
        ((False, 0), Firing(None, 1_010)),
        ((False, None), Firing(None, 61_000)),
        ((True, None), Firing(1_000, 61_000)),
        ((False, float("inf")), Firing(None, 61_000)),
        ((False, float("nan")), Firing(None, 61_000)),
        ((True, -1), Firing(1_000, 1_010)),
    ],
)
def test_what_an_own_schedule_may_answer(answer: tuple[Any, Any], expected: Firing) -> None:
    assert firing(in_zone(Answers(*answer), UTC), 1_000, 1_000, 0) == expected


def test_an_own_schedule_is_not_taken_to_be_due_before_it_was_asked() -> None:
    # a conditional schedule says "look again in a minute", not "run in a minute"
    plan = in_zone(Answers(False, 60), UTC)
    assert next_after(plan, 0) == 60_000
    assert firing(plan, 60_000, 60_000, 0).nominal_ms is None


def test_a_crontab_with_an_is_due_of_its_own_is_asked() -> None:
    class Weekdays(crontab):
        def is_due(self, last_run_at: datetime) -> Any:
            return schedstate(False, 7)

    plan = in_zone(Weekdays(), UTC)
    assert next_after(plan, 0) == 7_000
    assert firing(plan, 7_000, 7_000, 0) == Firing(None, 14_000)


# --- definition ------------------------------------------------------------------------------

SAME = [
    (cron(), cron(minute="*")),
    (cron(minute="0,30"), cron(minute="*/30")),
    (in_zone(schedule(90), UTC), in_zone(schedule(timedelta(seconds=90)), NEW_YORK)),
    (in_zone(Every(3), UTC), in_zone(Every(3, nowfun=lambda: from_ms(0)), UTC)),
    (in_zone(solar("sunset", 52, 13), UTC), in_zone(solar("sunset", 52, 13), NEW_YORK)),
]
DIFFERENT = [
    (cron(), cron(NEW_YORK)),
    (cron(hour="*"), cron(hour="0-23")),  # they differ when the clocks change
    (cron(minute=1), cron(minute=2)),
    (in_zone(schedule(90), UTC), in_zone(schedule(90.001), UTC)),
    (in_zone(schedule(90), UTC), in_zone(schedule(90, relative=True), UTC)),
    (
        in_zone(schedule(90, relative=True), NEW_YORK),
        in_zone(schedule(90, relative=True), UTC),
    ),
    (in_zone(Every(3), UTC), in_zone(Every(3.5), UTC)),
    (in_zone(solar("sunset", 52, 13), UTC), in_zone(solar("sunrise", 52, 13), UTC)),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_times_have_equal_definitions(one: BaseSchedule, other: BaseSchedule) -> None:
    assert definition(one) == definition(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_times_have_other_definitions(one: BaseSchedule, other: BaseSchedule) -> None:
    assert definition(one) != definition(other)


class Holding(BaseSchedule):
    def __init__(self, *hours: int) -> None:
        self.thing = object()
        self.hours = set(hours)
        super().__init__()

    def is_due(self, last_run_at: datetime) -> Any:
        return schedstate(False, 1)


def test_what_differs_from_process_to_process_is_no_part_of_a_definition() -> None:
    # Given own schedules with other addresses, and a set that is in another order
    one, other = in_zone(Holding(0, 8), UTC), in_zone(Holding(8, 0), UTC)
    assert repr(one) != repr(other)
    assert str(one.hours) != str(other.hours)
    # Then they are one definition: a restart is no event
    assert definition(one) == definition(other)
    assert definition(one) != definition(in_zone(Holding(0, 9), UTC))
