"""The times of a schedule as a caller gives them, as JSON, as text, and back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab, schedule, solar

from celery_delay.periodic import times
from celery_delay.periodic.occurrences import definition

APP = Celery("times", set_as_current=False)
BERLIN = ZoneInfo("Europe/Berlin")
NINE = datetime(2030, 1, 31, 9, tzinfo=BERLIN)


def of_crontab(**fields: str) -> dict[str, Any]:
    every = dict.fromkeys(("minute", "hour", "day_of_month", "month_of_year", "day_of_week"), "*")
    return {"kind": "crontab", **every, "tz": "UTC", **fields}


@pytest.mark.parametrize(
    ("given", "tz", "wanted", "text"),
    [
        (30, None, {"kind": "every", "seconds": 30.0}, "every 30 s"),
        (0.5, None, {"kind": "every", "seconds": 0.5}, "every 0.5 s"),
        (timedelta(minutes=2), None, {"kind": "every", "seconds": 120.0}, "every 120 s"),
        (schedule(45), None, {"kind": "every", "seconds": 45.0}, "every 45 s"),
        (crontab(), None, of_crontab(), "* * * * * (UTC)"),
        (
            crontab(minute="*/15", hour={7, 3}, day_of_week="mon-fri"),
            "Europe/Berlin",
            of_crontab(minute="*/15", hour="3,7", day_of_week="mon-fri", tz="Europe/Berlin"),
            "*/15 3,7 * * mon-fri (Europe/Berlin)",
        ),
        (
            "0 7 1 jan-mar mon",
            BERLIN,
            of_crontab(
                minute="0", hour="7", day_of_month="1", month_of_year="jan-mar",
                day_of_week="mon", tz="Europe/Berlin",
            ),
            "0 7 1 jan-mar mon (Europe/Berlin)",
        ),
        (
            solar("sunset", 52.5, 13),
            None,
            {"kind": "solar", "event": "sunset", "lat": 52.5, "lon": 13},
            "sunset at 52.5, 13",
        ),
        (
            NINE,
            None,
            {"kind": "clocked", "at": "2030-01-31T08:00:00.000Z"},
            "once at 2030-01-31T08:00:00.000Z",
        ),
    ],
)  # fmt: skip
def test_what_a_caller_gives_is_json_and_comes_back(
    given: Any, tz: Any, wanted: dict[str, Any], text: str
) -> None:
    found = times.plain(given, tz, timezone.utc)
    assert found == wanted
    assert times.text_of(found) == text
    # given as it is stored it is the same
    assert times.plain(found, None, timezone.utc) == wanted
    built = times.build(found, APP)
    if isinstance(built, BaseSchedule) and tz is None:
        assert definition(built) == definition(times.build(wanted, APP))
        assert times.described(built) == wanted


def test_a_crontab_is_in_the_zone_that_it_names() -> None:
    built = times.build(of_crontab(tz="America/New_York"), APP)
    assert "America/New_York" in definition(built)  # type: ignore[arg-type]
    assert times.zone_of(built) == ZoneInfo("America/New_York")


def test_without_a_zone_it_is_the_projects() -> None:
    assert times.plain("0 7 * * *", None, BERLIN)["tz"] == "Europe/Berlin"
    assert times.plain(crontab(), None, BERLIN)["tz"] == "Europe/Berlin"
    with pytest.raises(ValueError, match="give tz= by name"):
        times.plain("0 7 * * *", None, timezone(timedelta(hours=2)))


class Own(BaseSchedule):
    """Of the user's own."""


@pytest.mark.parametrize(
    ("given", "tz", "error", "text"),
    [
        (None, None, TypeError, "schedule must be seconds"),
        (True, None, TypeError, "schedule must be seconds"),
        (Own(), None, TypeError, "schedule must be seconds"),
        (schedule(30, relative=True), None, TypeError, "schedule must be seconds"),
        (0, None, ValueError, "an interval is 0.1 s to ten years"),
        (-1, None, ValueError, "an interval is 0.1 s to ten years"),
        (float("nan"), None, ValueError, "an interval is 0.1 s to ten years"),
        (timedelta(days=9_999), None, ValueError, "an interval is 0.1 s to ten years"),
        ("0 7 * *", None, ValueError, "has 4 fields"),
        ("0 25 * * *", None, ValueError, "is no crontab"),
        ("* * 31 2 *", None, ValueError, "is no crontab"),
        ("x * * * *", None, ValueError, "is no crontab"),
        ("0 7 * * *", "Mars/Olympus", ValueError, "tz='Mars/Olympus' is no known time zone"),
        ("0 7 * * *", 7, TypeError, "tz must be the name"),
        (30, "Europe/Berlin", ValueError, "tz is a crontab's"),
        (NINE.replace(tzinfo=None), None, ValueError, "has no time zone"),
        ({"kind": "often"}, None, ValueError, "unknown kind 'often'"),
        ({}, None, ValueError, "unknown kind None"),
        ({"kind": "every"}, None, TypeError, "a number of seconds"),
        ({"kind": "every", "seconds": "3"}, None, TypeError, "a number of seconds"),
        ({"kind": "every", "seconds": 3, "secs": 3}, None, ValueError, "has no 'secs'"),
        ({"kind": "clocked", "at": "soon"}, None, ValueError, "is no ISO 8601 instant"),
        ({"kind": "clocked", "at": "2030-01-31T09:00"}, None, ValueError, "with an offset"),
        ({"kind": "solar", "event": "dusk", "lat": 1, "lon": 1}, None, ValueError, "dusk"),
        ({"kind": "solar", "event": "sunset", "lat": "x", "lon": 1}, None, TypeError, "degrees"),
    ],
)
def test_wrong_times_are_refused_by_name(given: Any, tz: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        times.plain(given, tz, timezone.utc)


def test_one_instant_is_one_occurrence() -> None:
    once = times.build({"kind": "clocked", "at": "1970-01-01T00:00:05Z"})
    assert isinstance(once, times.Once)
    assert (once.next_after(4_999), once.next_after(5_000)) == (5_000, None)


def test_what_only_its_code_knows_is_not_described() -> None:
    assert times.described(Own()) is None
    found = times.described(schedule(30, relative=True, app=APP))
    assert found == {"kind": "every", "seconds": 30.0, "relative": True, "tz": "UTC"}
    assert times.text_of(found) == "every 30 s, in round times"
    assert definition(times.build(found, APP)) == definition(schedule(30, relative=True, app=APP))  # type: ignore[arg-type]
