"""One shard of the store in Redis: a method per Lua command."""

from __future__ import annotations

from celery_delay.store.additions import Additions
from celery_delay.store.claims import Claiming
from celery_delay.store.firing import Firing
from celery_delay.store.histories import Histories
from celery_delay.store.journal import Journal
from celery_delay.store.moves import Moves
from celery_delay.store.scanning import Scanning
from celery_delay.store.steering import Steering

__all__ = ["RedisStore"]


class RedisStore(Additions, Steering, Scanning, Moves, Claiming, Histories, Firing, Journal):
    """All that can be done with a shard; see the modules that it is made of.

    Safe for threads; every public method may raise StoreUnavailable.
    """
