"""One beat process' part in the whole: its threads, shard by shard.

Each shard has an elector thread with a connection of its own, a dispatcher thread, a publisher
thread for what no move reaches, and an auditor thread, the only one that touches SQL.  They
share nothing but the elector's answer to "in which term do we lead?" and bells.  One more
thread, of the whole process, answers remote control.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import uuid

from celery_delay.app import CeleryDelay
from celery_delay.audit.pruning import SQLPruning
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.beats import observing
from celery_delay.beats.eviction import warn_of_eviction
from celery_delay.beats.node import Node
from celery_delay.beats.path import HandoffPath
from celery_delay.beats.watching import watch_loop
from celery_delay.broker.publisher import BrokerPublisher
from celery_delay.domain.series import LAG_BOUNDS_MS
from celery_delay.exceptions import AuditUnavailable, ForeignDatabase
from celery_delay.metrics.health import ShardHealth
from celery_delay.services.auditor import Auditor
from celery_delay.services.dispatcher import LONGEST_WAIT, RETRY_AFTER, Dispatcher
from celery_delay.services.elector import Elector
from celery_delay.services.handoff import Handoff
from celery_delay.services.loops import Loop
from celery_delay.services.pruner import Pruner
from celery_delay.services.reconciler import Reconciler
from celery_delay.services.relay import Relay
from celery_delay.services.rooms import Rooms
from celery_delay.services.setback import SetBack
from celery_delay.services.tiering import Tiering
from celery_delay.store.keys import ShardKeys
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore
from celery_delay.telemetry.tracing import Batches

__all__ = ["Replica"]

logger = logging.getLogger(__name__)


class Replica:
    """The threads of one beat process.  Made and started after the process has forked."""

    def __init__(self, delayed: CeleryDelay) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._clock, path = delayed.clock, HandoffPath(delayed)
        tally = observing.begin(delayed)
        #: When (boot clock) Celery's loop last called.
        self.ticked_at = self._clock.boot()
        self.shards = [_Shard(delayed, keys, self.holder, path) for keys in delayed.shard_keys]
        self._loops: list[Loop] = []
        if delayed.settings.remote_control:
            node = Node(delayed, self.term, self.holder)
            answering = Loop("remote-control", node.run_once, delayed.clock, last=node.close)
            self._loops.append(answering)
        if tally is not None:
            self._loops += observing.observers(delayed, tally, self.health, lambda: self.ticked_at)

    def term(self, shard: int = 0) -> int | None:
        """The term in which this replica leads the shard now."""
        return self.shards[shard].elector.term()

    def health(self) -> list[ShardHealth]:
        """What each shard tells of itself."""
        return [one.health() for one in self.shards]

    def start(self) -> None:
        """Start all threads."""
        for shard in self.shards:
            shard.start()
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """Tell all threads to end.  Takes no lock: a signal handler may call it."""
        for loop in self._loops:
            loop.stop()
        for shard in self.shards:
            shard.stop()

    def join(self, seconds: float) -> None:
        """Wait for the threads, *seconds* at most in all."""
        for shard in self.shards:
            seconds = shard.join(seconds)
        for loop in self._loops:
            seconds = loop.wait_for_end(seconds)


class _Shard:
    _draining: Loop | None = None
    _watching: Loop | None = None
    _pruner: Pruner | None = None
    #: The term at whose beginning the server was looked at.
    _inspected: int | None = None

    def __init__(
        self, delayed: CeleryDelay, keys: ShardKeys, holder: str, path: HandoffPath
    ) -> None:
        settings, self._clock, meter = delayed.settings, delayed.clock, delayed.meter
        self._number = number = keys.shard
        links = delayed.links()
        self._lease = RedisLease(links.with_timeout(settings.election_timeout).link(), keys, holder)
        self.elector = Elector(self._lease, holder, settings, self._clock, number, meter)
        self._store = RedisStore(links, keys, settings, self._clock)
        self._store.steps = delayed.list_endings()
        self._store.lag_bounds_ms = LAG_BOUNDS_MS if meter.is_counting else ()
        self._dispatcher = Dispatcher(self._store, settings, self._clock, meter)
        self._dispatcher.opening.on_return = self._wake_publisher
        publisher = BrokerPublisher(delayed.app, settings, self._clock)
        rooms = Rooms(self._store.limits.most, publisher, self._clock)
        parts = (self._store, publisher, settings, self._clock)
        self._handoff = Handoff(*parts, rooms=rooms, meter=meter)
        self._path = path
        #: Whether an entry that is to be published may have come to the head meanwhile.
        self._woken = True
        self._wake = links.waiter(keys.wake)
        self._handover = links.waiter(keys.handover)
        self._led: int | None = None
        #: Why this replica must not lead; it may when its audit database has been looked at.
        self._barred = ""
        self._dispatching = Loop(
            f"dispatcher-{number}",
            self._dispatch,
            self._clock,
            wait=self._wait_for_due,
            last=self._wake.close,
        )
        self._electing = Loop(
            f"elector-{number}",
            self._elect,
            self._clock,
            wait=self._wait_for_handover,
            last=self._resign,
        )
        self._publishing = Loop(
            f"publisher-{number}", self._hand_off, self._clock, last=self._handoff.close
        )
        self._loops = [self._dispatching, self._publishing, self._electing]
        if settings.audited:
            self._audit(delayed, keys)
        if settings.tracks:
            self._watching = watch_loop(delayed, keys, self.elector)
            self._loops.append(self._watching)
        observing.ask_shard(meter, number, self.elector, self._loops)

    def _audit(self, delayed: CeleryDelay, keys: ShardKeys) -> None:
        settings, number = delayed.settings, keys.shard
        store = RedisStore(delayed.links(), keys, settings, self._clock)
        log = delayed.audit_log
        waiting = SQLWaitingEntries(log.database)
        set_back = SetBack(number, store, waiting, delayed.cold_rows, settings)
        parts = (delayed.results, settings, self._clock, observing.outcomes(delayed), set_back)
        self._auditor = Auditor(number, store, log, *parts)
        self._reconciler = Reconciler(store, waiting)
        mirroring = number, store, delayed.backed_rows, settings, self._clock
        self._relay, self._tiering = Relay(*mirroring), Tiering(*mirroring)
        if settings.retention and number == 0:
            self._pruner = Pruner(SQLPruning(log.database), settings.retention, self._clock)
        name, last = f"auditor-{number}", self._drain_once_more
        self._draining = Loop(name, self._drain, self._clock, last=last)
        self._dispatcher.on_stale = self._draining.bell.ring
        self._loops.append(self._draining)
        self._barred = "its audit database has not been looked at yet"
        self._drain_interval = settings.drain_interval

    def start(self) -> None:
        self._dispatcher.tracing = Batches()
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        # the elector ends last: it gives the lease back when the running batch is done
        self._handoff.stopping = True
        self._dispatching.stop()
        self._publishing.stop()
        if self._watching is not None:
            self._watching.stop()
        self._electing.stop()

    def join(self, seconds: float) -> float:
        for loop in self._loops:
            seconds = loop.wait_for_end(seconds)
        return seconds

    def health(self) -> ShardHealth:
        ended = [one.name for one in self._loops if not one.is_alive()]
        sighting = self.elector.sighting
        answered_at = sighting and sighting[2]
        return ShardHealth(self._number, self._electing.seen_at, answered_at, self._barred, ended)

    # -- elector thread -----------------------------------------------------------------

    def _elect(self) -> float:
        if self._barred:
            self.elector.resign()
            self._led = None
            return LONGEST_WAIT
        wait = self.elector.run_once()
        term, seen = self.elector.term(), self.elector.seen
        if term != self._led:
            self._led = term
            self._handover.close()
            self._dispatching.bell.ring()
            self._wake_publisher()
        elif seen is not None:
            # A standby's dispatcher decides whether that is to be stolen.  The leader's has
            # missed a wake-up if it waits: Redis gave the token to a frozen former leader.
            if seen.now_ms > (seen.head_due_ms or math.inf):
                self._dispatching.bell.ring()
            if seen.now_ms > (seen.outbound_due_ms or math.inf):
                self._wake_publisher()
        return wait

    def _wait_for_handover(self, seconds: float) -> None:
        if self.elector.term() is not None:
            self._electing.bell.wait(seconds)
        else:
            self._handover.wait(seconds, self._electing.bell.fileno())
            self._electing.bell.hush()

    def _resign(self) -> None:
        self._dispatching.join(0.3)
        try:
            self.elector.resign()
        finally:
            self._handover.close()
            self._lease.close()
            if self._draining is not None:
                self._draining.stop()

    # -- dispatcher thread --------------------------------------------------------------

    def _dispatch(self) -> float:
        self._path.choose()
        self._dispatcher.moves = self._path.moves
        if self.elector.term() is not None:
            if self._led != self._inspected:
                self._inspected = self._led
                warn_of_eviction(self._store)
            return self._dispatcher.run_once(self.elector.term)
        sighting = self.elector.sighting
        if sighting is not None:
            self._dispatcher.steal(*sighting)
        return LONGEST_WAIT

    def _wait_for_due(self, seconds: float) -> None:
        if self.elector.term() is None:
            # only the leader may take the wake token
            self._wake.close()
            self._dispatching.bell.wait(seconds)
        else:
            if self._wake.wait(seconds, self._dispatching.bell.fileno()):
                self._wake_publisher()
            self._dispatching.bell.hush()

    # -- publisher thread ---------------------------------------------------------------

    def _wake_publisher(self) -> None:
        self._woken = True
        self._publishing.bell.ring()

    def _hand_off(self) -> float:
        if self._path.chosen is None:
            return RETRY_AFTER
        if not self._path.moves:
            self._handoff.sources = ("outbound", "schedule")
        seen, sighting = self.elector.seen, self.elector.sighting
        woken, self._woken = self._woken, False
        if self.elector.term() is not None:
            if not woken and self._path.moves and seen and seen.outbound_due_ms is None:
                return LONGEST_WAIT  # there is nothing to publish, and nothing to rescue
            return self._handoff.run_once(self.elector.term)
        if sighting is not None and self._handoff.steal(*sighting):
            return 0.0
        return LONGEST_WAIT

    # -- auditor thread -----------------------------------------------------------------

    def _drain(self) -> float:
        if self._barred:
            self._verify()
        term = self.elector.term()
        if term is None:
            return self._drain_interval
        if self._auditor.run_once(term):
            return 0.0
        if self._relay.run_once(term) or self._tiering.run_once():
            return 0.0
        if self._reconciler.run_once(term):
            return 0.0
        if self._pruner is not None and self._pruner.run_once():
            return 0.0
        return self._drain_interval

    def _verify(self) -> None:
        """Whether the audit database is this store's; one that is away is no reason not to lead."""
        try:
            self._auditor.verify()
        except ForeignDatabase as exc:
            self._barred = str(exc)
            raise
        except AuditUnavailable:
            self._barred = ""
            raise
        self._barred = ""
        self._electing.bell.ring()

    def _drain_once_more(self) -> None:
        # without the lease: the cursor's compare-and-set makes two drainers safe
        if self._led is not None:
            self._auditor.run_once(self._led)
