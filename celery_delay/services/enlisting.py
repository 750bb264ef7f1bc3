"""Entries that are written in their caller's own transaction: the outbox.

Until that commits nobody else knows of them.  After it they are rows like all others, which the
hook of the caller's process mirrors, or else the leader's relay.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery_delay.domain.backing import COLD, HOT, is_open
from celery_delay.domain.entries import Added, Addition, EntryId
from celery_delay.domain.mirrors import Refused
from celery_delay.domain.outbox import Transaction
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.committing import Committing, Moment
from celery_delay.services.telling import AT_ONCE, tell_cold, tell_left

__all__ = ["Enlisting"]


class Enlisting(Committing):
    """Adding in a transaction that is not ours."""

    def enlist(self, additions: Sequence[tuple[int, Addition]], within: Transaction) -> list[Added]:
        """Write additions in the caller's transaction; they count when that has committed.

        A countdown begins with SQL's clock.  Redis is not needed.

        Raises:
            ValueError: one has a unique key or an idempotency key.
        """
        if not additions:
            return []
        if any(one.keys is not None for _, one in additions):
            raise ValueError(
                "a unique or idempotency key is decided in Redis, which hears of the task only"
                " after your commit: leave the key out, or session"
            )
        sql_ms = within.clock_ms()
        rows = []
        for shard, one in additions:
            moment = self.moment(shard) if sql_ms is None else self._moment_or(shard, sql_ms)
            base = moment if sql_ms is None else moment._replace(now_ms=sql_ms)
            row = self.row_of(one, shard, base)
            deadline_ms = moment.now_ms + self._settings.window_ms if moment.epoch else 0
            look_ms = row.look_ms if row.tier == COLD else moment.now_ms
            rows.append(row._replace(deadline_ms=deadline_ms, look_ms=look_ms))
        within.write(rows)
        ids = [one.entry_id for one in rows]
        within.afterwards(lambda: self.mirror_committed(ids))
        return [Added(one.entry_id, "A", one.eta_ms) for one in rows]

    def _moment_or(self, shard: int, now_ms: int) -> Moment:
        store = self._stores[shard]
        try:
            return Moment(store.now_ms(), store.named())
        except StoreUnavailable:
            return Moment(now_ms, 0)

    def mirror_committed(self, entry_ids: Sequence[EntryId]) -> None:
        """Add to Redis those entries whose rows are committed; never raises.

        What does not get there now, the leader's relay brings.
        """
        try:
            there = self._rows.some(entry_ids).values()
            first = [one for one in there if is_open(one) and one.version == 1]
            rows = [one for one in first if one.epoch and one.tier == HOT]
            for shard, epoch in sorted({(one.shard, one.epoch) for one in rows}):
                mine = [one for one in rows if (one.shard, one.epoch) == (shard, epoch)]
                for start in range(0, len(mine), AT_ONCE):
                    self._stores[shard].add_backed(mine[start : start + AT_ONCE], epoch)
            tell_cold(self._stores, first, {})
        except Refused as exc:
            tell_left(len(entry_ids), exc.error)  # the relay tells of it, and forgets it
        except Exception as exc:
            tell_left(len(entry_ids), exc)
