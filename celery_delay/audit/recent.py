"""The recent past in numbers: which states were reached, and how late the hand-offs were.

The latest events of each shard are read backwards by their key, and only so many: that takes as
long on a table of any size.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, case, select

from celery_delay.audit.tables import event
from celery_delay.domain.answers import Lag, RecentPast
from celery_delay.domain.states import State

__all__ = ["BOUNDS_MS", "RECENT", "recent_past"]

#: How many events of a shard are looked at.
RECENT = 10_000
#: Bounds of the lags that are counted together, in ms.
BOUNDS_MS = (5, 10, 20, 50, 100, 250, 500, 1_000, 5_000, 60_000)


def recent_past(connection: Connection, shards: int, since_ms: int) -> RecentPast:
    """What has happened since then, or since the oldest event that was looked at.

    Arguments:
        shards: how many there are.
    """
    rows: list[Any] = []
    for shard in range(shards):
        some = _latest(connection, shard)
        if len(some) == RECENT:
            since_ms = max(since_ms, min(one.at_ms for one in some))
        rows += some
    reached: Counter[str] = Counter()
    lags: list[int] = []
    for one in rows:
        if one.at_ms >= since_ms:
            reached[one.state] += 1
            if one.data is not None and (lag_ms := json.loads(one.data).get("lag_ms")) is not None:
                lags.append(int(lag_ms))
    lags.sort()
    return RecentPast(since_ms, dict(reached), _percentiles(lags), _histogram(lags))


def _latest(connection: Connection, shard: int) -> Sequence[Any]:
    lag = case((event.c.state == State.DISPATCHED.value, event.c.data)).label("data")
    key = [one.desc() for one in event.primary_key.columns]
    query = select(event.c.state, event.c.at_ms, lag).where(event.c.shard == shard)
    return connection.execute(query.order_by(*key).limit(RECENT)).all()


def _percentiles(lags: Sequence[int]) -> Lag | None:
    if not lags:
        return None
    p50, p95, p99 = (lags[math.ceil(len(lags) * share) - 1] for share in (0.5, 0.95, 0.99))
    return Lag(len(lags), p50, p95, p99, lags[-1])


def _histogram(lags: Sequence[int]) -> Sequence[tuple[int | None, int]]:
    """How many of the sorted *lags* are up to each bound, and beyond the last one."""
    if not lags:
        return ()
    places = [bisect_right(lags, one) for one in BOUNDS_MS] + [len(lags)]
    bounds = (*BOUNDS_MS, None)
    return [(one, to - since) for one, since, to in zip(bounds, [0, *places], places, strict=False)]
