"""The one place where a message on its way out becomes an entry.

All sending in Celery (tasks, signatures, canvas, retries, ``send_task`` by name) ends in
``AMQP.send_task_message``, with everything resolved: ids, routing, stamps.  Here it is
decided whether the message waits; Celery's own sender then runs as ever, signals and
instrumentation included (``capture.py``).

``amqp_cls`` is set by name, so that it survives the pickling of the app.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from celery.app import amqp as celery_amqp
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from celery_delay.capture import Capture, capturing
from celery_delay.clock import Clock, from_ms, to_ms
from celery_delay.collection import OPTION, Call, collection
from celery_delay.entries import Addition, Due, StoredEntry
from celery_delay.envelope import HEADER, Shape
from celery_delay.exceptions import (
    AlreadyScheduled,
    InvalidSetting,
    OutcomeUnknown,
    StoreUnavailable,
)
from celery_delay.ports import Added
from celery_delay.runs import next_run, pop_copied
from celery_delay.settings import Settings

__all__ = ["AMQP", "Capturing"]

logger = logging.getLogger(__name__)


class Delayer(Protocol):
    """What the composition root offers to this module; it is found as ``app.delayed``."""

    settings: Settings
    clock: Clock

    def add(self, additions: list[Addition]) -> list[Added]: ...

    def get(self, task_id: str) -> StoredEntry | None: ...

    def broker_database(self) -> int: ...

    def went_native(self, task_id: str, run: int) -> None: ...


class _Message(NamedTuple):
    """Celery's task message, with the delay that it was made from still visible."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: Any
    sent_event: dict[str, Any] | None
    countdown: float | None
    eta: Any


class Capturing:
    """Mixin over an AMQP class; see the module."""

    app: Any
    _create_task_sender: Callable[[], Callable[..., Any]]

    def as_task_v2(  # type: ignore[no-untyped-def]
        self, task_id, name, args=None, kwargs=None, countdown=None, eta=None, *rest, **options
    ):
        """Celery's message; ``send_task_message`` below can still see the duration in it."""
        options.pop(OPTION, None)
        message = super().as_task_v2(  # type: ignore[misc]
            task_id, name, args, kwargs, countdown, eta, *rest, **options
        )
        headers, properties, body, sent_event = message
        return _Message(headers, properties, body, sent_event, countdown, eta)

    @cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """Celery's sender, for messages that are due now; ours for the others."""
        celerys = self._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            call, collected = options.pop(OPTION, None), collection()
            headers = dict(message[0])
            if "id" not in headers:  # task_protocol = 1
                if call is not None or collected is not None:
                    raise InvalidSetting("a delayed task needs task_protocol = 2")
                return celerys(producer, name, message, **options)
            run = next_run(self.app, headers["id"], pop_copied(headers, options))
            plain = celery_amqp.task_message(headers, *message[1:4])

            def send() -> Any:
                return celerys(producer, name, plain, **options)

            if call is None and collected is not None:
                call = Call(collected.due_with(self._own_due(message)))
                headers["eta"] = None
            if call is not None:
                return self._delay(send, producer, plain, call, run)
            if (due := self._intercepted(message)) is not None:
                return self._delay_retry(send, producer, plain, due, run)
            if run:
                headers[HEADER] = {"task_id": headers["id"], "run": run}
                self._delayed.went_native(headers["id"], run)
            return send()

        return send_task_message

    @property
    def _delayed(self) -> Delayer:
        found = self.app.__dict__.get("delayed")
        if found is None:
            # an app that was pickled brings the name of this class, but not its parts
            found = symbol_by_name("celery_delay.app:CeleryDelay")(self.app)
        delayed: Delayer = found
        return delayed

    def _own_due(self, message: Any) -> Due | None:
        """The delay that a message brings itself, by ``countdown`` or ``eta``."""
        countdown, eta = getattr(message, "countdown", None), getattr(message, "eta", None)
        if countdown:
            if not math.isfinite(countdown) or countdown <= 0:
                return None
            return Due(math.ceil(countdown * 1000), True)
        if not eta:
            return None
        if isinstance(eta, str):
            eta = datetime.fromisoformat(eta)
        if eta.tzinfo is None:
            eta = eta.replace(tzinfo=self.app.timezone)
        return Due(to_ms(eta), False)

    def _intercepted(self, message: Any) -> Due | None:
        """When the retry *message* is due, if it is one that the store takes."""
        if not message[0].get("retries"):
            return None
        due = self._own_due(message)
        settings = self._delayed.settings
        if due is None or settings.intercept != "retry":
            return None
        wait = due.ms / 1000 - (0.0 if due.is_delay else self._delayed.clock.wall())
        return due if wait >= settings.intercept_min else None

    def _delay(
        self, send: Callable[[], Any], producer: Any, message: Any, call: Call, run: int
    ) -> Any:
        collected = collection()

        def keep(addition: Addition, shape: Shape) -> None:
            call.addition, call.shape = addition, shape
            if collected is None:
                [call.added] = self._delayed.add([addition])
            else:
                collected.additions.append(addition)

        self._announce(message, call.due)
        try:
            with capturing(producer, Capture(self._delayed, message, call.due, run, keep)):
                return send()
        except OperationalError as exc:
            if call.added is not None:
                raise  # the entry is stored; it was the task-sent event that failed
            raise StoreUnavailable(f"cannot reach the broker's Redis: {exc}") from exc

    def _delay_retry(
        self, send: Callable[[], Any], producer: Any, message: Any, due: Due, run: int
    ) -> Any:
        """Delay a retry.  An exception here would make Celery drop it, so the way back is
        Celery's own delay, unless the store may have it already."""

        def keep(addition: Addition, _shape: Shape) -> None:
            try:
                self._delayed.add([addition])
            except AlreadyScheduled:
                # the run before was delivered twice (a worker died): its retry waits already
                waiting = self._delayed.get(addition.entry_id.task_id)
                if waiting is None or waiting.entry_id != addition.entry_id:
                    raise

        def fall_back(exc: Exception) -> bool:
            if isinstance(exc, OutcomeUnknown):
                return False
            logger.warning(
                "the retry of %s waits in a worker's memory: %s",
                message[0]["id"],
                exc,
                extra={"event": "retry_went_native", "task_id": message[0]["id"]},
            )
            return True

        self._announce(message, due)
        with capturing(producer, Capture(self._delayed, message, due, run, keep, fall_back)):
            return send()

    def _announce(self, message: Any, due: Due) -> None:
        """Put the eta into the task-sent event: Flower then shows the task as waiting for it."""
        if message.sent_event is not None:
            now_ms = round(self._delayed.clock.wall() * 1000) if due.is_delay else 0
            message.sent_event["eta"] = from_ms(now_ms + due.ms).isoformat()


class AMQP(Capturing, celery_amqp.AMQP):
    """Celery's AMQP with the store behind it; ``CeleryDelay(app)`` sets it by name."""
