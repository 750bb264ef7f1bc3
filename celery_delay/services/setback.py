"""What an SQL database that was set back still takes for waiting, and Redis has handed off since.

A restored backup, or a standby that was promoted without the last commits, lacks a stretch of time.
What left Redis in it waits in SQL for ever, and when Redis is next made anew it would be LOST, or
come back and run twice.  Redis knows better, as long as it is the same history: an entry that
it once had and has no more, and of which its journal does not tell, has left in that stretch.

What SQL had not brought to Redis yet may have come there and left in that stretch, or not: where
it was due in it, it is HELD, for somebody to decide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from celery_delay.domain.backing import HOT, BackedRow, is_open
from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.mirrors import BackedRows, BackedStore
from celery_delay.domain.ports import ReconcileStore, Transition, WaitingEntries
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import State

__all__ = ["PAGE", "SetBack"]

logger = logging.getLogger(__name__)

#: Entries looked for in one step.
PAGE = 2_000
_WHY = {"why": "the audit database was set back"}


class _Store(ReconcileStore, BackedStore, Protocol):
    def journalled(self) -> Iterator[Event]:
        """All that the journal tells."""
        ...

    def told(self, entry_ids: Sequence[EntryId]) -> set[EntryId]:
        """Those of which the journal tells."""
        ...


class _Rows(BackedRows, Protocol):
    def cold_before(
        self, shard: int, after: tuple[int, str], before_ms: int, limit: int
    ) -> list[BackedRow]: ...


class SetBack:
    """Settles one shard; called by the auditor's thread before it tells of the stretch.

    So after a crash it is done again, which changes nothing that was settled.
    """

    def __init__(
        self, shard: int, store: _Store, log: WaitingEntries, rows: _Rows, settings: Settings
    ) -> None:
        self._shard, self._store, self._log, self._rows = shard, store, log, rows
        self._window_ms = settings.window_ms
        self._journalled: set[int] = set()

    def settle(self, until_ms: int) -> None:
        """Settle what left before *until_ms*, the end of the stretch.

        Raises:
            AuditUnavailable, StoreUnavailable, OutcomeUnknown: call it again.
        """
        epoch, reconciled = self._store.history()
        named, is_compared = self._store.compared()
        if not epoch or reconciled != epoch or (named, is_compared) != (epoch, True):
            # what is missing in this history may not have come to it yet
            return
        # hashes, for this may be a lot: a few ten bytes each
        self._journalled = {hash(one.entry_id) for one in self._store.journalled()}
        left, held = 0, 0
        for page in self._hot():
            gone = self._gone(page)
            proven = [one.entry_id for one in gone if one.look_ms is None]
            left += self._tell(proven)
            held += self._hold(
                [one for one in gone if one.look_ms is not None and one.eta_ms <= until_ms], epoch
            )
        for page in self._cold(until_ms):
            held += self._hold(self._gone(page), epoch)
        for entry_ids in self._waiting():
            rows = self._rows.some(entry_ids)
            left += self._tell(
                self._untold(self._store.missing([one for one in entry_ids if one not in rows]))
            )
        self._journalled = set()
        if left or held:
            logger.error(
                "the audit database was set back: %d tasks that it takes for waiting were handed"
                " off or have ended since; %d were due meanwhile, nobody knows whether they were"
                " handed off, and they are HELD",
                left,
                held,
                extra={"event": "set_back_settled", "count": left, "held": held},
            )

    # -- pages --------------------------------------------------------------------------

    def _hot(self) -> Iterator[list[BackedRow]]:
        after: EntryId | None = None
        while page := self._rows.hot(self._shard, after, PAGE):
            yield page
            after = page[-1].entry_id

    def _cold(self, until_ms: int) -> Iterator[list[BackedRow]]:
        after = (0, "")
        while page := self._rows.cold_before(self._shard, after, until_ms, PAGE):
            yield page
            after = page[-1].eta_ms, page[-1].entry_id.task_id

    def _waiting(self) -> Iterator[list[EntryId]]:
        after: EntryId | None = None
        while page := self._log.waiting(after, PAGE):
            yield page
            after = page[-1]

    # -- parts --------------------------------------------------------------------------

    def _gone(self, rows: Sequence[BackedRow]) -> list[BackedRow]:
        """Open rows whose entries are not in Redis, and of which its journal does not tell."""
        opened = {one.entry_id: one for one in rows if is_open(one)}
        return [opened[one] for one in self._untold(self._store.missing(list(opened)))]

    def _untold(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        # what the journal had at first needs no second look, and may be a lot; the rest is asked
        # for anew, since an entry may leave between that and the look in Redis
        rest = [one for one in entry_ids if hash(one) not in self._journalled]
        told = self._store.told(rest) if rest else set()
        return [one for one in rest if one not in told]

    def _tell(self, entry_ids: Sequence[EntryId]) -> int:
        # cancelled is possible, too; but what may run must not be said to never run
        if entry_ids:
            self._store.record([Transition(one, 0, State.DISPATCHED, _WHY) for one in entry_ids])
        return len(entry_ids)

    def _hold(self, rows: Sequence[BackedRow], epoch: int) -> int:
        now_ms = self._store.now_ms()
        held = [
            (
                one,
                one._replace(
                    version=one.version + 1,
                    state=State.HELD,
                    tier=HOT,
                    epoch=epoch,
                    deadline_ms=now_ms + self._window_ms,
                    look_ms=now_ms,
                ),
            )
            for one in rows
            if one.state is State.SCHEDULED
        ]
        return len(self._rows.change(held))
