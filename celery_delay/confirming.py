"""The channel to RabbitMQ, which confirms each message in its own time.

So several are under way at once, and what counts is the confirm.  Each is ``mandatory``: one
that no queue would get comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from amqp.exceptions import FrameSyntaxError
from kombu.entity import Exchange

from celery_delay.channels import (
    UNFIT,
    Blocked,
    Closed,
    Message,
    Outcome,
    PlainChannel,
    Unfit,
    Unroutable,
)
from celery_delay.claims import Publishing

__all__ = ["ConfirmingChannel"]

#: AMQP's codes for a declaration that this user may not make, or that differs from what is there.
_NOT_OURS = (403, 406)
#: What py-amqp raises for a message that it cannot write, before it has written any of it.
_UNWRITABLE = (FrameSyntaxError, *UNFIT)
#: Bodies up to this size, in bytes, are refused by no broker for their size.
_SMALL = 65_536


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

    def put(self, message: Message) -> Outcome | None:
        """As :meth:`PlainChannel.put`; the outcome comes with :meth:`settle`."""
        # before the call: it may bring the confirm
        self._sent += 1
        self._pending[self._sent] = message
        try:
            with self._in_time():
                self._publish(message, mandatory=True)
        except BaseException as exc:
            self._pending.pop(self._sent, None)
            self._sent -= 1
            if isinstance(exc, _UNWRITABLE):
                raise Unfit(f"it cannot be written as an AMQP message: {exc}") from exc
            if isinstance(exc, self.connection.channel_errors):
                self._closed = str(exc)  # it was heard before this one was sent
                raise Closed(self._closed) from exc
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
        why, refused = self._closed or f"no confirm came within {self._timeout:g} s", False
        try:
            while self._pending and not self._closed and (left := until - self._clock.boot()) > 0:
                self._amqp.drain_events(timeout=left)
        except TimeoutError:
            pass
        except Blocked as exc:
            why = str(exc)
        except self.connection.channel_errors as exc:
            why, refused = str(exc), True
        except Exception as exc:
            why = f"{type(exc).__name__}: {exc}"
        outcomes = dict(self._outcomes)
        self._outcomes.clear()
        alone = refused and len(self._pending) == 1
        for message in self._pending.values():
            outcomes[message.task_id] = (Publishing.REFUSED if alone else Publishing.UNKNOWN, why)
        self._pending.clear()
        if alone:
            self._confirm()
        return outcomes

    def probe(self) -> None:
        """RabbitMQ gets a message for a queue that does not exist, and drops it after confirming.

        Raises:
            TimeoutError: no confirm came.
        """
        self.hear()
        with self._in_time():
            self._sent += 1
            self._pending[self._sent] = Message("", "", "celery-delay.probe", None, b"", {}, {})
            self._producer.publish(b"", exchange="", routing_key="celery-delay.probe")
        outcome, why = self.settle()[""]
        if outcome is not Publishing.CONFIRMED:
            raise TimeoutError(why)

    # -- inside -------------------------------------------------------------------------

    def _open(self) -> None:
        self._pending: dict[int, Message] = {}
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
        self._sent, self._closed = 0, ""
        with self._in_time():
            self._channel.confirm_select()

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
