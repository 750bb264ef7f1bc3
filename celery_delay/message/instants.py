"""From what a caller says about time to the instant that is stored."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from numbers import Real
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery_delay.domain.clock import to_ms
from celery_delay.domain.entries import Due

__all__ = ["LAST_MS", "due_of", "instant_of", "shift_of", "window_of", "zone_of"]

#: 9999-12-31T23:59:59Z; what datetime and the result's eta can still say.
LAST_MS = 253_402_300_799_000
_LONGEST_WINDOW_MS = 365 * 86_400_000


def due_of(
    *,
    countdown: Any,
    eta: Any,
    tz: Any,
    app_timezone: tzinfo,
    naive_eta: str,
    now_ms: int,
) -> Due:
    """When a call is due.

    Arguments:
        countdown: seconds as a number, or a timedelta.  Counted by Redis' clock.  Zero or
            less: at once.
        eta: a datetime or ISO 8601 text.  In the past: at once.
        tz: zone of a naive *eta*, by name or as a tzinfo; ``None``: as *naive_eta* says.
        naive_eta: the setting ``delay_naive_eta``.
        now_ms: about now; only for the bound at the year 9999.

    Raises:
        TypeError: neither or an argument of a wrong type; the text names it.
        ValueError: both, or a value that is no instant; the text names it.
    """
    if countdown is not None and eta is not None:
        raise ValueError("countdown and eta were both given: give one of them")
    if eta is not None:
        at_ms = to_ms(_aware(_datetime(eta), tz, app_timezone, naive_eta))
        due = Due(max(0, at_ms), False)
        last = LAST_MS
        name, value = "eta", eta
    elif countdown is not None:
        if tz is not None:
            raise ValueError("tz says how a naive eta is read; it has no meaning with countdown")
        due = Due(max(0, _milliseconds("countdown", countdown)), True)
        last = LAST_MS - now_ms
        name, value = "countdown", countdown
    else:
        raise TypeError("say when: countdown=seconds or eta=datetime")
    if due.ms > last:
        raise ValueError(f"{name}={value!r} is beyond the year 9999")
    return due


def instant_of(instant: Any, *, app_timezone: tzinfo, naive_eta: str) -> int:
    """A datetime or ISO 8601 text in ms, as :func:`due_of` reads an eta.

    Raises:
        TypeError, ValueError: it is none; the text calls it the eta.
    """
    return max(0, to_ms(_aware(_datetime(instant), None, app_timezone, naive_eta)))


def shift_of(by: Any) -> int:
    """By how many milliseconds an eta moves.

    Arguments:
        by: seconds as a number, or a timedelta; negative: earlier.

    Raises:
        TypeError, ValueError: it is no span, or longer than time itself.
    """
    shift_ms = _milliseconds("by", by)
    if abs(shift_ms) > LAST_MS:
        raise ValueError(f"by={by!r} is beyond the year 9999")
    return shift_ms


def window_of(window: Any) -> int:
    """Over how many milliseconds due instants are spread.

    Arguments:
        window: seconds as a number, or a timedelta; ``None`` for none.

    Raises:
        TypeError, ValueError: it is no span, negative, or longer than a year.
    """
    window_ms = 0 if window is None else _milliseconds("window", window)
    if not 0 <= window_ms <= _LONGEST_WINDOW_MS:
        raise ValueError(f"window={window!r} must be 0 to 31 536 000 seconds (a year)")
    return window_ms


def _milliseconds(name: str, given: Any) -> int:
    if isinstance(given, timedelta):
        return -(-given // timedelta(milliseconds=1))
    # Decimal is no Real, but a number of seconds none the less
    if isinstance(given, bool) or not isinstance(given, (Real, Decimal)):
        raise TypeError(f"{name} must be a number of seconds or a timedelta, not {given!r}")
    seconds: Any = given
    try:
        milliseconds: int = math.ceil(seconds * 1000)
    except (ArithmeticError, ValueError):
        raise ValueError(f"{name} must be finite, not {given!r}") from None
    return milliseconds


def _datetime(eta: Any) -> datetime:
    if isinstance(eta, datetime):
        return eta
    if isinstance(eta, str):
        # fromisoformat() knows "Z" only since Python 3.11
        text = eta[:-1] + "+00:00" if eta.endswith(("Z", "z")) else eta
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"eta={eta!r} is no ISO 8601 date and time") from None
    raise TypeError(f"eta must be a datetime or ISO 8601 text, not {eta!r}")


def _aware(eta: datetime, tz: Any, app_timezone: tzinfo, naive_eta: str) -> datetime:
    if eta.tzinfo is not None and eta.utcoffset() is not None:
        return eta
    if tz is not None:
        return eta.replace(tzinfo=zone_of(tz))
    if naive_eta == "reject":
        raise ValueError(
            f"eta={eta.isoformat()} has no time zone, and delay_naive_eta is 'reject':"
            " give an aware datetime, or tz="
        )
    return eta.replace(tzinfo=timezone.utc if naive_eta == "utc" else app_timezone)


def zone_of(tz: Any) -> tzinfo:
    """The time zone of that name, or *tz* itself.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(tz, tzinfo):
        return tz
    if isinstance(tz, str):
        try:
            return ZoneInfo(tz)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones
            raise ValueError(f"tz={tz!r} is no known time zone") from None
    raise TypeError(f"tz must be the name of a time zone or a tzinfo, not {tz!r}")
