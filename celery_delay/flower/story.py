"""``GET /api/delayed/<id>``: one task as the store has it now, and its history by the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_delay.domain.documents import fields, run_document
from celery_delay.domain.events import Event
from celery_delay.exceptions import DelayError
from celery_delay.flower.guarding import JsonHandler
from celery_delay.flower.listing import found_rows

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["TaskHandler"]

#: The latest runs and transitions that are told.
MOST_RUNS, MOST_EVENTS = 200, 1_000
#: Of a transition's facts, the ones that are not told: whole signatures.
_HIDDEN = frozenset({"chord"})


class TaskHandler(JsonHandler):
    """All that is known of a task."""

    async def get(self, task_id: str) -> None:
        """404 if nobody knows it."""
        told = await self.ask(_told, self.delayed, task_id)
        known = told["entry"] or told["history"] or told["result"]
        self.set_status(200 if known else 404)
        self.answer(told if known else {**told, "error": f"nobody knows the task {task_id!r}"})


def _told(delayed: CeleryDelay, task_id: str) -> dict[str, Any]:
    now_ms = delayed.now_ms()
    rows = found_rows(delayed, task_id, now_ms)
    seen = delayed.results.seen(task_id)
    runs: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    lag_ms, why = None, None
    if delayed.settings.has_database:
        try:
            history = delayed.history(task_id)
        except DelayError as exc:
            # the store has answered: half of the truth is better than none
            why = str(exc)
        else:
            lag_ms = history.audit_lag_ms
            runs = [run_document(one) for one in history.runs[-MOST_RUNS:]]
            events = [_event(one) for one in history.events[-MOST_EVENTS:]]
    return {
        "task_id": task_id,
        **fields("now", now_ms),
        "entry": rows[0] if rows else None,
        "runs": runs,
        "history": events,
        "audited": delayed.settings.has_database,
        "audit_lag_ms": lag_ms,
        "audit_error": why,
        "result": seen.value if seen is not None else None,
    }


def _event(one: Event) -> dict[str, Any]:
    return {
        "state": one.state,
        "run": one.entry_id.run,
        "version": one.version,
        **fields("at", one.at_ms),
        **fields("eta", one.eta_ms),
        "lag_ms": one.data.get("lag_ms"),
        "worker": one.data.get("worker"),
        "data": {name: value for name, value in one.data.items() if name not in _HIDDEN},
    }
