"""Changing what a waiting entry does: its arguments, its queue, its options."""

from __future__ import annotations

from typing import Any

from celery_delay.delayed.steering import Steering
from celery_delay.domain.backing import stored
from celery_delay.domain.entries import Addition
from celery_delay.domain.ports import Change
from celery_delay.domain.states import UpdateOutcome
from celery_delay.exceptions import StoreUnavailable
from celery_delay.message.rebuilding import UNCHANGED, Wanted, rebuilt, wanted

__all__ = ["Updating"]

#: How often a message is built anew because somebody else has changed it meanwhile; of those who
#: do so at one time, one succeeds each time.
_TRIES = 100


class Updating(Steering):
    """The part of ``app.delayed`` that replaces messages."""

    def update(
        self,
        task_id: str,
        *,
        args: Any = UNCHANGED,
        kwargs: Any = UNCHANGED,
        queue: Any = UNCHANGED,
        priority: Any = UNCHANGED,
        reason: str | None = None,
        **options: Any,
    ) -> UpdateOutcome:
        """Give a waiting task other arguments or options; see :meth:`DelayedResult.update`."""
        changes = wanted(args=args, kwargs=kwargs, queue=queue, priority=priority, **options)
        return self.replace_message(task_id, changes, reason)

    def replace_message(
        self,
        task_id: str,
        changes: Wanted,
        reason: str | None,
        *,
        run: int = 0,
        eta_ms: int | None = None,
    ) -> UpdateOutcome:
        """Make *changes*.

        Arguments:
            reason, run, eta_ms: as for :meth:`steer`.
        """
        if self.settings.is_backed:
            outcome = self._replaced(task_id, changes, reason)
            if outcome is not None:
                return outcome
        shard = self._shard(task_id)
        answer = ""
        for _ in range(_TRIES):
            before = shard.replaceable(task_id)
            if before is None:
                # to change nothing tells why it cannot be changed
                answer = shard.steer(task_id, Change(), run=run).answer
                if answer in ("DONE", "QUARANTINED"):
                    continue  # it was just changing its place, or its template is gone
            else:
                eta_ms = before.entry.eta_ms
                addition = rebuilt(self.app, before.entry, changes)
                answer = shard.replace(before, addition, self._told(addition, changes, reason))
                if answer == "STALE":
                    continue
                if answer == "DONE":
                    return UpdateOutcome.UPDATED
            if answer == "NOT_FOUND" and self._has_left(task_id, eta_ms):
                return UpdateOutcome.TOO_LATE
            return UpdateOutcome(answer)
        if answer == "STALE":
            raise StoreUnavailable(f"others change the message of {task_id} all the time")
        return UpdateOutcome.DAMAGED

    def _replaced(self, task_id: str, changes: Wanted, reason: str | None) -> UpdateOutcome | None:
        """:meth:`replace_message` of an entry that SQL backs; ``None``: it does not."""
        for _ in range(_TRIES):
            row = self.backed.open_row(task_id)
            if row is None:
                return None
            try:
                addition = rebuilt(self.app, stored(row), changes)
            except KeyError:
                return UpdateOutcome.DAMAGED
            told = self._told(addition, changes, reason)
            shard = self._shard(task_id).keys.shard
            answer = self.backed.replace(shard, row, addition, told)
            if answer != "STALE":
                return UpdateOutcome.UPDATED if answer == "DONE" else UpdateOutcome(answer)
        raise StoreUnavailable(f"others change the message of {task_id} all the time")

    def _told(self, addition: Addition, changes: Wanted, reason: str | None) -> dict[str, Any]:
        """What the audit gets: the new story, with who and why."""
        story = dict(addition.facts)
        if "ignore_result" in changes:
            # a story leaves out what is false, and the audit would keep what was true
            story["ignore_result"] = bool(changes["ignore_result"])
        return {**story, **self._who(reason)}
