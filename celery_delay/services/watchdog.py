"""What was handed off and got lost on the way: sent again.

A killed worker takes along what it had fetched and not written down, and what it had
acknowledged and not begun; Celery never speaks of it again.  With ``delay_guard`` a moved entry
is kept until a worker tells that it has begun or, where the broker keeps its message until then
(``acks_late``), that it is over.  The leader looks for those of which nothing was heard for
``delay_guard_patience``: on their queues, and among the messages that the broker knows workers
to have.  What is in neither place at two such looks in a row is sent again, in the same step
that has not found it.

One look is not enough: between taking a message and writing that down a worker has it in its
hands alone.  What is worse than a message that comes late is one that was begun by somebody who
does not say so; hence queues from which such workers take messages are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from celery_delay.domain.clock import Clock
from celery_delay.domain.settings import Settings
from celery_delay.domain.tracing import Tracing
from celery_delay.domain.watches import Fleet, Look, WatchStore

__all__ = ["Watchdog"]

logger = logging.getLogger(__name__)

#: The longest wait between two looks, and the pause between full batches, in seconds.
LONGEST_WAIT, BETWEEN_BATCHES = 1.0, 0.05
#: For how long the workers' answers count, in seconds; they are asked when something is missing.
ASK_EVERY = 60.0
#: How often marks of dead workers are looked for, in seconds.
FORGET_EVERY = 10.0
#: A batch that has looked at fewer was the last one.
_FULL = 200


class Watchdog:
    """Watches over one shard's hand-offs; called by one thread."""

    def __init__(
        self, shard: int, store: WatchStore, fleet: Fleet, settings: Settings, clock: Clock
    ) -> None:
        self._shard = shard
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._guards = settings.guards
        # a look that finds something missing is followed by the next after this time at least
        self._ask_every = min(ASK_EVERY, settings.guard_patience)
        self._asked_at: float | None = None
        self._strangers: Mapping[str, Sequence[str]] = {}
        self._forget_at = 0.0
        self._failure = ""
        #: Whom each look is told that sends something again.
        self.tracing: Tracing | None = None

    def run_once(self, term: int) -> float:
        """One batch of looks, as the leader in *term*; seconds until the next.

        Raises:
            StoreUnavailable: some may have been sent.
        """
        self._forget_marks(term)
        span = self.tracing.begin() if self.tracing is not None else None
        look = self._store.watch_over(
            term=term,
            spared=self._strangers,
            traceparent=span.traceparent if span is not None else "",
        )
        if look is None:
            return LONGEST_WAIT
        if span is not None:
            span.end(len(look.sent), look.max_lag_ms)
        if look.missing:
            self._ask()
        self._tell(look)
        if look.looked >= _FULL:
            return BETWEEN_BATCHES
        if look.next_look_ms is None:
            return LONGEST_WAIT
        return min(LONGEST_WAIT, max(BETWEEN_BATCHES, (look.next_look_ms - look.now_ms) / 1000))

    def _forget_marks(self, term: int) -> None:
        if self._guards and self._clock.monotonic() >= self._forget_at:
            self._store.forget_marks(term=term)
            self._forget_at = self._clock.monotonic() + FORGET_EVERY

    def _ask(self) -> None:
        """Which queues have workers that do not report; before anything of them is sent again."""
        now = self._clock.monotonic()
        if self._asked_at is not None and now - self._asked_at < self._ask_every:
            return
        self._asked_at = now
        before, self._strangers = self._strangers, self._fleet.strangers()
        if self._strangers and set(before) != set(self._strangers):
            told = "; ".join(
                f"{queue}: {', '.join(names)}" for queue, names in sorted(self._strangers.items())
            )
            logger.error(
                "nothing of these queues is sent again, for workers that do not report what they"
                " begin take messages from them (%s): set delay_guard there and restart them",
                told,
                extra={"event": "watch_blind", "shard": self._shard, "queues": told},
            )

    def _tell(self, look: Look) -> None:
        for one in look.sent:
            logger.warning(
                "%s is sent again: its message was found nowhere, and it is not over",
                one,
                extra={"event": "sent_again", "task_id": one.task_id, "run": one.run},
            )
        for one in look.given_up:
            logger.error(
                "%s is given up: the message and each copy of it got lost",
                one,
                extra={"event": "watch_given_up", "task_id": one.task_id, "run": one.run},
            )
        if look.unwatched:
            logger.warning(
                "%d tasks were handed off unwatched: more than delay_guard_most have not begun",
                look.unwatched,
                extra={"event": "watch_full", "shard": self._shard, "count": look.unwatched},
            )
        if look.failure and look.failure != self._failure:
            logger.error(
                "what has not begun cannot be looked for: %s",
                look.failure,
                extra={"event": "watch_failing", "shard": self._shard},
            )
        self._failure = look.failure
