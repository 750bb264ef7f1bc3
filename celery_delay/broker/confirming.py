"""The channel to RabbitMQ, which confirms each message in its own time.

So several are under way at once, and what counts is the confirm.  Each is ``mandatory``: one
that no queue would get comes back.

Messages are gathered and go out together, in one write: each write and each look at what the
broker has said lets go of Python's lock, and other threads of a beat may keep it for 5 ms then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from amqp import spec
from amqp.exceptions import FrameSyntaxError
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from kombu.entity import Exchange, maybe_delivery_mode

from celery_delay.broker.channels import (
    UNFIT,
    Blocked,
    Message,
    Outcome,
    PlainChannel,
    Unfit,
    Unroutable,
)
from celery_delay.domain.claims import Publishing

__all__ = ["ConfirmingChannel"]

#: AMQP's codes for a declaration that this user may not make, or that differs from what is there.
_NOT_OURS = (403, 406)
#: What py-amqp raises for a message that it cannot write, before it has written any of it.
_UNWRITABLE = (FrameSyntaxError, *UNFIT)
#: Bodies up to this size, in bytes, are refused by no broker for their size.
_SMALL = 65_536
#: How many bytes are gathered, about.
_FULL = 65_536


class _Gathered:
    """What py-amqp's frame writer takes for a connection; keeps what is written."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, frames: Any) -> None:
        # a view of the writer's buffer, which the next frame overwrites
        self.parts.append(bytes(frames))

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def take(self) -> list[bytes]:
        taken, self.parts = self.parts, []
        return taken


