"""Channels to a broker: how messages get onto one, and how it says that it has them.

The transports of kombu know neither confirms nor messages that come back; RabbitMQ's, which
does, is in ``confirming.py``.  With them a call that returns is taken for the broker's word, as
Celery takes it, and a message that would be dropped in silence is refused beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kombu.common import maybe_declare
from kombu.exceptions import InconsistencyError

from celery_delay.domain.claims import Publishing
from celery_delay.domain.clock import Clock

__all__ = [
    "UNFIT",
    "Blocked",
    "Message",
    "Outcome",
    "PlainChannel",
    "Unfit",
    "Unroutable",
]

#: Errors in a message itself: no broker would ever take it.
UNFIT = (KeyError, OverflowError, TypeError, ValueError, struct.error)
#: What became of a message, and why.
Outcome = tuple[Publishing, str]


class Blocked(Exception):
    """RabbitMQ has said that it takes no messages for now; nothing was sent."""


class Unfit(ValueError):
    """The message cannot be written in the broker's protocol; nothing was sent."""


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
        if queue and self._may_declare(queue):
            maybe_declare(self._queues[queue], self._channel)
        lookup = getattr(self._channel, "_lookup", None)
        if lookup is None or not message.exchange:
            return
        # of what type it is, such a transport knows only in this process
        for exchange in self._exchanges_of(message.exchange):
            maybe_declare(exchange, self._channel)
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

    def knows(self, message: Message) -> bool:
        """Whether the like of it was taken before; other messages are better sent alone."""
        return True

    @property
    def is_full(self) -> bool:
        """Whether what was put should go out before more is put."""
        return False

    def put(self, message: Message) -> Outcome | None:
        """Send the message; what became of it, or ``None`` while that is not known.

        Whatever is raised here but Unfit, the message may have been sent.
        """
        self._publish(message)
        return Publishing.CONFIRMED, ""

    def hear(self) -> None:
        """Take note of what the broker has said meanwhile; raises what it has closed with.

        Raises:
            Blocked: it takes no messages for now.
        """

    def settle(self, may_send: Callable[[], bool], most: int = 0) -> dict[str, Outcome]:
        """What became of the messages that were put and had no outcome, by task id.

        Arguments:
            may_send: whether those may go out that were put and have not yet.
            most: how many may go without an outcome for now.
        """
        return {}

    def length(self, queue: str) -> int:
        """How many messages wait in *queue*; 0 for one that is not there, or cannot be asked."""
        size = getattr(self._channel, "_size", None)
        return int(size(queue)) if size is not None else 0

    def probe(self) -> None:
        """Raise what keeps messages from being published.  No queue gets one."""
        client = getattr(self._channel, "client", None)
        if client is not None and hasattr(client, "ping"):
            client.ping()

    def _exchanges_of(self, name: str) -> list[Any]:
        """The exchange of that name, if one of the app's queues is bound to it."""
        exchanges = [one.exchange for one in self._queues.values() if one.exchange is not None]
        return [one for one in exchanges if one.name == name][:1]

    def _may_declare(self, queue: str) -> bool:
        return queue in self._queues or self._queues.create_missing

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
