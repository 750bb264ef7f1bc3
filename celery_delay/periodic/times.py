"""The times of a periodic schedule as JSON and as text, and back.

What is stored of a schedule must be readable by each beat and each process that looks at it, so
it is one of four kinds::

    {"kind": "every", "seconds": 30.0}        from when it was added; "relative", "tz": as Celery's
    {"kind": "crontab", "minute": "0", "hour": "7", "day_of_week": "mon-fri",
     "day_of_month": "*", "month_of_year": "*", "tz": "Europe/Berlin"}
    {"kind": "solar", "event": "sunset", "lat": 52, "lon": 13}
    {"kind": "clocked", "at": "2030-01-31T09:00:00Z"}       once, at that instant
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from numbers import Real
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery.schedules import BaseSchedule, ParseException, crontab, schedule, solar

from celery_delay.domain.clock import from_ms, to_ms

__all__ = ["SHORTEST", "Once", "build", "described", "plain", "text_of", "zone_of"]

#: The shortest interval of a schedule that is added at run time, in seconds.
SHORTEST = 0.1
_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
_EXPECTED = (
    "schedule must be seconds, a timedelta, Celery's crontab or solar, five fields of a crontab as"
    ' text ("0 7 * * mon-fri"), or an aware datetime for a single occurrence'
)


class Once:
    """One occurrence, at an instant."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def next_after(self, after_ms: int) -> int | None:
        """The instant, if it is still to come."""
        return self.at_ms if self.at_ms > after_ms else None


def plain(given: Any, tz: str | tzinfo | None, default: tzinfo) -> dict[str, Any]:
    """The times that a caller gives, as JSON has them.

    Arguments:
        given: see the error's text.
        tz: zone of a crontab; ``None``: its own, else *default*.

    Raises:
        TypeError, ValueError: about the argument they name.
    """
    if isinstance(given, Mapping):
        times, built = dict(given), build(given)
        if isinstance(built, crontab):
            own = _zone(times["tz"]) if "tz" in times else default
            times = _of_crontab(built, _name_of(_zone(tz) if tz else own))
    elif isinstance(given, str):
        times = _of_crontab(_crontab_of(given), _name_of(_zone(tz) if tz else default))
    elif isinstance(given, crontab):
        own = given.__dict__.get("tz") or default
        times = _of_crontab(given, _name_of(_zone(tz) if tz else own))
    elif isinstance(given, solar):
        times = {"kind": "solar", "event": given.event, "lat": given.lat, "lon": given.lon}
    elif isinstance(given, datetime):
        if given.utcoffset() is None:
            raise ValueError(
                f"schedule={given.isoformat()} has no time zone: give an aware datetime"
            )
        times = {"kind": "clocked", "at": _iso(to_ms(given))}
    elif type(given) is schedule and not given.relative:
        times = _every(given.run_every.total_seconds())
    elif isinstance(given, timedelta):
        times = _every(given.total_seconds())
    elif _is_number(given):
        times = _every(float(given))
    else:
        raise TypeError(f"{_EXPECTED}, not {given!r}")
    if tz is not None and times["kind"] != "crontab":
        raise ValueError(f"tz is a crontab's; it has no meaning for {text_of(times)!r}")
    return times


def described(plan: Any) -> dict[str, Any] | None:
    """The times of a schedule that code owns; ``None`` for a class of the user's own."""
    if type(plan) is crontab:
        return _of_crontab(plan, str(plan.tz))
    if type(plan) is solar:
        return {"kind": "solar", "event": plan.event, "lat": plan.lat, "lon": plan.lon}
    if type(plan) is schedule:
        seconds = plan.run_every.total_seconds()
        times: dict[str, Any] = {"kind": "every", "seconds": seconds}
        return {**times, "relative": True, "tz": str(plan.tz)} if plan.relative else times
    return None


