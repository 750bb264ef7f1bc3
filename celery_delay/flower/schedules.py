"""``/api/delayed/schedules``: periodic schedules, seen and steered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.beat import SchedulingError

from celery_delay.domain.clock import to_ms
from celery_delay.domain.documents import fields
from celery_delay.flower.acting import log_change
from celery_delay.flower.answering import Refused
from celery_delay.flower.asking import Asked, query
from celery_delay.flower.guarding import JsonHandler
from celery_delay.flower.shown import shown_call

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.periodic.schedule import Schedule

__all__ = ["SCHEDULE_VERBS", "ScheduleActHandler", "ScheduleHandler", "SchedulesHandler"]

#: Schedules that one answer tells, and occurrences of one.
MOST, MOST_AHEAD = 1_000, 100
SCHEDULE_VERBS = ("pause", "resume", "trigger")


class SchedulesHandler(JsonHandler):
    """All schedules, by name."""

    async def get(self) -> None:
        """At most :data:`MOST`; ``search`` finds the others."""
        self.answer(await self.ask(_listed, self.delayed, query(self, "search")))


class ScheduleHandler(JsonHandler):
    """One schedule."""

    async def get(self, name: str) -> None:
        """With its next occurrences; 404 if there is none of that name."""
        self.answer(await self.ask(_shown, self.delayed, name, query(self, "n")))


class ScheduleActHandler(JsonHandler):
    """One verb on one schedule."""

    async def post(self, name: str, verb: str) -> None:
        """What came of it; 404 if there is none of that name."""
        asked = Asked({one: [value] for one, value in self.body().items()}, ("reason",))
        told = await self.ask(_changed, self.delayed, name, verb, asked)
        log_change(self, f"{verb} of the schedule", name, told["outcome"])
        self.answer(told)


def _listed(delayed: CeleryDelay, asked: Asked) -> dict[str, Any]:
    words = (asked.text("search") or "").casefold()
    found = [
        one
        for one in delayed.schedules.list()
        if words in one.name.casefold() or words in one.task.casefold()
    ]
    return {
        **fields("now", delayed.now_ms()),
        "total": len(found),
        "schedules": [_row(delayed, one) for one in found[:MOST]],
    }


def _shown(delayed: CeleryDelay, name: str, asked: Asked) -> dict[str, Any]:
    number = asked.number("n", 10, 1, MOST_AHEAD)
    found = delayed.schedules.get(name)
    try:
        ahead, why = delayed.schedules.preview(name, number), None
    except ValueError as exc:
        ahead, why = [], str(exc)
    return {
        **fields("now", delayed.now_ms()),
        "schedule": _row(delayed, found),
        "timezone": str(ahead[0].tzinfo) if ahead else None,
        "occurrences": [{**fields("at", to_ms(one)), "local": one.isoformat()} for one in ahead],
        "occurrences_error": why,
    }


def _row(delayed: CeleryDelay, one: Schedule) -> dict[str, Any]:
    args, kwargs = shown_call(delayed, one.task, one.args, one.kwargs)
    instants = {"paused": one.paused, "last_fired": one.last_fired, "next": one.next}
    row: dict[str, Any] = {
        "name": one.name,
        "task": one.task,
        "schedule": one.schedule,
        "source": one.source,
        "version": one.version,
        "enabled": one.enabled,
        "paused_by": one.paused_by or None,
        "reason": one.reason or None,
        "args": args,
        "kwargs": kwargs,
        "misfire": one.misfire,
        "grace_s": one.grace,
    }
    for name, instant in instants.items():
        row |= fields(name, None if instant is None else to_ms(instant))
    return row


def _changed(delayed: CeleryDelay, name: str, verb: str, asked: Asked) -> dict[str, Any]:
    schedules, task_id = delayed.schedules, None
    if verb == "pause":
        done = schedules.pause(name, reason=asked.text("reason"))
        text = "it fires nothing until it is resumed" if done else "it was paused already"
        outcome = "PAUSED"
    elif verb == "resume":
        done = schedules.resume(name)
        text = "its next occurrence is fired" if done else "it was not paused"
        outcome = "RESUMED"
    else:
        try:
            task_id = str(schedules.trigger(name).id)
        except SchedulingError as exc:
            raise Refused(409, f"{exc}: {exc.__cause__ or exc.__context__}") from exc
        except ValueError as exc:
            raise Refused(409, str(exc)) from exc
        text, outcome = "its task runs now, once", "TRIGGERED"
    return {"name": name, "outcome": outcome, "text": text, "task_id": task_id}
