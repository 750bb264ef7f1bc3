"""The one place where a message on its way out becomes an entry.

All sending in Celery (tasks, signatures, canvas, retries, ``send_task`` by name) ends in
``AMQP.send_task_message``, with everything resolved: ids, routing, stamps.  Here Celery's
own sender runs as ever, signals and instrumentation included, but with kombu's
publish-batch hook in our hands: the final Redis commands are collected instead of sent.

``amqp_cls`` is set by name, so that it survives the pickling of the app.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from celery.app import amqp as celery_amqp
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from celery_delay.clock import Clock, from_ms, to_ms
from celery_delay.entries import Addition, Due, StoredEntry
from celery_delay.envelope import (
    HEADER,
    Commands,
    Shape,
    addition_of,
    check_size,
    warn_if_dead_on_arrival,
)
from celery_delay.exceptions import (
    AlreadyScheduled,
    DelayError,
    InvalidSetting,
    OutcomeUnknown,
    StoreUnavailable,
    UnsupportedBroker,
)
from celery_delay.ports import Added
from celery_delay.settings import Settings

__all__ = [
    "AMQP",
    "OPTION",
    "Call",
    "Capturing",
    "Collection",
    "collected",
    "collecting",
    "next_run",
]

logger = logging.getLogger(__name__)

#: The option by which a call's delay travels through ``Task.apply_async``.
OPTION = "celery_delay_call"


class Call:
    """One delayed call on its way through Celery: the delay goes in, what became of it comes out.

    Attributes:
        due: when the task is due.
        addition: the entry that was made of the call.
        shape: how its message was split.
        added: the store's answer; ``None`` while the entry waits in a collection.
    """

    def __init__(self, due: Due) -> None:
        self.due = due
        self.addition: Addition | None = None
        self.shape: Shape | None = None
        self.added: Added | None = None


class Collection:
    """Entries of one call that are stored together at its end (a canvas, a bulk call).

    Attributes:
        due: when the tasks are due that bring no delay of their own; one of their own counts
            from there.
    """

    def __init__(self, due: Due) -> None:
        self.due = due
        self.additions: list[Addition] = []

    def due_after(self, own_ms: int) -> Due:
        """When a message with a countdown of its own is due."""
        return Due(self.due.ms + own_ms, self.due.is_delay)


_collection: ContextVar[Collection | None] = ContextVar("celery_delay_collection", default=None)


@contextmanager
def collecting(due: Due) -> Iterator[Collection]:
    """Delay every task message sent in this context, and collect instead of storing."""
    collection = Collection(due)
    token = _collection.set(collection)
    try:
        yield collection
    finally:
        _collection.reset(token)


def collected() -> bool:
    """Whether the messages sent in this context are being collected."""
    return _collection.get() is not None


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
        send = self._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            call = options.pop(OPTION, None)
            collection = _collection.get()
            headers = dict(message[0])
            if "id" not in headers:  # task_protocol = 1
                if call is not None or collection is not None:
                    raise InvalidSetting("a delayed task needs task_protocol = 2")
                return send(producer, name, message, **options)
            copied = _pop_copied(headers, options)
            run = next_run(self.app, headers["id"], copied)
            plain = celery_amqp.task_message(headers, *message[1:4])
            if call is None and collection is not None:
                call = Call(collection.due_after(_own_delay_ms(message)))
                headers["eta"] = None
            if call is not None:
                return self._delay(send, producer, name, plain, options, call, run, collection)
            if (retry := self._intercepted(message, run)) is not None:
                return self._delay_retry(send, producer, name, plain, options, retry, run)
            if run:
                headers[HEADER] = {"task_id": headers["id"], "run": run}
                self._delayed.went_native(headers["id"], run)
            return send(producer, name, plain, **options)

        return send_task_message

    @property
    def _delayed(self) -> Delayer:
        found = self.app.__dict__.get("delayed")
        if found is None:
            # an app that was pickled brings the name of this class, but not its parts
            found = symbol_by_name("celery_delay.app:CeleryDelay")(self.app)
        delayed: Delayer = found
        return delayed

    def _intercepted(self, message: Any, run: int) -> Due | None:
        """When the retry *message* is due, if it is one that the store takes."""
        headers = message[0]
        if not headers.get("retries") or not isinstance(message, _Message):
            return None
        if not message.countdown and not message.eta:
            return None
        settings = self._delayed.settings
        if settings.intercept != "retry":
            return None
        if message.countdown:
            if not math.isfinite(message.countdown) or message.countdown < settings.intercept_min:
                return None
            return Due(math.ceil(message.countdown * 1000), True)
        eta = message.eta
        if isinstance(eta, str):
            eta = datetime.fromisoformat(eta)
        if eta.tzinfo is None:
            eta = eta.replace(tzinfo=self.app.timezone)
        due = Due(to_ms(eta), False)
        wait = due.ms / 1000 - self._delayed.clock.wall()
        return due if wait >= settings.intercept_min else None

    def _delay(
        self,
        send: Callable[..., Any],
        producer: Any,
        name: str,
        message: Any,
        options: dict[str, Any],
        call: Call,
        run: int,
        collection: Collection | None,
    ) -> Any:
        def keep(addition: Addition, shape: Shape) -> None:
            call.addition, call.shape = addition, shape
            if collection is None:
                [call.added] = self._delayed.add([addition])
            else:
                collection.additions.append(addition)

        try:
            return self._captured(send, producer, name, message, options, call.due, run, keep, None)
        except OperationalError as exc:
            if call.added is not None:
                raise  # the entry is stored; it was the task-sent event that failed
            raise StoreUnavailable(f"cannot reach the broker's Redis: {exc}") from exc

    def _delay_retry(
        self,
        send: Callable[..., Any],
        producer: Any,
        name: str,
        message: Any,
        options: dict[str, Any],
        due: Due,
        run: int,
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

        return self._captured(send, producer, name, message, options, due, run, keep, fall_back)

    def _captured(
        self,
        send: Callable[..., Any],
        producer: Any,
        name: str,
        message: Any,
        options: dict[str, Any],
        due: Due,
        run: int,
        keep: Callable[[Addition, Shape], None],
        fall_back: Callable[[Exception], bool] | None,
    ) -> Any:
        """Run Celery's sender, with the message going to *keep* instead of the broker."""
        if not hasattr(producer, "_batch_local"):
            raise UnsupportedBroker(f"{producer!r} is not a producer of kombu 5.7 or later")
        chord = _chord_of(message)
        if message.sent_event is not None:
            # Flower shows a task as waiting for its eta as soon as task-sent has one
            wall_ms = round(self._delayed.clock.wall() * 1000) if due.is_delay else 0
            message.sent_event["eta"] = from_ms(wall_ms + due.ms).isoformat()

        def entry(
            channel: Any, outgoing: dict[str, Any], publish: Mapping[str, Any]
        ) -> tuple[Addition, Shape]:
            if not hasattr(channel, "create_publish_batch"):
                raise UnsupportedBroker(
                    "delayed tasks need a Redis broker in this version of celery-delay;"
                    f" broker_url leads to {type(channel).__module__}"
                )
            check_size(len(outgoing["body"]), self._delayed.settings)
            commands = Commands()
            copy = {**outgoing, "properties": _deep(outgoing["properties"])}
            channel.basic_publish(copy, _publish_batch=commands, **publish)
            addition, shape = addition_of(
                commands,
                database=self._delayed.broker_database(),
                prefix=channel.global_keyprefix,
                due=due,
                run=run,
                chord=chord,
            )
            warn_if_dead_on_arrival(addition, self._delayed.clock)
            return addition, shape

        class Capture:
            """Stands in for kombu's batch state for the time of the call."""

            def publish(_, channel: Any, outgoing: dict[str, Any], **publish: Any) -> Any:
                if "task" not in outgoing["headers"]:  # the task-sent event
                    return channel.basic_publish(outgoing, **publish)
                where = {one: publish[one] for one in ("exchange", "routing_key")}
                try:
                    return keep(*entry(channel, outgoing, where))
                except (DelayError, ValueError) as exc:
                    if fall_back is None or not fall_back(exc):
                        raise
                if run:
                    outgoing["headers"][HEADER] = {"task_id": message[0]["id"], "run": run}
                    self._delayed.went_native(message[0]["id"], run)
                return channel.basic_publish(outgoing, **publish)

        local = producer._batch_local
        before = getattr(local, "current", None)
        local.current = Capture()
        try:
            return send(producer, name, message, **options)
        finally:
            if before is None:
                del local.current
            else:
                local.current = before


