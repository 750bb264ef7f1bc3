"""When a Celery schedule fires next: pure functions of aware instants.

Celery's own ``is_due`` answers "how long from now"; a cursor that several replicas share
needs "the next instant after this one".  Daylight saving follows a written rule, which
Celery's crontab does not have (5.7 skips the second 01:00 of the autumn change):

=====================================  =========================  ==========================
schedule                               clock skips the time       time comes twice
=====================================  =========================  ==========================
crontab whose hours have a ``*``       nothing to run             runs in both hours
crontab at fixed hours                 at the first valid moment  runs in the first one only
interval                               unaffected: real seconds   unaffected
=====================================  =========================  ==========================

An interval with ``relative=True`` is rounded as Celery rounds it: in the schedule's zone.

A schedule of the user's own (a class with an ``is_due`` of its own) can only be asked.  What
is stored for it is when to ask next, not when it fires; see :func:`firing`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple

from celery.schedules import BaseSchedule, crontab, schedule, solar
from celery.utils.time import remaining

from celery_delay.domain.clock import from_ms, to_ms

__all__ = ["Firing", "definition", "firing", "is_known", "latest", "next_after"]

_MS = timedelta(milliseconds=1)
_HOUR_MS = 3_600_000
#: 29 February on a given weekday is at most 40 years away, over the year 2100.
_HORIZON = timedelta(days=366 * 41)
#: A solar event this soon after another is the same one: the search for it is not exact.
_SAME_EVENT_MS = 10 * 60_000
#: The shortest and the usual wait before a schedule of the user's own is asked again.
_SHORTEST_MS, _USUAL_MS = 10, 60_000


class Firing(NamedTuple):
    """What to do about a schedule whose stored instant has come.

    ``nominal_ms``: the occurrence to run, ``None`` for none now.  ``next_ms``: the instant to
    store, ``None`` if the schedule has come to its end.
    """

    nominal_ms: int | None
    next_ms: int | None


def firing(plan: BaseSchedule, first_ms: int, now_ms: int, last_ms: int) -> Firing:
    """Decide about *plan*, whose stored instant *first_ms* is not after *now_ms*.

    Arguments:
        last_ms: when it last fired, or was first seen.

    Raises:
        Whatever the schedule's own code raises.
    """
    if not is_known(plan):
        return _asked(plan, first_ms, now_ms, last_ms)
    nominal_ms = latest(plan, first_ms, now_ms)
    following = next_after(plan, nominal_ms)
    deadline = plan.app.conf.beat_cron_starting_deadline if isinstance(plan, crontab) else None
    if deadline is not None and now_ms - nominal_ms > deadline * 1000:
        return Firing(None, following)
    return Firing(nominal_ms, following)


def next_after(plan: BaseSchedule, after_ms: int) -> int | None:
    """The first occurrence after *after_ms*, in ms; ``None`` if there is none any more.

    Of a schedule of the user's own: when to ask it, which last fired at *after_ms*.

    Raises:
        Whatever the schedule's own code raises.
    """
    if not is_known(plan):
        return _asked(plan, after_ms, after_ms, after_ms, first=True).next_ms
    if isinstance(plan, crontab):
        return next(_after(plan, after_ms), None)
    if isinstance(plan, solar):
        return _next_event(plan, after_ms)
    if plan.relative:
        start = from_ms(after_ms).astimezone(_zone(plan))
        every = max(plan.run_every, _MS)
        return max(after_ms + 1, to_ms(from_ms(after_ms) + remaining(start, every, start, True)))
    return after_ms + _every_ms(plan)


def latest(plan: BaseSchedule, first_ms: int, now_ms: int) -> int:
    """Of the occurrences from *first_ms* to *now_ms*, the last: missed ones are run once."""
    if type(plan).is_due is schedule.is_due:
        every = _every_ms(plan)
        if not plan.relative:
            return first_ms + (now_ms - first_ms) // every * every
        begin = max(first_ms, now_ms - 3 * every)
    else:
        begin = _shortly_before(plan, first_ms, now_ms)
    occurrence = first_ms
    for following in _after(plan, begin):
        if following > now_ms:
            break
        occurrence = following
    return occurrence


def _after(plan: BaseSchedule, after_ms: int) -> Iterator[int]:
    """The occurrences after an instant."""
    if isinstance(plan, crontab):
        yield from map(to_ms, _crontab_instants(plan, from_ms(after_ms)))
        return
    following = next_after(plan, after_ms)
    while following is not None:
        yield following
        following = next_after(plan, following)


def definition(plan: BaseSchedule) -> str:
    """A text that changes when the schedule's times do, and is the same in each process."""
    if not is_known(plan):
        kind = f"{type(plan).__module__}.{type(plan).__qualname__}"
        own = [
            f"{name}={_same_everywhere(value)}"
            for name, value in sorted(getattr(plan, "__dict__", {}).items())
            if name not in ("_app", "app", "nowfun", "utc_enabled", "cal", "ephem")
        ]
        return f"{kind} {' '.join(own)}"
    if isinstance(plan, crontab):
        fields = (plan.minute, plan.hour, plan.day_of_month, plan.month_of_year, plan.day_of_week)
        texts = " ".join(",".join(map(str, sorted(field))) for field in fields)
        return f"crontab {texts} {_every_hour(plan)} {_zone(plan)}"
    if isinstance(plan, solar):
        return repr(plan)
    relative = f" relative {_zone(plan)}" if plan.relative else ""
    return f"interval {plan.run_every.total_seconds()}{relative}"


