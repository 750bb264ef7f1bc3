"""The minutes, hours and days to come, in a time zone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta, timezone, tzinfo
from itertools import islice
from typing import Any

from celery_delay.domain.clock import from_ms, to_ms

__all__ = ["UNITS", "bounds"]

#: unit → its fields of a datetime that are zero at its beginning, and its length.
UNITS: dict[str, tuple[dict[str, Any], timedelta]] = {
    "minute": ({"second": 0, "microsecond": 0}, timedelta(minutes=1)),
    "hour": ({"minute": 0, "second": 0, "microsecond": 0}, timedelta(hours=1)),
    "day": ({"hour": 0, "minute": 0, "second": 0, "microsecond": 0}, timedelta(days=1)),
}


def bounds(by: str, periods: int, now_ms: int, zone: tzinfo) -> list[int]:
    """*now_ms*, and the ends of so many periods from then on, in ms.

    Periods begin where the unit begins in *zone*.  A day lasts 23 or 25 hours when the clocks
    change; an hour lasts an hour.
    """
    return [now_ms, *islice(_beginnings(by, now_ms, zone), periods)]


def _beginnings(by: str, now_ms: int, zone: tzinfo) -> Iterator[int]:
    zeroes, length = UNITS[by]
    at = from_ms(now_ms).astimezone(zone).replace(**zeroes)
    while True:
        if by == "day":
            # the next midnight on the wall, however far that is
            at = (at.replace(tzinfo=None) + length).replace(tzinfo=zone)
        else:
            at = (at.astimezone(timezone.utc) + length).astimezone(zone)
        yield to_ms(at)
