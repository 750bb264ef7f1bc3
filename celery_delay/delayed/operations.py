"""What can be asked of stored entries and done to them, by whoever has the app.

Everything here ends in one script per entry, whose answer is final.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery_delay.calling.result import DelayedResult
from celery_delay.delayed.chasing import Chasing, taken_off
from celery_delay.domain.backing import stored
from celery_delay.domain.entries import Added, Addition, StoredEntry
from celery_delay.domain.ports import Cancelled, Ending
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.message.envelope import HEADER
from celery_delay.worker.keyreturns import KeyReturns

__all__ = ["Operations"]

logger = logging.getLogger(__name__)


class Operations(Chasing):
    """The part of ``app.delayed`` that works on entries; the composition root adds the rest."""

    # -- one task -----------------------------------------------------------------------

    def result(self, task_id: str) -> DelayedResult:
        """The result of a delayed task, known by its id alone."""
        return DelayedResult(task_id, app=self.app)

    def get(self, task_id: str) -> StoredEntry | None:
        """The live entry of *task_id*; ``None`` when the store has none (any more)."""
        shard = self._shard(task_id)
        found = shard.get(task_id)
        if found is None and self.settings.is_backed:
            row = self.backed.open_row(task_id)
            return stored(row) if row is not None else None
        return found

    def cancel(
        self,
        task_id: str,
        *,
        run: int = 0,
        eta_ms: int | None = None,
        reason: str | None = None,
        chase: bool = False,
    ) -> CancelOutcome:
        """Take a task out before it is handed off; see :meth:`DelayedResult.cancel`.

        Arguments:
            run, eta_ms: what the caller knows of the entry; they make the answer for a task
                that has left the store long ago more exact.
            reason: goes to the audit and into the exception that ``get()`` raises.
            chase: go after a task that has left the store.
        """
        outcome, entry = self._cancelled(task_id, run, self._who(reason))
        if entry is not None:
            self._end(entry, reason or "cancelled")
        if outcome is CancelOutcome.NOT_FOUND:
            known = self.results.seen(task_id)
            if known in (State.REVOKED, State.CANCELLED):
                return CancelOutcome.CANCELLED
            if known or (eta_ms is not None and self.now_ms() >= eta_ms):
                outcome = CancelOutcome.TOO_LATE
        if chase and not outcome:
            return self._chase(task_id, run, reason, outcome)
        return outcome

    def _cancelled(self, task_id: str, run: int, data: Mapping[str, object]) -> Cancelled:
        """Take an entry out: SQL first, where SQL backs it."""
        shard = self._shard(task_id)
        if self.settings.is_backed:
            answer = self.backed.cancel(shard.keys.shard, task_id, data)
            if answer is not None:
                return answer
        answer = shard.cancel(task_id, run=run, data=data)
        if answer.outcome is CancelOutcome.NOT_FOUND and self._has_outbox:
            # this process writes rows that Redis may not have heard of yet
            return self.backed.cancel(shard.keys.shard, task_id, data) or answer
        return answer

    def revoke(self, task_id: str) -> CancelOutcome:
        """What Celery's ``revoke`` does here: cancel, and remember it for workers to come.

        The latter only with ``delay_worker_revokes``, and if it was too late to cancel.

        Raises:
            As :meth:`cancel`.
        """
        outcome = self.cancel(task_id, reason="revoked")
        if self.settings.worker_revokes and not outcome:
            self._shard(task_id).mark_revoked([task_id])
        return outcome

    def _chase(
        self, task_id: str, run: int, reason: str | None, outcome: CancelOutcome
    ) -> CancelOutcome:
        taken = self.take_off(task_id, run=run, reason=reason)
        if taken.is_taken:
            if taken.entry is not None:
                self._end(taken.entry, taken_off(reason))
                header: Any = taken.entry.headers[HEADER]
                KeyReturns(self).reached(header, State.REVOKED)
            return CancelOutcome.CANCELLED
        logger.info(
            "%s was not taken off its queue, and is revoked: %s",
            task_id,
            taken.why,
            extra={"event": "chase_missed", "task_id": task_id},
        )
        self.revoke_later(task_id)
        return outcome

    def _end(self, entry: StoredEntry, reason: str) -> None:
        """Let those know who wait for a task that was taken away."""
        self.results.end(self._ending(entry, reason))
        self._tell_monitors(entry.entry_id.task_id)

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

    def _end_others(self, addition: Addition, added: Added) -> None:
        """Do what is to be done outside of the store about what became of *addition*."""
        if added.code == "C":
            self._end_cancelled(addition, added)
        elif added.code == "E":
            self._keep_chords_of(added.entry_id.task_id)
        elif added.replaced is not None:
            self.results.end(self._ending(added.replaced, "replaced"))
            self._tell_monitors(added.replaced.entry_id.task_id)

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
