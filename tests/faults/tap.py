"""Takes messages off a RabbitMQ queue as they come, and notes when: the column *handed off*."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from kombu import Connection

__all__ = ["RabbitMQTap", "Taken"]

#: Our header.
HEADER = "celery_delay"


class Taken(NamedTuple):
    """One delivery."""

    task_id: str
    attempt: int
    #: RabbitMQ has delivered this message before, to a connection of ours that has ended.
    redelivered: bool
    at_ms: float


class RabbitMQTap:
    """A consumer of its own in a thread, which outlives its broker; a context manager.

    Attributes:
        taken: all deliveries so far.
    """

    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue
        self.taken: list[Taken] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._consume, daemon=True)

    def __enter__(self) -> RabbitMQTap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def ids(self) -> set[str]:
        """The tasks that have come."""
        return {one.task_id for one in list(self.taken)}

    def doubled(self, ids: Iterable[str]) -> dict[str, int]:
        """Task id → how many messages of it came beyond the first."""
        wanted = set(ids)
        mine = [one for one in list(self.taken) if one.task_id in wanted]
        fresh = Counter((one.task_id, one.attempt) for one in mine if not one.redelivered)
        again = {(one.task_id, one.attempt) for one in mine if one.redelivered}
        # a redelivery is a message of its own only if it was lost on its first way to us
        messages = Counter(one for one, _ in [*fresh.elements(), *(again - fresh.keys())])
        return {task_id: count - 1 for task_id, count in messages.items() if count > 1}

    def _consume(self) -> None:
        while not self._closing.is_set():
            try:
                with Connection(self._url, connect_timeout=2, heartbeat=2) as connection:
                    self._serve(connection)
            except Exception:  # it is away, which is what is being tested
                time.sleep(0.05)

    def _serve(self, connection: Any) -> None:
        channel = connection.channel()
        channel.queue_declare(self._queue, durable=True, auto_delete=False)
        channel.basic_qos(0, 100, False)
        channel.basic_consume(self._queue, callback=lambda one: self._note(channel, one))
        while not self._closing.is_set():
            try:
                connection.drain_events(timeout=0.2)
            except TimeoutError:
                connection.heartbeat_check()

    def _note(self, channel: Any, message: Any) -> None:
        headers = message.headers
        self.taken.append(
            Taken(
                headers["id"],
                headers[HEADER].get("attempt", 0),
                message.delivery_info["redelivered"],
                time.time() * 1000,
            )
        )
        channel.basic_ack(message.delivery_tag)
