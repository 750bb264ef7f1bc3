"""Who leads: an observed lease, as in Kubernetes' client-go.

The lease is a record {holder, term, seq} in Redis without time to live.  The holder renews
it by raising *seq*.  A standby watches the record and takes over when (term, seq) has not
changed for ``delay_lease`` seconds *on its own boot clock*.  No wall clock takes part: not
that of Redis, nor that of a host; setting one can neither expire the lease nor prolong it,
and nothing evicts it.

The leader believes in itself only until *start of its last successful renewal* +
``delay_lease_trust``, which ends before any standby can have waited long enough, even if
the answer was slow and clocks differ in rate by a third.  It looks before each batch.  A
process that was paused wakes up as nobody::

        renew          renew                      (paused)
    ----|--------------|--------------|- - - - - - - - - - - - - - - ->  leader
        [--- trust ----+----]         [--- trust ---]  nobody
                                      (seq unchanged) [---- lease ----]  standby takes over

Leadership is not what keeps a task from being handed off twice: the move script is atomic,
whoever calls it.  It keeps work from being done twice in vain, and orders what is not one
script (the drain to SQL, the firing of schedules), where each write names its term.

A leader that steps down gives the lease back and wakes one standby; a standby takes a
lease without holder at once.  A crash leaves the record as it was; the next leader comes
after ``delay_lease``.
"""

from __future__ import annotations

import logging
import random

from celery_delay.domain.clock import Clock
from celery_delay.domain.ports import Lease, LeaseRecord
from celery_delay.domain.series import ELECTIONS, UNMETERED, Meter
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable

__all__ = ["Elector"]

logger = logging.getLogger(__name__)


class Elector:
    """One replica's part in the election over one shard.

    :meth:`run_once` is called by one thread; :meth:`term` by any.
    """

    def __init__(
        self,
        lease: Lease,
        holder: str,
        settings: Settings,
        clock: Clock,
        shard: int = 0,
        meter: Meter = UNMETERED,
    ) -> None:
        self._lease = lease
        self._labels = (str(shard),)
        self._meter = meter
        meter.count(ELECTIONS, 0, self._labels)
        self._holder = holder
        self._settings = settings
        self._clock = clock
        self._term: int | None = None
        self._trusted_until = 0.0
        self._seen: LeaseRecord | None = None
        # for how long the record was watched and did not change
        self._watched = 0.0
        # when it was last looked at; None after a failure
        self._looked_at: float | None = None
        self._sighting: tuple[LeaseRecord, float, float] | None = None

    def term(self) -> int | None:
        """The term in which this replica leads now; ``None`` if it does not, or cannot be sure."""
        term = self._term
        return term if term is not None and self._clock.boot() < self._trusted_until else None

    @property
    def seen(self) -> LeaseRecord | None:
        """The lease as it was last seen."""
        return self._seen

    @property
    def sighting(self) -> tuple[LeaseRecord, float, float] | None:
        """The lease as it was last seen, and when (boot clock) it was asked for and answered."""
        return self._sighting

    def run_once(self) -> float:
        """Renew, take over or look.

        Returns:
            Seconds until the next call.

        Raises:
            StoreUnavailable: the attempt failed.  A leader goes on until its trust ends.
        """
        started = self._clock.boot()
        watched = self._watched
        if self._looked_at is not None:
            watched += started - self._looked_at
        try:
            record = self._lease.elect(seen=self._seen, may_take=watched >= self._settings.lease)
        except StoreUnavailable:
            # while the store is away its silence is not the leader's: that time does not count
            self._looked_at = None
            if self._term is not None and self.term() is None:
                self._step_down("its lease could not be renewed")
            raise
        if self._seen is None or (record.term, record.seq) != (self._seen.term, self._seen.seq):
            watched = 0.0
        self._watched = watched
        self._seen, self._looked_at = record, self._clock.boot()
        self._sighting = record, started, self._looked_at
        if record.holder == self._holder:
            self._trusted_until = started + self._settings.lease_trust
            if self._term != record.term:
                self._term = record.term
                self._meter.count(ELECTIONS, 1, self._labels)
                logger.info(
                    "%s leads (term %d)",
                    self._holder,
                    record.term,
                    extra={"event": "leader_elected", "term": record.term},
                )
            return self._settings.lease_renew
        if self._term is not None:
            self._step_down(f"{record.holder or 'nobody'} has the lease")
        # twice as often as the leader renews; not all standbys at the same instant
        return self._settings.lease_renew / 2 * random.uniform(0.9, 1.1)

    def resign(self) -> None:
        """Step down and let a standby lead at once.  Safe to call when not leading.

        Raises:
            StoreUnavailable: the lease could not be given back; it runs out by itself.
        """
        term, self._term = self._term, None
        if term is not None:
            self._lease.release(term)
            logger.info(
                "%s gave the lease back (term %d)",
                self._holder,
                term,
                extra={"event": "leader_resigned", "term": term},
            )

    def _step_down(self, why: str) -> None:
        logger.warning(
            "%s leads no more (term %s): %s",
            self._holder,
            self._term,
            why,
            extra={"event": "leader_lost", "term": self._term},
        )
        self._term = None
