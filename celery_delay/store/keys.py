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
    def gates(self) -> str:
        """hash: gate → its kind and facts; see ``lua/include/gates.lua``."""
        return self._key("gates")

    @property
    def gated(self) -> str:
        """zset: task id → eta in ms, of entries that wait at some gate.

        Each gate has one of its own for those that wait there: this key, ``:`` and the gate.
        """
        return self._key("gated")

    @property
    def gate_of(self) -> str:
        """hash: task id → the gate at which it waits."""
        return self._key("gate-of")

    @property
    def buckets(self) -> str:
        """hash: gate → how many may pass, and as of which instant in ms."""
        return self._key("buckets")

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
        """stream: s state, e epoch, t instant in ms, d lines (``events.Event``)."""
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
        """hash: run_id, epoch, gap; compared (with SQL, that epoch), unready (nothing is moved
        before it was); of the leader: progress and alive (instants in ms); revision of
        the periodic schedules (shard 0)."""
        return self._key("mark")

    @property
    def lease(self) -> str:
        """hash: holder, term, seq, since (ms).  Without time to live (an observed lease)."""
        return self._key("lease")

    @property
    def uniques(self) -> str:
        """hash: "u:" unique key, or "i:" idempotency key → end in ms (0: while the entry is
        here), run, eta in ms, task id; see ``lua/include/keys.lua``."""
        return self._key("uniques")

    @property
    def unique_ends(self) -> str:
        """zset: the same fields → end in ms, of those that have one."""
        return self._key("unique-ends")

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
        """hash: schedule name → JSON of where it stands; see ``lua/include/schedules.lua``."""
        return self._key("schedules")

    @property
    def statics(self) -> str:
        """hash: schedule name → JSON of what the leader's code has under that name."""
        return self._key("statics")

    @property
    def definitions(self) -> str:
        """hash: schedule name → version, anchor in ms, times as JSON, call as JSON (a line each)
        of a schedule that was added at run time."""
        return self._key("definitions")

    @property
    def occurrences(self) -> str:
        """zset: schedule name → its next occurrence in ms."""
        return self._key("occurrences")

    @property
    def imports(self) -> str:
        """string, of this key, ``:`` and the id of an export: a bit for each of its entries that
        has come in; with a time to live."""
        return self._key("imports")

    @property
    def revoked(self) -> str:
        """zset: task id → instant in ms at which it was revoked, too late to take it out."""
        return self._key("revoked")

    @property
    def watched(self) -> str:
        """zset: "task id/run" → instant in ms of the next look, of what was handed off and not
        begun; see ``lua/include/watching.lua``."""
        return self._key("guard:watched")

    @property
    def watching(self) -> str:
        """hash: the same → copies, misses, eta in ms, end of the delivery tag, and record."""
        return self._key("guard:watching")

    @property
    def marks(self) -> str:
        """hash: "task id/run" → which worker has that run; see ``lua/include/marks.lua``."""
        return self._key("guard:marks")

    @property
    def mark_looks(self) -> str:
        """zset: the same → instant in ms at which somebody looks whether that worker lives."""
        return self._key("guard:mark-looks")

    @property
    def done_even(self) -> str:
        """hash with a time to live: "task id/run" → "", of runs that are over."""
        return self._key("guard:done:even")

    @property
    def done_odd(self) -> str:
        """hash with a time to live; takes turns with the even one."""
        return self._key("guard:done:odd")

    @property
    def workers(self) -> str:
        """zset: worker → its last sign of life in ms, of those that report and guard."""
        return self._key("guard:workers")

    @property
    def served(self) -> str:
        """hash: queue → instant in ms at which such a worker last took messages from it."""
        return self._key("guard:served")

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
