"""``POST /api/delayed/pauses/<verb>``: keeping a task, a queue, a namespace or all back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_delay.domain.gates import gate_for
from celery_delay.flower.acting import log_change
from celery_delay.flower.answering import Refused
from celery_delay.flower.asking import Asked
from celery_delay.flower.guarding import JsonHandler

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["FIELDS", "PAUSE_VERBS", "PauseHandler"]

PAUSE_VERBS = ("pause", "resume")
_WHICH = ("task", "queue", "namespace")
FIELDS = {
    "pause": (*_WHICH, "all", "reason"),
    "resume": (*_WHICH, "all", "over"),
}


class PauseHandler(JsonHandler):
    """A pause begun, or ended."""

    async def post(self, verb: str) -> None:
        """What came of it; 200 also where there was no such pause."""
        asked = Asked({one: [value] for one, value in self.body().items()}, FIELDS[verb])
        change = _paused if verb == "pause" else _resumed
        told = await self.ask(change, self.delayed, asked)
        log_change(self, verb, told["gate"], told["outcome"])
        self.answer(told)


def _which(asked: Asked) -> dict[str, Any]:
    return {**{name: asked.text(name) for name in _WHICH}, "all": asked.flag("all")}


def _paused(delayed: CeleryDelay, asked: Asked) -> dict[str, Any]:
    gate = delayed.pause(**_which(asked), reason=asked.text("reason"))
    return {
        "gate": gate.gate,
        "outcome": "PAUSED",
        "done": True,
        "text": "what becomes due of it stays in the store until it is resumed",
        "waiting": gate.waiting,
    }


def _resumed(delayed: CeleryDelay, asked: Asked) -> dict[str, Any]:
    which, over = _which(asked), asked.value("over")
    if isinstance(over, str):
        raise Refused(400, f"over must be a number of seconds, not {over!r}")
    waiting = delayed.resume(**which, over=0 if over is None else over)
    is_done = waiting is not None
    return {
        "gate": gate_for(which["task"], which["queue"], which["namespace"], which["all"]),
        "outcome": "RESUMED" if is_done else "NOT_PAUSED",
        "done": is_done,
        "text": "what has gathered comes back" if is_done else "it was not paused",
        "waiting": waiting or 0,
    }