class ConfirmingChannel(PlainChannel):
    """A channel to RabbitMQ in confirm mode.

    RabbitMQ closes a channel for a message that it refuses, and does not say for which.  So the
    first message for an exchange, and one bigger than all before it, should go alone.
    """

    def prepare(self, message: Message) -> None:
        """As :meth:`PlainChannel.prepare`; also, the exchange must be there.

        On a channel of its own: an error closes that one, and no confirm under way is lost.
        """
        queue = message.queue
        if queue and queue not in self._declared and self._may_declare(queue):
            try:
                self._ask(self._queues[queue].declare)
            except self.connection.channel_errors as exc:
                # others see to it: if it exists it is good enough to publish to
                if getattr(exc, "reply_code", None) not in _NOT_OURS:
                    raise
            self._declared.add(queue)
        if message.exchange and message.exchange not in self._exchanges:
            try:
                self._ask(Exchange(message.exchange, passive=True).declare)
            except self.connection.channel_errors as exc:
                raise Unroutable(str(exc)) from exc
            self._exchanges.add(message.exchange)

    def knows(self, message: Message) -> bool:
        """As :meth:`PlainChannel.knows`."""
        # RabbitMQ compares the user with the connection's
        claims_nothing = "user_id" not in message.properties
        return (
            claims_nothing
            and message.exchange in self._takes
            and len(message.body) <= self._biggest
        )

    @property
    def is_full(self) -> bool:
        """As :meth:`PlainChannel.is_full`."""
        return self._gathered.size >= _FULL

    def put(self, message: Message, mandatory: bool = True) -> Outcome | None:
        """As :meth:`PlainChannel.put`; it goes out, and has an outcome, with :meth:`settle`."""
        kept = len(self._gathered.parts)
        try:
            self._write(message, mandatory)
        except BaseException as exc:
            del self._gathered.parts[kept:]
            if isinstance(exc, _UNWRITABLE):
                raise Unfit(f"it cannot be written as an AMQP message: {exc}") from exc
            raise
        self._waiting.append(message)
        return None

    def hear(self) -> None:
        """As :meth:`PlainChannel.hear`."""
        with suppress(TimeoutError):
            while True:
                self._amqp.drain_events(timeout=0)

    def settle(self, may_send: Callable[[], bool], most: int = 0) -> dict[str, Outcome]:
        """As :meth:`PlainChannel.settle`; waits ``delay_confirm_timeout`` after the last write.

        Of how many no word came is the same for all: those under way are UNKNOWN then.
        """
        why, alone = self._send(may_send), False
        if not why:
            why, alone = self._wait(most)
        # one that has come back is under way until its confirm
        under_way = {one.task_id for one in self._pending.values()}
        outcomes = {one: self._outcomes.pop(one) for one in self._outcomes.keys() - under_way}
        if why:
            outcomes |= dict.fromkeys(
                under_way, (Publishing.REFUSED if alone else Publishing.UNKNOWN, why)
            )
            self._pending.clear()
            self._outcomes.clear()
        if alone:
            self._confirm()
        return outcomes

    def length(self, queue: str) -> int:
        """As :meth:`PlainChannel.length`; on the channel whose errors hurt nobody."""
        try:
            with self._in_time():
                declared = self._asking.queue_declare(queue=queue, passive=True)
        except self.connection.channel_errors:
            return 0
        return int(declared.message_count)

    def probe(self) -> None:
        """RabbitMQ gets a message for a queue that does not exist, and drops it after confirming.

        Raises:
            TimeoutError: no confirm came.
        """
        self.hear()
        self.put(Message("", "", "celery-delay.probe", None, b"", {}, {}), mandatory=False)
        outcome, why = self.settle(lambda: True)[""]
        if outcome is not Publishing.CONFIRMED:
            raise TimeoutError(why)

    # -- inside -------------------------------------------------------------------------

    def _open(self) -> None:
        #: What was sent, by its number; what has still to go out, and its bytes.
        self._pending: dict[int, Message] = {}
        self._waiting: list[Message] = []
        self._gathered = _Gathered()
        self._gather = frame_writer(self._amqp, self._gathered)
        self._written_at = 0.0
        self._outcomes: dict[str, Outcome] = {}
        #: What is there; an exchange that has taken a message; the biggest body that was taken.
        self._declared: set[str] = set()
        self._exchanges: set[str] = set()
        self._takes: set[str] = set()
        self._biggest = _SMALL
        #: Messages that have come back once, and whose queues were declared again since.
        self._returned: set[str] = set()
        with self._in_time():
            self._asking = self.connection.channel()
            super()._open()
        self._confirm()
        for event, receiver in (
            ("basic_return", self._on_return),
            ("basic_ack", self._on_ack),
            ("basic_nack", self._on_nack),
        ):
            self._channel.events[event].add(receiver)

    def _confirm(self) -> None:
        """Begin to count; a channel that was closed has come back without its mode."""
        self._sent = 0
        with self._in_time():
            self._channel.confirm_select()

    def _write(self, message: Message, mandatory: bool) -> None:
        """Write a message's frames to what is gathered, as kombu's producer would."""
        given = dict(message.properties)
        priority, expiration = given.pop("priority", 0), given.pop("expiration", None)
        if expiration is not None:
            given["expiration"] = str(int(expiration * 1000))
        given["delivery_mode"] = maybe_delivery_mode(given.get("delivery_mode"))
        kind, encoding = given.pop("content_type", None), given.pop("content_encoding", None)
        ready = self._channel.prepare_message(
            message.body, priority, kind, encoding or "binary", dict(message.headers), given
        )
        arguments = dumps("Bssbb", (0, message.exchange, message.routing_key, mandatory, False))
        self._gather(1, self._channel.channel_id, spec.Basic.Publish, arguments, ready)

    def _send(self, may_send: Callable[[], bool]) -> str:
        """Send what is gathered; why what is under way has no outcome to wait for, or ""."""
        waiting, parts = self._waiting, self._gathered.take()
        self._waiting = []
        if not waiting:
            return ""
        failure, closed = "", ""
        try:
            self.hear()
        except Blocked as exc:
            failure = str(exc)  # the confirms of what was sent before come all the same
        except self.connection.channel_errors as exc:
            failure = closed = str(exc)
        except Exception as exc:
            failure = closed = f"{type(exc).__name__}: {exc}"
        if failure or not may_send():
            self._outcomes |= {one.task_id: (Publishing.AWAY, failure) for one in waiting}
            return closed
        # before the write: from now on they may be on their queues
        for message in waiting:
            self._sent += 1
            self._pending[self._sent] = message
        try:
            with self._in_time():
                self._amqp.transport.write(b"".join(parts))
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"
        self._written_at = self._clock.boot()
        return ""

    def _wait(self, most: int) -> tuple[str, bool]:
        """Hear until at most *most* are under way; why that ended early, and whether it is
        the doing of the only one."""
        until = self._written_at + self._timeout
        try:
            while len(self._pending) > most:
                # what is there already is heard in any case
                self._amqp.drain_events(timeout=max(0.0, until - self._clock.boot()))
        except TimeoutError:
            return f"no confirm came within {self._timeout:g} s", False
        except Blocked as exc:
            return str(exc), False
        except self.connection.channel_errors as exc:
            return str(exc), len(self._pending) == 1
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}", False
        return "", False

    @property
    def _amqp(self) -> Any:
        return self.connection.connection

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        with self._amqp.transport.having_timeout(self._timeout):
            yield

    def _ask(self, declare: Callable[..., Any]) -> None:
        with self._in_time():
            declare(channel=self._asking)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._end(tag, multiple, Publishing.CONFIRMED, "")

    def _on_nack(self, tag: int, multiple: bool) -> None:
        why = "the broker declines it: a queue is full, or cannot write"
        self._end(tag, multiple, Publishing.DECLINED, why)

    def _end(self, tag: int, multiple: bool, outcome: Publishing, why: str) -> None:
        tags = [one for one in self._pending if one <= tag] if multiple else [tag]
        for one in tags:
            message = self._pending.pop(one, None)
            if message is None:
                continue
            self._takes.add(message.exchange)
            self._biggest = max(self._biggest, len(message.body))
            # one that came back is confirmed, too
            if self._outcomes.setdefault(message.task_id, (outcome, why))[1] == why:
                self._returned.discard(message.task_id)

    def _on_return(self, exc: Any, exchange: str, routing_key: str, returned: Any) -> None:
        task_id = (returned.properties.get("application_headers") or {}).get("id", "")
        message = next((one for one in self._pending.values() if one.task_id == task_id), None)
        if message is None:
            return
        why = f"no queue is bound to {exchange!r} for {routing_key!r}: {exc.reply_text}"
        outcome = Publishing.REFUSED
        if message.queue in self._declared and task_id not in self._returned:
            # it was there; whoever has removed it since does not mind that it comes again
            self._declared.discard(message.queue)
            self._returned.add(task_id)
            outcome = Publishing.DECLINED
        else:
            self._returned.discard(task_id)
        self._outcomes[task_id] = (outcome, why)
