"""A producer's stand-in, for a broker that no move reaches and that need not be up now.

Celery's sender runs against it as ever.  The message becomes an entry for a beat to publish;
only what goes past the store after all needs the broker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from kombu.entity import Queue

from celery_delay.message.capture import Capture, capturing, publish_once

__all__ = ["StandIn"]

logger = logging.getLogger(__name__)


class StandIn:
    """Stands in for a producer whose broker no move reaches, and that need not be up now.

    Arguments:
        producer: the real one; only what needs no connection is asked of it.
        in_time: gives a producer to publish with, for a message that falls back.
        at_once: the same for events, which are not worth a wait.
    """

    def __init__(
        self,
        producer: Any,
        in_time: Callable[[], AbstractContextManager[Any]],
        at_once: Callable[[], AbstractContextManager[Any]],
        capture: Capture,
    ) -> None:
        self._producer = producer
        self._in_time = in_time
        self._at_once = at_once
        self._capture = capture

    def publish(self, body: Any, **options: Any) -> Any:
        """As ``kombu.Producer.publish``."""
        headers = options.get("headers") or {}
        if "task" not in headers:
            return self._publish_event(body, options)
        outgoing, where = _prepared(self._producer, body, **options)
        if self._capture.keeps_published(outgoing, where, headers):
            return None
        with self._in_time() as producer, capturing(producer, _Once()):
            return producer.publish(body, **options)

    def _publish_event(self, body: Any, options: dict[str, Any]) -> None:
        try:
            with self._at_once() as producer:
                producer.publish(body, **{**options, "retry": False})
        except Exception:  # the task is stored; monitors learn of it when it runs
            logger.debug("no task-sent event", exc_info=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


class _Once:
    """Stands in for kombu's batch state: what it publishes is not sent twice."""

    def publish(self, channel: Any, outgoing: dict[str, Any], **publish: Any) -> Any:
        """kombu calls this in place of ``channel.basic_publish``."""
        return publish_once(channel, outgoing, publish)


def _prepared(
    producer: Any,
    body: Any,
    *,
    exchange: Any = None,
    routing_key: str | None = None,
    declare: Any = None,
    headers: dict[str, Any],
    serializer: str | None = None,
    compression: str | None = None,
    content_type: str | None = None,
    content_encoding: str | None = None,
    delivery_mode: Any = None,
    priority: int | None = 0,
    expiration: float | None = None,
    **properties: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message and its way, as ``kombu.Producer.publish`` would make them."""
    for behaviour in ("retry", "retry_policy", "timeout", "confirm_timeout", "mandatory"):
        properties.pop(behaviour, None)
    properties.pop("immediate", None)
    headers = dict(headers)
    name, mode = producer._delivery_details(exchange or producer.exchange, delivery_mode)
    text, content_type, content_encoding = producer._prepare(
        body, serializer, content_type, content_encoding, compression, headers
    )
    reply_to = properties.get("reply_to")
    if isinstance(reply_to, Queue):
        properties["reply_to"] = reply_to.name
    properties |= {"delivery_mode": mode, "priority": priority}
    if expiration is not None:
        properties["expiration"] = str(int(expiration * 1000))
    message = {
        "body": text,
        "content-encoding": content_encoding,
        "content-type": content_type,
        "headers": headers,
        "properties": properties,
    }
    queues = [one.name for one in declare or () if isinstance(one, Queue)]
    where = {
        "exchange": name or "",
        "routing_key": routing_key or "",
        "queue": queues[0] if queues else None,
    }
    return message, where
