"""Gates of one shard: closing and opening them, and letting back in what has gathered there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from uuid import uuid4

from celery_delay.domain.entries import EntryId
from celery_delay.domain.gates import (
    MOST_GATES,
    Gate,
    Limits,
    Opened,
    high_water_of,
    rates_of,
)
from celery_delay.domain.queues import PRIORITY
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.shard import Shard

__all__ = ["Gating"]

#: What was seen of a queue's room is good for so long, in ms; then one entry goes and looks.
_PROBE_MS = 100


class Gating(Shard):
    """Pausing and resuming.

    :meth:`pause` and :meth:`resume` raise StoreUnavailable if nothing was changed, and
    OutcomeUnknown if no answer came within ``delay_add_window``.  What they did is kept in Redis.
    """

    #: What kombu puts behind a queue's key to name the lists of its priorities.
    steps: tuple[str, ...] = ("", *(PRIORITY + step for step in "369"))

    @cached_property
    def limits(self) -> Limits:
        """What the settings allow to be handed off."""
        settings = self._settings
        rates, most = rates_of(settings.rate_limits), high_water_of(settings.queue_high_water)
        return Limits(rates, most, settings.shards, self.steps)

    def pause(self, gate: str, facts: Mapping[str, object]) -> Gate:
        """Close *gate*; a closed one keeps the facts (``by``, ``reason``) that it has.

        Raises:
            StoreUnavailable: there are too many gates.
        """
        values = {"gate": gate, "facts": json.dumps(facts), "most": MOST_GATES}
        answer = self._insist(EntryId(gate, 0), "pause", values)
        if answer[0] == b"FULL":
            raise StoreUnavailable(f"{MOST_GATES} gates are the most: resume one first")
        return Gate.read(gate, f"P{answer[2].decode()}", 0)

    def resume(self, gate: str, over_ms: int) -> int | None:
        """Open *gate*; how many wait there, or ``None`` if it was not closed.

        Arguments:
            over_ms: in how long they have all come back; 0: as soon as can be.
        """
        values = {"gate": gate, "over": over_ms, "operation": uuid4().hex}
        answer = self._insist(EntryId(gate, 0), "resume", values)
        return int(answer[2]) if answer[0] == b"RESUMED" else None

    def gates(self) -> list[Gate]:
        """The gates that are not simply open, and how many entries wait at each."""
        known = self._read("HGETALL", self.keys.gates)
        found = []
        for name, value in zip(known[::2], known[1::2], strict=True):
            gate = name.decode()
            waiting = int(self._read("ZCARD", f"{self.keys.gated}:{gate}"))
            found.append(Gate.read(gate, value.decode(), waiting))
        return sorted(found)

    def open_gates(self, *, term: int) -> Opened:
        """See :meth:`celery_delay.domain.gates.GateStore.open_gates`."""
        values = {
            "now": self._given_now(),
            "term": term,
            "limit": self._settings.batch_size,
            "probe": _PROBE_MS,
            "limits": self.limits.encode(),
        }
        with self._link() as link:
            answer = self._in_epoch(link, "open_gates", values)
        if not isinstance(answer, list):
            return Opened()
        wait = int(answer[2])
        return Opened(int(answer[1]), wait if wait >= 0 else None)
