"""A transport of kombu's like those to a service on the web: a call may fail in ways of its own."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

from kombu.transport import virtual

__all__ = ["APIError", "Transport"]


class APIError(Exception):
    """What the service answers; kombu knows nothing of it."""


class Channel(virtual.Channel):
    queues: ClassVar[dict[str, deque[Any]]] = {}
    #: Task ids whose messages the service does not take; ``"*"``: none at all.
    refuses: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        task_id = message["headers"]["id"]
        self.asked.append(task_id)
        if {task_id, "*"} & self.refuses:
            raise APIError("InvalidMessageContents: no such characters")
        self.queues.setdefault(queue, deque()).append(message)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def _purge(self, queue: str) -> int:
        return 0

    def _size(self, queue: str) -> int:
        return len(self.queues.get(queue, ()))


class Transport(virtual.Transport):
    Channel = Channel
    default_port = 1
    driver_type = driver_name = "web"

    def driver_version(self) -> str:
        return "1"
