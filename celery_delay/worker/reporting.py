"""From a worker's process to the journal, at whatever moment, without holding up the task.

A transition that cannot be written is not kept for the journal: it is counted, and the number goes
in front of the next one that can, as a GAP; the watch over its task ends then too.  While Redis
does not answer, the waiting is rationed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from celery_delay.domain.clock import Clock
from celery_delay.domain.ports import Transition
from celery_delay.exceptions import DelayError

__all__ = ["MOST_LATE", "Reporter"]

logger = logging.getLogger(__name__)

#: So many transitions are told later, without the journal, so that the watch over their tasks ends.
MOST_LATE = 1_000


class Delayer(Protocol):
    """What the composition root offers to this module."""

    @property
    def clock(self) -> Clock: ...

    def record(
        self, transitions: Sequence[Transition], missing: int = 0, late: Sequence[Transition] = ()
    ) -> None: ...


class Reporter:
    """Writes transitions to the journal.  Safe for threads; every process makes its own.

    No call raises, or waits longer than ``delay_redis_timeout`` once connected.  After a
    failure, nothing is tried for twice the time that it took: so a process whose tasks all
    end at once, or the event loop of a worker's main process, waits for a third of its time
    at most, while a refused connection costs next to nothing and is tried again at once.

    A process that dies takes its count along.
    """

    def __init__(self, delayed: Delayer) -> None:
        self._delayed = delayed
        self._lock = threading.Lock()
        self._missing = 0
        #: What the store should still be told, so that nothing is sent again that has begun.
        self._late: deque[Transition] = deque(maxlen=MOST_LATE)
        self._not_before = 0.0
        self._broken = False

    def tell(self, transitions: Sequence[Transition]) -> None:
        """Journal *transitions* of one task in one round trip, or count them as missing."""
        begun = self._delayed.clock.monotonic()
        with self._lock:
            if begun < self._not_before:
                self._missing += len(transitions)
                self._late.extend(transitions)
                return
            missing, late = self._take()
        try:
            self._delayed.record(transitions, missing, late)
        except DelayError as exc:
            self._keep(missing + len(transitions), [*late, *transitions])
            self._failed(begun, exc)
        except BaseException:
            # a time limit struck in the middle: whether it was written is unknown
            self._keep(missing + len(transitions), [*late, *transitions])
            raise
        else:
            if self._broken:
                self._recovered(missing)

    def close(self) -> None:
        """Journal the number of what is missing, if any, before this process ends."""
        with self._lock:
            missing, late = self._take()
        if missing:
            try:
                self._delayed.record((), missing, late)
            except DelayError as exc:
                logger.error(
                    "the audit will not know that it misses %d transitions: %s",
                    missing,
                    exc,
                    extra={"event": "gap_lost", "missing": missing},
                )

    def _take(self) -> tuple[int, list[Transition]]:
        missing, late = self._missing, list(self._late)
        self._missing = 0
        self._late.clear()
        return missing, late

    def _keep(self, missing: int, late: Sequence[Transition]) -> None:
        with self._lock:
            self._missing += missing
            self._late.extend(late)

    def _failed(self, begun: float, exc: DelayError) -> None:
        now = self._delayed.clock.monotonic()
        with self._lock:
            self._not_before = now + 2 * (now - begun)
            is_news, self._broken = not self._broken, True
        if is_news:
            logger.warning(
                "the audit misses what workers do: %s", exc, extra={"event": "journal_lost"}
            )

    def _recovered(self, missing: int) -> None:
        self._broken = False
        logger.warning(
            "the audit has it again; it misses %d transitions of this process",
            missing,
            extra={"event": "journal_resumed", "missing": missing},
        )
