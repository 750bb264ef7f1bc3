"""The ports of the claim path: taking entries out under a claim, and getting them to the broker.

As in ``ports.py``; StoreUnavailable is the store's.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from celery_delay.entries import Claimed

__all__ = ["ClaimStore", "Claims", "Publisher", "Publishing"]


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

    @property
    def handled(self) -> int:
        """How many entries left the head of the schedule."""
        return len(self.taken) + self.expired + self.quarantined + self.blocked


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

    def publish(self, batch: Sequence[Claimed], until: float) -> list[tuple[Publishing, str]]:
        """Send messages and wait for the broker's word; what became of each, and why.

        None is sent from the instant *until* (boot clock) on: AWAY, and no reason.
        """
        ...

    def probe(self) -> str:
        """Why nothing can be published; "" when it can.  No queue gets a message."""
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...
