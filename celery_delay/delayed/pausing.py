"""Pausing and resuming the hand-off: of a task, of a queue, of a namespace, of all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from celery_delay.delayed.steering import Parts
from celery_delay.domain.callers import caller
from celery_delay.domain.gates import Gate, gate_for
from celery_delay.exceptions import OutcomeUnknown, PartlyDone, StoreUnavailable
from celery_delay.store.redis import RedisStore

__all__ = ["Pausing"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
#: The longest release, in seconds.
_LONGEST = 30 * 86_400.0
#: What people have paused, or let go again.
_PAUSES = ("paused", "releasing")


class Pausing(Parts):
    """The part of ``app.delayed`` that keeps due tasks back by what they are."""

    def pause(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        namespace: str | None = None,
        all: bool = False,  # as people say it
        reason: str | None = None,
    ) -> Gate:
        """Hand no more tasks to their queues: those of a name, for a queue, of a namespace, or any.

        From the return on nothing of it is handed off, by no beat; what was handed off before
        runs.  The tasks wait as SCHEDULED, can be listed, changed and cancelled, and their
        ``expires`` goes on counting.  The pause is kept in Redis until :meth:`resume`, over
        restarts of all else.  To pause again what is paused changes nothing.

        Arguments:
            task, queue, namespace, all: what to pause: exactly one of them.
            reason: kept with the pause, for whoever looks.

        Returns:
            The pause as it stands; ``waiting`` is 0 when it has just begun.

        Raises:
            ValueError, TypeError: about the arguments.
            StoreUnavailable: Redis could not be reached; nothing is paused.
            PartlyDone: some shards are paused and others are not, or it is not known.  Call again.
        """
        gate = gate_for(task, queue, namespace, all)
        facts = {"by": caller(), **({"reason": reason} if reason else {})}
        paused = self._on_each_shard(lambda shard: shard.pause(gate, facts))
        logger.info(
            "%s is paused",
            gate,
            extra={"event": "gate_paused", "gate": gate, "reason": reason},
        )
        return paused[0]

    def resume(
        self,
        *,
        task: str | None = None,
        queue: str | None = None,
        namespace: str | None = None,
        all: bool = False,
        over: float | timedelta = 0,
    ) -> int | None:
        """End a pause: what becomes due from now on is handed off, and what waits comes back.

        Each pause is lifted by itself: ``all=True`` lifts the pause of all, and leaves that of a
        single task as it is.

        Arguments:
            task, queue, namespace, all: what to resume: exactly one of them.
            over: in how many seconds what has gathered comes back, evenly, the earliest eta
                first; 0: as fast as the hand-off goes, without delaying others.  Called again
                while it comes back, it changes the pace of what is left.

        Returns:
            How many tasks wait and come back now; ``None`` if there was no such pause.

        Raises:
            ValueError, TypeError: about the arguments.
            StoreUnavailable: Redis could not be reached; the pause goes on.
            PartlyDone: some shards have resumed and others have not, or it is not known.  Call
                again.
        """
        gate = gate_for(task, queue, namespace, all)
        over_ms = _milliseconds(over)
        answers = self._on_each_shard(lambda shard: shard.resume(gate, over_ms))
        found = [one for one in answers if one is not None]
        if not found:
            return None
        logger.info(
            "%s is resumed: %d tasks come back",
            gate,
            sum(found),
            extra={"event": "gate_resumed", "gate": gate, "waiting": sum(found)},
        )
        return sum(found)

    def pauses(self) -> list[Gate]:
        """The pauses, and those that are over while tasks still come back; by name.

        A pause that only some shards have is there too.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        return [one for one in self.gates() if one.status in _PAUSES]

    def gates(self) -> list[Gate]:
        """All that keeps due tasks back now: pauses, rate limits and full queues, by name.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        known: dict[str, Gate] = {}
        for shard in self.shards:
            for one in shard.gates():
                other = known.get(one.gate)
                if other is None:
                    known[one.gate] = one
                    continue
                # a shard with nothing to release is done with it at once
                first = min(one, other, key=lambda gate: _PAUSES.index(gate.status)
                            if gate.status in _PAUSES else 0)  # fmt: skip
                known[one.gate] = first._replace(waiting=one.waiting + other.waiting)
        return sorted(known.values())

    def _on_each_shard(self, step: Callable[[RedisStore], _T]) -> list[_T]:
        answers: list[_T] = []
        failures: dict[int, Exception] = {}
        for number, shard in enumerate(self.shards):
            try:
                answers.append(step(shard))
            except (StoreUnavailable, OutcomeUnknown) as exc:
                failures[number] = exc
        if not failures:
            return answers
        first = next(iter(failures.values()))
        unknown = any(isinstance(one, OutcomeUnknown) for one in failures.values())
        if not answers and not unknown:
            raise first
        done = [one for one in range(len(self.shards)) if one not in failures]
        raise PartlyDone(done, list(failures), str(first)) from first


def _milliseconds(over: Any) -> int:
    seconds = over.total_seconds() if isinstance(over, timedelta) else over
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"over must be seconds or a timedelta, not {over!r}")
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"over={over!r} must be from 0 to {_LONGEST:g} seconds")
    return round(seconds * 1000)
