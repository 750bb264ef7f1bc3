"""Periodic schedules that are added, changed and removed at run time.

A definition is JSON in Redis.  Each change is one script, which turns the revision of all
schedules; a beat that fires by an older one does nothing, so what a call here answers holds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta, tzinfo
from typing import Any

from celery_delay.exceptions import (
    ScheduleExists,
    StaticSchedule,
    UnknownSchedule,
)
from celery_delay.periodic import times
from celery_delay.periodic.definitions import Definition, check_name, checked
from celery_delay.periodic.schedule import Delayed, Known, Schedule
from celery_delay.store.scheduling import MOST_SCHEDULES

__all__ = ["Dynamic"]

logger = logging.getLogger(__name__)


class Dynamic:
    """The part of ``app.delayed.schedules`` about schedules that no code owns."""

    def __init__(self, delayed: Delayed) -> None:
        self._delayed = delayed
        self._known = Known(delayed)

    def add(
        self,
        name: str,
        task: Any,
        schedule: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        tz: str | tzinfo | None = None,
        misfire: str = "fire_once",
        grace: float | timedelta | None = None,
        **options: Any,
    ) -> Schedule:
        """Add a schedule, which each beat then has: kept in Redis, over all restarts.

        The leading beat sees it within a second.  It needs no code of the task.

        Arguments:
            task: a task, or its registered name.
            schedule: seconds or a timedelta, counted from now; Celery's ``crontab`` or ``solar``;
                five fields of a crontab as text (minute, hour, day of the month, month, day of the
                week); an aware datetime, for a single occurrence; or what ``Schedule.times`` tells.
            args, kwargs: of the call.  JSON only.
            tz: zone of a crontab, as a name or a ``ZoneInfo``; ``None``: the project's
                ``timezone``.
            misfire: of occurrences that no beat fired in time, ``fire_once`` runs the latest,
                ``fire_all`` each, in order, ``skip`` none.
            grace: how late, in seconds, an occurrence may be and still run.  ``None``: however
                late; with ``skip``: a minute.
            options: of ``apply_async``, those in ``celery_delay.periodic.definitions.OPTIONS``.

        Raises:
            ScheduleExists: there is one of that name that was added at run time.
            StaticSchedule: code has one of that name.
            TypeError, ValueError: about the argument they name.
        """
        definition = self._checked(name, task, schedule, args, kwargs, tz, misfire, grace, options)
        return self._put(name, "add", definition)

    def upsert(
        self,
        name: str,
        task: Any,
        schedule: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        tz: str | tzinfo | None = None,
        misfire: str = "fire_once",
        grace: float | timedelta | None = None,
        **options: Any,
    ) -> Schedule:
        """As :meth:`add`; one that there is becomes just that.

        With other times it starts anew, from now; else it keeps its phase.  One that is just that
        already is left alone, so it can be called at each start of a program.
        """
        definition = self._checked(name, task, schedule, args, kwargs, tz, misfire, grace, options)
        return self._put(name, "put", definition)

    def update(
        self,
        name: str,
        *,
        task: Any = None,
        schedule: Any = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        tz: str | tzinfo | None = None,
        misfire: str | None = None,
        grace: float | timedelta | None = None,
        **options: Any,
    ) -> Schedule:
        """Change parts of one that was added at run time; what is ``None`` stays as it is.

        Of *options* those that are given are changed; ``None`` takes one away.  Two updates at the
        same time are made one after the other, none is lost.

        Raises:
            StaticSchedule: code owns it.
            TypeError, ValueError: about the argument they name.
        """
        while True:
            listed = self._known.find(name)
            if listed.stored is None or listed.static is not None:
                raise StaticSchedule(name)
            was = Definition.read(listed.stored.timing, listed.stored.call)
            definition = self._checked(
                name,
                was.task if task is None else task,
                was.times if schedule is None else schedule,
                was.args if args is None else args,
                was.kwargs if kwargs is None else kwargs,
                tz,
                was.misfire if misfire is None else misfire,
                was.grace if grace is None else grace,
                {**(was.options or {}), **options},
                is_new=schedule is not None,
            )
            changed = self._try_to_put(name, "set", definition, listed.stored.version)
            if changed is not None:
                return changed

    def remove(self, name: str) -> None:
        """Remove one that was added at run time: it fires no more.

        What was fired before runs.

        Raises:
            StaticSchedule: code owns it.
        """
        answer = self._known.store.remove_schedule(check_name(name))
        if answer == "STATIC" or (answer == "NOT_FOUND" and name in self._known.code()):
            raise StaticSchedule(name)
        if answer == "NOT_FOUND":
            raise UnknownSchedule(name)
        self._changed("removed", name)

    # -- inside -------------------------------------------------------------------------

    def _checked(
        self,
        name: str,
        task: Any,
        schedule: Any,
        args: Any,
        kwargs: Any,
        tz: Any,
        misfire: Any,
        grace: Any,
        options: Mapping[str, Any],
        *,
        is_new: bool = True,
    ) -> Definition:
        check_name(name)
        app = self._delayed.app
        plain = times.plain(schedule, tz, app.timezone)
        once = times.build(plain, app)
        if is_new and isinstance(once, times.Once) and once.at_ms <= self._delayed.now_ms():
            raise ValueError(f"schedule={plain['at']} is past: it would never run")
        return checked(task, plain, args, kwargs, options, misfire, grace)

    def _put(self, name: str, how: str, definition: Definition) -> Schedule:
        found = self._try_to_put(name, how, definition)
        assert found is not None
        return found

    def _try_to_put(
        self, name: str, how: str, definition: Definition, expected: int = 0
    ) -> Schedule | None:
        """Store it; ``None`` if it is of another version than expected by now."""
        if name in self._known.code():
            raise StaticSchedule(name)
        answer, version = self._known.store.put_schedule(
            name, how, definition.timing(), definition.call(), expected=expected
        )
        if answer == "STALE":
            return None
        if answer == "STATIC":
            raise StaticSchedule(name)
        if answer == "EXISTS":
            raise ScheduleExists(name)
        if answer == "NOT_FOUND":
            raise UnknownSchedule(name)
        if answer == "FULL":
            raise ValueError(f"there are {MOST_SCHEDULES} schedules already: remove some")
        if answer == "DONE":
            self._changed("added" if version == 1 else "updated", name, version=version)
        return self._known.schedule(self._known.find(name))

    def _changed(self, what: str, name: str, **facts: object) -> None:
        logger.info(
            "the schedule %r was %s",
            name,
            what,
            extra={"event": "schedule_changed", "schedule": name, "change": what, **facts},
        )
