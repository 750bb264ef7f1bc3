"""``app.delayed.schedules``: periodic schedules seen and steered by whoever has the app.

What the beats do is in ``periodic.py``.  Here is what the store tells of it, and changes, each of
them one script: from its answer on no beat acts by what was before.
"""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from celery_delay.calling.result import DelayedResult
from celery_delay.domain.callers import caller
from celery_delay.domain.clock import from_ms
from celery_delay.exceptions import (
    StoreUnavailable,
    UnknownSchedule,
)
from celery_delay.periodic import times
from celery_delay.periodic.backfill import Backfilling
from celery_delay.periodic.definitions import check_name
from celery_delay.periodic.dynamic import Dynamic
from celery_delay.periodic.firings import made_now
from celery_delay.periodic.schedule import Schedule

__all__ = ["Schedules"]

#: Occurrences that one look ahead tells at most.
MOST_AHEAD = 1_000
#: ``list`` is a method's name below.
_Instants = list[datetime]
_Schedules = list[Schedule]


class Schedules(Dynamic, Backfilling):
    """The periodic schedules of a project.

    All methods raise StoreUnavailable when Redis cannot be reached (nothing has changed), and those
    that change something OutcomeUnknown when it gave no answer for ``delay_add_window``: the change
    may have been made, and can be made again.  UnknownSchedule: there is no schedule of that name.
    """

    # -- seen ---------------------------------------------------------------------------

    def list(self) -> _Schedules:
        """All schedules, by name.

        Those that code owns are as the leading beat has them; if none has led yet, as this process
        has them.
        """
        found = {one.name: self._known.schedule(one) for one in self._known.list()}
        return [found[name] for name in sorted(found)]

    def get(self, name: str) -> Schedule:
        """The schedule of that name."""
        return self._known.schedule(self._known.find(name))

    def preview(self, name: str, n: int = 10) -> _Instants:
        """Its next *n* occurrences, aware, in the schedule's zone; fewer if it comes to an end.

        They are what will be fired, across changes of the clocks too, if nobody changes or pauses
        it.  An interval that no beat has seen yet is counted from now.

        Raises:
            ValueError: *n* is out of bounds, or its times are a class of the project's own, which
                can only be asked whether it is due.
        """
        if not 1 <= n <= MOST_AHEAD:
            raise ValueError(f"n={n!r}: 1 to {MOST_AHEAD} occurrences can be told")
        listed = self._known.find(name)
        plan, _ = self._known.plan(listed)
        if plan.is_polled:
            raise ValueError(f"the times of {name!r} are known to its own code only")
        zone = times.zone_of(plan.schedule)
        return [from_ms(one).astimezone(zone) for one in self._known.ahead(listed, plan, n)]

    # -- steered ------------------------------------------------------------------------

    def pause(self, name: str, *, reason: str | None = None) -> bool:
        """Fire no further occurrence until :meth:`resume`, over restarts and deployments.

        What falls into the pause is passed over, not made up for.  An occurrence that was fired
        before runs: ``cancel`` it by its id, if it has not reached its queue.

        Returns:
            False if it was paused already.
        """
        return self._pause(name, True, reason)

    def resume(self, name: str) -> bool:
        """Let it go on, with the first occurrence from now on; its phase stays.

        Returns:
            False if it was not paused.
        """
        return self._pause(name, False, None)

    def trigger(self, name: str) -> DelayedResult:
        """Run its task once now, also while it is paused.

        The task has a random id; where the schedule stands stays as it is.  The call is the one
        that this process has in ``beat_schedule``, else the one that is stored.

        Raises:
            ValueError: code owns the schedule, this process does not have it, and its arguments
                are no JSON.
            SchedulingError: the message cannot be made; the cause says why.
        """
        task_id = str(uuid4())
        entry = self._known.entry(name)
        facts = {"triggered": True, "by": caller()}
        addition = made_now(self._delayed.app, entry, task_id, 0, facts)
        if addition is None:
            raise StoreUnavailable(f"sending {entry.task} left no message: it was not triggered")
        [added] = self._delayed.add([addition])
        self._changed("triggered", name, task_id=task_id)
        return DelayedResult(
            task_id, app=self._delayed.app, entry_id=added.entry_id, eta_ms=added.due_ms
        )

    def _pause(self, name: str, pause: bool, reason: str | None) -> bool:
        answer = self._known.store.pause_schedule(
            check_name(name),
            pause,
            known=name in self._known.code(),
            by=caller(),
            reason=reason or "",
        )
        if answer == "NOT_FOUND":
            raise UnknownSchedule(name)
        if answer == "DONE":
            self._changed("paused" if pause else "resumed", name, reason=reason)
        return bool(answer == "DONE")
