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
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo

from celery.schedules import BaseSchedule, crontab, schedule, solar
from celery.utils.time import delta_resolution

from celery_delay.clock import from_ms, to_ms

__all__ = ["definition", "latest", "next_after"]

#: A crontab that fires less often than this is taken for one that never does (31 February).
_HORIZON = timedelta(days=366 * 9)


def next_after(plan: BaseSchedule, after_ms: int) -> int | None:
    """The first occurrence after *after_ms*, in ms; ``None`` if there is none any more.

    Raises:
        Whatever the schedule's own code raises.
    """
    after = from_ms(after_ms)
    if isinstance(plan, crontab):
        found = _next_crontab(plan, after)
        return None if found is None else to_ms(found)
    if isinstance(plan, solar):
        return to_ms(after + _positive(plan.remaining_estimate(after)))
    if type(plan).is_due is schedule.is_due and isinstance(plan, schedule):
        return to_ms(_next_interval(plan, after))
    # a schedule of the user's own: it can only be asked relative to its idea of now
    last = after.astimezone(plan.tz) if plan.tz is not None else after
    is_due, seconds = plan.is_due(last)
    return to_ms(plan.now()) if is_due else to_ms(plan.now() + timedelta(seconds=seconds))


def latest(plan: BaseSchedule, first_ms: int, now_ms: int) -> int:
    """Of the occurrences from *first_ms* to *now_ms*, the last: missed ones are run once."""
    if type(plan).is_due is schedule.is_due and isinstance(plan, schedule) and not plan.relative:
        every = max(1, plan.run_every // timedelta(milliseconds=1))
        return first_ms + (now_ms - first_ms) // every * every
    occurrence = first_ms
    for hours in (1, 24, 24 * 31, 24 * 366):
        # after a long absence: begin near the end instead of walking through all of it
        near = next_after(plan, now_ms - hours * 3_600_000)
        if near is not None and occurrence < near <= now_ms:
            occurrence = near
            break
    for _ in range(10_000):  # a bound for schedules of the user's own that do not advance
        following = next_after(plan, occurrence)
        if following is None or following > now_ms or following <= occurrence:
            break
        occurrence = following
    return occurrence


def definition(plan: BaseSchedule) -> str:
    """A text that changes when the schedule's times do."""
    zone = "" if isinstance(plan, solar) else str(getattr(plan, "tz", ""))
    if isinstance(plan, crontab):
        return f"crontab {plan!r} {zone}"
    if type(plan) is schedule:
        return f"schedule {plan.run_every.total_seconds()} {plan.relative}"
    return f"{type(plan).__module__}.{type(plan).__qualname__} {plan!r} {zone}"


def _positive(wait: timedelta) -> timedelta:
    return max(wait, timedelta(seconds=1))


def _next_interval(plan: schedule, after: datetime) -> datetime:
    every = max(plan.run_every, timedelta(milliseconds=1))
    following = after + every
    if plan.relative:
        local = following.astimezone(plan.tz)
        following = delta_resolution(local, every).astimezone(timezone.utc)
        while following <= after:
            following += every
    return following


def _next_crontab(plan: crontab, after: datetime) -> datetime | None:
    zone: tzinfo = plan.tz
    every_hour = "*" in str(plan._orig_hour)
    local = after.astimezone(zone)
    # the day before too: a skipped time may be made up for past midnight
    day = (local - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    from_hours = [22, max(0, local.hour - 2)]  # no change of the clocks exceeds two hours
    for number in range(_HORIZON.days + 2):
        if _matches(plan, day):
            hours = [one for one in plan.hour if number > 1 or one >= from_hours[number]]
            found = [one for one in _instants(plan, day, hours, zone, every_hour) if one > after]
            if found:
                return min(found)
        day = (day.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=day.tzinfo)
    return None


def _matches(plan: crontab, day: datetime) -> bool:
    return (
        day.month in plan.month_of_year
        and day.day in plan.day_of_month
        and day.isoweekday() % 7 in plan.day_of_week
    )


def _instants(
    plan: crontab, day: datetime, hours: Iterable[int], zone: tzinfo, every_hour: bool
) -> Iterator[datetime]:
    """The instants of one local day, in UTC; not sorted around a change of the clocks."""
    for hour in sorted(hours):
        for minute in sorted(plan.minute):
            first = day.replace(hour=hour, minute=minute, tzinfo=zone, fold=0)
            second = first.replace(fold=1)
            earlier, later = first.utcoffset(), second.utcoffset()
            if earlier == later:
                yield first.astimezone(timezone.utc)
            elif earlier is not None and later is not None and earlier > later:
                # the clocks go back: this time of day comes twice
                yield first.astimezone(timezone.utc)
                if every_hour:
                    yield second.astimezone(timezone.utc)
            elif not every_hour:
                # the clocks go forward over it: the gap's end
                yield _gap_end(first, zone)


def _gap_end(skipped: datetime, zone: tzinfo) -> datetime:
    """The first instant after the gap in which *skipped* lies, in UTC."""
    # with the offset from before the gap the skipped time lies behind it, with the one from
    # after the gap before it: the change is between the two
    low = skipped.replace(fold=1).astimezone(timezone.utc)
    high = skipped.replace(fold=0).astimezone(timezone.utc)
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)
