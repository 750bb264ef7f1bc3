"""Occurrences of the past, fired after all.

Which ones were fired is known exactly: where a schedule stands has the spans that it has passed
over, because nobody led or it was paused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

from celery.schedules import schedule as Interval

from celery_delay.domain.callers import caller
from celery_delay.domain.clock import from_ms, to_ms
from celery_delay.domain.entries import Addition
from celery_delay.domain.timetable import Listed
from celery_delay.exceptions import StoreUnavailable
from celery_delay.periodic.firings import made_now, occurrence_task_id
from celery_delay.periodic.plans import SchedulePlan
from celery_delay.periodic.schedule import Delayed, Known
from celery_delay.store.firing import BACKFILL_LIMIT
from celery_delay.store.keys import shard_of

__all__ = ["MOST_BACK", "Backfill", "Backfilling"]

logger = logging.getLogger(__name__)

#: Occurrences that one call fires at most.
MOST_BACK = 1_000


@dataclass
class Backfill:
    """What became of the occurrences in a span.  Instants are aware, in UTC.

    Attributes:
        fired: instant → id of the task that was made.
        refused: those that were fired before.
        left: those that the beats fire themselves, for they are about to be due.
    """

    fired: dict[datetime, str] = field(default_factory=dict)
    refused: list[datetime] = field(default_factory=list)
    left: list[datetime] = field(default_factory=list)


class Backfilling:
    """The part of ``app.delayed.schedules`` that looks back."""

    _delayed: Delayed
    _known: Known

    def backfill(
        self,
        name: str,
        start: datetime,
        end: datetime,
        *,
        force: bool = False,
        dry_run: bool = False,
    ) -> Backfill:
        """Fire the occurrences from *start* to before *end* that were not fired.

        They are due at once, and their task ids are those that they would have had.  The call is
        that of now, and so are the times: what other times would have given is not known.

        Arguments:
            start, end: aware; *end* is not after now.
            force: fire also those that were fired before, with new task ids.
            dry_run: tell what would be fired (with "" as ids), and do nothing.

        Raises:
            ValueError: the span has more than :data:`MOST_BACK` occurrences, is not of the past, or
                the schedule's times are a class of the project's own; nothing was done.
            SchedulingError: a message cannot be made; the cause says why.
            StoreUnavailable, OutcomeUnknown: those that were fired so far stay.  Called again, they
                are refused, and the others are fired.
        """
        start_ms, end_ms = _ms("start", start), _ms("end", end)
        if start_ms >= end_ms:
            raise ValueError(f"start={start.isoformat()} is not before end={end.isoformat()}")
        if end_ms > self._delayed.now_ms():
            raise ValueError(f"end={end.isoformat()} is in the future: beats fire what is to come")
        while True:
            revision = self._known.store.schedules_revision()
            listed = self._known.find(name)
            instants = list(self._between(listed, start_ms, end_ms))
            done = Backfill()
            if dry_run:
                return self._foreseen(listed, instants, force, done)
            for at in range(0, len(instants), BACKFILL_LIMIT):
                some = instants[at : at + BACKFILL_LIMIT]
                if not self._fire(listed, some, revision, force, done):
                    break
            else:
                return done
            if done.fired:
                raise StoreUnavailable(
                    f"somebody has changed the schedules meanwhile: {len(done.fired)} occurrences"
                    f" of {name!r} were fired; call again for the others"
                )

    def _between(self, one: Listed, start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
        """Each occurrence in a span, and the one after it."""
        if one.since_ms is None:
            raise ValueError(f"no beat has led with the schedule {one.name!r} yet")
        plan, definition = self._known.plan(one)
        if plan.is_polled or definition.times is None:
            raise ValueError(f"the times of {one.name!r} are known to its own code only")
        nominal_ms = self._first(one, plan, start_ms)
        count = 0
        while nominal_ms is not None and nominal_ms < end_ms:
            count += 1
            if count > MOST_BACK:
                raise ValueError(
                    f"there are more than {MOST_BACK} occurrences of {one.name!r} in that span:"
                    " take a shorter one"
                )
            following = plan.next_after(nominal_ms)
            yield nominal_ms, nominal_ms + 1 if following is None else following
            nominal_ms = following

    def _first(self, one: Listed, plan: SchedulePlan, start_ms: int) -> int | None:
        """The first occurrence from an instant on."""
        schedule = plan.schedule
        if type(schedule) is not Interval or schedule.relative:
            return plan.next_after(start_ms - 1)
        # an interval has no instants of its own: it is the phase in which it stands that counts
        known_ms = next(ms for ms in (one.next_ms, one.fired_ms, one.since_ms) if ms is not None)
        every_ms = plan.next_after(0) or 1
        return start_ms + (known_ms - start_ms) % every_ms

    def _foreseen(
        self, one: Listed, instants: list[tuple[int, int]], force: bool, done: Backfill
    ) -> Backfill:
        for nominal_ms, _ in instants:
            instant = from_ms(nominal_ms)
            if one.next_ms is not None and nominal_ms >= one.next_ms:
                done.left.append(instant)
            elif one.was_fired(nominal_ms) and not force:
                done.refused.append(instant)
            else:
                done.fired[instant] = ""
        return done

    def _fire(
        self,
        one: Listed,
        instants: list[tuple[int, int]],
        revision: int,
        force: bool,
        done: Backfill,
    ) -> bool:
        """Fire some; False if somebody has changed the schedules meanwhile."""
        made = [
            (nominal_ms, next_ms, self._made(one, nominal_ms, force))
            for nominal_ms, next_ms in instants
        ]
        codes = self._known.store.backfill(
            one.name, revision=revision, force=force, occurrences=made
        )
        if codes in ("STALE", "UNSEEN"):
            return False
        for code, (nominal_ms, _, addition) in zip(codes, made, strict=True):
            instant = from_ms(nominal_ms)
            if code == "A":
                done.fired[instant] = addition.entry_id.task_id
            else:
                (done.refused if code == "F" else done.left).append(instant)
        logger.info(
            "%d occurrences of %r were fired after all",
            codes.count("A"),
            one.name,
            extra={
                "event": "schedule_backfilled",
                "schedule": one.name,
                "count": codes.count("A"),
                "forced": force,
            },
        )
        return True

    def _made(self, one: Listed, nominal_ms: int, force: bool) -> Addition:
        settings = self._delayed.settings
        if force and one.was_fired(nominal_ms):
            ids = (str(uuid4()) for _ in iter(int, 1))
            task_id = next(new for new in ids if shard_of(new, settings.shards) == 0)
        else:
            task_id = occurrence_task_id(settings, one.name, one.version, nominal_ms)
        facts: dict[str, Any] = {"backfilled": True, "by": caller()}
        entry = self._known.entry(one.name)
        addition = made_now(self._delayed.app, entry, task_id, nominal_ms, facts)
        if addition is None:
            raise StoreUnavailable(f"sending {entry.task} left no message: nothing was fired")
        return addition


def _ms(name: str, given: Any) -> int:
    if not isinstance(given, datetime):
        raise TypeError(f"{name} must be a datetime, not {given!r}")
    if given.utcoffset() is None:
        raise ValueError(f"{name}={given.isoformat()} has no time zone: give an aware datetime")
    return to_ms(given)