def build(times: Mapping[str, Any], app: Any = None) -> BaseSchedule | Once:
    """The schedule that *times* describe.

    Raises:
        TypeError, ValueError: they are of an unknown kind, or wrong.
    """
    rest = dict(times)
    kind, tz = rest.pop("kind", None), rest.pop("tz", None)
    if kind == "every":
        seconds, relative = rest.pop("seconds", None), rest.pop("relative", False)
        made: Any = schedule(_every(seconds)["seconds"], relative=relative is True, app=app)
    elif kind == "crontab":
        fields = {name: str(rest.pop(name, "*")) for name in _FIELDS}
        try:
            made = crontab(**fields, app=app)
        except (ParseException, ValueError) as exc:
            raise ValueError(f"schedule={_line(fields)!r} is no crontab: {exc}") from None
    elif kind == "solar":
        made = _solar(rest, app)
    elif kind == "clocked":
        made = Once(_at(rest.pop("at", None)))
    else:
        raise ValueError(f"schedule has the unknown kind {kind!r}")
    if rest:
        raise ValueError(f"a schedule of kind {kind!r} has no {', '.join(map(repr, sorted(rest)))}")
    if tz is not None and not isinstance(made, Once):
        made.tz = _zone(tz)
    return made


def text_of(times: Mapping[str, Any]) -> str:
    """For people: ``every 30 s``, ``0 7 * * mon-fri (Europe/Berlin)``."""
    kind = times["kind"]
    if kind == "every":
        seconds = times["seconds"]
        return f"every {seconds:g} s{', in round times' if times.get('relative') else ''}"
    if kind == "crontab":
        return f"{_line(times)} ({times['tz']})"
    if kind == "solar":
        return f"{times['event']} at {times['lat']:g}, {times['lon']:g}"
    return f"once at {times['at']}"


def zone_of(plan: Any) -> tzinfo:
    """The zone in which a schedule is thought."""
    found = getattr(plan, "tz", None)
    return found if isinstance(found, tzinfo) else timezone.utc


# --- inside --------------------------------------------------------------------------------


def _is_number(given: Any) -> bool:
    return isinstance(given, (Real, Decimal)) and given is not True and given is not False


def _every(seconds: Any) -> dict[str, Any]:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"an interval is a number of seconds, not {seconds!r}")
    if not SHORTEST <= seconds <= 366 * 86_400 * 10:
        raise ValueError(f"schedule={seconds!r}: an interval is {SHORTEST:g} s to ten years")
    return {"kind": "every", "seconds": float(seconds)}


def _crontab_of(line: str) -> crontab:
    fields = line.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(
            f"schedule={line!r} has {len(fields)} fields: a crontab has five (minute, hour, day of"
            " the month, month, day of the week)"
        )
    made = build({"kind": "crontab", **dict(zip(_FIELDS, fields, strict=True))})
    assert isinstance(made, crontab)
    return made


def _of_crontab(plan: crontab, tz: str) -> dict[str, Any]:
    given = {name: getattr(plan, f"_orig_{name}") for name in _FIELDS}
    fields = {
        # Celery takes sets and lists of numbers as well
        name: ",".join(map(str, sorted(one))) if isinstance(one, (set, frozenset, list, tuple))
        else str(one)
        for name, one in given.items()
    }  # fmt: skip
    return {"kind": "crontab", **fields, "tz": tz}


def _line(fields: Mapping[str, Any]) -> str:
    return " ".join(str(fields[name]) for name in _FIELDS)


def _solar(rest: dict[str, Any], app: Any) -> solar:
    event, lat, lon = (rest.pop(name, None) for name in ("event", "lat", "lon"))
    if not all(isinstance(one, (int, float)) for one in (lat, lon)):
        raise TypeError(f"lat and lon are numbers of degrees, not {lat!r} and {lon!r}")
    return solar(event, lat, lon, app=app)


def _at(text: Any) -> int:
    try:
        # fromisoformat() knows "Z" only since Python 3.11
        instant = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
        return to_ms(instant)
    except (ValueError, TypeError):
        raise ValueError(f"at={text!r} is no ISO 8601 instant with an offset") from None


def _iso(ms: int) -> str:
    return from_ms(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _zone(tz: str | tzinfo) -> tzinfo:
    if isinstance(tz, tzinfo):
        return tz
    if not isinstance(tz, str):
        raise TypeError(f"tz must be the name of a time zone or a tzinfo, not {tz!r}")
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones
        raise ValueError(f"tz={tz!r} is no known time zone") from None


def _name_of(zone: tzinfo) -> str:
    name = "UTC" if zone is timezone.utc else str(getattr(zone, "key", zone))
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{zone!r} has no name that others know: give tz= by name") from None
    return name
