"""Telling others what SQL has committed: the audit of what Redis does not have, and the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from celery_delay.domain.backing import COLD, BackedRow, unpack
from celery_delay.domain.mirrors import BackedStore
from celery_delay.domain.ports import Transition
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable

__all__ = ["AT_ONCE", "tell_cold", "tell_left"]

logger = logging.getLogger(__name__)

#: Entries that Redis is told of in one step.
AT_ONCE = 1_000


def tell_left(count: int, exc: Exception) -> None:
    """Log that tasks are committed, and that a beat has to mirror them."""
    logger.warning(
        "%d tasks are committed in SQL; a beat will bring them to Redis: %s",
        count,
        exc,
        extra={"event": "mirror_left", "count": count},
    )


def tell_cold(
    stores: Sequence[BackedStore], rows: Iterable[BackedRow], data: Mapping[str, object]
) -> None:
    """Journal what the rows of *rows* say that wait in SQL alone; never raises.

    Redis journals all that it has; what is not told here is when they come there.

    Arguments:
        data: who, and why, and what is new; without, the story.
    """
    cold: dict[int, list[Transition]] = {}
    for one in rows:
        if one.tier == COLD:
            told = Transition(
                one.entry_id, one.version, one.state, data or unpack(one).facts,
                eta_ms=one.eta_ms,
            )  # fmt: skip
            cold.setdefault(one.shard, []).append(told)
    for shard, transitions in cold.items():
        for start in range(0, len(transitions), AT_ONCE):
            try:
                stores[shard].record(transitions[start : start + AT_ONCE])
            except (StoreUnavailable, OutcomeUnknown):
                logger.debug("the audit hears of cold tasks later", exc_info=True)
