"""``POST /api/delayed/<id>/<verb>``: a change of one task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_delay.domain.states import CancelOutcome, State
from celery_delay.exceptions import DelayError
from celery_delay.flower import meanings
from celery_delay.flower.answering import Refused
from celery_delay.flower.asking import Asked
from celery_delay.flower.guarding import JsonHandler

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["FIELDS", "VERBS", "ActHandler", "Verb", "log_change", "when_of"]

logger = logging.getLogger(__name__)

#: How a new eta may be said.
_WHEN = ("eta", "countdown", "by")
FIELDS = (*_WHEN, "reason", "run", "eta_ms")


class Verb(NamedTuple):
    """A change.

    Attributes:
        change: what makes it, and answers.
        meaning: what the answers are for people.
        done: the answer that is a yes.
        moves: whether it takes a new eta.
    """

    change: Callable[[CeleryDelay, str, Asked], Enum]
    meaning: Mapping[Enum, str]
    many: str
    moves: bool = False


class ActHandler(JsonHandler):
    """One verb on one task."""

    async def post(self, task_id: str, name: str) -> None:
        """The answer; 200 also for one that is a no."""
        asked = Asked({one: [value] for one, value in self.body().items()}, FIELDS)
        verb = VERBS[name]
        outcome = await self.ask(verb.change, self.delayed, task_id, asked)
        log_change(self, name, task_id, outcome.value)
        self.answer(
            {
                "task_id": task_id,
                "outcome": outcome.value,
                "done": bool(outcome),
                "text": verb.meaning[outcome],
            }
        )


def log_change(handler: JsonHandler, verb: str, what: str, outcome: str) -> None:
    """Who has changed what: Flower's log is where one looks for it first.

    Names and ids are other people's words, and must not fake a line of it.
    """
    user, what = (
        "".join(one if one.isprintable() else "?" for one in text)
        for text in (handler.user or "somebody", what)
    )
    logger.info(
        "%s: %s of %s from Flower, %s",
        user,
        verb,
        what,
        outcome,
        extra={"event": "flower_changed", "task_id": what, "outcome": outcome},
    )


def when_of(asked: Asked) -> dict[str, Any]:
    """The new eta that is asked for, as ``app.delayed.reschedule`` takes it."""
    given = {name: asked.value(name) for name in _WHEN if asked.value(name) is not None}
    if len(given) != 1:
        raise Refused(400, "say when, in one way: eta, countdown or by")
    for name in ("countdown", "by"):
        if name in given and isinstance(given[name], str):
            raise Refused(400, f"{name} must be a number of seconds, not {given[name]!r}")
    return given


def _cancel(delayed: CeleryDelay, task_id: str, asked: Asked) -> CancelOutcome:
    outcome = delayed.cancel(
        task_id,
        run=asked.number("run", 0, 0, 10**18),
        eta_ms=asked.number("eta_ms", 0, 0, 10**18) or None,
        reason=asked.text("reason"),
    )
    if outcome is CancelOutcome.NOT_FOUND:
        # the store forgets a task with its hand-off; the audit may still know
        state = _remembered(delayed, task_id)
        if state is State.CANCELLED:
            return CancelOutcome.CANCELLED
        if state is not None and (state.rank >= State.DISPATCHED.rank or state in _WAITED):
            return CancelOutcome.TOO_LATE
    return outcome


#: So it was when that was drained; a task that does not wait any more has been handed off since.
_WAITED = (State.SCHEDULED, State.HELD)


def _remembered(delayed: CeleryDelay, task_id: str) -> State | None:
    if not delayed.settings.has_database:
        return None
    try:
        known = delayed.audit_queries().task(task_id)
        return State(known.state) if known is not None else None
    except (DelayError, ValueError):
        return None


def _reschedule(delayed: CeleryDelay, task_id: str, asked: Asked) -> Enum:
    return delayed.reschedule(task_id, **when_of(asked), reason=asked.text("reason"))


def _run_now(delayed: CeleryDelay, task_id: str, asked: Asked) -> Enum:
    return delayed.run_now(task_id, reason=asked.text("reason"))


def _hold(delayed: CeleryDelay, task_id: str, asked: Asked) -> Enum:
    return delayed.hold(task_id, reason=asked.text("reason"))


def _release(delayed: CeleryDelay, task_id: str, asked: Asked) -> Enum:
    return delayed.release(task_id, reason=asked.text("reason"))[task_id]


VERBS: Mapping[str, Verb] = {
    "cancel": Verb(_cancel, meanings.CANCELLED, "cancel_many"),
    "reschedule": Verb(_reschedule, meanings.RESCHEDULED, "reschedule_many", moves=True),
    "run-now": Verb(_run_now, meanings.RUNS_NOW, "run_many"),
    "hold": Verb(_hold, meanings.HELD, "hold_many"),
    "release": Verb(_release, meanings.RELEASED, "release_many"),
    # the same script: what is parked goes back into the schedule
    "resend": Verb(_release, meanings.RESENT, "release_many"),
}