def _same_everywhere(value: object) -> str:
    """A text of *value* without what differs from process to process: addresses, sets' order."""
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(_same_everywhere, value)))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def is_known(plan: BaseSchedule) -> bool:
    """Whether the times are those of one of Celery's own kinds, whatever the class."""
    kind: Any = type(plan)
    for known in (crontab, solar, schedule):
        if isinstance(plan, known):
            asked = ("is_due", "remaining_estimate", "remaining_delta")
            return all(getattr(kind, name, 0) is getattr(known, name, 0) for name in asked)
    return False


def _zone(plan: BaseSchedule) -> tzinfo:
    return getattr(plan, "tz", None) or timezone.utc


# --- a schedule of the user's own ----------------------------------------------------------


def _asked(
    plan: BaseSchedule, first_ms: int, now_ms: int, last_ms: int, *, first: bool = False
) -> Firing:
    is_due, seconds = plan.is_due(from_ms(last_ms).astimezone(_zone(plan)))
    try:
        # rounded first: 3 - 2.9 is a bit more than 0.1
        wait_ms = max(_SHORTEST_MS, math.ceil(round(float(seconds) * 1000, 3)))
    except (TypeError, ValueError, OverflowError):
        wait_ms = _USUAL_MS
    if not is_due:
        return Firing(None, now_ms + wait_ms)
    if first:
        return Firing(None, now_ms)
    # from the instant at which it should have been asked, so that lags do not add up
    nominal_ms = first_ms if now_ms - first_ms < min(1000, wait_ms) else now_ms
    return Firing(nominal_ms, nominal_ms + wait_ms)


# --- interval and solar --------------------------------------------------------------------


