"""Results of tasks that no worker will ever see, so that ``get()`` raises instead of hanging."""

from __future__ import annotations

import logging
from typing import Any

from celery import states as celery_states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.canvas import Signature

from celery_delay.domain.ports import Ending
from celery_delay.domain.states import State, seen_by_backend

__all__ = ["ResultBackend"]

logger = logging.getLogger(__name__)


class ResultBackend:
    """The app's result backend, as far as we need it.  Nothing here raises."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def seen(self, task_id: str) -> State | None:
        """What the backend knows of a task; ``None`` when it knows nothing or cannot be asked.

        STARTED is told of one that was terminated, which Celery calls revoked like one that never
        ran.
        """
        if self._disabled:
            return None
        try:
            backend = self._app.backend
            seen = seen_by_backend(backend.get_state(task_id))
            if seen is State.REVOKED and _was_terminated(backend.get_result(task_id)):
                return State.STARTED
            return seen
        except Exception:
            logger.debug("no state of %s from the result backend", task_id, exc_info=True)
            return None

    def end(self, ending: Ending) -> None:
        """Write REVOKED for a cancelled or expired task, FAILURE for a lost one.

        A final result that is there already is left alone.  For a part of a chord the chord
        is told too, so that its body fails instead of waiting for ever.
        """
        if self._disabled or (ending.ignore_result and not ending.chord):
            return
        task_id = ending.entry_id.task_id
        try:
            backend = self._app.backend
            if backend.get_state(task_id) in celery_states.READY_STATES:
                return
            request = Context(
                id=task_id,
                task=ending.task,
                group=ending.group,
                group_index=ending.group_index,
                chord=self._chord(ending),
                ignore_result=ending.ignore_result,
                errbacks=None,
                children=[],
            )
            if ending.state is State.LOST:
                lost = LookupError(ending.reason or "Redis lost the delayed task before its eta")
                backend.mark_as_failure(task_id, lost, request=request, call_errbacks=False)
            else:
                backend.mark_as_revoked(
                    task_id, ending.reason, request=request, store_result=not ending.ignore_result
                )
        except Exception:
            logger.warning(
                "the result of %s could not be written: get() will wait",
                task_id,
                exc_info=True,
                extra={"event": "result_not_written", "task_id": task_id},
            )

    def _chord(self, ending: Ending) -> Any:
        return Signature.from_dict(dict(ending.chord), app=self._app) if ending.chord else None

    @property
    def _disabled(self) -> bool:
        return isinstance(self._app.backend, DisabledBackend)


def _was_terminated(result: Any) -> bool:
    # Celery's word for a task that was stopped while it ran
    return getattr(result, "args", ())[:1] == ("terminated",)
