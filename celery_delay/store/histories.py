"""Which history of Redis this is, who leads in it, and what did not survive the last one."""

from __future__ import annotations

from collections.abc import Sequence

from celery_delay.domain.entries import EntryId, Record
from celery_delay.store import scripts
from celery_delay.store.shard import Shard

__all__ = ["Histories"]


class Histories(Shard):
    """Epochs: naming one, and looking for what it should have."""

    def leader(self) -> tuple[str, int, int]:
        """Holder ("" for none), term and epoch, as the shard bears them now."""
        holder, term = self._read("HMGET", self.keys.lease, "holder", "term")
        epoch = self._read("HGET", self.keys.mark, "epoch")
        return (holder or b"").decode(), int(term or 0), int(epoch or 0)

    def run_id(self) -> str:
        """The server's run id over the connection that the next call will use."""
        with self._link() as link:
            return str(scripts.server_of(link)["run_id"])

    def eviction(self) -> str:
        """The policy by which the server may throw keys away; "" if it never does."""
        text = self._read("INFO", "memory").decode()
        memory = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        policy = memory.get("maxmemory_policy", "noeviction")
        return "" if policy == "noeviction" or memory.get("maxmemory", "0") == "0" else policy

    def begin_epoch(self, *, term: int, known_epoch: int) -> tuple[int, str] | None:
        """Name the server's present history; only the leader of *term* can.

        Returns:
            The epoch, and the run id that the mark bore before ("" for none); ``None`` if
            *term* leads no more.
        """
        with self._link() as link:
            answer = self._sure(
                link,
                "begin_epoch",
                {
                    "now": self._given_now(),
                    "term": term,
                    "run_id": scripts.server_of(link)["run_id"],
                    "known_epoch": known_epoch,
                    "epoch": 0,
                },
            )
            self._forget_epoch(link)
        if answer[0] == b"TERM":
            return None
        return int(answer[0]), answer[1].decode()

    def history(self) -> tuple[int, int]:
        """See :meth:`celery_delay.domain.ports.ReconcileStore.history`."""
        epoch, reconciled = self._read("HMGET", self.keys.mark, "epoch", "reconciled")
        return int(epoch or 0), int(reconciled or 0)

    def reconciled(self, epoch: int) -> None:
        """See :meth:`celery_delay.domain.ports.ReconcileStore.reconciled`."""
        self._read("HSET", self.keys.mark, "reconciled", epoch)

    def missing(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        """See :meth:`celery_delay.domain.ports.ReconcileStore.missing`."""
        mine = [one for one in entry_ids if self.keys.has(one.task_id, self._settings.shards)]
        if not mine:
            return []
        ids = [one.task_id for one in mine]
        live = self._read("HMGET", self.keys.entries, *ids)
        elsewhere = [
            self._read("HMGET", key, *ids) for key in (self.keys.quarantine, self.keys.claimed)
        ]
        return [
            one
            for one, record, *others in zip(mine, live, *elsewhere, strict=True)
            if not any(others) and (record is None or _run(record) != one.run)
        ]


def _run(record: bytes) -> int | None:
    try:
        return Record.decode(record.decode()).run
    except ValueError:
        return None
