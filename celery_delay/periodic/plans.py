"""When schedules fire, as the periodic service asks it; those of code, and those of the store."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery_delay.domain.timetable import Stored
from celery_delay.periodic import occurrences, times
from celery_delay.periodic.definitions import MISFIRES, Definition, described

__all__ = ["SchedulePlan", "StoredPlans", "of_code", "of_store"]

logger = logging.getLogger(__name__)

#: With ``misfire="skip"``, how late an occurrence may be if no ``grace`` is given, in seconds: the
#: time that another beat needs to take over is not missed.
SKIP_AFTER = 60.0


class SchedulePlan:
    """When a schedule fires.

    Attributes:
        schedule: Celery's, or :class:`~celery_delay.periodic.times.Once`.
        version: changes when its times do.
        start_ms: what the first occurrence counts from; ``None``: from when it is first seen.
        is_polled: whether it is of the user's own, and can only be asked whether it is due.
    """

    def __init__(
        self,
        schedule: Any,
        text: str,
        start_ms: int | None = None,
        describe: Callable[[], str] = str,
        misfire: str = "fire_once",
        grace: float | None = None,
    ) -> None:
        self.schedule = schedule
        self.version = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]
        self.start_ms = start_ms
        self.is_polled = not isinstance(schedule, times.Once) and not occurrences.is_known(schedule)
        self._describe = describe
        self._fires_all = misfire == "fire_all"
        if misfire == "skip" and grace is None:
            grace = SKIP_AFTER
        self._grace_ms = None if grace is None else round(grace * 1000)

    def next_after(self, after_ms: int) -> int | None:
        """The first occurrence after an instant; ``None`` if there is none."""
        if isinstance(self.schedule, times.Once):
            return self.schedule.next_after(after_ms)
        return occurrences.next_after(self.schedule, after_ms)

    def firing(self, first_ms: int, now_ms: int, last_ms: int) -> tuple[int | None, int | None]:
        """The occurrence to run of those from the first to now, and what to store as next."""
        if self._fires_all and not self.is_polled:
            first = self._first_in_time(first_ms, now_ms)
            if first is None or first > now_ms:
                return None, first
            return first, self.next_after(first)
        nominal_ms: int | None = first_ms
        next_ms: int | None = None
        if not isinstance(self.schedule, times.Once):
            nominal_ms, next_ms = occurrences.firing(self.schedule, first_ms, now_ms, last_ms)
        if nominal_ms is not None and self._is_too_late(nominal_ms, now_ms):
            nominal_ms = None
        return nominal_ms, next_ms

    def _is_too_late(self, nominal_ms: int, now_ms: int) -> bool:
        return self._grace_ms is not None and now_ms - nominal_ms > self._grace_ms

    def _first_in_time(self, first_ms: int, now_ms: int) -> int | None:
        """The first occurrence that is not too late."""
        if not self._is_too_late(first_ms, now_ms):
            return first_ms
        if isinstance(self.schedule, times.Once):
            return None
        bound_ms = now_ms - (self._grace_ms or 0)
        return self.next_after(occurrences.latest(self.schedule, first_ms, bound_ms - 1))

    def description(self) -> str:
        """What others may know of it; "" if they know it already."""
        return self._describe()


def of_code(entry: Any) -> SchedulePlan:
    """The plan of an entry of ``beat_schedule``."""

    def describe() -> str:
        made = described(entry.task, entry.schedule, entry.args, entry.kwargs, entry.options)
        return f"{made.timing()}\n{made.call()}"

    text = occurrences.definition(entry.schedule)
    return SchedulePlan(entry.schedule, text, describe=describe)


def of_store(app: Any, stored: Stored) -> tuple[SchedulePlan, Definition]:
    """The plan and the call of a schedule that was added at run time.

    Raises:
        TypeError, ValueError: it is of another release, or damaged.
    """
    definition = Definition.read(stored.timing, stored.call)
    if definition.times is None:
        raise ValueError("it has no times")
    if definition.misfire not in MISFIRES:
        raise ValueError(f"it has the unknown misfire {definition.misfire!r}")
    plan = SchedulePlan(
        times.build(definition.times, app),
        # what is added anew under an old name has occurrences of its own
        f"{stored.anchor_ms} {stored.timing}",
        stored.anchor_ms,
        misfire=definition.misfire,
        grace=definition.grace,
    )
    return plan, definition


class StoredPlans:
    """The schedules that were added at run time, read again when they have changed.

    Arguments:
        read: gives them; see ``store/scheduling.py``.
    """

    def __init__(self, app: Any, read: Callable[[], Mapping[str, Stored | None]]) -> None:
        self._app = app
        self._read = read
        self._revision: int | None = None
        self._stored: Mapping[str, Stored | None] = {}
        self._found: dict[str, tuple[SchedulePlan, Definition] | None] = {}
        self._unreadable: set[str] = set()

    def of(self, revision: int) -> Mapping[str, tuple[SchedulePlan, Definition] | None]:
        """Name → plan and call; ``None`` of one that cannot be read here.

        Raises:
            StoreUnavailable: they cannot be read now.
        """
        if revision != self._revision:
            stored, known = self._read(), self._stored
            # one that has not changed is not made again: there may be thousands
            self._found = {
                name: self._found[name]
                if name in known and known[name] == one
                else self._one(name, one)
                for name, one in stored.items()
            }
            self._unreadable &= stored.keys()
            self._stored, self._revision = stored, revision
        return self._found

    def _one(self, name: str, stored: Stored | None) -> tuple[SchedulePlan, Definition] | None:
        try:
            if stored is None:
                raise ValueError("its text is damaged")
            found = of_store(self._app, stored)
        except Exception as exc:
            # also what a library says of times that it does not know; the others must go on
            if name not in self._unreadable:
                self._unreadable.add(name)
                logger.error(
                    "the schedule %r is left out, for its definition cannot be used here: %s",
                    name,
                    exc,
                    extra={"event": "schedule_unreadable", "schedule": name},
                )
            return None
        self._unreadable.discard(name)
        return found
