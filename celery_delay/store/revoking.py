"""Tasks whose cancel came too late: off their queue again, or marked for the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

from celery_delay.domain.entries import EntryId, StoredEntry
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.shard import Shard

__all__ = ["KEPT_MS", "LONGEST", "MOST_MARKS", "Revoking", "TakenOff"]

#: Lists with more messages are not searched: Redis serves nobody else meanwhile, and of what
#: stands in a long queue the workers hear in time.
LONGEST = 1_000
#: How much is read of all lists together, in bytes; that takes Redis some 10 ms.
_MOST_BYTES = 8 * 1024 * 1024
#: How long a mark is kept: longer than a message should stand on a queue, over a long weekend too.
KEPT_MS = 7 * 86_400 * 1_000
#: Marks of a shard at most, as Celery's workers keep; some 10 MB of Redis' memory.
MOST_MARKS = 50_000


class TakenOff(NamedTuple):
    """Answer to an attempt at taking a message off its queue.

    Attributes:
        is_taken: the task never ran and never will.
        entry: what was taken; ``None`` if nothing was, or by an earlier call.
        why: if it was not taken: why.
    """

    is_taken: bool
    entry: StoredEntry | None
    why: str


class Revoking(Shard):
    """What can be done about tasks that have left the store."""

    def take_off(
        self,
        task_id: str,
        *,
        run: int = 0,
        queues: Sequence[tuple[int, str]] = (),
        data: Mapping[str, object] | None = None,
    ) -> TakenOff:
        """Take a task's message off a queue on this server, if no worker has had it.

        Arguments:
            run: the run that the caller believes to be there; it makes a repeat's answer exact.
            queues: DB number and key of lists to look at beside those that the shard knows.
            data: who and why; goes to the journal.

        Raises:
            StoreUnavailable: nothing was taken.
            OutcomeUnknown: no answer came.
        """
        values = {
            "operation": uuid4().hex,
            "task_id": task_id,
            "run": run,
            "database": self._links.database,
            "longest": LONGEST,
            "most_bytes": _MOST_BYTES,
            "data": json.dumps(data or {}),
        }
        rest = [part for pair in queues for part in pair]
        status, _, *found = self._insist(EntryId(task_id, run), "take_off", values, rest)
        if status == b"TAKEN":
            return TakenOff(True, _entry(task_id, int(found[0]), found[1]), "")
        if status == b"DOUBTFUL":
            return TakenOff(False, None, "it may have run before, or stands there twice")
        unsearched, error = int(found[0]), found[1].decode(errors="replace")
        if error:
            return TakenOff(False, None, error)
        why = f"{unsearched} queues are too long to be searched" if unsearched else "it is on none"
        return TakenOff(False, None, why)

    def mark_revoked(self, task_ids: Sequence[str]) -> None:
        """Leave word that tasks are revoked, for workers that take their messages later.

        It counts for runs that are scheduled already, for :data:`KEPT_MS`.

        Raises:
            StoreUnavailable: they may not be marked; repeating is safe.
        """
        values = {"now": self._given_now(), "keep_ms": KEPT_MS, "most": MOST_MARKS}
        try:
            answer = self._mark(values, task_ids)
        except StoreUnavailable:
            # the answer may merely have been lost, and to mark twice is as good as once
            answer = self._mark(values, task_ids)
        if answer == b"EPOCH":
            raise StoreUnavailable("Redis was emptied while a revoked task was marked")
        # should an id be used again, its run must be told from the one that is revoked
        self._not_before = max(self._not_before, int(answer) + 1)

    def _mark(self, values: Mapping[str, object], task_ids: Sequence[str]) -> bytes:
        with self._link() as link:
            answer: bytes = self._in_epoch(link, "mark_revoked", values, task_ids)
        return answer

    def is_revoked(self, entry_id: EntryId) -> bool:
        """Whether a run was marked after it had been scheduled."""
        at_ms = self._read("ZSCORE", self.keys.revoked, entry_id.task_id)
        return at_ms is not None and entry_id.run <= int(float(at_ms))


def _entry(task_id: str, run: int, message: bytes) -> StoredEntry | None:
    """What a message on a queue was in the store."""
    if not message:
        return None
    envelope = json.loads(message)
    headers = envelope["headers"]
    eta_ms = int((headers.get("celery_delay") or {}).get("eta_ms") or 0)
    return StoredEntry(EntryId(task_id, run), 1, eta_ms, 0, headers, "", envelope)
