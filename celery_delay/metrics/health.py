"""Whether a beat is alive, and whether it is ready.  Looked up in memory: Redis is not asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from celery_delay.domain.clock import Clock

__all__ = ["ASLEEP", "UNREACHABLE", "Health", "ShardHealth"]

#: An elector, or Celery's loop, that was not seen for so long does not run, in seconds.
ASLEEP = 60.0
#: The store is not reachable if the election has had no answer for so long, in seconds.
UNREACHABLE = 3.0


class ShardHealth(NamedTuple):
    """What one shard's part tells of itself; instants are of the boot clock.

    Attributes:
        elected_at: when its elector last began a step.
        answered_at: when the store last answered it; ``None`` for never.
        barred: why this beat must not lead; "" if it may.
        ended: the names of its threads that run no more.
    """

    shard: int
    elected_at: float
    answered_at: float | None
    barred: str
    ended: Sequence[str]


class Health:
    """Judges what the shards tell.

    Arguments:
        shards: asks them.
        ticked_at: when Celery's loop last called us (boot clock).
        patience: how long the election may be without an answer, in seconds.
    """

    def __init__(
        self,
        shards: Callable[[], Sequence[ShardHealth]],
        ticked_at: Callable[[], float],
        clock: Clock,
        patience: float = UNREACHABLE,
    ) -> None:
        self._shards = shards
        self._ticked_at = ticked_at
        self._clock = clock
        self._patience = patience

    def ailments(self) -> list[str]:
        """Why this process should be replaced; empty while it is alive.

        That Redis or SQL is away is none: to begin anew would not help.
        """
        now = self._clock.boot()
        found = []
        # a backlog may keep dispatcher and publisher busy for as long as it takes
        for one in self._shards():
            found += [f"the thread {name} has ended" for name in one.ended]
            if (asleep := now - one.elected_at) > ASLEEP:
                found.append(f"the elector of shard {one.shard} is stuck for {asleep:.0f} s")
        if (asleep := now - self._ticked_at()) > ASLEEP:
            found.append(f"beat's own loop is stuck for {asleep:.0f} s")
        return found

    def obstacles(self) -> list[str]:
        """Why this beat could not lead now; empty while it is ready.  A standby is ready."""
        now = self._clock.boot()
        found = self.ailments()
        for one in self._shards():
            if one.barred:
                found.append(f"shard {one.shard} cannot be led: {one.barred}")
            elif one.answered_at is None:
                found.append(f"the store has not answered yet (shard {one.shard})")
            elif now - one.answered_at > self._patience:
                silent = now - one.answered_at
                found.append(f"the store does not answer for {silent:.0f} s (shard {one.shard})")
        return found
