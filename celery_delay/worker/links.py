"""The span of a run is linked to those that scheduled and dispatched it.

The span itself is made by OpenTelemetry's instrumentation of Celery, in a receiver of
``task_prerun`` that may come before or after ours, and ended in one of ``task_postrun``, in the
same order.  So both are tried: in one of them the run's span is the present one.
"""

from __future__ import annotations

from typing import Any

from celery import signals

from celery_delay.message.runs import header_of
from celery_delay.telemetry import tracing

__all__ = ["RunLinks"]


class RunLinks:
    """Receivers of one app's task signals."""

    def __init__(self, app: Any) -> None:
        self._app = app
        #: ids of runs whose span has its links
        self._linked: set[str] = set()

    def connect(self) -> None:
        """Listen.  Connecting twice has no effect."""
        for signal, receiver in (
            (signals.task_prerun, self.on_prerun),
            (signals.task_postrun, self.on_postrun),
        ):
            # weak: a bound method of an object that only the app holds would be dropped silently
            uid = ("celery-delay links", id(self._app), receiver.__name__)
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def on_prerun(self, task: Any = None, **_: Any) -> None:
        """A run begins."""
        if tracing.is_on() and self._link(task):
            self._linked.add(task.request.id)

    def on_postrun(self, task: Any = None, **_: Any) -> None:
        """A run is over."""
        if task.request.id in self._linked:
            self._linked.discard(task.request.id)
        elif tracing.is_on():
            self._link(task)

    def _link(self, task: Any) -> bool:
        if task is None or task.app is not self._app:
            return False
        header = header_of(task.request)
        return header is not None and tracing.link(header)
