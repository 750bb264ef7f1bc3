"""Periodic tasks: each occurrence becomes one ordinary entry, due now.

The next occurrence of every schedule stands in Redis.  Firing is one script that advances
the schedule's cursor *and* adds the entry, so an occurrence can neither be lost nor doubled
between the two, whoever leads; all the rest (dispatch, audit) is that of any entry.

Occurrences that were missed while nobody led are run once, the latest of them.  Those that fall
into a pause are passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import NAMESPACE_URL, uuid5

from celery_delay.domain.entries import Addition
from celery_delay.domain.series import FIRED, UNMETERED, Meter
from celery_delay.domain.timetable import ENDED, UNKNOWN, DueSchedules, PeriodicStore, Wanted
from celery_delay.exceptions import DelayError, StoreUnavailable

__all__ = ["Periodic", "Plan", "occurrence_id"]

logger = logging.getLogger(__name__)

#: The longest wait between two looks, and the wait when nothing that is due could be fired,
#: in seconds.
LONGEST_WAIT, SHORT_WAIT = 1.0, 0.1
#: How often the stored schedules are compared with ours: a Redis that was emptied or went
#: back in time gets them again.  In ms.
SYNC_EVERY = 30_000
#: A schedule that cannot be calculated is tried again after this, in ms.
RETRY_AFTER = 60_000
#: Pauses of an entry whose message cannot be made because something is away, in ms.
SHORTEST_PAUSE, LONGEST_PAUSE = 500, 10_000


class Plan(Protocol):
    """When a schedule fires."""

    @property
    def version(self) -> str:
        """Changes when the schedule's times do; it then starts anew."""
        ...

    @property
    def start_ms(self) -> int | None:
        """What its first occurrence counts from; ``None``: from when a leader first sees it."""
        ...

    @property
    def is_polled(self) -> bool:
        """Whether what is stored is when to ask it, and not when it fires."""
        ...

    def description(self) -> str:
        """What others may know of it, as JSON; "" if they know it already."""
        ...

    def next_after(self, after_ms: int) -> int | None:
        """The first occurrence after an instant; ``None`` if there is none."""
        ...

    def firing(self, first_ms: int, now_ms: int, last_ms: int) -> tuple[int | None, int | None]:
        """The occurrence to run of those from the first to now, and what to store as next.

        ``None`` as the former: nothing is to be run.  *last_ms* is when it last fired.
        """
        ...


def occurrence_id(prefix: str, name: str, version: str, nominal_ms: int) -> str:
    """The task id of one occurrence: the same whichever replica fires it."""
    return str(uuid5(NAMESPACE_URL, f"celery-delay:{prefix}:{name}:{version}:{nominal_ms}"))


