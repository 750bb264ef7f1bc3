"""Revokes that outlive a worker's memory: read from the store when a message comes.

Celery's workers forget their revokes when they are started again.  With
``delay_worker_revokes``, the store remembers those that came too late for itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

from celery import signals

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import DelayError
from celery_delay.message.runs import entry_id_of
from celery_delay.store.keys import shard_of
from celery_delay.store.redis import RedisStore

__all__ = ["Revokes"]

logger = logging.getLogger(__name__)


class Delayer(Protocol):
    """What the composition root offers to this module."""

    @property
    def clock(self) -> Clock: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> Sequence[RedisStore]: ...


class Revokes:
    """Has a worker's main process drop what is marked in the store as revoked.

    Celery looks at its own revoked ids once more before it runs a task, whatever the pool and
    also after a rate limit; so an id that is put there in time is all that it takes.  After a
    failure nothing is asked for twice the time that it took, and tasks run.
    """

    def __init__(self, app: Any, delayed: Delayer) -> None:
        self._app = app
        self._delayed = delayed
        self._not_before = -math.inf
        self._broken = False
        #: The ids that we have put among Celery's.
        self._ours: set[str] = set()

    def connect(self) -> None:
        """Listen.  Connecting twice has no effect; nothing is paid outside of workers."""
        for signal, receiver in (
            (signals.task_received, self.on_received),
            (signals.task_revoked, self.on_revoked),
        ):
            uid = ("celery-delay", id(self._app), f"revokes.{receiver.__name__}")
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def on_received(self, request: Any = None, **_: Any) -> None:
        """A worker has taken a message, and runs its task soon."""
        entry_id = entry_id_of(request)
        if entry_id is None or not self._is_ours(request.task) or not self._is_revoked(entry_id):
            return
        from celery.worker.state import revoked  # heavy, and only of use in workers

        if request.id not in revoked:
            revoked.add(request.id)
            self._ours.add(request.id)

    def on_revoked(self, request: Any = None, **_: Any) -> None:
        """A worker has dropped a task; later ones with its id are not revoked by that."""
        if request is not None and request.id in self._ours:
            from celery.worker.state import revoked

            self._ours.discard(request.id)
            revoked.discard(request.id)

    def _is_ours(self, task: Any) -> bool:
        return getattr(task, "app", self._app) is self._app

    def _is_revoked(self, entry_id: EntryId) -> bool:
        clock = self._delayed.clock
        begun = clock.monotonic()
        if begun < self._not_before:
            return False
        try:
            settings = self._delayed.settings
            if not settings.worker_revokes:
                return False
            shard = self._delayed.shards[shard_of(entry_id.task_id, settings.shards)]
            marked = shard.is_revoked(entry_id)
        except DelayError as exc:
            now = clock.monotonic()
            self._not_before = now + 2 * (now - begun)
            if not self._broken:
                self._broken = True
                logger.warning(
                    "tasks run that may be revoked: the store cannot be asked: %s",
                    exc,
                    extra={"event": "revokes_unknown"},
                )
            return False
        if self._broken:
            self._broken = False
            logger.warning("revokes are known again", extra={"event": "revokes_known"})
        return marked
