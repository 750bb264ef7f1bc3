"""One periodic schedule as it stands, and where what is known of it comes from.

Code owns some: the leading beat tells in the store what it has, and this process may have them too.
The others are in the store alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from celery.beat import ScheduleEntry

from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import Added, Addition
from celery_delay.domain.settings import Settings
from celery_delay.domain.timetable import Listed
from celery_delay.exceptions import UnknownSchedule
from celery_delay.periodic import times
from celery_delay.periodic.definitions import Definition, check_name, described
from celery_delay.periodic.firings import entry_of
from celery_delay.periodic.occurrences import latest
from celery_delay.periodic.plans import SchedulePlan, of_code, of_store
from celery_delay.store.redis import RedisStore

__all__ = ["Delayed", "Known", "Schedule"]

#: ``list`` is a method's name below.
_Instants = list[int]


@dataclass(frozen=True)
class Schedule:
    """A periodic schedule as it stands.

    Attributes:
        name: its key in ``beat_schedule``, or the name under which it was added.
        task: name of the task.
        schedule: its times, for people: ``0 7 * * mon-fri (Europe/Berlin)``.
        times: the same as a mapping; ``None`` for a schedule class of the project's own.
        args, kwargs, options: of the call.  ``None`` if code owns the schedule and they are no
            JSON.
        source: ``static`` if code owns it (``beat_schedule``, ``add_periodic_task``), ``dynamic``
            if it was added at run time.
        paused: since when it is; ``None``: it is not.
        paused_by, reason: who paused it, and why.
        last_fired: the nominal instant of the last occurrence that was fired, since its times are
            what they are.  Aware, in UTC, as all instants here.
        next: the next occurrence, also while it is paused; of a schedule class of the project's
            own: when it will be asked.  ``None``: there is none, or no beat has seen it yet.
        version: of a dynamic one; +1 with each change.  0 for static ones.
        misfire, grace: what becomes of occurrences that nobody fired in time; see
            :meth:`~celery_delay.periodic.schedules.Schedules.add`.
    """

    name: str
    task: str
    schedule: str
    times: Mapping[str, Any] | None
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    options: Mapping[str, Any] | None
    source: str
    paused: datetime | None
    paused_by: str
    reason: str
    last_fired: datetime | None
    next: datetime | None
    version: int
    misfire: str
    grace: float | None

    @property
    def enabled(self) -> bool:
        """Whether its occurrences run."""
        return self.paused is None


class Delayed(Protocol):
    """What schedules need of the composition root."""

    @property
    def app(self) -> Any: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> tuple[RedisStore, ...]: ...

    def now_ms(self) -> int: ...

    def add(self, additions: Sequence[Addition]) -> list[Added]: ...


class Known:
    """What this process and the store know of schedules."""

    def __init__(self, delayed: Delayed) -> None:
        self._delayed = delayed

    @property
    def store(self) -> RedisStore:
        """The shard in which schedules live."""
        return self._delayed.shards[0]

    def code(self) -> dict[str, Any]:
        """The schedules that this process' own code has."""
        return dict(self._delayed.app.conf.beat_schedule or {})

    def _code_entry(self, name: str) -> Any:
        given = self.code()[name]
        if isinstance(given, ScheduleEntry):
            return given
        return ScheduleEntry(**{**given, "name": name, "app": self._delayed.app})

    def list(self) -> Iterator[Listed]:
        """All, by name."""
        code = self.code()
        for one in self.store.list_schedules():
            if one.static or one.stored or one.name in code:
                code.pop(one.name, None)
                yield one
        yield from (self.store.find_schedule(name) for name in code)

    def find(self, name: str) -> Listed:
        """What is known of one.

        Raises:
            UnknownSchedule: nothing is.
        """
        found = self.store.find_schedule(check_name(name))
        if not (found.static or found.stored) and name not in self.code():
            raise UnknownSchedule(name)
        return found

    def schedule(self, one: Listed) -> Schedule:
        """As users see it."""
        try:
            definition = self._definition(one)
        except Exception as exc:  # whatever a foreign release has written: the others can be seen
            definition = Definition("?", None, f"unreadable: {exc}", None, None, None)
        next_ms = one.next_ms
        if next_ms is None and one.since_ms is None and one.stored and not one.static:
            next_ms = self._first(one)
        return Schedule(
            one.name,
            definition.task,
            definition.text,
            definition.times,
            definition.args,
            definition.kwargs,
            definition.options,
            "dynamic" if one.stored and not one.static else "static",
            _instant(one.paused_ms),
            one.paused_by,
            one.reason,
            _instant(one.fired_ms),
            _instant(next_ms),
            one.stored.version if one.stored and not one.static else 0,
            definition.misfire,
            definition.grace,
        )

    def _first(self, one: Listed) -> int | None:
        try:
            plan, _ = self.plan(one)
            return plan.next_after(plan.start_ms or 0)
        except Exception:
            return None

    def _definition(self, one: Listed) -> Definition:
        if one.static is not None:
            return Definition.read(*one.static)
        if one.stored is not None:
            return Definition.read(one.stored.timing, one.stored.call)
        entry = self._code_entry(one.name)
        return described(entry.task, entry.schedule, entry.args, entry.kwargs, entry.options)

    def plan(self, one: Listed) -> tuple[SchedulePlan, Definition]:
        """When it fires and what; of a static one by this process' code, else by what is stored."""
        app = self._delayed.app
        definition = self._definition(one)
        if one.stored is not None and one.static is None:
            return of_store(app, one.stored)
        if one.name in self.code():
            return of_code(self._code_entry(one.name)), definition
        if definition.times is None:
            raise ValueError(f"the times of {one.name!r} are known to its own code only")
        return SchedulePlan(times.build(definition.times, app), ""), definition

    def ahead(self, one: Listed, plan: SchedulePlan, n: int) -> _Instants:
        """The next *n* occurrences, in ms."""
        now_ms = self._delayed.now_ms()
        following = one.next_ms
        if following is None and one.since_ms is None:
            following = plan.next_after(now_ms if plan.start_ms is None else plan.start_ms)
        if (
            following is not None
            and following <= now_ms
            and not isinstance(plan.schedule, times.Once)
        ):
            # what is overdue is about to be fired: this is about what comes then
            following = plan.next_after(latest(plan.schedule, following, now_ms))
        found: _Instants = []
        while following is not None and len(found) < n:
            found.append(following)
            following = plan.next_after(following)
        return found

    def entry(self, name: str) -> Any:
        """What Celery's beat would send for it: by this process' code, else by the store.

        Raises:
            ValueError: only its own code can make the call.
        """
        listed = self.find(name)
        if name in self.code() and (listed.static is not None or listed.stored is None):
            return self._code_entry(name)
        definition = self._definition(listed)
        if definition.args is None or definition.kwargs is None or definition.options is None:
            raise ValueError(
                f"the arguments of {name!r} are no JSON, so only its own code can make the call:"
                " trigger it from a process whose beat_schedule has it"
            )
        return entry_of(self._delayed.app, name, definition)


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else from_ms(ms)
