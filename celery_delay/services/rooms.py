"""How many messages the broker's queues have room for, where a setting says how long they may be.

Where the move hands off, it looks at the queues itself.  Here the broker is asked, at most every
:data:`ASK_EVERY` per queue; in between, what was claimed is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Claimed

__all__ = ["ASK_EVERY", "Rooms"]

#: How often a queue's length is asked for, in seconds.
ASK_EVERY = 0.5


class Lengths(Protocol):
    """Who can tell how long a queue is."""

    def length(self, queue: str) -> int | None:
        """How many messages wait in *queue*; ``None`` if the broker cannot tell now."""
        ...


class Rooms:
    """Keeps what is known of the queues; used by one thread.

    Arguments:
        most: queue, or ``*`` for every other one → how many messages it may hold.
    """

    def __init__(self, most: Mapping[str, int], broker: Lengths, clock: Clock) -> None:
        self._most = most
        self._broker = broker
        self._clock = clock
        self._rooms: dict[str, int] = {}
        self._names = {one for one in most if one != "*"}
        self._ask_at = 0.0

    def known(self) -> Mapping[str, int]:
        """Queue → room for so many; a queue that nothing was claimed for yet is not there."""
        if self._names and self._clock.monotonic() >= self._ask_at:
            for name in sorted(self._names):
                length = self._broker.length(name)
                if length is None:
                    break
                self._rooms[name] = self._limit(name) - length
            self._ask_at = self._clock.monotonic() + ASK_EVERY
        return self._rooms

    def took(self, claimed: Iterable[Claimed]) -> None:
        """Take note of what is about to be published."""
        if not self._most:
            return
        for one in claimed:
            queue = one.envelope.get("queue")
            if not queue or not self._limit(queue):
                continue
            if queue in self._rooms:
                self._rooms[queue] -= 1
            elif queue not in self._names:
                self._names.add(queue)
                self._ask_at = 0.0

    def _limit(self, queue: str) -> int:
        return self._most.get(queue) or self._most.get("*") or 0
