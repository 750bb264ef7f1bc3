"""The minutes, hours and days to come, also where the clocks change."""

from __future__ import annotations

import itertools
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest

from celery_delay.domain.clock import from_ms, to_ms
from celery_delay.domain.periods import bounds

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")


def ends(by: str, now: str, zone: str, periods: int = 3) -> list[str]:
    """Now, and the ends of the periods, as the zone's clocks show them."""
    where = ZoneInfo(zone)
    found = bounds(by, periods, to_ms(datetime.fromisoformat(now)), where)
    return [from_ms(one).astimezone(where).isoformat(" ", "minutes") for one in found]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("minute", ["12:34", "12:35", "12:36", "12:37"]),
        ("hour", ["12:34", "13:00", "14:00", "15:00"]),
    ],
)
def test_the_first_period_is_what_is_left_of_the_current_one(by: str, expected: list[str]) -> None:
    found = ends(by, "2026-06-01T12:34:56.789+00:00", "UTC")
    assert [one[11:16] for one in found] == expected


def test_a_period_that_begins_now_is_whole() -> None:
    assert ends("hour", "2026-06-01T12:00:00+00:00", "UTC", 1)[1][11:16] == "13:00"


def test_days_are_those_of_the_zone() -> None:
    assert ends("day", "2026-06-01T23:00:00+00:00", "Europe/Berlin", 2) == [
        "2026-06-02 01:00+02:00",
        "2026-06-03 00:00+02:00",
        "2026-06-04 00:00+02:00",
    ]


def test_hours_are_those_of_the_zone() -> None:
    # Given a zone that is half an hour off
    assert [one[11:16] for one in ends("hour", "2026-06-01T12:10:00+00:00", "Asia/Kolkata", 2)] == [
        "17:40",
        "18:00",
        "19:00",
    ]


def test_a_day_is_as_long_as_it_is_when_the_clocks_change() -> None:
    spring = bounds("day", 3, to_ms(datetime(2026, 3, 27, 23, tzinfo=UTC)), BERLIN)
    autumn = bounds("day", 3, to_ms(datetime(2026, 10, 23, 22, tzinfo=UTC)), BERLIN)

    def hours(found: list[int]) -> list[float]:
        return [(b - a) / 3_600_000 for a, b in itertools.pairwise(found)]

    assert hours(spring) == [24, 23, 24]
    assert hours(autumn) == [24, 25, 24]


def test_an_hour_that_comes_twice_is_two_periods() -> None:
    assert ends("hour", "2026-10-25T00:00:00+00:00", "Europe/Berlin") == [
        "2026-10-25 02:00+02:00",
        "2026-10-25 02:00+01:00",
        "2026-10-25 03:00+01:00",
        "2026-10-25 04:00+01:00",
    ]


def test_a_midnight_that_does_not_exist_is_no_stop() -> None:
    # Given a zone whose clocks go from 00:00 to 01:00
    assert ends("day", "2018-11-03T15:00:00+00:00", "America/Sao_Paulo", 2) == [
        "2018-11-03 12:00-03:00",
        "2018-11-04 01:00-02:00",
        "2018-11-05 00:00-02:00",
    ]
