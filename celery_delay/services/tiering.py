"""Redis → SQL: when more waits in Redis than ``delay_hot_max``, the latest go to SQL alone.

And how many wait there, noted in Redis now and then for those who watch it.

One step at a time, in the auditor's thread, for the leader.  SQL says first that they are cold,
then Redis gives them up; the relay brings them back in time, and also where a crash came between.
"""

from __future__ import annotations

import logging

from celery_delay.domain.backing import COLD, BackedRow, has_key
from celery_delay.domain.clock import Clock
from celery_delay.domain.mirrors import BackedRows, BackedStore
from celery_delay.domain.settings import Settings
from celery_delay.services.relay import PAGE

__all__ = ["COUNT_EVERY", "LAST_MINUTE_MS", "Tiering"]

logger = logging.getLogger(__name__)

#: How long before its eta an entry that had to go comes back at the latest, in ms.
LAST_MINUTE_MS = 60_000
#: Seconds between two counts of what waits in SQL alone.
COUNT_EVERY = 10.0
#: Seconds before all are looked at again for what may go.
BEGIN_EVERY = 1.0
_WHY = {"reason": "delay_hot_max"}


class Tiering:
    """Keeps the number of one shard's entries in Redis; called by the auditor's thread.

    Arguments:
        store: the mirror.
        rows: the truth.
    """

    def __init__(
        self,
        shard: int,
        store: BackedStore,
        rows: BackedRows,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._shard, self._store, self._rows = shard, store, rows
        self._clock, self._has_cold = clock, bool(settings.hot_window or settings.hot_max)
        self._count_at = self._begin_at = 0.0
        #: Eta and task id of the last one that was looked at.
        self._behind: tuple[int, str] | None = None
        self._most = -(-settings.hot_max // settings.shards)

    def run_once(self) -> bool:
        """Take out a page of those beyond the limit, if there are any.

        Returns:
            Whether there may be more.

        Raises:
            AuditUnavailable, StoreUnavailable, OutcomeUnknown: the relay brings back what was
                under way.
        """
        if not self._has_cold:
            return False
        epoch, is_compared = self._store.compared()
        if not is_compared:
            return False
        self._count(epoch)
        if not self._most:
            return False
        surplus = self._store.scheduled() - self._most
        if surplus <= 0:
            self._behind = None
            return False
        now_ms = self._store.now_ms()
        found = self._latest(now_ms + 2 * LAST_MINUTE_MS)
        out = [one for one in found if not has_key(one)][:surplus]
        gone = self.page_out(out, epoch, now_ms)
        if gone:
            logger.info(
                "%d tasks went to SQL: more than delay_hot_max wait in Redis",
                gone,
                extra={"event": "paged_out", "count": gone},
            )
        return bool(found) and gone < surplus

    def _latest(self, after_ms: int) -> list[BackedRow]:
        """The next page of what may go, beginning with the latest.

        A page may be full of tasks that must stay.  When all were looked at, it begins anew a
        while later.
        """
        now = self._clock.monotonic()
        if self._behind is None and now < self._begin_at:
            return []
        found = self._rows.latest(self._shard, after_ms, self._behind, PAGE)
        self._behind = (found[-1].eta_ms, found[-1].entry_id.task_id) if found else None
        if len(found) < PAGE:
            self._behind, self._begin_at = None, now + BEGIN_EVERY
        return found

    def _count(self, epoch: int) -> None:
        now = self._clock.monotonic()
        if now >= self._count_at:
            self._count_at = now + COUNT_EVERY
            self._store.note_cold(self._rows.count_cold(self._shard), epoch)

    def page_out(self, rows: list[BackedRow], epoch: int, now_ms: int) -> int:
        """Make *rows* cold; how many have left Redis."""
        colder = [
            (one, one._replace(version=one.version + 1, tier=COLD, look_ms=now_ms)) for one in rows
        ]
        out = [
            one for one in self._rows.change(colder) if self._store.apply(one, epoch, _WHY) == "OK"
        ]
        self._rows.look_again([one._replace(look_ms=one.eta_ms - LAST_MINUTE_MS) for one in out])
        return len(out)
