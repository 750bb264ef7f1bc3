"""When the leader looks whether what waits at gates may pass.

Closed gates cost nothing here: only what is being released, and what waits for a limit or for
room in a queue, has to be let back into the schedule, a bounded number at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from celery_delay.domain.clock import Clock
from celery_delay.domain.gates import GateStore

__all__ = ["LOOK_EVERY", "SHORTEST", "Opening"]

#: The shortest pause between two looks that need not follow at once, in seconds.
SHORTEST = 0.05
#: The longest pause while something waits that may pass by and by, in seconds.
LOOK_EVERY = 1.0


class Opening:
    """Lets entries of one shard back into their schedule; called by one thread.

    Attributes:
        on_return: called when some have come back.
    """

    def __init__(self, store: GateStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._at = math.inf
        self.on_return: Callable[[], None] = lambda: None

    def wait(self) -> float:
        """Seconds until the next look; infinite when nothing is to come."""
        return max(0.0, self._at - self._clock.monotonic())

    def run_once(self, term: int, within: float | None) -> int:
        """Let pass what may pass now, as the leader in *term*; how many came back.

        Arguments:
            within: look in so many seconds if none is planned; ``None``: there is no need.
        """
        now = self._clock.monotonic()
        if within is not None:
            self._at = min(self._at, now + within)
        if now < self._at:
            return 0
        opened = self._store.open_gates(term=term)
        if opened.wait_ms is None:
            self._at = math.inf
        elif opened.returned and opened.wait_ms == 0:
            self._at = now
        else:
            self._at = now + min(LOOK_EVERY, max(SHORTEST, opened.wait_ms / 1000))
        if opened.returned:
            self.on_return()
        return opened.returned
