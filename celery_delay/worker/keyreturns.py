"""Unique keys given back by workers: when a task has started, or is done.

A key that cannot be given back is kept until its time limit; nobody waits for it here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.labels import Labels
from celery_delay.domain.states import State
from celery_delay.exceptions import DelayError

__all__ = ["KeyReturns"]

logger = logging.getLogger(__name__)

_ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.REVOKED, State.REJECTED})


class Delayer(Protocol):
    """What the composition root offers to this module."""

    @property
    def clock(self) -> Clock: ...

    def let_go(self, unique_key: str, entry_id: EntryId) -> None: ...


class KeyReturns:
    """Gives keys back.  Safe for threads; no call raises.

    A call takes a round trip, or ``delay_redis_timeout`` if Redis does not answer.  After a
    failure, nothing is tried for twice the time that it took.
    """

    def __init__(self, delayed: Delayer) -> None:
        self._delayed = delayed
        self._lock = threading.Lock()
        self._not_before = 0.0

    def reached(self, header: Mapping[str, Any], state: State) -> None:
        """The run whose message bears our *header* has come to *state*.

        A run that is RETRIED keeps its key: the next one goes on with it.
        """
        unique = Labels.read(header.get("labels")).unique
        if unique is None or unique.until == "dispatched":
            return
        if state not in _ENDS and not (state is State.STARTED and unique.until == "started"):
            return
        begun = self._delayed.clock.monotonic()
        with self._lock:
            if begun < self._not_before:
                return
        entry_id = EntryId(str(header["task_id"]), int(header["run"]))
        try:
            self._delayed.let_go(unique.key, entry_id)
        except DelayError as exc:
            now = self._delayed.clock.monotonic()
            with self._lock:
                self._not_before = now + 2 * (now - begun)
            logger.warning(
                "%s keeps the unique key %r until its time limit: %s",
                entry_id.task_id,
                unique.key,
                exc,
                extra={"event": "key_not_returned", "task_id": entry_id.task_id},
            )
