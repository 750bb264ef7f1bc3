"""The numbers of the store that are watched all the time: a few counts, quick at any size.

Reads only, and nothing that grows with the number of entries; see ``inspection.py`` for what an
operator asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.connection import AnswerLost, Link
from celery_delay.store.inspection import OVERDUE_MS
from celery_delay.store.keys import ShardKeys

__all__ = ["HORIZONS", "StoreFigures", "measure"]

#: In how many seconds what is counted as due is due, by its name.
HORIZONS = {"1m": 60, "5m": 300, "15m": 900}


class StoreFigures(NamedTuple):
    """All shards together; ``terms`` is by shard number.  Durations are seconds, memory bytes."""

    pending: int
    due: dict[str, int]
    overdue: int
    oldest_overdue: float
    held: int
    gated: int
    blocked: int
    claimed: int
    quarantine: int
    schedules: int
    journal: int
    drain_lag: float
    gap: int
    cold: int
    terms: dict[int, int]
    memory: int
    memory_limit: int


class _Shard(NamedTuple):
    numbers: dict[str, int]
    due: dict[str, int]
    oldest_ms: int
    drain_ms: int
    term: int


def measure(link: Link, shards: Sequence[ShardKeys]) -> StoreFigures:
    """The store as it is now; StoreUnavailable if Redis cannot be asked."""
    found = [_measure(link, keys) for keys in shards]
    memory, limit = _memory(link)

    def of_all(name: str) -> int:
        return sum(one.numbers[name] for one in found)

    return StoreFigures(
        pending=of_all("pending"),
        due={name: sum(one.due[name] for one in found) for name in HORIZONS},
        overdue=of_all("overdue"),
        oldest_overdue=max(one.oldest_ms for one in found) / 1000,
        held=of_all("held"),
        gated=of_all("gated"),
        blocked=of_all("blocked"),
        claimed=of_all("claimed"),
        quarantine=of_all("quarantine"),
        schedules=of_all("schedules"),
        journal=of_all("journal"),
        drain_lag=max(one.drain_ms for one in found) / 1000,
        gap=of_all("gap"),
        cold=of_all("cold"),
        terms={keys.shard: one.term for keys, one in zip(shards, found, strict=True)},
        memory=memory,
        memory_limit=limit,
    )


def _measure(link: Link, keys: ShardKeys) -> _Shard:
    whole, micros = _read(link, "TIME")
    now = int(whole) * 1000 + int(micros) // 1000
    schedules = (keys.schedule, keys.outbound)
    heads = [_read(link, "ZRANGE", one, 0, 0, "WITHSCORES") for one in schedules]
    oldest = _read(link, "XRANGE", keys.journal, "-", "+", "COUNT", 1)

    def until(at_ms: int) -> int:
        return sum(_read(link, "ZCOUNT", one, "-inf", at_ms) for one in schedules)

    return _Shard(
        {
            "pending": sum(_read(link, "ZCARD", one) for one in schedules),
            "overdue": until(now - OVERDUE_MS),
            "held": _read(link, "ZCARD", keys.held),
            "gated": _read(link, "ZCARD", keys.gated),
            "blocked": _read(link, "ZCARD", keys.blocked),
            "claimed": _read(link, "ZCARD", keys.claims),
            "quarantine": _read(link, "HLEN", keys.quarantine),
            "schedules": _read(link, "ZCARD", keys.occurrences),
            "journal": _read(link, "XLEN", keys.journal),
            "gap": int(_read(link, "HGET", keys.mark, "gap") or 0),
            "cold": int(_read(link, "HGET", keys.mark, "cold") or 0),
        },
        {name: until(now + seconds * 1000) for name, seconds in HORIZONS.items()},
        max(0, now - min((int(float(head[1])) for head in heads if head), default=now)),
        # the stream id's first half is Redis' clock at the writing
        max(0, now - int(oldest[0][0].partition(b"-")[0])) if oldest else 0,
        int(_read(link, "HGET", keys.lease, "term") or 0),
    )


def _memory(link: Link) -> tuple[int, int]:
    """What Redis uses, and what it has."""
    text = _read(link, "INFO", "memory").decode(errors="replace")
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    return int(info.get("used_memory", 0)), limit


def _read(link: Link, *command: object) -> Any:
    try:
        return link.call(*command)
    except (AnswerLost, ResponseError) as exc:
        # not asked again: the next look comes soon
        raise StoreUnavailable(f"no usable answer of {command[0]}: {exc}") from exc