class Periodic:
    """Fires the schedules of one store; called by one thread, on the leader.

    Arguments:
        build: makes the entry of (schedule name, nominal instant in ms); ``None`` if the
            message cannot be made, in which case that occurrence is skipped.  It raises
            ``StoreUnavailable`` if what it needs is away: the occurrence then stays due.
    """

    def __init__(
        self,
        store: PeriodicStore,
        build: Callable[[str, int], Addition | None],
        meter: Meter = UNMETERED,
    ) -> None:
        self._store = store
        self._meter = meter
        self._build = build
        self._synced: tuple[int, dict[str, str]] | None = None
        self._sync_at = 0
        self._expects_some = False
        self._failing: set[str] = set()
        #: name → (when to try again, present pause), in ms of the store
        self._held: dict[str, tuple[int, int]] = {}

    def run_once(self, term: int, plans_of: Callable[[int], Mapping[str, Plan | None]]) -> float:
        """Fire what is due.

        Arguments:
            plans_of: the schedules, given their revision.  ``None`` for one that cannot be read
                here: it is left as it is.

        Returns:
            Seconds until the next look, at most :data:`LONGEST_WAIT`.

        Raises:
            StoreUnavailable: an occurrence that was not fired will be.
        """
        look = self._store.due_schedules()
        plans = plans_of(look.revision)
        versions = {name: plan.version if plan else "" for name, plan in plans.items()}
        if self._must_sync(term, versions, look.now_ms) or (
            self._expects_some and not look.due and look.next_ms is None
        ):
            if not self._sync(term, plans, versions, look):
                return SHORT_WAIT
            synced, look = look, self._store.due_schedules()
            if look.revision != synced.revision:
                return 0.0
        waits = [LONGEST_WAIT]
        if look.next_ms is not None:
            waits.append(max(0.0, (look.next_ms - look.now_ms) / 1000))
        for name, first_ms in look.due:
            retry_at, _ = self._held.get(name, (0, 0))
            if name not in plans:
                self._synced = None
                waits.append(SHORT_WAIT)
            elif (plan := plans[name]) is None:
                continue
            elif look.now_ms < retry_at <= look.now_ms + LONGEST_PAUSE:
                waits.append((retry_at - look.now_ms) / 1000)
            elif self._fire(term, name, plan, first_ms, look):
                waits.append(0.0)  # look again: what follows may be due already
            else:
                waits.append(SHORT_WAIT)
        return min(waits)

    def _must_sync(self, term: int, versions: dict[str, str], now_ms: int) -> bool:
        if self._synced != (term, versions):
            return True
        # also if the store's clock has gone back
        return not self._sync_at - SYNC_EVERY <= now_ms < self._sync_at

    def _sync(
        self,
        term: int,
        plans: Mapping[str, Plan | None],
        versions: dict[str, str],
        look: DueSchedules,
    ) -> bool:
        schedules = {name: self._wanted(name, plan, look.now_ms) for name, plan in plans.items()}
        if not self._store.sync_schedules(term=term, revision=look.revision, schedules=schedules):
            return False  # we lead no more, or must read the schedules again
        self._synced = (term, versions)
        self._sync_at = look.now_ms + SYNC_EVERY
        self._expects_some = any(one.next_ms > look.now_ms for one in schedules.values())
        self._failing &= plans.keys()
        self._held = {name: held for name, held in self._held.items() if name in plans}
        return True

    def _wanted(self, name: str, plan: Plan | None, now_ms: int) -> Wanted:
        if plan is None:
            return Wanted("", UNKNOWN)
        try:
            start_ms = plan.start_ms
            following = plan.next_after(now_ms if start_ms is None else start_ms)
        except Exception:
            # one schedule that cannot be calculated must not stop the others
            self._cannot_calculate(name)
            return Wanted(plan.version, UNKNOWN, plan.description())
        self._calculates(name)
        next_ms = ENDED if following is None else following
        return Wanted(plan.version, next_ms, plan.description())

    def _fire(self, term: int, name: str, plan: Plan, first_ms: int, look: DueSchedules) -> bool:
        """Whether the schedule has moved on."""
        now_ms, standing = look.now_ms, self._store.standing(name)
        last_ms = first_ms if standing.cursor_ms is None else standing.cursor_ms
        try:
            nominal_ms, next_ms = plan.firing(first_ms, now_ms, last_ms)
        except Exception:
            self._cannot_calculate(name)
            nominal_ms, next_ms = None, now_ms + RETRY_AFTER
        else:
            self._calculates(name)
        if nominal_ms is not None and standing.skips(nominal_ms):
            last_ms, nominal_ms = nominal_ms, None
        try:
            addition = None if nominal_ms is None else self._build(name, nominal_ms)
        except StoreUnavailable as exc:
            self._hold(name, now_ms, exc)
            return False
        self._release(name)
        cursor_ms = last_ms if nominal_ms is None else nominal_ms
        # what was passed over: up to the one that fires, or up to the next
        passed_ms = (next_ms or now_ms + 1) if addition is None else cursor_ms
        moved = self._store.fire(
            term=term,
            revision=look.revision,
            name=name,
            expected_ms=first_ms,
            cursor_ms=cursor_ms,
            next_ms=next_ms,
            missed=None if plan.is_polled else (first_ms, passed_ms),
            addition=addition,
        )
        if moved and addition is not None:
            self._meter.count(FIRED, 1, (name,))
            logger.info(
                "fired %s (%s)",
                name,
                addition.entry_id.task_id,
                extra={
                    "event": "schedule_fired",
                    "schedule": name,
                    "task_id": addition.entry_id.task_id,
                    "late_ms": now_ms - cursor_ms,
                },
            )
        return moved

    # -- what fails, said once ----------------------------------------------------------

    def _cannot_calculate(self, name: str) -> None:
        if name not in self._failing:
            self._failing.add(name)
            logger.error(
                "cannot calculate the next run of %r; trying again every %d s",
                name,
                RETRY_AFTER // 1000,
                exc_info=True,
                extra={"event": "schedule_failed", "schedule": name},
            )

    def _calculates(self, name: str) -> None:
        if name in self._failing:
            self._failing.discard(name)
            logger.info(
                "%r runs again", name, extra={"event": "schedule_recovered", "schedule": name}
            )

    def _hold(self, name: str, now_ms: int, exc: DelayError) -> None:
        _, pause = self._held.get(name, (0, 0))
        if not pause:
            logger.warning(
                "%r waits, and is tried again: %s",
                name,
                exc,
                extra={"event": "schedule_held", "schedule": name},
            )
        pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, pause * 2))
        self._held[name] = (now_ms + pause, pause)

    def _release(self, name: str) -> None:
        if self._held.pop(name, None):
            logger.info("%r goes on", name, extra={"event": "schedule_released", "schedule": name})
