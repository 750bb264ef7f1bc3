"""Periodic schedules as operators see and steer them; how they fire is in ``firing.py``.

Each change is an operation with a name of its own, as in ``steering.py``.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from celery_delay.domain.timetable import Listed, Stored
from celery_delay.store.firing import change_of
from celery_delay.store.shard import Shard

__all__ = ["MOST_SCHEDULES", "Scheduling"]

#: Schedules that may be added at run time: a beat reads them all after each change.
MOST_SCHEDULES = 10_000


class Scheduling(Shard):
    """Reading and changing the periodic schedules of a shard.

    What changes raises StoreUnavailable if nothing was changed, and OutcomeUnknown if no answer
    came within ``delay_add_window``.
    """

    def definitions(self) -> dict[str, Stored | None]:
        """The schedules that were added at run time; ``None`` for one that is damaged."""
        return {
            name.decode(): _stored(one)
            for name, one in _pairs(self._read("HGETALL", self.keys.definitions))
        }

    def list_schedules(self) -> list[Listed]:
        """All schedules, by name, and what is kept of names that no code has any more.

        One that is changed meanwhile may be seen half changed.
        """
        keys = self.keys
        statics, definitions, states = (
            dict(_pairs(self._read("HGETALL", one)))
            for one in (keys.statics, keys.definitions, keys.schedules)
        )
        nexts = dict(_pairs(self._read("ZRANGE", keys.occurrences, 0, -1, "WITHSCORES")))
        return [
            _listed(name, *(parts.get(name) for parts in (statics, definitions, states, nexts)))
            for name in sorted(statics.keys() | definitions.keys() | states.keys())
        ]

    def find_schedule(self, name: str) -> Listed:
        """What is known of the schedule of that name, if anything."""
        keys = self.keys
        hashes = (keys.statics, keys.definitions, keys.schedules)
        static, definition, state = (self._read("HGET", one, name) for one in hashes)
        following = self._read("ZSCORE", keys.occurrences, name)
        return _listed(name.encode(), static, definition, state, following)

    def schedules_revision(self) -> int:
        """Changes with each change that somebody makes to a schedule."""
        return int(self._read("HGET", self.keys.mark, "revision") or 0)

    def pause_schedule(self, name: str, pause: bool, *, known: bool, by: str, reason: str) -> str:
        """Pause a schedule or let it go on.

        Arguments:
            known: the caller's own code has it.

        Returns:
            ``DONE``, ``SAME`` (it was so already) or ``NOT_FOUND``.
        """
        values = {
            "operation": uuid4().hex,
            "name": name,
            "pause": int(pause),
            "known": int(known),
            "by": by,
            "reason": reason,
        }
        answer = self._insist(change_of(name), "pause_schedule", values)
        return str(answer[0].decode())

    def put_schedule(
        self, name: str, how: str, timing: str, call: str, *, expected: int = 0
    ) -> tuple[str, int]:
        """Add a schedule at run time, or change one that was; see ``put_schedule.lua``.

        Returns:
            The answer, and the version that it has now (0 if nothing was done).
        """
        values = {
            "operation": uuid4().hex,
            "name": name,
            "how": how,
            "expected": expected,
            "most": MOST_SCHEDULES,
            "timing": timing,
            "call": call,
        }
        answer = self._insist(change_of(name), "put_schedule", values)
        return answer[0].decode(), int(answer[2]) if len(answer) > 2 else 0

    def remove_schedule(self, name: str) -> str:
        """Remove a schedule that was added at run time: ``DONE``, ``STATIC`` or ``NOT_FOUND``."""
        values = {"operation": uuid4().hex, "name": name}
        answer = self._insist(change_of(name), "remove_schedule", values)
        return str(answer[0].decode())


def _pairs(flat: Any) -> list[tuple[bytes, bytes]]:
    if isinstance(flat, dict):
        return list(flat.items())
    return list(zip(flat[::2], flat[1::2], strict=True))


def _listed(
    name: bytes, static: bytes | None, definition: bytes | None, state: bytes | None, score: Any
) -> Listed:
    known = json.loads(state) if state else {}
    timing, _, call = (static or b"").decode().partition("\n")
    paused, fired, since = (known.get(one) for one in ("paused", "fired", "since"))
    spans = (one.split("-") for one in (known.get("gaps") or "").split(",") if one)
    return Listed(
        name.decode(),
        (timing, call) if static is not None else None,
        _stored(definition) if definition is not None else None,
        None if score is None else int(float(score)),
        None if fired is None else int(fired),
        None if since is None else int(since),
        None if paused is None else int(paused),
        known.get("by") or "",
        known.get("reason") or "",
        [(int(begin), int(end)) for begin, end in spans],
        known.get("version") or "",
    )


def _stored(text: bytes) -> Stored | None:
    try:
        version, anchor, timing, call = text.decode().split("\n")
        return Stored(int(version), int(anchor), timing, call)
    except ValueError:
        return None
