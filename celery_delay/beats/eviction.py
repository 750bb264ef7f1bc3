"""What a new leader says of a Redis that throws keys away when it is full."""

from __future__ import annotations

import logging

from celery_delay.store.redis import RedisStore

__all__ = ["warn_of_eviction"]

logger = logging.getLogger(__name__)


def warn_of_eviction(store: RedisStore) -> None:
    """Look at the policy of the server behind *store*; may raise StoreUnavailable."""
    policy = store.eviction()
    if policy:
        what = "delayed tasks" if policy.startswith("allkeys-") else "marks of repeated calls"
        logger.error(
            "when full, Redis throws %s away (maxmemory-policy %s): set noeviction",
            what,
            policy,
            extra={"event": "eviction_possible", "policy": policy},
        )
