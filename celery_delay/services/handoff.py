"""The claim path: due entries to a broker that no move reaches.

An entry is *claimed* (taken out of its schedule under a token, for a bounded time), its
message is *published*, and when the broker has confirmed it, the claim is *acked* and the entry
forgotten.  What a crash leaves depends on where it comes:

* before the publish: the claim ends by itself, and the entry is *rescued*, a little late;
* between the publish and the ack: the same, and its message comes a second time.  At most
  :data:`ACK_WINDOW` messages are ever there; half of them go out while the others are acked.

A claim is good for longer than its holder trusts it: nothing is published later than
:data:`PUBLISH_WITHIN` after the claim was asked for, on the boot clock, looked at before each
message and each write.  So a process that was paused in the middle does not publish what others
have rescued meanwhile.

A broker that fails opens the circuit: nothing is claimed, the entries stay where they can be
listed and cancelled, and once a second a probe that reaches no queue asks whether it is back.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

from celery_delay.domain import series
from celery_delay.domain.claims import Claims, ClaimStore, Publisher, Publishing, Told
from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Claimed
from celery_delay.domain.ports import LeaseRecord, StaleEpoch
from celery_delay.domain.series import UNMETERED, Meter
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.dispatcher import LONGEST_WAIT, RETRY_AFTER, ClockGuard
from celery_delay.services.rooms import Rooms

__all__ = ["ACK_WINDOW", "Handoff"]

logger = logging.getLogger(__name__)

#: Entries that one claim takes at most.
CLAIM_SIZE = 100
#: Messages that are sent and not acked yet, at most.
ACK_WINDOW = 20
#: For how long after it was asked for a claim is published from, in seconds.
PUBLISH_WITHIN = 1.5
#: A claim outlives the last confirm that its holder may wait for by this, in seconds.
MARGIN = 0.5
#: How often a failing broker is probed, and dead claims are looked for, in seconds.
PROBE_EVERY = RESCUE_EVERY = 1.0

#: Where an entry goes whose message the broker has certainly not taken: to its schedule, among
#: the blocked ones, into quarantine; see ``store/claims.py``.
_RETURNS = {Publishing.AWAY: "S", Publishing.DECLINED: "B", Publishing.REFUSED: "Q"}


class Handoff:
    """Hands one shard's entries to the broker; called by one thread.

    Arguments:
        sources: the schedules that it serves: ``outbound``, and ``schedule`` where no move is
            possible.
        rooms: tells what queues have room for; ``None``: all have enough.
    """

    def __init__(
        self,
        store: ClaimStore,
        publisher: Publisher,
        settings: Settings,
        clock: Clock,
        sources: Sequence[str] = ("outbound",),
        rooms: Rooms | None = None,
        meter: Meter = UNMETERED,
    ) -> None:
        self._store = store
        self._meter = meter
        self._rooms = rooms or Rooms({}, publisher, clock)
        self._publisher = publisher
        self._clock = clock
        self.sources = sources
        #: Set when the process ends: what is claimed and not sent yet goes back.
        self.stopping = False
        self._backstop_ms = round(settings.backstop * 1000)
        self._ttl_ms = round((PUBLISH_WITHIN + settings.confirm_timeout + MARGIN) * 1000)
        self._guard = ClockGuard(clock)
        self._rescue_at = self._probe_at = 0.0
        self._failure = ""
        #: The failure that the store was told of; ``None``: what it knows is from before us.
        self._told: str | None = None
        #: Confirmed messages that could not be acked, by token.
        self._unacked: list[tuple[str, list[str]]] = []
        self._published = 0

    def run_once(self, term: Callable[[], int | None]) -> float:
        """Publish all that is due, as the leader.

        Arguments:
            term: tells the term in which this replica leads, now; asked before each claim.

        Returns:
            Seconds until the next entry is due, or until a failing broker is probed.

        Raises:
            StoreUnavailable: what was confirmed is acked as soon as the store is back.
        """
        while term() is not None:
            wait = self._pass()
            self._tell(self._failure)
            if wait is not None:
                return wait
        return LONGEST_WAIT

    def steal(self, seen: LeaseRecord, asked_at: float, seen_at: float) -> int:
        """Publish what the leader leaves lying, as a standby; see ``Dispatcher.steal``."""
        self._guard.saw(seen.now_ms, asked_at, seen_at)
        self._told = None  # what the broker's failure is, is now another's to tell
        heads = {
            "outbound": (seen.outbound_due_ms, seen.published_ms),
            "schedule": (seen.head_due_ms, seen.progress_ms),
        }
        late = seen.now_ms - self._backstop_ms
        overdue = [heads[one] for one in self.sources]
        if not any(due is not None and max(due, progress) < late for due, progress in overdue):
            self._probe()
            return 0
        before = self._published
        while self._pass(self._backstop_ms) is None:
            pass
        stolen = self._published - before
        self._meter.count(series.STOLEN, stolen)
        return stolen

    def close(self) -> None:
        """Ack what can be acked, and drop the broker's connection."""
        try:
            self._ack_the_rest()
        finally:
            self._publisher.close()

    def _pass(self, steal_ms: int = 0) -> float | None:
        """One claim of each source; seconds to wait, or ``None`` if there may be more."""
        self._ack_the_rest()
        self._rescue()
        if (pause := self._probe()) > 0:
            return pause
        waits: list[float] = []
        for source in self.sources:
            token, asked_at = uuid.uuid4().hex, self._clock.boot()
            try:
                claims = self._claim(token, source, steal_ms)
            except StaleEpoch:
                return RETRY_AFTER  # the leader's dispatcher names the history
            failure = self._publish(token, claims.taken, asked_at)
            if failure:
                self._break(failure)
                return PROBE_EVERY
            waits.append(0.0 if claims.handled else self._wait(claims))
        return min(waits) or None

    def _claim(self, token: str, source: str, steal_ms: int) -> Claims:
        for _ in range(2):
            asked_at = self._clock.boot()
            claims = self._store.claim(
                token=token,
                limit=CLAIM_SIZE,
                ttl_ms=self._ttl_ms,
                source=source,
                hold_ms=self._guard.hold_ms,
                steal_ms=steal_ms,
                latest_ms=self._guard.latest_ms,
                rooms=self._rooms.known(),
            )
            self._guard.saw(claims.now_ms, asked_at, self._clock.boot())
            if not claims.unmoved:
                break
        self._rooms.took(claims.taken)
        self._meter.count(series.EXPIRED, claims.expired)
        if claims.quarantined:
            self._tell_quarantined(claims.quarantined)
        if claims.failure:
            logger.error(
                "entries are held back: %s", claims.failure, extra={"event": "entries_blocked"}
            )
        return claims

    def _publish(self, token: str, taken: Sequence[Claimed], asked_at: float) -> str:
        """Publish what was claimed; why the broker cannot be used, or ""."""
        if not taken:
            return ""
        failure, until = self._publisher.connect(), asked_at + PUBLISH_WITHIN
        lost: StoreUnavailable | None = None

        def may_send() -> bool:
            able = not failure and lost is None and not self.stopping
            return able and self._clock.boot() < until

        for told in self._publisher.publish(taken, may_send, ACK_WINDOW):
            self._note(token, told)  # also without a store, for those that are under way
            try:
                found = self._settle(token, told) if lost is None else ""
                failure = failure or found
            except StoreUnavailable as exc:
                lost = exc
        if lost is not None:
            raise lost
        return failure

    def _settle(self, token: str, told: Sequence[Told]) -> str:
        """Ack what is confirmed, give back what is not sent; the broker's failure, or ""."""
        failure = ""
        returns: list[tuple[str, str, str]] = []
        for one, outcome, why in told:
            task_id = one.entry_id.task_id
            if outcome in (Publishing.AWAY, Publishing.UNKNOWN):
                failure = failure or why
            if outcome in _RETURNS:
                returns.append((task_id, _RETURNS[outcome], why))
            elif outcome is Publishing.UNKNOWN:
                logger.warning(
                    "no word of the message of %s came: it may be sent twice",
                    task_id,
                    extra={"event": "publish_unknown", "task_id": task_id},
                )
        self._ack_the_rest()
        if returns:
            self._store.give_back(token, returns)
            for task_id, where, why in returns:
                if where == _RETURNS[Publishing.REFUSED]:
                    self._tell_quarantined(1, f"{task_id}: {why}")
        return failure

    def _count(self, one: Claimed, outcome: Publishing) -> None:
        if outcome is not Publishing.CONFIRMED:
            self._meter.count(series.BROKER_ERRORS, 1, (outcome.value,))
        elif self._meter.is_counting:
            self._meter.count(series.DISPATCHED, 1, one.route)
            self._meter.observe(series.LAG, max(0.0, self._guard.now_ms - one.eta_ms) / 1000)

    def _note(self, token: str, told: Sequence[Told]) -> None:
        """Count what became of messages, and note what is to be acked."""
        sent = []
        for one, outcome, _ in told:
            self._count(one, outcome)
            if outcome is Publishing.CONFIRMED:
                sent.append(one.entry_id.task_id)
        if sent:
            self._published += len(sent)
            self._unacked.append((token, sent))

    def _ack_the_rest(self) -> None:
        while self._unacked:
            self._store.ack(*self._unacked[0])
            self._unacked.pop(0)

    def _rescue(self) -> None:
        if self._clock.monotonic() < self._rescue_at:
            return
        rescued = self._store.rescue(latest_ms=self._guard.latest_ms)
        # only now: a failed attempt is made up for at once
        self._rescue_at = self._clock.monotonic() + RESCUE_EVERY
        if rescued:
            self._meter.count(series.RESCUED, rescued)
            logger.warning(
                "%d entries are published again: nobody told what became of them",
                rescued,
                extra={"event": "entries_rescued", "count": rescued},
            )

    def _probe(self) -> float:
        """Seconds to wait for a failing broker; 0 when there is none, or no more."""
        if not self._failure:
            return 0.0
        wait = self._probe_at - self._clock.monotonic()
        if wait > 0:
            return wait
        failure = self._publisher.probe()
        if failure:
            self._failure = failure
            self._probe_at = self._clock.monotonic() + PROBE_EVERY
            return PROBE_EVERY
        self._failure = ""
        logger.info("the broker takes messages again", extra={"event": "broker_recovered"})
        return 0.0

    def _break(self, failure: str) -> None:
        if not self._failure:
            logger.error(
                "no message can be published, entries wait: %s",
                failure,
                extra={"event": "broker_failing"},
            )
        self._failure = failure
        self._probe_at = self._clock.monotonic() + PROBE_EVERY

    def _tell(self, failure: str) -> None:
        """Leave word of the broker for whoever asks; a Redis too full for it stops nothing."""
        if failure == self._told:
            return
        with suppress(StoreUnavailable):
            self._store.tell_broker(failure)
            self._told = failure

    def _tell_quarantined(self, count: int, why: str = "") -> None:
        self._meter.count(series.QUARANTINED, count)
        logger.error(
            "%d entries cannot be handed off and are quarantined (%s): see `celery delay status`",
            count,
            why or "their records are damaged",
            extra={"event": "entries_quarantined", "count": count},
        )

    @staticmethod
    def _wait(claims: Claims) -> float:
        if claims.next_due_ms is None:
            return LONGEST_WAIT
        # what is due and was not taken is held back
        wait = (claims.next_due_ms - claims.now_ms) / 1000
        return min(LONGEST_WAIT, wait if wait > 0 else RETRY_AFTER)