def _every_ms(plan: schedule) -> int:
    every: timedelta = plan.run_every
    return max(1, -(-every // _MS))


def _next_event(plan: solar, after_ms: int) -> int:
    """As Celery computes it, but relative to *after_ms* instead of now."""
    start = after_ms
    while True:
        found = plan._next_event(plan.ephem.Date(from_ms(start).replace(tzinfo=None)))
        found_ms = to_ms(found.datetime().replace(tzinfo=timezone.utc))
        if found_ms > after_ms + 1000:
            return found_ms
        # the very event that *after_ms* is
        start = max(start, found_ms) + _SAME_EVENT_MS


def _shortly_before(plan: BaseSchedule, first_ms: int, now_ms: int) -> int:
    """An instant from which few steps lead to the last occurrence before now."""
    for hours in (1, 24, 24 * 31, 24 * 366):
        begin = now_ms - hours * _HOUR_MS
        if begin <= first_ms:
            break
        found = next_after(plan, begin)
        if found is not None and found <= now_ms:
            return begin
    return first_ms


# --- crontab -------------------------------------------------------------------------------


def _every_hour(plan: crontab) -> bool:
    return "*" in str(plan._orig_hour)


def _crontab_instants(plan: crontab, after: datetime) -> Iterator[datetime]:
    """The instants after *after*, ascending, in UTC."""
    zone = _zone(plan)
    local = after.astimezone(zone)
    today = local.date()
    # the day before too: a skipped time may be made up for past midnight
    for day in _days(plan, today - timedelta(days=1), today + _HORIZON):
        found: Iterator[datetime]
        if not _is_steady(day, zone):
            found = _sorted_around(plan, day, zone)
        elif day < today:
            continue
        else:
            found = _plain(plan, day, zone, local.hour if day == today else 0)
        for instant in found:
            if instant > after:
                yield instant
                after = instant


def _days(plan: crontab, first: date, last: date) -> Iterator[date]:
    """The days on which *plan* runs."""
    day, one = first, timedelta(days=1)
    while day <= last:
        if day.month not in plan.month_of_year:
            day = (day.replace(day=28) + 4 * one).replace(day=1)
            continue
        if day.day in plan.day_of_month and day.isoweekday() % 7 in plan.day_of_week:
            yield day
        day += one


def _is_steady(day: date, zone: tzinfo) -> bool:
    """Whether the clocks do not change on that day nor on the ones beside it."""
    before, after = day - timedelta(days=1), day + timedelta(days=2)
    first = datetime(before.year, before.month, before.day, tzinfo=zone)
    last = datetime(after.year, after.month, after.day, fold=1, tzinfo=zone)
    return first.utcoffset() == last.utcoffset()


def _plain(plan: crontab, day: date, zone: tzinfo, from_hour: int) -> Iterator[datetime]:
    for hour in sorted(plan.hour):
        if hour >= from_hour:
            for minute in sorted(plan.minute):
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                yield local.astimezone(timezone.utc)


def _sorted_around(plan: crontab, day: date, zone: tzinfo) -> Iterator[datetime]:
    """The instants of a day near a change of the clocks, and of those beside it, in order.

    Around midnight the order of local times is not that of instants.  What is nearer to the
    end of the last of these days is left to that day.
    """
    instants: set[datetime] = set()
    for near in _days(plan, day - timedelta(days=1), day + timedelta(days=1)):
        instants.update(_around_change(plan, near, zone))
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=zone) + timedelta(days=1)
    yield from sorted(one for one in instants if one < noon.astimezone(timezone.utc))


def _around_change(plan: crontab, day: date, zone: tzinfo) -> Iterator[datetime]:
    every_hour = _every_hour(plan)
    for first in _plain_local(plan, day, zone):
        instant = first.astimezone(timezone.utc)
        if instant.astimezone(zone).replace(tzinfo=None) != first.replace(tzinfo=None):
            if not every_hour:
                yield _gap_end(instant, zone)
            continue
        yield instant
        if every_hour:
            # the same unless this time of day comes twice
            yield first.replace(fold=1).astimezone(timezone.utc)


def _plain_local(plan: crontab, day: date, zone: tzinfo) -> Iterator[datetime]:
    for hour in sorted(plan.hour):
        for minute in sorted(plan.minute):
            yield datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)


def _gap_end(near: datetime, zone: tzinfo) -> datetime:
    """The instant, in UTC, at which the clocks are put forward, less than 26 hours away."""
    low, high = near - timedelta(hours=26), near + timedelta(hours=26)
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)
