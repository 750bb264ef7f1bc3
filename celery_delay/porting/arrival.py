"""An exported message on its way to the queues of this app: another broker, prefix, or server.

The message itself stays as it is.  Where it goes is told by its routing key and exchange; which
list that is in this app's Redis, or that a beat publishes it, is asked of kombu, as when a task is
scheduled here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from celery_delay.domain.entries import Addition, Due
from celery_delay.domain.settings import Settings
from celery_delay.message.envelope import Commands, Story, check_size, moved, published
from celery_delay.message.redaction import Redactor, Texts
from celery_delay.porting.format import PortedEntry

__all__ = ["Addressing", "addressing"]


class Delayed(Protocol):
    """What this module needs of the composition root."""

    @property
    def app(self) -> Any: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def redactor(self) -> Redactor: ...

    def moves(self) -> bool: ...

    def broker_database(self) -> int: ...


class Addressing:
    """Makes entries of exported messages; see :func:`addressing`.

    Arguments:
        channel: of the broker's, where the move reaches its queues; ``None``: a beat publishes.
    """

    def __init__(self, delayed: Delayed, channel: Any) -> None:
        self._delayed = delayed
        self._channel = channel
        self._database = delayed.broker_database() if channel is not None else 0

    def addition(self, entry: PortedEntry, eta_ms: int) -> Addition:
        """*entry* as this app's store takes it.

        Its version is one more than it was: where the audit has the entry as LOST, or as cancelled
        by mistake, it then tells that it waits again.

        Raises:
            TypeError, ValueError, KeyError: the message cannot be stored here.
        """
        body = base64.b64decode(entry.message["body"])
        check_size(len(body), self._delayed.settings)
        message = {**entry.message, "body": body}
        message["properties"] = json.loads(json.dumps(message["properties"]))
        way = message["properties"]["delivery_info"]
        where = {"exchange": str(way["exchange"]), "routing_key": str(way["routing_key"])}
        story = self._story(entry, body, eta_ms)
        addition = self._moved(message, story, where) if self._channel is not None else None
        if addition is None:
            addition, _ = published(message, story, queue=entry.queue or None, **where)
        return addition._replace(entry_id=entry.entry_id, version=entry.version + 1)

    def _moved(
        self, message: dict[str, Any], story: Story, where: Mapping[str, str]
    ) -> Addition | None:
        commands = Commands()
        # kombu finishes what it gets in place
        copy = {**message, "properties": {**message["properties"]}}
        self._channel.basic_publish(copy, _publish_batch=commands, **where)
        if not commands.is_one_push:
            return None
        prefix = self._channel.global_keyprefix
        return moved(commands, story, database=self._database, prefix=prefix)[0]

    def _story(self, entry: PortedEntry, body: bytes, eta_ms: int) -> Story:
        message = entry.message
        chord, texts = None, Texts(None, None)
        if self._delayed.settings.audited:
            args, kwargs, embed = _read(message, body)
            chord = embed.get("chord")
            texts = self._texts(message["headers"], args, kwargs)
        return Story(Due(eta_ms, False), entry.entry_id.run, chord, entry.labels, lambda _: texts)

    def _texts(self, headers: Mapping[str, Any], args: Any, kwargs: Any) -> Texts:
        celerys = Texts(headers.get("argsrepr"), headers.get("kwargsrepr"))
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            # nothing is known of secrets in there
            plain = self._delayed.settings.audit_args == "repr"
            return celerys if plain else Texts(None, None)
        return self._delayed.redactor.texts(headers["task"], args, kwargs, celerys)


@contextmanager
def addressing(delayed: Delayed) -> Iterator[Addressing]:
    """What addresses exported messages, with a connection of the app's while the context lasts.

    Raises:
        StoreUnavailable: the store cannot be asked whether the move reaches the queues.
        kombu.exceptions.OperationalError: the broker is away, and the move would reach them.
    """
    if not delayed.moves():
        yield Addressing(delayed, None)
        return
    with delayed.app.producer_or_acquire() as producer:
        yield Addressing(delayed, producer.channel)


def _read(message: Mapping[str, Any], body: bytes) -> tuple[Any, Any, Mapping[str, Any]]:
    """Arguments and the rest of a body that is JSON; nothing is unpickled here."""
    if message["content-type"] != "application/json" or message["headers"].get("compression"):
        return None, None, {}
    try:
        args, kwargs, embed = json.loads(body)
    except (ValueError, TypeError):
        return None, None, {}
    return args, kwargs, embed if isinstance(embed, dict) else {}
