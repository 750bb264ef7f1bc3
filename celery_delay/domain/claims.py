"""The ports of the claim path: taking entries out under a claim, and getting them to the broker.

As in ``ports.py``; StoreUnavailable is the store's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from celery_delay.domain.entries import Claimed

__all__ = ["ClaimStore", "Claims", "Publisher", "Publishing", "Told"]


class Claims(NamedTuple):
    """What one claim took out.  Times are the store's, in ms; the rest as in :class:`Moved`."""

    now_ms: int
    next_due_ms: int | None = None
    taken: Sequence[Claimed] = ()
    expired: int = 0
    quarantined: int = 0
    blocked: int = 0
    failure: str = ""
    unmoved: bool = False
    gated: int = 0

    @property
    def handled(self) -> int:
        """How many entries left the head of the schedule."""
        return len(self.taken) + self.expired + self.quarantined + self.blocked + self.gated


class Publishing(Enum):
    """What became of one message."""

    #: The broker has it.
    CONFIRMED = "confirmed"
    #: The broker has it not, and would refuse it again.
    REFUSED = "refused"
    #: The broker has it not; another attempt may do better (a queue is full).
    DECLINED = "declined"
    #: The broker cannot be reached; nothing was sent.
    AWAY = "away"
    #: It was sent, and no word came: it may be on its queue.
    UNKNOWN = "unknown"


#: A message, what became of it, and why.
Told = tuple[Claimed, Publishing, str]


class ClaimStore(Protocol):
    """What the hand-off by claims needs of a shard."""

    def claim(
        self,
        *,
        token: str,
        limit: int,
        ttl_ms: int,
        source: str = "outbound",
        hold_ms: int = 0,
        steal_ms: int = 0,
        latest_ms: int = 0,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims: ...

    def ack(self, token: str, task_ids: Sequence[str]) -> int: ...

    def give_back(self, token: str, returns: Sequence[tuple[str, str, str]]) -> int: ...

    def rescue(self, *, latest_ms: int = 0) -> int: ...

    def tell_broker(self, failure: str) -> None:
        """Leave word of the broker's failure ("" when it is over) for whoever asks."""
        ...


class Publisher(Protocol):
    """The way to the broker.  Used by one thread; nothing here raises for a broker's sake."""

    def connect(self) -> str:
        """Make sure that there is a connection; why there is none, or ""."""
        ...

    def publish(
        self, batch: Sequence[Claimed], may_send: Callable[[], bool], window: int
    ) -> Iterator[Sequence[Told]]:
        """Send messages, and tell what became of them as the broker's word of them comes.

        Whoever asks for the next of it has written down the last: more than *window* messages
        are never under way or told of and not written down.

        Arguments:
            may_send: asked before each message, and once more before it goes out; what may not
                be sent is AWAY, and no reason.
        """
        ...

    def length(self, queue: str) -> int | None:
        """How many messages wait in *queue*; ``None`` if the broker cannot tell now."""
        ...

    def probe(self) -> str:
        """Why nothing can be published; "" when it can.  No queue gets a message."""
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...
