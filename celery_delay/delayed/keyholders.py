"""Who has a unique key, asked and cancelled by whoever has the app."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from celery_delay.delayed.operations import Operations
from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import EntryId, StoredEntry
from celery_delay.domain.states import CancelOutcome
from celery_delay.store.keys import shard_of
from celery_delay.store.redis import RedisStore
from celery_delay.store.uniques import Holder

__all__ = ["KeyHolder", "KeyHolders"]


class KeyHolder(NamedTuple):
    """The task that has a unique key.

    Attributes:
        entry: while the task waits in the store; ``None`` while it is being published, is
            quarantined, or has been handed to its queue.
        free_at: when the key is free at the latest, in UTC, of a task that has been handed to its
            queue; ``None`` before.
    """

    entry_id: EntryId
    entry: StoredEntry | None
    free_at: datetime | None

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.entry_id.task_id


class KeyHolders(Operations):
    """The part of ``app.delayed`` that knows entries by their unique keys."""

    def get_unique(self, unique_key: str) -> KeyHolder | None:
        """The task that has *unique_key* now; ``None``: the key is free.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        shard = self._shard_of_key(unique_key)
        seen, holder = None, shard.holder_of(unique_key)
        while holder is not None and holder != seen:
            if holder.ends_ms:
                return KeyHolder(holder.entry_id, None, from_ms(holder.ends_ms))
            entry = shard.get(holder.entry_id.task_id)
            if entry is not None and entry.entry_id == holder.entry_id:
                return KeyHolder(holder.entry_id, entry, None)
            if not shard.missing([holder.entry_id]):
                return KeyHolder(holder.entry_id, None, None)
            # lost, or handed off between our looks: then another line is written of the key
            seen, holder = holder, shard.holder_of(unique_key)
        return None

    def cancel_unique(self, unique_key: str, *, reason: str | None = None) -> CancelOutcome:
        """Cancel the task that has *unique_key*; see :meth:`DelayedResult.cancel`.

        Returns:
            CANCELLED: it never runs, and the key is free, or another task has it by now.
            TOO_LATE: it has been handed to its queue, or is on its way there.
            NOT_FOUND: nobody has the key.

        Raises:
            StoreUnavailable: Redis could not be reached; nothing has changed.
            OutcomeUnknown: no answer came; call again for the final one.
        """
        holder = self._shard_of_key(unique_key).holder_of(unique_key)
        if holder is None:
            return CancelOutcome.NOT_FOUND
        if holder.ends_ms:
            return CancelOutcome.TOO_LATE
        entry_id = holder.entry_id
        return self.cancel(entry_id.task_id, run=entry_id.run, eta_ms=holder.eta_ms, reason=reason)

    def let_go(self, unique_key: str, entry_id: EntryId) -> None:
        """Free *unique_key*, if that entry, or an earlier run of its task, has it.

        Raises:
            StoreUnavailable: the key may still be kept; it is free when its time is over.
        """
        self._shard_of_key(unique_key).let_go(unique_key, entry_id)

    def holder_of(self, unique_key: str) -> Holder | None:
        """What is written of *unique_key*; see :meth:`RedisStore.holder_of`."""
        return self._shard_of_key(unique_key).holder_of(unique_key)

    def _shard_of_key(self, unique_key: str) -> RedisStore:
        return self.shards[shard_of(unique_key, self.settings.shards)]
