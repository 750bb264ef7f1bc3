"""Celery's own sender at work, with its message going to us instead of the broker.

kombu 5.7 asks for a batch state on every publish.  One of ours, installed on the producer
for the time of a call, is handed the finished message and lets kombu say which Redis
commands would put it onto its queue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from kombu.exceptions import OperationalError

from celery_delay.clock import Clock
from celery_delay.entries import Addition, Due
from celery_delay.envelope import (
    HEADER,
    Commands,
    Shape,
    addition_of,
    check_size,
    warn_if_dead_on_arrival,
)
from celery_delay.exceptions import DelayError, UnsupportedBroker
from celery_delay.settings import Settings

__all__ = ["Capture", "SentInDoubt", "capturing"]


class Delayer(Protocol):
    """What the composition root offers to this module."""

    settings: Settings
    clock: Clock

    def broker_database(self) -> int: ...

    def went_native(self, task_id: str, run: int) -> None: ...


class SentInDoubt(OperationalError):
    """A message that fell back to Celery's own way may or may not be on its queue.

    It must not be sent again; kombu does not repeat what raises this.
    """


class Capture:
    """Stands in for kombu's batch state; makes an entry of the message that is published.

    Arguments:
        message: Celery's task message.
        keep: takes the entry; what it raises comes out of the sender.
        fall_back: whether the message is to be published as Celery would have, after
            *keep*, or the making of the entry, has raised; ``None``: never.
    """

    def __init__(
        self,
        delayed: Delayer,
        message: Any,
        due: Due,
        run: int,
        keep: Callable[[Addition, Shape], None],
        fall_back: Callable[[Exception], bool] | None = None,
    ) -> None:
        self._delayed = delayed
        self._task_id = message[0]["id"]
        self._chord = _chord_of(message)
        self._due = due
        self._run = run
        self._keep = keep
        self._fall_back = fall_back

    def publish(self, channel: Any, outgoing: dict[str, Any], **publish: Any) -> Any:
        """kombu calls this in place of ``channel.basic_publish``."""
        if "task" not in outgoing["headers"]:  # the task-sent event
            return channel.basic_publish(outgoing, **publish)
        where = {one: publish[one] for one in ("exchange", "routing_key")}
        try:
            return self._keep(*self._entry(channel, outgoing, where))
        except (DelayError, ValueError) as exc:
            if self._fall_back is None or not self._fall_back(exc):
                raise
        if self._run:
            outgoing["headers"][HEADER] = {"task_id": self._task_id, "run": self._run}
            self._delayed.went_native(self._task_id, self._run)
        return _publish_once(channel, outgoing, publish)

    def _entry(
        self, channel: Any, outgoing: dict[str, Any], where: Mapping[str, Any]
    ) -> tuple[Addition, Shape]:
        if not hasattr(channel, "create_publish_batch"):
            raise UnsupportedBroker(
                "delayed tasks need a Redis broker in this version of celery-delay;"
                f" broker_url leads to {type(channel).__module__}"
            )
        check_size(len(outgoing["body"]), self._delayed.settings)
        commands = Commands()
        # kombu finishes the message in place, and it may yet have to be published
        copy = {**outgoing, "properties": _deep(outgoing["properties"])}
        channel.basic_publish(copy, _publish_batch=commands, **where)
        addition, shape = addition_of(
            commands,
            database=self._delayed.broker_database(),
            prefix=channel.global_keyprefix,
            due=self._due,
            run=self._run,
            chord=self._chord,
        )
        warn_if_dead_on_arrival(addition, self._delayed.clock)
        return addition, shape


@contextmanager
def capturing(producer: Any, capture: Capture) -> Iterator[None]:
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


def _publish_once(channel: Any, outgoing: dict[str, Any], publish: Mapping[str, Any]) -> Any:
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
