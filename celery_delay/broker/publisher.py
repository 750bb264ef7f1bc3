"""The way to a broker that no move reaches: messages, and the broker's word for each.

The message was built by Celery when the task was scheduled.  Here it is only published: to
the same exchange, with the same routing key, properties and headers, after declaring the
queue as Celery's own sender does.

After any failure the connection is dropped, not closed: RabbitMQ does not read a polite
goodbye while it blocks publishers.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kombu.utils.json import object_hook

from celery_delay.broker.channels import (
    UNFIT,
    Blocked,
    Message,
    Outcome,
    PlainChannel,
    Unfit,
    Unroutable,
)
from celery_delay.broker.confirming import ConfirmingChannel
from celery_delay.domain.claims import Publishing, Told
from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Claimed
from celery_delay.domain.settings import Settings
from celery_delay.message.envelope import HEADER
from celery_delay.message.expiry import expiry_ms
from celery_delay.telemetry import tracing

__all__ = ["BrokerPublisher"]

#: A connection that was not used for so long, in seconds, may be dead without our knowing.
IDLE = 30.0
#: RabbitMQ refuses a longer ``expiration``; without it the worker still minds the ``expires``.
LONGEST_EXPIRATION_MS = 2**32 - 1
#: From this attempt on an error that is nobody's known failure counts as the message's own.
STUBBORN = 3


class BrokerPublisher:
    """Publishes to the app's broker; see :class:`celery_delay.domain.claims.Publisher`."""

    def __init__(self, app: Any, settings: Settings, clock: Clock) -> None:
        self._app = app
        self._timeout = settings.confirm_timeout
        self._clock = clock
        self._connection: Any = None
        self._channel: PlainChannel | None = None
        self._used_at = 0.0

    def connect(self) -> str:
        """Make sure that there is a connection; why there is none, or ""."""
        if self._channel is not None and self._clock.boot() - self._used_at > IDLE:
            self.close()
        if self._channel is not None:
            return ""
        try:
            self._channel = self._connect()
        except Exception as exc:  # each transport has errors of its own
            self.close()
            return f"cannot connect to {self._address}: {_text(exc)}"
        self._used_at = self._clock.boot()
        return ""

    def publish(
        self, batch: Sequence[Claimed], may_send: Callable[[], bool], window: int
    ) -> Iterator[list[Told]]:
        """Send messages; see :meth:`celery_delay.domain.claims.Publisher.publish`.

        A whole window is under way at most, and half of one while the other half is told of.
        """
        named = {one.entry_id.task_id: one for one in batch}
        outcomes: dict[str, Outcome] = {}
        failure, told, whole = self._hear(), 0, False

        def goes_on() -> bool:
            return not failure and may_send()

        try:
            for number, one in enumerate(batch):
                if number - told >= window:
                    outcomes |= self._settle(goes_on, 0 if failure else window // 2)
                    failure = failure or _failure_in(outcomes)
                    told += len(outcomes)
                    yield _told(named, outcomes)
                    outcomes = {}
                if not goes_on():
                    outcomes[one.entry_id.task_id] = (Publishing.AWAY, failure)
                else:
                    known = self._traced(one, goes_on)
                    outcomes |= known
                    failure = _failure_in(known)
            outcomes |= self._settle(goes_on)
            failure = failure or _failure_in(outcomes)
            self._used_at = self._clock.boot()
            whole = True
        finally:
            if failure or not whole:
                self.close()
        yield _told(named, outcomes)

    def length(self, queue: str) -> int | None:
        """How many messages wait in *queue*; ``None`` if the broker cannot tell now."""
        if self.connect():
            return None
        assert self._channel is not None
        try:
            length = self._channel.length(queue)
        except Exception:  # each transport has errors of its own; the next message will tell
            self.close()
            return None
        self._used_at = self._clock.boot()
        return length

    def probe(self) -> str:
        """Why nothing can be published; "" when it can.  No queue gets a message."""
        if failure := self.connect():
            return failure
        assert self._channel is not None
        try:
            self._channel.probe()
        except Exception as exc:
            self.close()
            return f"{self._address} takes no messages: {_text(exc)}"
        self._used_at = self._clock.boot()
        return ""

    def close(self) -> None:
        """Drop the connection."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collect(socket_timeout=0.1)

    # -- inside -------------------------------------------------------------------------

    @property
    def _address(self) -> str:
        return str(self._app.connection_for_write().as_uri())

    def _connect(self) -> PlainChannel:
        connection = self._app.connection_for_write(connect_timeout=self._timeout)
        transport, kind, options = connection.transport, PlainChannel, {}
        if transport.driver_name == "py-amqp":
            # the channel below confirms by itself, several messages at a time
            kind = ConfirmingChannel
            options = {
                "confirm_publish": False,
                "on_blocked": _on_blocked,
                "write_timeout": self._timeout,
            }
        elif transport.driver_type == "redis":
            options = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        connection.transport_options = {**(connection.transport_options or {}), **options}
        self._connection = connection
        addresses = max(1, len(connection.alt))  # of a list each is tried once
        connection.ensure_connection(
            max_retries=addresses,
            interval_start=0,
            interval_step=0,
            timeout=(1 + addresses) * self._timeout,
        )
        return kind(connection, self._app.amqp.queues, self._timeout, self._clock)

    def _hear(self) -> str:
        """Why the broker takes no messages, if it has said so meanwhile; or ""."""
        if self._channel is None:
            return "there is no connection"
        try:
            self._channel.hear()
        except Exception as exc:
            self.close()
            return f"{self._address}: {_text(exc)}"
        return ""

    def _settle(self, may_send: Callable[[], bool], most: int = 0) -> dict[str, Outcome]:
        if self._channel is None:
            return {}
        outcomes = self._channel.settle(may_send, most)
        for task_id, (outcome, why) in outcomes.items():
            if outcome is Publishing.AWAY and why:
                outcomes[task_id] = (outcome, f"{self._address}: {why}")
        return outcomes

    def _traced(self, one: Claimed, may_send: Callable[[], bool]) -> dict[str, Outcome]:
        headers = one.envelope.get("headers") or {}
        facts = (headers.get("task", ""), one.entry_id.task_id, headers.get(HEADER) or {})
        with tracing.publishing(*facts) as dispatch:
            return self._put(one, dispatch, may_send)

    def _put(
        self, one: Claimed, dispatch: Mapping[str, str], may_send: Callable[[], bool]
    ) -> dict[str, Outcome]:
        """Send one message; the outcomes that are known then, of this and of others.

        Arguments:
            dispatch: what is added to our header.
        """
        assert self._channel is not None
        outcomes: dict[str, Outcome] = {}
        task_id, sent = one.entry_id.task_id, False
        try:
            message = self._message(one)
            if dispatch:
                own = {**message.headers[HEADER], **dispatch}
                message = message._replace(headers={**message.headers, HEADER: own})
            self._channel.prepare(message)
            # one that has failed before, or may fail, goes alone: it is its own doing then
            alone = bool(one.attempt) or not self._channel.knows(message)
            if alone:
                outcomes = self._settle(may_send)
                if failure := _failure_in(outcomes):
                    return {**outcomes, task_id: (Publishing.AWAY, failure)}
            sent = True
            outcome = self._channel.put(message)
            if outcome is not None:
                outcomes[task_id] = outcome
            elif alone:
                outcomes |= self._settle(may_send)
            elif self._channel.is_full:
                outcomes = self._settle(may_send, sys.maxsize)  # they go out, and nobody waits
        except (Unroutable, Unfit) as exc:
            outcomes[task_id] = (Publishing.REFUSED, str(exc))
        except Blocked as exc:
            outcomes[task_id] = (Publishing.AWAY, f"{self._address}: {exc}")
        except Exception as exc:
            outcomes[task_id] = self._judge(exc, one, sent)
        return outcomes

    def _judge(self, exc: Exception, one: Claimed, sent: bool) -> Outcome:
        """What an error while publishing means for the message."""
        text = f"{self._address}: {_text(exc)}"
        in_doubt = Publishing.UNKNOWN if sent else Publishing.AWAY
        if isinstance(exc, (*self._connection.connection_errors, TimeoutError)):
            return in_doubt, text
        if isinstance(exc, (*self._connection.channel_errors, *UNFIT)):
            return Publishing.REFUSED, _text(exc)
        return (Publishing.REFUSED if one.attempt >= STUBBORN else in_doubt), text

    def _message(self, one: Claimed) -> Message:
        envelope = one.envelope
        where = envelope["properties"]["delivery_info"]
        ours = ("delivery_info", "delivery_tag", "body_encoding", "expiration")
        given = envelope["properties"]
        properties = {name: value for name, value in given.items() if name not in ours}
        if "expiration" in given:
            left = int(given["expiration"]) / 1000
            if expires_ms := expiry_ms(envelope["headers"]):
                # counted from the call; what is left of it is known by the instant beside it
                left = expires_ms / 1000 - self._clock.wall()
            if left * 1000 < LONGEST_EXPIRATION_MS:
                properties["expiration"] = max(0.001, left)
        properties["content_type"] = envelope["content-type"]
        properties["content_encoding"] = envelope["content-encoding"]
        headers: dict[str, Any] = _revived(envelope["headers"])
        if one.attempt:
            headers[HEADER] = {**headers[HEADER], "attempt": one.attempt}
        return Message(
            one.entry_id.task_id,
            where["exchange"],
            where["routing_key"],
            envelope.get("queue"),
            _body(envelope),
            headers,
            properties,
        )


def _told(named: Mapping[str, Claimed], outcomes: Mapping[str, Outcome]) -> list[Told]:
    return [(named[task_id], *outcome) for task_id, outcome in outcomes.items()]


def _failure_in(outcomes: Mapping[str, Outcome]) -> str:
    """Why the broker cannot be used, as far as these tell; or ""."""
    bad = (Publishing.AWAY, Publishing.UNKNOWN)
    return next((why for outcome, why in outcomes.values() if outcome in bad and why), "")


def _body(envelope: Mapping[str, Any]) -> bytes:
    body = envelope["body"]
    if envelope["properties"].get("body_encoding") == "base64":
        return base64.b64decode(body)
    return str(body).encode(envelope["content-encoding"] or "utf-8")


def _revived(value: Any) -> Any:
    """*value* with what kombu's JSON wrote as marked texts (instants, uuids) made whole again."""
    if isinstance(value, dict):
        # most are plain, and not worth a call
        whole = {n: _revived(v) if isinstance(v, (dict, list)) else v for n, v in value.items()}
        return object_hook(whole)
    if isinstance(value, list):
        return [_revived(one) for one in value]
    return value


def _on_blocked(reason: str) -> None:
    raise Blocked("RabbitMQ blocks publishers (memory or disk alarm)")


def _text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"
