"""What a lost Redis history took with it, said loudly.

With ``delay_audit = "async"`` the messages are in Redis only: a Redis that was emptied, or
came back without its last writes, cannot be rebuilt.  It must not be passed over in silence
either.  So in every new epoch each entry that the audit believes to be waiting is looked
for in the store, and is LOST if it is not there: in the audit, in the log, and as a result
that makes ``get()`` raise.

An entry may leave the store between the two looks.  Whatever takes it out journals that in
the same step; therefore what is missing is only suspected, the journal is drained, and what
SQL still takes for waiting *then* is lost.  Should a hand-off be told later all the same,
its state outranks LOST.

A crash leaves the epoch unreconciled; the next leader begins from the first entry.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import ReconcileStore, Transition, WaitingEntries
from celery_delay.domain.states import State

__all__ = ["Reconciler"]

logger = logging.getLogger(__name__)

#: Entries looked for in one pass.
PAGE = 500


class Reconciler:
    """Reconciles one shard; called by the auditor's thread whenever the journal is drained."""

    def __init__(self, store: ReconcileStore, log: WaitingEntries) -> None:
        self._store = store
        self._log = log
        self._turn: tuple[int, int] | None = None
        self._after: EntryId | None = None
        self._suspects: Sequence[EntryId] = ()
        self._lost = 0

    def run_once(self, term: int) -> bool:
        """Look for one page of entries.

        Returns:
            Whether there is more to do; the journal must be drained before the next call.

        Raises:
            AuditUnavailable, StoreUnavailable: the page is looked at again.
        """
        epoch, reconciled = self._store.history()
        if not epoch or reconciled == epoch:
            return False
        if self._turn != (term, epoch):
            self._turn, self._after, self._suspects, self._lost = (term, epoch), None, (), 0
        lost = self._log.still_waiting(self._suspects)
        if lost:
            # version 0: whichever it had; a lower one than it had would be no news
            self._store.record([Transition(one, 0, State.LOST, {}) for one in lost])
            self._lost += len(lost)
        self._suspects = ()
        page = self._log.waiting(self._after, PAGE)
        if not page:
            self._store.reconciled(epoch)
            self._tell()
            return bool(lost)
        self._suspects = self._store.missing(page)
        self._after = page[-1]
        return True

    def _tell(self) -> None:
        if self._lost:
            logger.error(
                "%d delayed tasks are LOST: Redis did not keep them",
                self._lost,
                extra={"event": "entries_lost", "count": self._lost},
            )
        else:
            logger.info(
                "no delayed task is missing in this Redis history",
                extra={"event": "history_reconciled"},
            )
