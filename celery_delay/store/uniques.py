"""Who has a unique key, and giving one back."""

from __future__ import annotations

from typing import NamedTuple

from celery_delay.domain.entries import EntryId
from celery_delay.store.shard import Shard

__all__ = ["Holder", "Uniques"]


class Holder(NamedTuple):
    """What is written about a key.

    Attributes:
        eta_ms: when the entry was due, as it was when it got the key, or left.
        ends_ms: when its lease ends; 0: the key counts for as long as the entry is here.
    """

    entry_id: EntryId
    eta_ms: int
    ends_ms: int


class Uniques(Shard):
    """Looking a key up, and freeing it."""

    def holder_of(self, unique_key: str) -> Holder | None:
        """Who has *unique_key*; ``None``: nobody.

        What is written of an entry that has left the store in some other way than by a hand-off,
        a cancel or its expiry (a Redis that lost it) may be old: look whether it is there.

        Raises:
            StoreUnavailable: the store cannot be asked.
        """
        value = self._read("HGET", self.keys.uniques, f"u:{unique_key}")
        if value is None:
            return None
        ends, run, eta, task_id = value.decode().split(" ", 3)
        if int(ends) and int(ends) <= self.now_ms():
            return None
        return Holder(EntryId(task_id, int(run)), int(eta), int(ends))

    def let_go(self, unique_key: str, entry_id: EntryId) -> bool:
        """Free *unique_key* if *entry_id* has it, or an earlier run of its task.

        Raises:
            StoreUnavailable: no answer came; the key may be free.
        """
        values = {"unique_key": unique_key, "task_id": entry_id.task_id, "run": entry_id.run}
        with self._link() as link:
            return bool(self._sure(link, "let_go", values))
