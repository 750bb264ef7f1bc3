"""What can be asked of stored entries and done to them, by whoever has the app.

Everything here ends in one script per entry, whose answer is final.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_delay.entries import Addition, StoredEntry
from celery_delay.ports import Added, Ending
from celery_delay.result import DelayedResult
from celery_delay.states import CancelOutcome, State
from celery_delay.steering import Steering

__all__ = ["Operations"]

logger = logging.getLogger(__name__)

#: ``list`` is a method's name below.
_Entries = list[StoredEntry]

#: eta of the latest entry there can be, in ms.
_LAST_MS = 253_402_300_800_000


class Operations(Steering):
    """The part of ``app.delayed`` that works on entries; the composition root adds the rest."""

    # -- one task -----------------------------------------------------------------------

    def result(self, task_id: str) -> DelayedResult:
        """The result of a delayed task, known by its id alone."""
        return DelayedResult(task_id, app=self.app)

    def get(self, task_id: str) -> StoredEntry | None:
        """The live entry of *task_id*; ``None`` when the store has none (any more)."""
        return self._shard(task_id).get(task_id)

    def cancel(
        self, task_id: str, *, run: int = 0, eta_ms: int | None = None, reason: str | None = None
    ) -> CancelOutcome:
        """Take a task out before it is handed off; see :meth:`DelayedResult.cancel`.

        Arguments:
            run, eta_ms: what the caller knows of the entry; they make the answer for a task
                that has left the store long ago more exact.
            reason: goes to the audit and into the exception that ``get()`` raises.
        """
        outcome, entry = self._shard(task_id).cancel(task_id, run=run, data=self._who(reason))
        if entry is not None:
            self.results.end(self._ending(entry, reason or "cancelled"))
            self._tell_monitors(task_id)
        if outcome is CancelOutcome.NOT_FOUND:
            known = self.results.seen(task_id)
            if known in (State.REVOKED, State.CANCELLED):
                return CancelOutcome.CANCELLED
            if known or (eta_ms is not None and self.now_ms() >= eta_ms):
                return CancelOutcome.TOO_LATE
        return outcome

    # -- many tasks ---------------------------------------------------------------------

    def list(
        self,
        *,
        limit: int = 100,
        state: str | None = None,
        after_ms: int = 0,
        before_ms: int = _LAST_MS,
    ) -> _Entries:
        """Live entries, the earliest eta first.

        Arguments:
            limit: how many at most.
            state: only those that are ``SCHEDULED``, or only those that are ``HELD``.
            after_ms, before_ms: bounds of their eta.
        """
        wanted = State(state) if state is not None else None
        found = [
            one
            for shard in self.shards
            for one in shard.between(
                after_ms=after_ms, before_ms=before_ms, limit=limit, offset=0, state=wanted
            )
        ]
        return sorted(found, key=lambda one: one.eta_ms)[:limit]

    def count(
        self, *, state: str | None = None, after_ms: int = 0, before_ms: int = _LAST_MS
    ) -> int:
        """How many entries are live, with the same bounds as :meth:`list`."""
        wanted = State(state) if state is not None else None
        return sum(
            shard.count(after_ms=after_ms, before_ms=before_ms, state=wanted)
            for shard in self.shards
        )

    def _tell_monitors(self, task_id: str) -> None:
        """Let Flower know, which learnt of the task by its task-sent event."""
        if not self.app.conf.task_send_sent_event:
            return
        try:
            with self.app.events.default_dispatcher() as events:
                events.send(
                    "task-revoked", uuid=task_id, terminated=False, signum=None, expired=False
                )
        except Exception:
            logger.debug("no task-revoked event for %s", task_id, exc_info=True)

    def _end_cancelled(self, addition: Addition, added: Added) -> None:
        facts = addition.facts
        self.results.end(
            Ending(
                added.entry_id,
                State.CANCELLED,
                str(facts.get("name", "")),
                facts.get("group"),
                facts.get("group_index"),
                facts.get("chord"),
                bool(facts.get("ignore_result")),
                "cancelled",
            )
        )

    @staticmethod
    def _ending(entry: StoredEntry, reason: str) -> Ending:
        headers: Any = entry.headers
        return Ending(
            entry.entry_id,
            State.CANCELLED,
            entry.task,
            headers.get("group"),
            headers.get("group_index"),
            entry.chord,
            bool(headers.get("ignore_result")),
            reason,
        )
