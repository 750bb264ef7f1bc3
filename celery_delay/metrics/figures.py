"""What is known of the store, looked up when somebody asks, and not more often than needed.

A thread of its own asks Redis: whoever wants the figures waits for it a bounded time, and a Redis
that does not answer holds up nobody else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery_delay.domain.clock import Clock
from celery_delay.exceptions import DelayError
from celery_delay.services.loops import Loop
from celery_delay.store.measuring import StoreFigures

__all__ = ["FRESH", "PATIENCE", "Figures"]

logger = logging.getLogger(__name__)

#: Figures are good for so long, in seconds: however often they are asked for, Redis is not.
FRESH = 3.0
#: The longest wait for new ones, in seconds.
PATIENCE = 1.5
#: The longest time between two looks of the thread at whether anybody has asked, in seconds.
_IDLE = 3600.0


class Figures:
    """The last figures of the store.  Safe for threads.

    Arguments:
        look: asks for them; raises DelayError.
    """

    def __init__(self, look: Callable[[], StoreFigures], clock: Clock) -> None:
        self._look = look
        self._clock = clock
        self._changed = threading.Condition()
        self._wanted = False
        self._known: StoreFigures | None = None
        self._looked_at: float | None = None
        #: The thread; to be started and stopped by the owner.
        self.loop = Loop("figures", self._step, clock)

    def now(self, patience: float = PATIENCE) -> StoreFigures | None:
        """The figures, not older than :data:`FRESH`; ``None`` if the store does not tell them.

        Arguments:
            patience: the longest wait in seconds.
        """
        with self._changed:
            if not self._is_fresh():
                self._wanted = True
                self.loop.bell.ring()
                self._changed.wait_for(self._is_fresh, patience)
            return self._known if self._is_fresh() else None

    def _is_fresh(self) -> bool:
        at = self._looked_at
        return at is not None and self._clock.monotonic() - at < FRESH

    def _step(self) -> float:
        with self._changed:
            wanted, self._wanted = self._wanted, False
        if wanted:
            try:
                known = self._look()
            except DelayError as exc:
                logger.debug("the store's figures are not known: %s", exc)
                known = None
            with self._changed:
                self._known, self._looked_at = known, self._clock.monotonic()
                self._changed.notify_all()
        return _IDLE
