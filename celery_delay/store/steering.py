"""Changes of entries that wait: when they are due, and whether they are kept back.

Each call is an operation with a name of its own, which the scripts leave in a tombstone.  So a
repeat after a lost answer changes nothing a second time, and gets the answer of the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from uuid import uuid4

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Change, Steered
from celery_delay.store.additions import due_text
from celery_delay.store.shard import Shard

__all__ = ["Steering"]


class Steering(Shard):
    """Rescheduling, holding and releasing.

    Every method raises StoreUnavailable if nothing was changed, and OutcomeUnknown if no answer
    came within ``delay_add_window``.
    """

    def steer(
        self,
        task_id: str,
        change: Change,
        *,
        run: int = 0,
        data: Mapping[str, object] | None = None,
    ) -> Steered:
        """Change the live entry of *task_id*.

        Arguments:
            run: the run that the caller believes to wait; tells TOO_LATE from NOT_FOUND.
            data: who and why; goes to the journal.
        """
        due, shift_ms, hold = change
        text = ""
        if due is not None:
            text = due_text(due)
        elif shift_ms is not None:
            text = f"~{shift_ms}"
        values = {
            "operation": uuid4().hex,
            "task_id": task_id,
            "run": run,
            "due": text,
            "hold": "" if hold is None else str(int(hold)),
            "data": json.dumps(data or {}),
        }
        answer = self._insist(EntryId(task_id, run), "steer", values)
        return Steered(answer[0].decode(), *map(int, answer[2:]))

    def send_again(self, task_ids: Sequence[str], data: Mapping[str, object] | None = None) -> str:
        """Return held and quarantined entries to their schedule.

        Returns:
            A letter for each: see ``send_again.lua``.
        """
        values = {"operation": uuid4().hex, "data": json.dumps(data or {})}
        answer: bytes = self._insist(EntryId(task_ids[0], 0), "send_again", values, task_ids)
        return answer.decode()

    def held(self) -> list[str]:
        """The task ids of the entries that are held, the earliest eta first."""
        return [one.decode() for one in self._read("ZRANGE", self.keys.held, 0, -1)]
