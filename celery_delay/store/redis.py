"""One shard of the store in Redis: a method per Lua command."""

from __future__ import annotations

from celery_delay.store.backed import Backed
from celery_delay.store.claims import Claiming
from celery_delay.store.digests import Digesting
from celery_delay.store.firing import Firing
from celery_delay.store.guarding import Guarding
from celery_delay.store.histories import Histories
from celery_delay.store.moves import Moves
from celery_delay.store.porting import Porting
from celery_delay.store.replacing import Replacing
from celery_delay.store.revoking import Revoking
from celery_delay.store.scheduling import Scheduling
from celery_delay.store.steering import Steering
from celery_delay.store.uniques import Uniques
from celery_delay.store.watching import Watching

__all__ = ["RedisStore"]


class RedisStore(
    Backed,
    Steering,
    Replacing,
    Revoking,
    Uniques,
    Digesting,
    Porting,
    Moves,
    Claiming,
    Histories,
    Firing,
    Scheduling,
    Guarding,
    Watching,
):
    """All that can be done with a shard; see the modules that it is made of.

    Safe for threads; every public method may raise StoreUnavailable.
    """
