"""The way in where SQL has each entry before Redis is told (``delay_audit = "sync"``).

SQL knows by itself what came before and has left, so no mark is needed.  Each entry is one row,
with its state, committed before the mirror has it; a crash leaves what the relay brings to Redis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from celery_delay.domain.entries import Addition
from celery_delay.domain.states import State
from celery_delay.domain.uniqueness import Keys
from celery_delay.exceptions import AlreadyScheduled, UniqueConflict
from celery_delay.services.amending import Amending
from celery_delay.store.porting import Arrival, ImportMark
from celery_delay.store.redis import RedisStore

__all__ = ["commit"]


class Delayed(Protocol):
    """What this module needs of the composition root."""

    @property
    def backed(self) -> Amending: ...

    @property
    def backed_rows(self) -> Any: ...

    @property
    def shards(self) -> tuple[RedisStore, ...]: ...


def commit(
    delayed: Delayed, shard: int, arrivals: Sequence[Arrival], mark: ImportMark
) -> list[str]:
    """Commit entries of one shard, each for itself, and mirror them.

    One that was QUARANTINED comes as HELD: SQL has no other word for what does not go out.

    Returns:
        A verdict for each, in the letters of ``import.lua``.

    Raises:
        AuditUnavailable, OutcomeUnknown, JournalFull: what is committed stays; call again.
    """
    additions = [_keyed(one.what) for one in arrivals if isinstance(one.what, Addition)]
    ids = [one.entry_id for one in additions]
    over, known = delayed.backed_rows.over(ids), delayed.backed_rows.some(ids)
    # what would be refused there must not be committed: to take it back takes time
    there = delayed.shards[shard].bring_in(arrivals, mark._replace(dry=True))
    verdicts = {
        one: "C" if one in over else "D" if one in known else verdict
        for one, verdict in zip(ids, there, strict=True)
    }
    held = {one for one, arrival in zip(ids, arrivals, strict=True)
            if arrival.state is not State.SCHEDULED}  # fmt: skip
    new = [one for one in additions if verdicts[one.entry_id] == "A"]
    if mark.dry or not new:
        return [verdicts[one] for one in ids]
    # keys can still be refused, by one another too
    keyed = [one for one in new if one.keys is not None]
    together = [one for one in new if one.keys is None]
    try:
        delayed.backed.add([(shard, one) for one in together], held=held)
    except AlreadyScheduled:
        keyed = new
    for one in keyed:
        verdicts[one.entry_id] = _commit_one(delayed, shard, one, held)
    return [verdicts[one] for one in ids]


def _commit_one(delayed: Delayed, shard: int, addition: Addition, held: Any) -> str:
    try:
        delayed.backed.add([(shard, addition)], held=held)
    except UniqueConflict as exc:
        return f"K {exc.task_id}"
    except AlreadyScheduled as exc:
        row = delayed.backed_rows.read(exc.task_id)
        return f"X {row.entry_id.run if row is not None else 0}"
    return "A"


def _keyed(addition: Addition) -> Addition:
    """*addition*, which is not to be stored if somebody else has its unique key."""
    return addition._replace(keys=Keys("error")) if addition.labels.unique else addition
