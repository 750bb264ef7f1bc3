"""What can be asked of stored entries and done to them, by whoever has the app.

Everything here ends in one script per entry, whose answer is final.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from celery_delay.entries import Addition, StoredEntry
from celery_delay.ports import Added, Ending
from celery_delay.result import DelayedResult
from celery_delay.results import ResultBackend
from celery_delay.settings import Settings
from celery_delay.states import CancelOutcome, ReleaseOutcome, State
from celery_delay.store.keys import shard_of
from celery_delay.store.redis import RedisStore

__all__ = ["Operations"]

logger = logging.getLogger(__name__)

#: ``list`` is a method's name below.
_Entries = list[StoredEntry]

#: eta of the earliest and the latest entry there can be, in ms.
_ALL_TIMES = {"after_ms": 0, "before_ms": 253_402_300_800_000}
#: The letters of ``send_again.lua``.
_RELEASES = {
    "S": ReleaseOutcome.RELEASED,
    "N": ReleaseOutcome.NOT_FOUND,
    "D": ReleaseOutcome.DAMAGED,
    "L": ReleaseOutcome.CONFLICT,
}


class _Parts(Protocol):
    app: Any

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> tuple[RedisStore, ...]: ...

    @property
    def results(self) -> ResultBackend: ...


class Operations(_Parts):
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
        data = {"by": self.app.oid, "reason": reason} if reason else {"by": self.app.oid}
        outcome, entry = self._shard(task_id).cancel(task_id, run=run, data=data)
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

    def list(self, *, limit: int = 100, **between: int) -> _Entries:
        """Live entries, the earliest eta first.

        Arguments:
            limit: how many at most.
            after_ms, before_ms: bounds of their eta.
        """
        bounds = {**_ALL_TIMES, **between}
        found = [
            one for shard in self.shards for one in shard.between(**bounds, limit=limit, offset=0)
        ]
        return sorted(found, key=lambda one: one.eta_ms)[:limit]

    def count(self, **between: int) -> int:
        """How many entries are live, with the same bounds as :meth:`list`."""
        bounds = {**_ALL_TIMES, **between}
        return sum(shard.count(**bounds) for shard in self.shards)

    def release(self, *task_ids: str) -> dict[str, ReleaseOutcome]:
        """Send quarantined entries again: back into the schedule, and due as they were.

        What kept them from their queue should be mended first; ``celery delay status`` says
        what it was.

        Returns:
            What became of each id.

        Raises:
            StoreUnavailable: some may have been released; calling again tells.
        """
        answers: dict[str, ReleaseOutcome] = {}
        for shard in self.shards:
            mine = [one for one in task_ids if shard.keys.has(one, self.settings.shards)]
            if mine:
                letters = shard.send_again(mine)
                answers |= {one: _RELEASES[code] for one, code in zip(mine, letters, strict=True)}
        return {one: answers[one] for one in task_ids}

    def quarantined(self) -> dict[str, str]:
        """Task id → why, of the entries that cannot be handed off."""
        return {task_id: why for one in self.shards for task_id, why in one.quarantined().items()}

    def now_ms(self) -> int:
        """The store's clock, in ms."""
        return self.shards[0].now_ms()

    def _shard(self, task_id: str) -> RedisStore:
        return self.shards[shard_of(task_id, self.settings.shards)]

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
