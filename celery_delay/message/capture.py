"""Celery's own sender at work, with its message going to us instead of the broker.

Where the queues live on the store's own Redis server, kombu says which commands would put the
message onto its queue: kombu 5.7 asks for a batch state on every publish, and one of ours is
installed on the producer for the time of a call.  For any other broker a stand-in takes the
producer's place, so that a task can be scheduled while the broker is down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from kombu.exceptions import OperationalError

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Addition, Due
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import DelayError, UnsupportedBroker
from celery_delay.message.envelope import (
    HEADER,
    Commands,
    Shape,
    Story,
    check_size,
    moved,
    published,
)
from celery_delay.message.expiry import warn_if_dead_on_arrival
from celery_delay.message.redaction import Redactor, Texts
from celery_delay.message.runs import Following
from celery_delay.telemetry import tracing

__all__ = ["Capture", "KeyTaken", "SentInDoubt", "capturing", "publish_once"]


class Delayer(Protocol):
    """What the composition root offers to this module."""

    settings: Settings
    clock: Clock
    redactor: Redactor

    def broker_database(self) -> int: ...

    def went_native(self, task_id: str, run: int) -> None: ...


class SentInDoubt(OperationalError):
    """A message that fell back to Celery's own way may or may not be on its queue.

    It must not be sent again; kombu does not repeat what raises this.
    """


class KeyTaken(Exception):
    """The message is not sent, since another task has its key: so nobody is told of it either."""


class Capture:
    """Stands in for kombu's batch state; makes an entry of the message that is published.

    Arguments:
        message: Celery's task message.
        due: when it is due.
        after: what it takes over from the run that it is sent from, with its own labels.
        own: the texts of the arguments that the caller has written.
        keep: takes the entry; what it raises comes out of the sender.
        fall_back: whether the message is to be published as Celery would have, after
            *keep*, or the making of the entry, has raised; ``None``: never.
    """

    def __init__(
        self,
        delayed: Delayer,
        message: Any,
        due: Due,
        after: Following,
        own: Texts,
        keep: Callable[[Addition, Shape], None],
        fall_back: Callable[[Exception], bool] | None = None,
    ) -> None:
        self._delayed = delayed
        self._task_id = message[0]["id"]
        self._arguments = message[2]
        self._own = own
        self._story = Story(due, after.run, _chord_of(message), after.labels, self._shown)
        self._after = after
        self._keep = keep
        self._fall_back = fall_back

    def publish(self, channel: Any, outgoing: dict[str, Any], **publish: Any) -> Any:
        """kombu calls this in place of ``channel.basic_publish``."""
        if "task" not in outgoing["headers"]:  # the task-sent event
            return channel.basic_publish(outgoing, **publish)
        if self._keeps(outgoing["body"], lambda: self._through(channel, outgoing, publish)):
            return None
        self._go_native(outgoing["headers"])
        return publish_once(channel, outgoing, publish)

    def keeps_published(
        self, outgoing: dict[str, Any], where: Mapping[str, Any], headers: dict[str, Any]
    ) -> bool:
        """Whether the message became an entry for a beat to publish; see :class:`StandIn`.

        Arguments:
            headers: those that it is published with if it did not.
        """
        if self._keeps(outgoing["body"], lambda: published(outgoing, self._story, **where)):
            return True
        self._go_native(headers)
        return False

    def _keeps(self, body: Any, make: Callable[[], tuple[Addition, Shape]]) -> bool:
        """Whether the message became an entry; False if it is to be published as ever."""
        try:
            check_size(len(body), self._delayed.settings)
            self._story = self._story._replace(span=tracing.context())
            addition, shape = make()
            warn_if_dead_on_arrival(addition, self._delayed.clock)
            self._keep(addition, shape)
        except (DelayError, ValueError) as exc:
            if self._fall_back is None or not self._fall_back(exc):
                raise
            return False
        return True

    def _shown(self, headers: Mapping[str, Any]) -> Texts:
        if not isinstance(self._arguments, (tuple, list)):
            return Texts(None, None)  # a body that came from a queue: nothing is known of secrets
        args, kwargs = self._arguments[:2]
        celerys = Texts(headers.get("argsrepr"), headers.get("kwargsrepr"))
        return self._delayed.redactor.texts(headers["task"], args, kwargs, celerys, self._own)

    def _go_native(self, headers: dict[str, Any]) -> None:
        if self._after.run:
            headers[HEADER] = self._after.header(self._task_id)
            self._delayed.went_native(self._task_id, self._after.run)

    def _through(
        self, channel: Any, outgoing: dict[str, Any], publish: Mapping[str, Any]
    ) -> tuple[Addition, Shape]:
        where = {one: publish[one] for one in ("exchange", "routing_key")}
        commands = Commands()
        # kombu finishes the message in place, and it may yet have to be published
        copy = {**outgoing, "properties": _deep(outgoing["properties"])}
        channel.basic_publish(copy, _publish_batch=commands, **where)
        if commands.is_one_push:
            database = self._delayed.broker_database()
            prefix = channel.global_keyprefix
            return moved(commands, self._story, database=database, prefix=prefix)
        # a topic or fanout exchange: what is bound to it is known when the task is due
        return published(outgoing, self._story, queue=None, **where)


@contextmanager
def capturing(producer: Any, capture: Any) -> Iterator[None]:
    """Let *producer* publish to *capture* in this context, in this thread.

    Raises:
        UnsupportedBroker: it is not a producer of kombu 5.7 or later.
    """
    if not hasattr(producer, "_batch_local"):
        raise UnsupportedBroker(f"{producer!r} is not a producer of kombu 5.7 or later")
    local = producer._batch_local
    before = getattr(local, "current", None)
    local.current = capture
    try:
        yield
    finally:
        if before is None:
            del local.current
        else:
            local.current = before


def publish_once(channel: Any, outgoing: dict[str, Any], publish: Mapping[str, Any]) -> Any:
    """Publish what kombu may repeat only where it has certainly not been sent.

    Raises:
        SentInDoubt: it may have been sent.
    """
    if not hasattr(channel, "create_publish_batch"):
        return channel.basic_publish(outgoing, **publish)
    # what fails here has certainly not been sent, and kombu may repeat it
    channel.client.ping()
    try:
        return channel.basic_publish(outgoing, **publish)
    except channel.connection.connection_errors as exc:
        raise SentInDoubt(str(exc)) from exc


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
