"""What happens in workers, journalled: Celery's task signals become transitions.

Only tasks that bear our header are journalled, by the process that runs them; a hard time
limit or a lost worker is told by the worker's main process.  A receiver never raises and
waits at most ``delay_redis_timeout``: the audit may miss a transition, the task must not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from celery import signals
from celery import states as celery_states
from celery.utils.saferepr import saferepr

from celery_delay.entries import EntryId
from celery_delay.envelope import HEADER
from celery_delay.exceptions import DelayError
from celery_delay.ports import Transition
from celery_delay.states import State

__all__ = ["WorkerSignals"]

logger = logging.getLogger(__name__)

#: Longest text of an error or reason that is journalled.
_LONGEST = 1_000


class Delayer(Protocol):
    """What the composition root offers to this module."""

    def record(self, transitions: Sequence[Transition]) -> None: ...


class WorkerSignals:
    """Receivers of one app's task signals."""

    def __init__(self, app: Any, delayed: Delayer) -> None:
        self._app = app
        self._delayed = delayed
        self._native: dict[str, int] = {}
        self._broken = False

    def connect(self) -> None:
        """Listen.  Connecting twice has no effect; nothing is paid outside of workers."""
        receivers: Mapping[Any, Callable[..., None]] = {
            signals.task_prerun: self.on_prerun,
            signals.task_success: self.on_success,
            signals.task_failure: self.on_failure,
            signals.task_retry: self.on_retry,
            signals.task_revoked: self.on_revoked,
            signals.task_postrun: self.on_postrun,
            signals.task_rejected: self.on_rejected,
            signals.task_unknown: self.on_unknown,
        }
        for signal, receiver in receivers.items():
            # weak: a bound method of an object that only the app holds would be dropped silently
            uid = ("celery-delay", id(self._app), receiver.__name__)
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def went_native(self, task_id: str, run: int) -> None:
        """Remember that the run under way sent the next one past the store."""
        self._native[task_id] = run

    def on_prerun(self, task: Any = None, **_: Any) -> None:
        """A worker starts the task."""
        request = task.request
        self._record(task, request, State.STARTED, {"worker": request.hostname, "pid": os.getpid()})

    def on_success(self, sender: Any = None, **_: Any) -> None:
        """The task returned."""
        self._record(sender, sender.request, State.SUCCEEDED, {})

    def on_failure(self, sender: Any = None, exception: Any = None, **_: Any) -> None:
        """The task raised, ran out of time, or its process was lost."""
        self._record(sender, sender.request, State.FAILED, {"error": _text(exception)})

    def on_retry(
        self, sender: Any = None, request: Any = None, reason: Any = None, **_: Any
    ) -> None:
        """The run asked for another one.

        If that one went past the store (a native retry), nobody else can tell of its hand-off.
        """
        self._record(sender, request, State.RETRIED, {"reason": _text(reason)})
        self._tell_native(sender, request)

    def on_postrun(
        self, task: Any = None, state: str | None = None, retval: Any = None, **_: Any
    ) -> None:
        """The run is over; Celery has no other signal for these two ends."""
        if state == celery_states.REJECTED and not getattr(retval, "requeue", False):
            self._record(task, task.request, State.REJECTED, {"error": _text(retval)})
        elif state == celery_states.IGNORED and task.request.id in self._native:
            self._record(task, task.request, State.RETRIED, {"reason": "replaced"})
            self._tell_native(task, task.request)
        elif state == celery_states.IGNORED:
            self._record(task, task.request, State.SUCCEEDED, {"ignored": True})

    def _tell_native(self, task: Any, request: Any) -> None:
        entry_id = _entry_id(request)
        native = self._native.pop(request.id, 0)
        if entry_id is not None and native == entry_id.run + 1:
            following = EntryId(request.id, native)
            self._write(task, Transition(following, 1, State.DISPATCHED, {"native": True}))

    def on_revoked(self, sender: Any = None, request: Any = None, **details: Any) -> None:
        """A worker dropped the task because it was revoked, or its expiry had passed."""
        reason = "expired" if details.get("expired") else "revoked"
        self._record(sender, request, State.REVOKED, {"reason": reason})

    def on_rejected(self, message: Any = None, **_: Any) -> None:
        """A worker could not make a task of the message."""
        self._record_message(message, {})

    def on_unknown(self, message: Any = None, name: Any = None, **_: Any) -> None:
        """A worker does not know the task, and has dropped the message."""
        self._record_message(message, {"error": f"no task {name!r} is registered"})

    def _record_message(self, message: Any, data: Mapping[str, object]) -> None:
        entry_id = _entry_id(getattr(message, "headers", None) or {})
        if entry_id is not None:
            self._write(None, Transition(entry_id, 1, State.REJECTED, data))

    def _record(self, task: Any, request: Any, state: State, data: Mapping[str, object]) -> None:
        entry_id = _entry_id(request)
        if entry_id is not None:
            self._write(task, Transition(entry_id, 1, state, data))

    def _write(self, task: Any, transition: Transition) -> None:
        if task is not None and getattr(task, "app", self._app) is not self._app:
            return  # another app of this process has its own receivers
        try:
            self._delayed.record([transition])
        except DelayError as exc:
            if not self._broken:
                logger.warning(
                    "the audit misses what workers do: %s", exc, extra={"event": "journal_lost"}
                )
            self._broken = True
        else:
            self._broken = False


def _entry_id(request: Any) -> EntryId | None:
    """The entry that a request or a message's headers belong to; ``None`` if it is not ours."""
    get = getattr(request, "get", None)
    header = get(HEADER) if get is not None else getattr(request, HEADER, None)
    if not isinstance(header, Mapping):
        # a worker's own Request keeps the message's headers inside
        inner = getattr(request, "request_dict", None) or {}
        header = inner.get(HEADER)
    if not isinstance(header, Mapping) or "run" not in header:
        return None
    return EntryId(str(header["task_id"]), int(header["run"]))


def _text(error: Any) -> str:
    return saferepr(error, maxlen=_LONGEST) if error is not None else ""
