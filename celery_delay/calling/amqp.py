"""The one place where a message on its way out becomes an entry.

All sending in Celery (tasks, signatures, canvas, retries, ``send_task`` by name) ends in
``AMQP.send_task_message``, with everything resolved: ids, routing, stamps.  Here it is
decided whether the message waits; Celery's own sender then runs as ever, signals and
instrumentation included (``capture.py``).

``amqp_cls`` is set by name, so that it survives the pickling of the app.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from celery.app import amqp as celery_amqp
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from celery_delay.broker.standin import StandIn
from celery_delay.calling.bounded import BoundedProducers
from celery_delay.calling.chords import chords_of
from celery_delay.calling.fallback import Fallback, tell_in_doubt, tell_native
from celery_delay.calling.interception import is_retry, own_due, taken_by_the_store
from celery_delay.domain.clock import Clock, from_ms
from celery_delay.domain.entries import Added, Addition, Due, EntryId, StoredEntry
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import (
    AlreadyScheduled,
    DelayError,
    InvalidSetting,
    OutcomeUnknown,
    StoreUnavailable,
)
from celery_delay.message.capture import Capture, KeyTaken, SentInDoubt, capturing
from celery_delay.message.collection import OPTION, Call, collection
from celery_delay.message.envelope import HEADER, Shape
from celery_delay.message.redaction import Redactor, Texts
from celery_delay.message.runs import Following, following, pop_copied
from celery_delay.telemetry import tracing

__all__ = ["AMQP", "Capturing"]


class Delayer(Protocol):
    """What the composition root offers to this module; it is found as ``app.delayed``."""

    settings: Settings
    clock: Clock
    redactor: Redactor

    def add(
        self, additions: list[Addition], *, needs_leader: bool = ..., until: float | None = ...
    ) -> list[Added]: ...

    def get(self, task_id: str) -> StoredEntry | None: ...

    def broker_database(self) -> int: ...

    def moves(self) -> bool: ...

    def went_native(self, task_id: str, run: int) -> None: ...

    def keep_chords(self, group_ids: Iterable[str], due_ms: int) -> None: ...


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
            if hasattr(options.get("session"), "execute"):
                # kombu would take it for a property of the message, and fail to write it down
                raise TypeError(
                    "session= is an argument of apply_delayed, also for a task that is due now"
                    " (countdown=0); apply_async, delay() and the options of a signature cannot"
                    " join a transaction"
                )
            if "id" not in headers:  # task_protocol = 1
                if call is not None or collected is not None:
                    raise InvalidSetting("a delayed task needs task_protocol = 2")
                return celerys(producer, name, message, **options)
            after = following(self.app, headers["id"], pop_copied(headers, options))
            plain = celery_amqp.task_message(headers, *message[1:4])

            def send(to: Any, **more: Any) -> Any:
                return celerys(to, name, plain, **{**options, **more})

            if call is None and collected is not None:
                call = Call(collected.delay_with(own_due(self.app, message)))
                headers["eta"] = None
            if call is not None:
                with tracing.scheduling(headers["task"], headers["id"]):
                    return self._delay(send, producer, plain, call, after, options)
            if (due := self._intercepted(message, options)) is not None:
                with tracing.scheduling(headers["task"], headers["id"]):
                    return self._intercept(send, producer, plain, due, after, options)
            if after.run:
                headers[HEADER] = after.header(headers["id"])
                self._delayed.went_native(headers["id"], after.run)
            return send(producer)

        return send_task_message

    @property
    def _delayed(self) -> Delayer:
        found = self.app.__dict__.get("delayed")
        if found is None:
            # an app that was pickled brings the name of this class, but not its parts
            found = symbol_by_name("celery_delay.app:CeleryDelay")(self.app)
        delayed: Delayer = found
        return delayed

    @cached_property
    def _bounded(self) -> BoundedProducers:
        return BoundedProducers(self._delayed.clock, self._delayed.settings.redis_timeout)

    def _policy(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The retry policy that Celery would use for these options of a call."""
        conf, retry = self.app.conf, options.get("retry")
        if not (conf.task_publish_retry if retry is None else retry):
            return {"max_retries": 0}
        return {**conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}

    def _until(self) -> float:
        return self._delayed.clock.boot() + self._delayed.settings.publish_timeout

    def _delay(
        self,
        send: Callable[..., Any],
        producer: Any,
        message: Any,
        call: Call,
        after: Following,
        options: Mapping[str, Any],
    ) -> Any:
        collected, delay = collection(), call.delay
        due = delay.due_of(message[0]["id"])
        if any(delay.labels):
            after = after._replace(labels=delay.labels)
        if delay.expires_from_eta and (expires := message[0].get("expires")):
            now_ms = round(self._delayed.clock.wall() * 1000)
            message[0]["expires"] = delay.expiry(expires, due, now_ms)
        until = min(self._until(), collected.until) if collected else self._until()

        def keep(addition: Addition, shape: Shape) -> None:
            addition = addition._replace(keys=delay.keys)
            call.addition, call.shape = addition, shape
            if collected is not None and not collected.at_once:
                collected.additions.append(addition)
                return
            [call.added] = self._delayed.add([addition], until=until)
            if collected is not None:
                collected.added.append(call.added)
            if call.added.is_other:
                raise KeyTaken

        self._announce(message, due)
        capture = Capture(self._delayed, message, due, after, _own(options), keep)
        policy = self._bounded.policy(self._policy(options), until, patient=False)
        try:
            return self._through(send, producer, capture, policy)
        except KeyTaken:
            return None
        except OperationalError as exc:
            if call.added is not None:
                raise  # the entry is stored; it was the task-sent event that failed
            raise StoreUnavailable(f"cannot reach the broker's Redis: {exc}") from exc

    def _intercepted(self, message: Any, options: Mapping[str, Any]) -> Due | None:
        """When *message* is due, if it is one of Celery's own delays that the store takes."""
        delayed = self._delayed
        try:
            return taken_by_the_store(self.app, delayed.settings, delayed.clock, message, options)
        except InvalidSetting as exc:
            if not is_retry(message):
                raise
            tell_native(message, exc)
            return None

    def _intercept(
        self,
        send: Callable[..., Any],
        producer: Any,
        message: Any,
        due: Due,
        after: Following,
        options: Mapping[str, Any],
    ) -> Any:
        """Delay a message that Celery would have delayed itself, or let it."""
        delayed, until = self._delayed, self._until()
        fallback = Fallback(delayed.settings, delayed.clock, message, due, producer.connection)

        def keep(addition: Addition, _shape: Shape) -> None:
            try:
                [added] = delayed.add([addition], needs_leader=fallback.needs_leader, until=until)
            except OutcomeUnknown as exc:
                if not is_retry(message):
                    raise
                # an exception would make Celery drop the retry, and it may be stored
                tell_in_doubt(message, exc)
            except AlreadyScheduled:
                # the run before was delivered twice (a worker died): its retry waits already
                waiting = delayed.get(addition.entry_id.task_id) if after.run else None
                if waiting is None or waiting.entry_id != addition.entry_id:
                    raise
            else:
                delayed.keep_chords(chords_of(message), added.due_ms)

        self._announce(message, due)
        capture = Capture(delayed, message, due, after, _own(options), keep, fallback.goes_native)
        policy = self._bounded.policy(self._policy(options), until, patient=is_retry(message))
        try:
            return self._through(send, producer, capture, policy)
        except SentInDoubt as exc:
            doubt = OutcomeUnknown(EntryId(message[0]["id"], after.run), f"not in the store; {exc}")
            if not is_retry(message):
                raise doubt from exc
            tell_in_doubt(message, doubt)

    def _through(
        self, send: Callable[..., Any], producer: Any, capture: Capture, policy: Mapping[str, Any]
    ) -> Any:
        """Let Celery's sender run over a connection that ends in time.

        Where a beat will publish the message, the broker need not be up now.
        """
        like = partial(self._bounded.like, producer, self.app.pool.limit)
        in_time, at_once = partial(like, policy), partial(like, {"max_retries": 0})
        try:
            moves = self._delayed.moves()
        except DelayError:
            moves = False  # the store itself will say it, where a retry has its way back
        if not moves:
            return send(StandIn(producer, in_time, at_once, capture), retry_policy=policy)
        with in_time() as bounded, capturing(bounded, capture):
            return send(bounded, retry_policy=policy)

    def _announce(self, message: Any, due: Due) -> None:
        """Put the eta into the task-sent event: Flower then shows the task as waiting for it."""
        if message.sent_event is not None:
            now_ms = round(self._delayed.clock.wall() * 1000) if due.is_delay else 0
            message.sent_event["eta"] = from_ms(now_ms + due.ms).isoformat()


class AMQP(Capturing, celery_amqp.AMQP):
    """Celery's AMQP with the store behind it; ``CeleryDelay(app)`` sets it by name."""


def _own(options: Mapping[str, Any]) -> Texts:
    """The texts of its arguments that a call brings along."""
    return Texts(options.get("argsrepr"), options.get("kwargsrepr"))
