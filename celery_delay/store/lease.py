"""The observed lease: a record without time to live, judged by those who watch it."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from celery_delay.domain.ports import LeaseRecord
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store import scripts
from celery_delay.store.connection import AnswerLost, Link
from celery_delay.store.keys import ShardKeys

__all__ = ["RedisLease"]


class RedisLease:
    """Leadership over one shard, on a connection of its own.

    A slow command on another connection can thus not cost the lease.
    """

    def __init__(self, link: Link, keys: ShardKeys, holder: str) -> None:
        self._link = link
        self._keys = keys
        self._holder = holder

    def elect(self, *, seen: LeaseRecord | None, may_take: bool) -> LeaseRecord:
        """See :meth:`celery_delay.domain.ports.Lease.elect`."""
        answer = self._run(
            "elect",
            {
                "now": 0,
                "holder": self._holder,
                "seen_term": seen.term if seen else 0,
                "seen_seq": seen.seq if seen else 0,
                "may_take": int(may_take and seen is not None),
            },
        )
        holder, term, seq, now, *heads = answer
        due = [None if float(one) < 0 else int(float(one)) for one in heads[::2]]
        progress = [int(one) for one in heads[1::2]]
        return LeaseRecord(
            holder.decode(),
            int(term),
            int(seq),
            int(now),
            due[0],
            progress[0],
            due[1],
            progress[1],
        )

    def release(self, term: int) -> bool:
        """See :meth:`celery_delay.domain.ports.Lease.release`."""
        return bool(self._run("release", {"holder": self._holder, "term": term}) == 1)

    def close(self) -> None:
        """Drop the connection."""
        self._link.close()

    def _run(self, name: str, values: dict[str, object]) -> Any:
        # a lost answer is a failed attempt: elect is repeated at the next beat of the heart,
        # and a release that had its effect answers 0
        try:
            return scripts.run(self._link, scripts.load(name), self._keys, values)
        except (AnswerLost, ResponseError) as exc:
            raise StoreUnavailable(f"no usable answer of {name}: {exc}") from exc
