"""Old tasks leave the audit, a bounded batch at a time, while the drain has nothing to do.

One beat does it: the leader of the first shard.  A round goes through the states that
``delay_retention`` names; when nothing is left, the next begins :data:`PAUSE` later.  A batch is
one transaction: a crash, or another leader, goes on where this one was.
"""

from __future__ import annotations

import logging

from celery_delay.domain.clock import Clock
from celery_delay.domain.ports import PrunedLog
from celery_delay.domain.retention import Retention, ages
from celery_delay.exceptions import AuditUnavailable

__all__ = ["BATCH", "PAUSE", "Pruner"]

logger = logging.getLogger(__name__)

#: Seconds between two rounds, and after a failure.
PAUSE = 60.0
#: Tasks of one transaction; a failure halves it.
BATCH = 500


class Pruner:
    """Prunes the audit; called by the auditor's thread whenever the journal is drained."""

    def __init__(self, log: PrunedLog, retention: Retention, clock: Clock) -> None:
        self._log = log
        self._ages = ages(retention)
        self._clock = clock
        self._left: list[str] = []
        self._not_before = 0.0
        self._batch = BATCH
        self._deleted = 0

    def run_once(self) -> bool:
        """Delete one batch.

        Never raises because the database is away: the drain goes on, and this a minute later.

        Returns:
            Whether there is more to do now.
        """
        if self._clock.monotonic() < self._not_before:
            return False
        if not self._left:
            self._left, self._deleted = list(self._ages), 0
        if not self._left:
            return False
        state = self._left[0]
        before_ms = round((self._clock.wall() - self._ages[state]) * 1000)
        try:
            deleted = self._log.prune(state, before_ms, self._batch)
        except AuditUnavailable as exc:
            self._failed(exc)
            return False
        self._deleted += deleted
        if deleted < self._batch:
            self._left.pop(0)
        if self._left:
            return True
        self._not_before = self._clock.monotonic() + PAUSE
        self._batch = min(BATCH, self._batch * 2)
        if self._deleted:
            logger.info(
                "deleted %d old tasks from the audit",
                self._deleted,
                extra={"event": "audit_pruned", "tasks": self._deleted},
            )
        return False

    def _failed(self, exc: Exception) -> None:
        self._not_before = self._clock.monotonic() + PAUSE
        self._batch = max(1, self._batch // 2)
        logger.warning(
            "old tasks cannot be deleted from the audit; tried again in a minute: %s",
            exc,
            extra={"event": "prune_failed"},
        )
