"""What the gates of a shard do, on dicts: a part of the store's model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["GATES", "NAMESPACE", "GateModel"]

NAMESPACE = "acme"
#: Those of the shapes, and of the labels, that the state machine uses; and one of nobody.
GATES = ("all", "task:shop.pay", "queue:delay-q0", "queue:out0", f"namespace:{NAMESPACE}", "task:x")


@dataclass
class Release:
    """A gate that is open again; what had gathered at it comes back."""

    at: int
    over: int
    total: int


@dataclass
class GateModel:
    """Gates in the order in which they came; ``None`` for one that is closed."""

    gates: dict[str, Release | None] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    gate_of: dict[str, str] = field(default_factory=dict)

    def is_closed(self, gate: str) -> bool:
        return gate in self.gates and self.gates[gate] is None

    def openable(self) -> bool:
        return any(one is not None for one in self.gates.values())

    def stops(self, task: str, queue: str, namespace: str | None) -> str | None:
        """The gate that keeps such an entry back."""
        asked = ("all", f"task:{task}", f"queue:{queue}", f"namespace:{namespace}")
        return next((one for one in asked if self.is_closed(one)), None)

    def keep(self, task_id: str, at: int, gate: str) -> None:
        self.gated[task_id], self.gate_of[task_id] = at, gate

    def leave(self, task_id: str) -> None:
        self.gated.pop(task_id, None)
        self.gate_of.pop(task_id, None)

    def at(self, gate: str) -> dict[str, int]:
        """Who waits there."""
        return {one: eta for one, eta in self.gated.items() if self.gate_of[one] == gate}

    def pause(self, gate: str) -> None:
        self.gates[gate] = None

    def resume(self, gate: str, over: int, now: int) -> int | None:
        if gate not in self.gates:
            return None
        waiting = len(self.at(gate))
        if waiting:
            self.gates[gate] = Release(now, over, waiting)
        else:
            del self.gates[gate]
        return waiting

    def let(self, limit: int, now: int, room: dict[str, int], way_of: Any) -> dict[str, int]:
        """Who passes now, with their etas; *room* by way goes down, ``way_of(id)`` names it."""
        passed: dict[str, int] = {}
        open_ones = {gate: one for gate, one in self.gates.items() if one is not None}
        share = max(1, limit // max(1, len(open_ones)))
        for gate, release in open_ones.items():
            waiting = sorted((eta, one.encode()) for one, eta in self.at(gate).items())
            if not waiting:
                del self.gates[gate]
                continue
            may, elapsed = len(waiting), max(0, now - release.at)
            if elapsed < release.over:
                gone = release.total - len(waiting)
                may = release.total * elapsed // release.over - gone
            for eta, one in waiting[: max(0, min(may, share))]:
                task_id = one.decode()
                if room[way_of(task_id)] < 1:
                    break
                room[way_of(task_id)] -= 1
                passed[task_id] = eta
                self.leave(task_id)
        return passed
