"""Journal → SQL: the leader's drain, one batch at a time.

The order of a batch is what makes it safe to die anywhere in it:

1. **SQL commits** the events and the cursor, in one transaction.
2. **Results** are written for entries that ended before any worker saw them.
3. **The journal is trimmed** up to what was committed.

A crash before 1 leaves nothing behind.  A crash between 1 and 3 leaves journal entries
that are in SQL already, and perhaps a task whose ``get()`` still waits.  So each term of
leadership begins by reading the journal from its very start, not from the cursor: SQL
recognises the events and drops them, the results are written again (which changes nothing
where one is there), and then the trim is made up for.

Two drainers at once, as when a leader hands over, do no harm: the cursor moves by
compare-and-set, and the second one has written nothing.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import GAP, GAP_ID, Event
from celery_delay.domain.ports import AuditLog, JournalPosition, JournalStore, Results
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import AuditUnavailable, ForeignDatabase
from celery_delay.services.outcomes import Outcomes
from celery_delay.services.setback import SetBack

__all__ = ["Auditor"]

logger = logging.getLogger(__name__)

#: From the largest batch that can be set down to a single event.
MOST_HALVINGS = 14


class _Turn(NamedTuple):
    """The stretch of time in which what was checked and read stays true."""

    term: int
    epoch: int


class Auditor:
    """Drains one shard's journal.  Not safe for threads; has one of its own.

    Arguments:
        shard: the shard's number.
        store: its journal.
        log: the SQL side.
        results: the result backend.
        outcomes: counts what was drained; ``None``: nobody does.
        set_back: settles what left while the database had it otherwise; ``None``: nobody does.
    """

    def __init__(
        self,
        shard: int,
        store: JournalStore,
        log: AuditLog,
        results: Results,
        settings: Settings,
        clock: Clock,
        outcomes: Outcomes | None = None,
        set_back: SetBack | None = None,
    ) -> None:
        self._outcomes = outcomes
        self._set_back = set_back
        self._shard = shard
        self._store = store
        self._log = log
        self._results = results
        self._settings = settings
        self._clock = clock
        self._turn: _Turn | None = None
        self._done = "0"
        #: How often the batch was halved: one that takes SQL too long would never get there.
        self._halvings = 0

    def verify(self) -> str:
        """Make sure that the database is usable and belongs to this store; its uuid.

        A store without an audit database takes this one as its own.

        Raises:
            ForeignDatabase: it is another store's, or this store's is another.
            SchemaOutdated: its tables need ``celery delay migrate``.
            AuditUnavailable: it cannot be reached.
            StoreUnavailable: Redis cannot.
        """
        uuid = self._log.prepare()
        known = self._store.audit_id(uuid)
        if known != uuid:
            raise ForeignDatabase(
                f"the audit database bears the uuid {uuid}, but the delayed tasks in Redis"
                f" belong to {known}: check delay_database_url and delay_redis_url, or take it"
                " over with `celery -A proj delay migrate --adopt`"
            )
        return uuid

    def run_once(self, term: int) -> int:
        """Drain one batch as the leader of *term*.

        A batch ends with the journal entry that brings ``delay_drain_batch`` events.  After a
        failure of SQL the next is half as large, and they grow back.
        Safe to repeat after any error and any crash.

        Returns:
            How many journal entries it took; 0 when nothing is left (or this Redis history
            has no name yet).

        Raises:
            AuditUnavailable, StoreUnavailable: nothing is lost; try again later.
            ForeignDatabase: see :meth:`verify`.
        """
        try:
            drained = self._drain(term)
            self._halvings = max(0, self._halvings - 1)
            return drained
        except Exception as exc:
            if isinstance(exc, AuditUnavailable):
                self._halvings = min(self._halvings + 1, MOST_HALVINGS)
            # whatever comes back need not be what went away
            self._turn = None
            raise

    def _drain(self, term: int) -> int:
        begun = self._clock.monotonic()
        _, _, epoch = self._store.leader()
        if not epoch:
            return 0
        turn = _Turn(term, epoch)
        if turn != self._turn:
            self.verify()
            self._look_for_a_hole()
            self._done = "0"
            self._turn = turn
        batch = self._read()
        if not batch:
            return 0
        position = self._log.position(self._shard, epoch)
        if position.epoch > epoch:
            # nothing would be written; the elector must give this history a higher epoch
            raise AuditUnavailable(
                f"the audit knows epoch {position.epoch}, but Redis is in epoch {epoch}:"
                " it was set back to an older state"
            )
        last_id = batch[-1][0]
        events = [event for _, events in batch for event in events]
        endings = self._log.take(position, events, last_id)
        if endings is None:
            # another drainer was first; the next read finds what it has left
            return len(batch)
        for ending in endings:
            self._results.end(ending)
        self._store.trim_journal(JournalPosition(self._shard, epoch, last_id), term=term)
        self._done = last_id
        if self._outcomes is not None:
            self._outcomes.drained(position, events)
        logger.debug(
            "drained a batch of the journal",
            extra={
                "event": "journal_drained",
                "events": len(events),
                "seconds": self._clock.monotonic() - begun,
            },
        )
        return len(batch)

    def _look_for_a_hole(self) -> None:
        """Tell of what the database once had and has no more.

        It was restored from a backup, or a standby was promoted that did not have all.  A crash
        leaves it to be told by the next leader; it is told once.
        """
        trimmed = self._store.trimmed()
        if trimmed is None:
            return
        position = self._log.position(self._shard, trimmed.epoch)
        if position.epoch != trimmed.epoch or not _is_behind(position.last_id, trimmed.last_id):
            return
        if self._set_back is not None:
            self._set_back.settle(int(trimmed.last_id.partition("-")[0]))
        at_ms = round(self._clock.wall() * 1000)
        facts = {"after": position.last_id, "until": trimmed.last_id, "why": "set back"}
        hole = Event(
            self._shard, trimmed.epoch, trimmed.last_id, 0, GAP, EntryId(GAP_ID, 0), 0, at_ms, None,
            facts,
        )  # fmt: skip
        if self._log.take(position, [hole], trimmed.last_id) is not None:
            logger.error(
                "the audit database was set back: what happened from %s to %s (ms since 1970) is"
                " not in it any more",
                position.last_id.partition("-")[0],
                trimmed.last_id.partition("-")[0],
                extra={"event": "audit_set_back", "shard": self._shard},
            )

    def _read(self) -> list[tuple[str, list[Event]]]:
        """Journal entries behind what is done, the oldest first."""
        limit = max(1, self._settings.drain_batch >> self._halvings)
        return self._store.read_journal(self._done, limit)


def _is_behind(one: str, other: str) -> bool:
    """Whether one stream id comes before another."""

    def numbers(stream_id: str) -> tuple[int, int]:
        milliseconds, _, sequence = stream_id.partition("-")
        return int(milliseconds), int(sequence or 0)

    return numbers(one) < numbers(other)
