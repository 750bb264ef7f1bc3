"""Every Redis key of celery-delay, with its type and what its members mean.

All keys of a shard share one hash tag, so that on Redis Cluster a shard lives on one
node and a script may use all of them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

__all__ = ["ShardKeys", "shard_of"]


def shard_of(task_id: str, shards: int) -> int:
    """The number of the shard in which *task_id* lives; the same in every process."""
    return zlib.crc32(task_id.encode()) % shards if shards > 1 else 0


@dataclass(frozen=True)
class ShardKeys:
    """The keys of one shard; the field names are those that the Lua files use.

    Arguments:
        prefix: ``delay_key_prefix``.
        space: the broker's ``global_keyprefix``.  It stays outside of the hash tag: an ACL
            that allows ``~shop:*`` must find it in front of each key.
    """

    prefix: str
    shard: int
    space: str = ""

    def _key(self, name: str) -> str:
        return f"{self.space}{{{self.prefix}{self.shard}}}:{name}"

    @property
    def schedule(self) -> str:
        """zset: task id → eta in ms, of entries that the move hands to their queue."""
        return self._key("schedule")

    @property
    def outbound(self) -> str:
        """zset: task id → eta in ms, of entries that a beat publishes to their queue."""
        return self._key("outbound")

    @property
    def claims(self) -> str:
        """zset: task id → instant in ms at which its claim ends, of entries being published."""
        return self._key("claims")

    @property
    def claimed(self) -> str:
        """hash: task id → token, attempt, eta in ms and record; see ``lua/include/claims.lua``."""
        return self._key("claimed")

    @property
    def attempts(self) -> str:
        """hash: task id → how often its claim has ended without anybody's word."""
        return self._key("attempts")

    @property
    def entries(self) -> str:
        """hash: task id → record (``entries.Record``)."""
        return self._key("entries")

    @property
    def blocked(self) -> str:
        """zset: task id → eta in ms, of entries that must not stand in the schedule's way."""
        return self._key("blocked")

    @property
    def held(self) -> str:
        """zset: task id → eta in ms, of entries that are kept back until they are released."""
        return self._key("held")

    @property
    def quarantine(self) -> str:
        """hash: task id → JSON [reason, eta in ms, record] of what cannot be handed off."""
        return self._key("quarantine")

    @property
    def templates(self) -> str:
        """hash: template id → template (``entries.Template``)."""
        return self._key("templates")

    @property
    def template_uses(self) -> str:
        """hash: template id → number of live records that need it."""
        return self._key("template-uses")

    @property
    def journal(self) -> str:
        """stream: s state, e epoch, t instant in ms, d lines (``entries.Event``)."""
        return self._key("journal")

    @property
    def tombstones_even(self) -> str:
        """hash with a time to live: see ``lua/include/tombstones.lua``."""
        return self._key("tombstones:even")

    @property
    def tombstones_odd(self) -> str:
        """hash with a time to live; takes turns with the even one."""
        return self._key("tombstones:odd")

    @property
    def mark(self) -> str:
        """hash: run_id, epoch, gap; of the leader: progress and alive (instants in ms)."""
        return self._key("mark")

    @property
    def lease(self) -> str:
        """hash: holder, term, seq.  Without time to live (an observed lease)."""
        return self._key("lease")

    @property
    def wake(self) -> str:
        """list of at most one token: the head of the schedule has changed."""
        return self._key("wake")

    @property
    def handover(self) -> str:
        """list of at most one token: the lease was given back."""
        return self._key("handover")

    @property
    def schedules(self) -> str:
        """hash: schedule name → JSON {version, cursor in ms} of a periodic entry."""
        return self._key("schedules")

    @property
    def occurrences(self) -> str:
        """zset: schedule name → its next occurrence in ms."""
        return self._key("occurrences")

    def has(self, task_id: str, shards: int) -> bool:
        """Whether *task_id* lives in this shard, of so many."""
        return shard_of(task_id, shards) == self.shard

    def all(self) -> list[str]:
        """Every key of the shard, for tests and for a purge."""
        return [
            getattr(self, name)
            for name, value in vars(type(self)).items()
            if isinstance(value, property)
        ]
