"""From what a caller says about time to the instant that is stored."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import Due
from celery_delay.message.instants import due_of, shift_of

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


def due(countdown: Any = None, eta: Any = None, tz: Any = None, naive_eta: str = "app") -> Due:
    return due_of(
        countdown=countdown,
        eta=eta,
        tz=tz,
        app_timezone=BERLIN,
        naive_eta=naive_eta,
        now_ms=round(NOW.timestamp() * 1000),
    )


def instant(**words: Any) -> str:
    found = due(**words)
    assert not found.is_delay
    return from_ms(found.ms).isoformat()


# --- countdown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("countdown", "ms"),
    [
        (60, 60_000),
        (1.5, 1_500),
        (0.0001, 1),  # rounded up: never early
        (Decimal("0.1"), 100),
        (Decimal("1.0001"), 1_001),
        (Fraction(1, 3), 334),
        (timedelta(minutes=1), 60_000),
        (timedelta(microseconds=1), 1),
        (0, 0),
        (-1, 0),
        (-0.5, 0),
        (timedelta(days=-1), 0),
        (10**9, 10**12),
    ],
)
def test_a_countdown_is_a_delay_in_ms(countdown: Any, ms: int) -> None:
    assert due(countdown=countdown) == Due(ms, is_delay=True)


@pytest.mark.parametrize(
    "countdown",
    [float("nan"), float("inf"), float("-inf"), Decimal("NaN"), Decimal("Infinity"), 10**400],
)
def test_a_countdown_that_is_no_finite_number_is_refused(countdown: Any) -> None:
    with pytest.raises(ValueError, match="countdown"):
        due(countdown=countdown)


@pytest.mark.parametrize("countdown", ["60", True, False, 1j, [60], NOW, object()])
def test_a_countdown_of_a_wrong_type_is_refused(countdown: Any) -> None:
    with pytest.raises(TypeError, match="countdown"):
        due(countdown=countdown)


@pytest.mark.parametrize("countdown", [timedelta(days=366 * 8000), 8000 * 366 * 86_400, 1e300])
def test_a_countdown_beyond_the_year_9999_is_refused(countdown: Any) -> None:
    with pytest.raises(ValueError, match=r"countdown.*9999"):
        due(countdown=countdown)


# --- eta ----------------------------------------------------------------------------------


def test_an_aware_eta_is_what_it_is() -> None:
    assert instant(eta=datetime(2030, 6, 1, 9, tzinfo=BERLIN)) == "2030-06-01T07:00:00+00:00"
    # whatever delay_naive_eta and tz say
    aware = datetime(2030, 6, 1, 9, tzinfo=timezone.utc)
    assert instant(eta=aware, tz=BERLIN, naive_eta="reject") == "2030-06-01T09:00:00+00:00"


@pytest.mark.parametrize(
    ("naive_eta", "expected"),
    [("app", "2030-06-01T07:00:00+00:00"), ("utc", "2030-06-01T09:00:00+00:00")],
)
def test_a_naive_eta_is_read_as_the_setting_says(naive_eta: str, expected: str) -> None:
    naive = datetime(2030, 6, 1, 9)  # noqa: DTZ001

    assert instant(eta=naive, naive_eta=naive_eta) == expected
    assert instant(eta="2030-06-01T09:00", naive_eta=naive_eta) == expected


def test_a_naive_eta_can_be_refused() -> None:
    with pytest.raises(ValueError, match=r"eta=2030-06-01T09:00:00.*delay_naive_eta.*tz="):
        due(eta="2030-06-01T09:00", naive_eta="reject")


@pytest.mark.parametrize("tz", ["America/New_York", ZoneInfo("America/New_York")])
@pytest.mark.parametrize("naive_eta", ["app", "utc", "reject"])
def test_tz_is_the_zone_of_a_naive_eta(tz: Any, naive_eta: str) -> None:
    assert (
        instant(eta="2030-06-01T09:00", tz=tz, naive_eta=naive_eta) == "2030-06-01T13:00:00+00:00"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-06-01T09:00:00Z", "2030-06-01T09:00:00+00:00"),
        ("2030-06-01T09:00:00z", "2030-06-01T09:00:00+00:00"),
        ("2030-06-01T09:00:00+02:00", "2030-06-01T07:00:00+00:00"),
        ("2030-06-01 09:00:00.250-05:00", "2030-06-01T14:00:00.250000+00:00"),
        ("2030-06-01", "2030-05-31T22:00:00+00:00"),  # midnight in the app's zone
    ],
)
def test_iso_text_is_read(text: str, expected: str) -> None:
    assert instant(eta=text) == expected


def test_an_instant_is_rounded_up_to_the_ms() -> None:
    eta = datetime(2030, 6, 1, 9, 0, 0, 1, tzinfo=timezone.utc)

    assert from_ms(due(eta=eta).ms) == eta.replace(microsecond=1000)


def test_a_past_eta_stays_the_instant_that_it_is() -> None:
    assert instant(eta="1999-01-01T00:00Z") == "1999-01-01T00:00:00+00:00"


def test_the_hour_that_comes_twice_is_told_by_fold() -> None:
    first = datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN)

    assert instant(eta=first) == "2030-10-27T00:30:00+00:00"
    assert instant(eta=first.replace(fold=1)) == "2030-10-27T01:30:00+00:00"


@pytest.mark.parametrize(
    "eta", [60, 1.5, True, timedelta(days=1), NOW.date(), b"2030-01-01", object()]
)
def test_an_eta_of_a_wrong_type_is_refused(eta: Any) -> None:
    with pytest.raises(TypeError, match="eta"):
        due(eta=eta)


@pytest.mark.parametrize("eta", ["", "tomorrow", "2030-13-01T00:00", "10:00", "Z"])
def test_text_that_is_no_date_and_time_is_refused(eta: str) -> None:
    with pytest.raises(ValueError, match="eta"):
        due(eta=eta)


def test_an_eta_beyond_the_year_9999_in_utc_is_refused() -> None:
    latest = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
    assert instant(eta=latest) == "9999-12-31T23:59:59+00:00"

    with pytest.raises(ValueError, match=r"eta.*9999"):
        due(eta=latest.replace(tzinfo=timezone(timedelta(hours=-2))))


@pytest.mark.parametrize("naive_eta", ["app", "utc"])
def test_instants_at_the_edge_of_the_calendar_are_past_or_beyond(naive_eta: str) -> None:
    # datetime itself cannot turn these into UTC
    assert due(eta="0001-01-01T00:00+05:00", naive_eta=naive_eta) == Due(0, False)
    with pytest.raises(ValueError, match=r"eta.*9999"):
        due(eta="9999-12-31T23:59:59.999999-05:00", naive_eta=naive_eta)


# --- both, neither, tz --------------------------------------------------------------------


def test_one_of_both_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"countdown.*eta"):
        due(countdown=1, eta=NOW)
    with pytest.raises(TypeError, match=r"countdown.*eta"):
        due()
    with pytest.raises(TypeError, match=r"countdown.*eta"):
        due(tz="Europe/Berlin")


def test_tz_must_be_a_zone_and_belongs_to_eta() -> None:
    with pytest.raises(ValueError, match=r"tz.*countdown"):
        due(countdown=1, tz="Europe/Berlin")
    for unknown in ("Atlantis", "", "../etc/passwd", "Europe"):
        with pytest.raises(ValueError, match="tz"):
            due(eta="2030-06-01T09:00", tz=unknown)
    with pytest.raises(TypeError, match="tz"):
        due(eta="2030-06-01T09:00", tz=2)


# --- a shift -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "shift_ms"),
    [
        (60, 60_000), (-60, -60_000), (0.0004, 1), (-0.0004, 0), (Decimal("1.5"), 1_500),
        (timedelta(minutes=-1), -60_000), (timedelta(microseconds=1), 1),
    ],
)  # fmt: skip
def test_a_shift_is_milliseconds_rounded_to_the_later(by: Any, shift_ms: int) -> None:
    assert shift_of(by) == shift_ms


@pytest.mark.parametrize("by", ["60", True, None, NOW])
def test_a_shift_of_another_type_is_named(by: Any) -> None:
    with pytest.raises(TypeError, match="by must be a number of seconds or a timedelta"):
        shift_of(by)


@pytest.mark.parametrize("by", [float("inf"), float("nan"), 1e12, -1e12])
def test_a_shift_that_is_longer_than_time_is_refused(by: Any) -> None:
    with pytest.raises(ValueError, match="by"):
        shift_of(by)
