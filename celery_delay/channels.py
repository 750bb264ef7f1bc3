"""Channels to a broker: how messages get onto one, and how it says that it has them.

RabbitMQ confirms each message, in its own time: so several are under way at once, and what
counts is the confirm.  Each is ``mandatory``: one that no queue would get comes back.  Other
transports of kombu know neither; a call that returns is taken for the broker's word, as
Celery takes it, and a message that would be dropped in silence is refused beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from kombu.common import maybe_declare
from kombu.entity import Exchange
from kombu.exceptions import InconsistencyError

from celery_delay.claims import Publishing
from celery_delay.clock import Clock

__all__ = ["Blocked", "ConfirmingChannel", "Message", "Outcome", "PlainChannel", "Unroutable"]

#: What became of a message, and why.
Outcome = tuple[Publishing, str]

#: AMQP's code for a declaration that differs from what is there.
_PRECONDITION_FAILED = 406


class Blocked(Exception):
    """RabbitMQ has said that it takes no messages for now; nothing was sent."""


class Unroutable(Exception):
    """No queue would get the message."""


class Message(NamedTuple):
    """A message as kombu publishes it; ``queue`` is declared before, where it is known."""

    task_id: str
    exchange: str
    routing_key: str
    queue: str | None
    body: bytes
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]


class PlainChannel:
    """A channel of a transport without confirms.

    Arguments:
        connection: kombu's, connected.
        queues: the app's, by name.
        timeout: how long the broker may take for an answer, in seconds.
    """

    def __init__(self, connection: Any, queues: Any, timeout: float, clock: Clock) -> None:
        self.connection = connection
        self._queues = queues
        self._timeout = timeout
        self._clock = clock
        self._open()

    def prepare(self, message: Message) -> None:
        """Declare what the message needs, and refuse it where nobody would get it.

        Whatever is raised here, nothing was sent.

        Raises:
            Unroutable: no queue would get it.
        """
        queue = message.queue
        if queue and (queue in self._queues or self._queues.create_missing):
            maybe_declare(self._queues[queue], self._channel)
        lookup = getattr(self._channel, "_lookup", None)
        if lookup is None or not message.exchange:
            return
        if self._channel.typeof(message.exchange).type == "fanout":
            return  # whoever listens gets it, and nobody is as good as somebody
        try:
            found = lookup(message.exchange, message.routing_key)
        except InconsistencyError:
            found = []
        if not found:
            raise Unroutable(
                f"no queue is bound to {message.exchange!r} for {message.routing_key!r}"
            )

    def put(self, message: Message) -> Outcome | None:
        """Send the message; what became of it, or ``None`` while that is not known.

        Whatever is raised here but Blocked, the message may have been sent.
        """
        self._publish(message)
        return Publishing.CONFIRMED, ""

    def hear(self) -> None:
        """Take note of what the broker has said meanwhile; raises what it has closed with.

        Raises:
            Blocked: it takes no messages for now.
        """

    def settle(self) -> dict[str, Outcome]:
        """What became of the messages that were put and had no outcome, by task id."""
        return {}

    def probe(self) -> None:
        """Raise what keeps messages from being published.  No queue gets one."""
        client = getattr(self._channel, "client", None)
        if client is not None and hasattr(client, "ping"):
            client.ping()

    def _open(self) -> None:
        self._channel = self.connection.channel()
        self._producer = self.connection.Producer(self._channel, auto_declare=False)

    def _publish(self, message: Message, **options: Any) -> None:
        self._producer.publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            headers=dict(message.headers),
            **message.properties,
            **options,
        )


class ConfirmingChannel(PlainChannel):
    """A channel to RabbitMQ in confirm mode."""

    def prepare(self, message: Message) -> None:
        """As :meth:`PlainChannel.prepare`; also, the exchange must be there.

        On a channel of its own: an error closes that one, and no confirm under way is lost.
        """
        queue = message.queue
        if queue and (queue in self._queues or self._queues.create_missing):
            entity = self._queues[queue]
            try:
                self._ask(entity)
            except self.connection.channel_errors as exc:
                if getattr(exc, "reply_code", None) != _PRECONDITION_FAILED:
                    raise
                # it exists with other arguments than we know: good enough to publish to
                self.connection.declared_entities.add(hash(entity(self._asking)))
        if message.exchange and message.exchange not in self._exchanges:
            try:
                self._ask(Exchange(message.exchange, passive=True))
            except self.connection.channel_errors as exc:
                raise Unroutable(str(exc)) from exc
            self._exchanges.add(message.exchange)

    def put(self, message: Message) -> Outcome | None:
        """As :meth:`PlainChannel.put`; the outcome comes with :meth:`settle`."""
        # before the call: it may bring the confirm
        self._sent += 1
        self._pending[self._sent] = message.task_id
        try:
            with self._in_time():
                self._publish(message, mandatory=True)
        except BaseException:
            self._pending.pop(self._sent, None)
            self._sent -= 1
            raise
        return None

    def hear(self) -> None:
        """As :meth:`PlainChannel.hear`."""
        with suppress(TimeoutError):
            while True:
                self._amqp.drain_events(timeout=0)

    def settle(self) -> dict[str, Outcome]:
        """Wait for the confirms, ``delay_confirm_timeout`` at most; see :class:`PlainChannel`."""
        until = self._clock.boot() + self._timeout
        why = f"no confirm came within {self._timeout:g} s"
        refused = None
        try:
            while self._pending and (left := until - self._clock.boot()) > 0:
                self._amqp.drain_events(timeout=left)
        except TimeoutError:
            pass
        except Blocked as exc:
            why = str(exc)
        except self.connection.channel_errors as exc:
            # it does not say which message it is about
            why = refused = str(exc)
        except Exception as exc:
            why = f"{type(exc).__name__}: {exc}"
        outcomes = dict(self._outcomes)
        self._outcomes.clear()
        alone = refused is not None and len(self._pending) == 1
        for task_id in self._pending.values():
            outcomes[task_id] = (Publishing.REFUSED if alone else Publishing.UNKNOWN, why)
        self._pending.clear()
        return outcomes

    def probe(self) -> None:
        """RabbitMQ gets a message for a queue that does not exist, and drops it after confirming.

        Raises:
            TimeoutError: no confirm came.
        """
        self.hear()
        with self._in_time():
            self._sent += 1
            self._pending[self._sent] = ""
            self._producer.publish(b"", exchange="", routing_key="celery-delay.probe")
        outcome, why = self.settle()[""]
        if outcome is not Publishing.CONFIRMED:
            raise TimeoutError(why)

    # -- inside -------------------------------------------------------------------------

    def _open(self) -> None:
        self._pending: dict[int, str] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._exchanges: set[str] = set()
        self._sent = 0
        with self._in_time():
            self._asking = self.connection.channel()
            super()._open()
            self._channel.confirm_select()
        for event, receiver in (
            ("basic_return", self._on_return),
            ("basic_ack", self._on_ack),
            ("basic_nack", self._on_nack),
        ):
            self._channel.events[event].add(receiver)

    @property
    def _amqp(self) -> Any:
        return self.connection.connection

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        with self._amqp.transport.having_timeout(self._timeout):
            yield

    def _ask(self, entity: Any) -> None:
        with self._in_time():
            if not self._asking.is_open:
                self._asking = self.connection.channel()
            maybe_declare(entity, self._asking)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._end(tag, multiple, Publishing.CONFIRMED, "")

    def _on_nack(self, tag: int, multiple: bool) -> None:
        why = "the broker declines it: a queue is full, or cannot write"
        self._end(tag, multiple, Publishing.DECLINED, why)

    def _end(self, tag: int, multiple: bool, outcome: Publishing, why: str) -> None:
        tags = [one for one in self._pending if one <= tag] if multiple else [tag]
        for one in tags:
            task_id = self._pending.pop(one, None)
            if task_id is not None:
                # one that came back is confirmed, too
                self._outcomes.setdefault(task_id, (outcome, why))

    def _on_return(self, exc: Any, exchange: str, routing_key: str, message: Any) -> None:
        task_id = (message.properties.get("application_headers") or {}).get("id", "")
        why = f"no queue is bound to {exchange!r} for {routing_key!r}: {exc.reply_text}"
        self._outcomes[task_id] = (Publishing.REFUSED, why)
