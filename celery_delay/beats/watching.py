"""The thread that looks after what was handed off."""

from __future__ import annotations

from celery_delay.app import CeleryDelay
from celery_delay.services.elector import Elector
from celery_delay.services.loops import Loop
from celery_delay.services.watchdog import LONGEST_WAIT, Watchdog
from celery_delay.store.keys import ShardKeys
from celery_delay.store.redis import RedisStore
from celery_delay.telemetry.tracing import Batches
from celery_delay.worker.fleet import Workers

__all__ = ["watch_loop"]


def watch_loop(delayed: CeleryDelay, keys: ShardKeys, elector: Elector) -> Loop:
    """A shard's watchdog, with connections of its own; it works while this replica leads."""
    settings, clock = delayed.settings, delayed.clock
    store = RedisStore(delayed.links(), keys, settings, clock)
    store.unacked, store.endings = delayed.unacked_key(), delayed.list_endings()
    fleet = Workers(delayed.app, delayed.shards, clock)
    watchdog = Watchdog(keys.shard, store, fleet, settings, clock)
    watchdog.tracing = Batches()

    def watch() -> float:
        term = elector.term()
        return LONGEST_WAIT if term is None else watchdog.run_once(term)

    return Loop(f"watchdog-{keys.shard}", watch, clock, last=store.close)
