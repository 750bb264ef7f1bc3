"""Due entries to their queues: one pass after the other, until nothing is due.

A pass is one script call that takes a bounded batch.  The leader calls it when the head of
the schedule is due or has changed.  A standby calls it only for entries that are overdue
by more than ``delay_backstop`` while the leader makes no progress; so the death of a leader
costs its tasks a fraction of a second.  Who calls is no matter of safety: the script is
atomic and Redis' clock decides.  A crash at any point leaves an entry either in the store or
on its queue, never in both and never in none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery_delay.domain import series
from celery_delay.domain.clock import Clock
from celery_delay.domain.ports import DispatchStore, LeaseRecord, Moved, StaleEpoch
from celery_delay.domain.series import UNMETERED, Meter
from celery_delay.domain.settings import Settings
from celery_delay.domain.tracing import Tracing
from celery_delay.services.opening import LOOK_EVERY, SHORTEST, Opening

__all__ = ["ClockGuard", "Dispatcher"]

logger = logging.getLogger(__name__)

#: The longest wait when nothing is due, in seconds.
LONGEST_WAIT = 1.0
#: The pause before due entries that could not be moved are tried again, in seconds.
RETRY_AFTER = 0.1
#: How often blocked entries get another try, in seconds.
MERGE_EVERY = 1.0


class Dispatcher:
    """Dispatches one shard; called by one thread."""

    def __init__(
        self, store: DispatchStore, settings: Settings, clock: Clock, meter: Meter = UNMETERED
    ) -> None:
        self._store = store
        self._meter = meter
        self._settings = settings
        self._clock = clock
        self._guard = ClockGuard(clock)
        #: Whether the move reaches the queues; where it does not, only what surrounds it is done.
        self.moves = True
        #: Whom each batch is told that is moved.
        self.tracing: Tracing | None = None
        #: Lets back what waits at gates.
        self.opening = Opening(store, clock)
        #: Called when a Redis history needs a name that SQL has first.
        self.on_stale: Callable[[], None] = lambda: None
        self._is_stale = False
        self._epoch = 0
        self._merge_at = 0.0
        self._failure = ""

    def run_once(self, term: Callable[[], int | None]) -> float:
        """Move all that is due, as the leader.

        Arguments:
            term: tells the term in which this replica leads, now; asked before each batch.

        Returns:
            Seconds until the next entry is due, at most :data:`LONGEST_WAIT`.

        Raises:
            StoreUnavailable: the last batch may or may not have been moved.
        """
        while (number := term()) is not None:
            if not self.moves:
                return self._tend(number)
            try:
                moved = self._move()
            except StaleEpoch:
                if not self._name_history(number):
                    return RETRY_AFTER
                continue
            self._is_stale = False
            self._tell(moved)
            self._merge_back(number)
            if moved.handled >= self._settings.batch_size:
                continue
            # who waits at a gate comes after what is due and does not
            if not self.opening.run_once(number, SHORTEST if moved.openable else None):
                return min(self._wait(moved), self.opening.wait())
        return LONGEST_WAIT

    def steal(self, seen: LeaseRecord, asked_at: float, seen_at: float) -> int:
        """Move what the leader leaves lying, as a standby.

        Arguments:
            seen: the lease as it was last seen; most calls end by looking at it.
            asked_at, seen_at: when (boot clock) the store was asked for it, and had answered.

        Returns:
            How many entries were moved.

        Raises:
            StoreUnavailable: as in :meth:`run_once`.
        """
        self._guard.saw(seen.now_ms, asked_at, seen_at)
        backstop = round(self._settings.backstop * 1000)
        if not self.moves or seen.head_due_ms is None or seen.now_ms - seen.head_due_ms <= backstop:
            return 0
        if seen.now_ms - seen.progress_ms <= backstop:
            return 0
        stolen = 0
        while True:
            try:
                moved = self._move(steal_ms=backstop)
            except StaleEpoch:
                return stolen  # only a leader may name a new history
            stolen += moved.moved
            self._tell(moved)
            if moved.handled < self._settings.batch_size:
                break
        if stolen:
            self._meter.count(series.STOLEN, stolen)
            logger.info(
                "moved %d overdue entries in the leader's place",
                stolen,
                extra={"event": "entries_stolen", "count": stolen},
            )
        return stolen

    def _tend(self, term: int) -> float:
        """Name the history and merge back: what the claim path leaves to the dispatcher."""
        self._merge_back(term)
        if not self._store.has_epoch() and not self._name_history(term):
            return RETRY_AFTER
        self._is_stale = False
        self.opening.run_once(term, LOOK_EVERY)
        return min(MERGE_EVERY, self.opening.wait())

    def _merge_back(self, term: int) -> None:
        if self._clock.monotonic() >= self._merge_at:
            self._merge_at = self._clock.monotonic() + MERGE_EVERY
            self._store.merge_back(term=term)

    def _move(self, steal_ms: int = 0) -> Moved:
        """One batch, under the guard's verdict on the store's present time."""
        for _ in range(2):
            asked_at = self._clock.boot()
            span = self.tracing.begin() if self.tracing is not None else None
            moved = self._store.move(
                hold_ms=self._guard.hold_ms,
                steal_ms=steal_ms,
                latest_ms=self._guard.latest_ms,
                traceparent=span.traceparent if span is not None else "",
            )
            self._guard.saw(moved.now_ms, asked_at, self._clock.boot())
            if span is not None:
                span.end(moved.moved, moved.max_lag_ms)
            if not moved.unmoved:
                break
        return moved

    def _name_history(self, term: int) -> bool:
        """Whether this Redis history has a name now, so that things are moved in it.

        With ``delay_audit = "sync"`` SQL has it first, and compares the two: the relay does.
        """
        if not self._settings.is_sync:
            return self._begin_epoch(term)
        if not self._is_stale:
            self._is_stale = True
            self.on_stale()
        return False

    def _begin_epoch(self, term: int) -> bool:
        begun = self._store.begin_epoch(term=term, known_epoch=self._epoch)
        if begun is None:
            return False  # somebody else leads, or nobody; the election will tell
        self._epoch, before = begun
        if before:
            logger.warning(
                "Redis was restarted or replaced: what it had acknowledged but not kept is missing",
                extra={"event": "epoch_began", "epoch": self._epoch, "run_id_before": before},
            )
        else:
            logger.info(
                "Redis bears no mark: it is new, or was emptied",
                extra={"event": "epoch_began", "epoch": self._epoch, "run_id_before": ""},
            )
        return True

    def _count(self, moved: Moved) -> None:
        if moved.counts is not None:
            self._meter.gather(series.LAG, moved.counts.buckets, moved.counts.lag_ms / 1000)
            for task, queue, number in moved.counts.routes:
                self._meter.count(series.DISPATCHED, number, (task, queue))
        if moved.expired:
            self._meter.count(series.EXPIRED, moved.expired)
        if moved.quarantined:
            self._meter.count(series.QUARANTINED, moved.quarantined)

    def _tell(self, moved: Moved) -> None:
        self._count(moved)
        if moved.moved:
            logger.debug(
                "moved %d entries, the latest %d ms after its eta",
                moved.moved,
                moved.max_lag_ms,
                extra={"event": "entries_moved", "count": moved.moved, "lag_ms": moved.max_lag_ms},
            )
        if moved.quarantined:
            logger.error(
                "%d entries cannot be handed off and are quarantined: see `celery delay status`",
                moved.quarantined,
                extra={"event": "entries_quarantined", "count": moved.quarantined},
            )
        if moved.failure != self._failure:
            self._failure = moved.failure
            if moved.failure:
                logger.error(
                    "entries are held back: %s", moved.failure, extra={"event": "entries_blocked"}
                )

    @staticmethod
    def _wait(moved: Moved) -> float:
        if moved.next_due_ms is None:
            return LONGEST_WAIT
        wait = (moved.next_due_ms - moved.now_ms) / 1000
        # what is due and stays where it is, is held back or cannot be moved now
        shortest = RETRY_AFTER if wait <= 0 and not moved.handled else 0.0
        return min(LONGEST_WAIT, max(shortest, wait))


class ClockGuard:
    """Holds entries back that only a sudden jump of Redis' clock has made due.

    A jump forward by more than :data:`STEP` that this machine's wall clock does not confirm is
    believed only after :data:`PATIENCE`.  A jump backward makes tasks late, never early.

    A move is told the latest instant that is no jump, and does nothing beyond it; else the first
    batch after a jump would be gone before anybody knew.
    """

    #: Seconds of jump that are noticed.
    STEP = 2.0
    #: Seconds by which a clock that confirms may differ.
    AGREEMENT = 1.0
    #: Seconds for which entries are held back.
    PATIENCE = 60.0
    #: An answer that took longer, in seconds, says too little of the store's clock.
    SLOW = 0.5

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset: float | None = None
        self._asked_at = 0.0
        self._jump = 0.0
        self._until = 0.0

    @property
    def hold_ms(self) -> int:
        """For how long an entry must have been due to be moved now."""
        return round(self._jump * 1000) if self._clock.boot() < self._until else 0

    @property
    def now_ms(self) -> float:
        """The store's time, as far as it is known; 0 if nothing is."""
        return 0.0 if self._offset is None else (self._offset + self._clock.boot()) * 1000

    @property
    def latest_ms(self) -> int:
        """The store's time may be this now without a jump; 0 while nothing is known of it."""
        if self._offset is None:
            return 0
        return round((self._offset + self._clock.boot() + self.STEP) * 1000)

    def saw(self, store_ms: int, asked_at: float, answered_at: float) -> None:
        """Compare the store's clock with this machine's.

        Arguments:
            store_ms: the store's time, taken between the two instants of the boot clock.
        """
        if asked_at < self._asked_at or answered_at - asked_at > self.SLOW:
            return  # older than what is known, or the process was paused
        self._asked_at = asked_at
        store = store_ms / 1000
        offset = store - answered_at
        jump = 0.0 if self._offset is None else offset - self._offset
        self._offset = offset
        if abs(jump) <= self.STEP:
            return
        wall = self._clock.wall() - (self._clock.boot() - answered_at)
        if jump < 0:
            logger.error(
                "Redis' clock went back by %.1f s: tasks are late until it has caught up",
                -jump,
                extra={"event": "clock_stepped", "seconds": jump},
            )
            self._until = 0.0
        elif abs(store - wall) <= self.AGREEMENT:
            self._until = 0.0
        else:
            self._jump, self._until = jump, answered_at + self.PATIENCE
            logger.error(
                "Redis' clock jumped by %.1f s and this machine's did not: what that made due is"
                " held back for %.0f s",
                jump,
                self.PATIENCE,
                extra={"event": "clock_stepped", "seconds": jump},
            )