class AMQP(Capturing, celery_amqp.AMQP):
    """Celery's AMQP with the store behind it; ``CeleryDelay(app)`` sets it by name."""


def next_run(app: Any, task_id: str, copied: Any) -> int:
    """The run that a message for *task_id* gets when it is sent from inside a run of it.

    Celery copies custom headers into a retry; a replaced task has none, and a lost worker's
    retry is sent from the worker's main process.

    Returns:
        The present run + 1; 0 for a message that does not come from inside a run.
    """
    if isinstance(copied, Mapping) and copied.get("task_id") == task_id:
        return int(copied["run"]) + 1
    current = app.current_worker_task
    request = current.request if current else None
    if request is not None and request.id == task_id:
        present = request.get(HEADER)
        if isinstance(present, Mapping) and present.get("task_id") == task_id:
            return int(present["run"]) + 1
    return 0


def _pop_copied(headers: dict[str, Any], options: dict[str, Any]) -> Any:
    """Take our header out of what the caller passes on; it belongs to another message."""
    given = options.get("headers")
    copied = None
    if given and HEADER in given:
        options["headers"] = {name: value for name, value in given.items() if name != HEADER}
        copied = given[HEADER]
    return headers.pop(HEADER, None) or copied


def _own_delay_ms(message: Any) -> int:
    """The delay that a canvas' part brings itself (``skew``, ``set(countdown=…)``)."""
    countdown = getattr(message, "countdown", None)
    return math.ceil(countdown * 1000) if countdown and countdown > 0 else 0


def _chord_of(message: Any) -> Any:
    """The chord's signature as JSON-able data, or ``None``."""
    body = message[2]
    if isinstance(body, tuple) and len(body) == 3 and body[2].get("chord"):
        chord = _deep(body[2]["chord"])
        try:
            json.dumps(chord)
        except TypeError:
            return None
        return chord
    return None


def _deep(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _deep(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_deep(one) for one in value]
    return value
