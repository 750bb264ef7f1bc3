"""What happens in workers, journalled: Celery's task signals become transitions.

Only tasks that bear our header are journalled, by the process that runs them.  What that
process cannot tell (a hard time limit, its own loss, a message that never became a task) is
told by the worker's main process, which in all pools but prefork is the same one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

from celery import signals
from celery import states as celery_states
from celery.exceptions import Reject, TimeLimitExceeded
from celery.utils.saferepr import saferepr

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Transition
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import State
from celery_delay.exceptions import DelayError
from celery_delay.message.runs import entry_id_of, header_of
from celery_delay.worker import reporting
from celery_delay.worker.keyreturns import KeyReturns
from celery_delay.worker.unknown import HoldUnknown

__all__ = ["WorkerSignals"]

logger = logging.getLogger(__name__)

#: Longest text of an error or reason that is journalled.
_LONGEST = 1_000


class Delayer(reporting.Delayer, Protocol):
    """What the composition root offers to this module."""

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> object: ...

    def let_go(self, unique_key: str, entry_id: EntryId) -> None: ...


class WorkerSignals:
    """Receivers of one app's task signals."""

    def __init__(self, app: Any, delayed: Delayer) -> None:
        self._app = app
        self._delayed = delayed
        self._keys = KeyReturns(delayed)
        self._begin()

    def _begin(self) -> None:
        self._reporter = reporting.Reporter(self._delayed)
        #: task id → the next run, when the one under way has sent it past the store
        self._native: dict[str, int] = {}
        #: whether messages come to this process: not so in the children of a prefork pool
        self._receives = False
        #: task id → Celery's request, of what came and has not failed yet
        self._received: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._failed: EntryId | None = None

    def connect(self) -> None:
        """Listen.  Connecting twice has no effect; nothing is paid outside of workers."""
        receivers: Mapping[Any, Callable[..., None]] = {
            signals.worker_init: self.on_worker_init,
            signals.worker_ready: self.on_worker_ready,
            signals.worker_process_init: self.on_process_init,
            signals.worker_process_shutdown: self.on_shutdown,
            signals.worker_shutdown: self.on_shutdown,
            signals.task_received: self.on_received,
            signals.task_prerun: self.on_prerun,
            signals.task_success: self.on_success,
            signals.task_failure: self.on_failure,
            signals.task_internal_error: self.on_internal_error,
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

    # -- the process --------------------------------------------------------------------

    def on_worker_init(self, **details: Any) -> None:
        """A worker starts: find the store while nobody waits, and before children are forked."""
        try:
            if self._delayed.settings.on_unknown == "hold":
                self._app.steps["consumer"].add(HoldUnknown)
            if self._delayed.settings.audited:
                _ = self._delayed.shards
        except DelayError as exc:
            logger.warning(
                "the store cannot be reached yet: %s", exc, extra={"event": "worker_unprepared"}
            )

    def on_worker_ready(self, sender: Any = None, **_: Any) -> None:
        """Have the consumer say which messages it drops because it cannot decode them.

        Celery has no signal for that; it acknowledges and forgets them.
        """
        celerys = getattr(sender, "on_decode_error", None)
        if celerys is None or sender.app is not self._app:
            return

        def on_decode_error(message: Any, exc: Exception) -> None:
            celerys(message, exc)
            self._refuse(message, {"error": _text(exc)})

        sender.on_decode_error = on_decode_error

    def on_process_init(self, **_: Any) -> None:
        """A pool's process begins: what it has inherited is its parent's business."""
        self._begin()

    def on_shutdown(self, **_: Any) -> None:
        """The process ends."""
        self._reporter.close()

    # -- messages -----------------------------------------------------------------------

    def on_received(self, request: Any = None, **_: Any) -> None:
        """A worker has taken a message for a task, which may have to wait for its turn."""
        self._receives = True
        if entry_id_of(request) is not None:
            self._received[request.id] = request

    def on_revoked(self, sender: Any = None, request: Any = None, **details: Any) -> None:
        """A worker dropped the task because it was revoked, or its expiry had passed."""
        reason = "expired" if details.get("expired") else "revoked"
        if details.get("terminated"):
            reason = "terminated"
        self._end(sender, request, State.REVOKED, {"reason": reason})

    def on_rejected(self, message: Any = None, exc: Any = None, **_: Any) -> None:
        """A worker could not make a task of the message."""
        self._refuse(message, {"error": _text(exc)})

    def on_unknown(self, message: Any = None, name: Any = None, **_: Any) -> None:
        """A worker does not know the task, and has dropped the message."""
        self._refuse(message, {"error": f"no task {name!r} is registered"})

    # -- runs ---------------------------------------------------------------------------

    def on_prerun(self, task: Any = None, **_: Any) -> None:
        """A worker starts the task."""
        request = task.request
        entry_id = entry_id_of(request)
        if entry_id is not None:
            self._failed = None
            data = {"worker": request.hostname, "pid": os.getpid()}
            is_kept = bool(task.acks_late)
            self._tell(task, request, [Transition(entry_id, 1, State.STARTED, data, is_kept)])

    def on_success(self, sender: Any = None, **_: Any) -> None:
        """The task returned."""
        self._end(sender, sender.request, State.SUCCEEDED, {})

    def on_failure(
        self, sender: Any = None, task_id: Any = None, exception: Any = None, **_: Any
    ) -> None:
        """The task raised, ran out of time, or its process was lost.

        Celery may say so twice, and once of a message that goes back to its queue.
        """
        if isinstance(exception, Reject):
            return  # told when the run was over
        if isinstance(exception, TimeLimitExceeded) and _comes_again(sender, exception):
            return
        self._fail(sender, task_id, sender.request, exception)

    def on_internal_error(
        self,
        sender: Any = None,
        task_id: Any = None,
        request: Any = None,
        exception: Any = None,
        **_: Any,
    ) -> None:
        """Celery itself failed around the task: a result that cannot be stored, say."""
        self._fail(sender, task_id, request, exception)

    def on_retry(
        self, sender: Any = None, request: Any = None, reason: Any = None, **_: Any
    ) -> None:
        """The run asked for another one, or was cut short by the end of its worker.

        If the next one went past the store (a native retry), nobody else can tell of its
        hand-off.
        """
        if reason is not None:
            self._end(sender, request, State.RETRIED, {"reason": _text(reason)})
        elif not sender.acks_late:
            # Celery calls that a retry too, but has nothing that would run again.  It says so
            # even of a run that ended while it waited to stop: REVOKED ranks below those ends
            data = {"reason": "cut short by its worker's end"}
            self._end(sender, request, State.REVOKED, data)

    def on_postrun(
        self, task: Any = None, state: str | None = None, retval: Any = None, **_: Any
    ) -> None:
        """The run is over; Celery has no other signal for these ends."""
        if state == celery_states.REJECTED and not _comes_again(task, retval):
            self._end(task, task.request, State.REJECTED, {"error": _text(retval)})
        elif state == celery_states.IGNORED and task.request.id in self._native:
            self._end(task, task.request, State.RETRIED, {"reason": "replaced"})
        elif state == celery_states.IGNORED:
            self._end(task, task.request, State.SUCCEEDED, {"ignored": True})
        elif state is None and self._receives and isinstance(sys.exc_info()[1], SystemExit):
            # in a process of its own that is a lost worker; elsewhere nobody hears of it
            self._fail(task, task.request.id, task.request, sys.exc_info()[1])

    def _fail(self, task: Any, task_id: str, request: Any, exception: Any) -> None:
        entry_id = entry_id_of(request)
        if self._receives:
            received = self._received.pop(task_id, None)
            if received is None:
                return  # not ours, or told already
            request = request if entry_id is not None else received
        elif entry_id is None or entry_id == self._failed:
            return
        self._failed = entry_id
        self._end(task, request, State.FAILED, {"error": _text(exception)})

    def _end(self, task: Any, request: Any, state: State, data: Mapping[str, object]) -> None:
        """Tell of a run's end, and of the next one if only this process knows of it."""
        entry_id = entry_id_of(request)
        if entry_id is None:
            return
        transitions = [Transition(entry_id, 1, state, data)]
        native = self._native.pop(entry_id.task_id, 0)
        if native == entry_id.run + 1:
            following = EntryId(entry_id.task_id, native)
            transitions.append(Transition(following, 1, State.DISPATCHED, {"native": True}))
        self._tell(task, request, transitions)

    def _refuse(self, message: Any, data: Mapping[str, object]) -> None:
        headers = getattr(message, "headers", None) or {}
        entry_id = entry_id_of(headers)
        if entry_id is not None:
            self._tell(None, headers, [Transition(entry_id, 1, State.REJECTED, data)])

    def _tell(self, task: Any, request: Any, transitions: list[Transition]) -> None:
        """Tell of what has happened to the run of *request*, first of *transitions*."""
        if task is not None and getattr(task, "app", self._app) is not self._app:
            return  # another app of this process has its own receivers
        self._keys.reached(header_of(request) or {}, transitions[0].state)
        self._reporter.tell(transitions)


def _comes_again(task: Any, why: Any) -> bool:
    """Whether the message of a run that ended like this goes back to its queue."""
    if not task.acks_late:
        return False  # it was acknowledged when the run began
    if isinstance(why, TimeLimitExceeded):
        return not task.acks_on_timeout
    return bool(getattr(why, "requeue", False))


def _text(error: Any) -> str:
    return saferepr(error, maxlen=_LONGEST) if error is not None else ""
