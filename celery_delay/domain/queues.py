"""Queues as people call them, out of the lists that they have on a Redis: one per priority."""

from __future__ import annotations

__all__ = ["PRIORITY", "lists_of", "queue_of"]

#: kombu puts this between a queue's name and a priority, other than the first, to name a list.
PRIORITY = "\x06\x16"


#: The highest priority that kombu's Redis transport knows; it takes higher ones for this.
_HIGHEST = 9


def lists_of(queue: str) -> list[str]:
    """The keys that a queue's lists may have, one per priority, without prefix."""
    return [queue, *(f"{queue}{PRIORITY}{number}" for number in range(_HIGHEST + 1))]


def queue_of(key: str) -> str:
    """The name of the queue whose list has that key, without prefix."""
    return key.partition(PRIORITY)[0]
