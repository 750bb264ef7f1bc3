"""What really happened, written down outside the system, and the promises checked against it.

The stores tell the ledger each effect (stored, removed, handed off) at the place where the effect
is, not where it is journalled; the callers tell it what they were answered. A promise that can be
judged at once is judged at once; ``settled`` judges the rest after all has come to rest.

A wipe of Redis is the one fault that may lose and double. It excuses exactly what it took: the
entries live at that moment, the events still in the journal, and, the tombstones being gone, a
second hand-off of runs drawn before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .words import (
    ALREADY,
    CANCELLED,
    DISPATCHED,
    GONE,
    LATE,
    LOST,
    NOT_FOUND,
    OK,
    RANK,
    SCHEDULED,
    TOO_LATE,
    UNKNOWN,
    Id,
)


class Broken(AssertionError):
    """A promise was not kept."""


@dataclass(repr=False)
class AddCall:
    """One logical add: however often it is attempted, the caller wants one hand-off."""

    task: str
    due: int
    retry: bool
    runs: list[int] = field(default_factory=list)  # more than one only after a LATE
    answer: str = ""

    def __repr__(self) -> str:
        return f"{'retry' if self.retry else 'add'} of {self.task} due {self.due}"


@dataclass(repr=False)
class CancelCall:
    task: str
    run: int | None  # None: by task_id alone
    wipes: int
    removed: bool = False
    answer: str = ""

    def __repr__(self) -> str:
        return f"cancel of {self.task if self.run is None else (self.task, self.run)}"


class Ledger:
    def __init__(self) -> None:
        self.adds: list[AddCall] = []
        self.calls: defaultdict[Id, list[AddCall]] = defaultdict(list)
        self.live: dict[str, Id] = {}
        self.handed: Counter[Id] = Counter()
        self.dropped: set[Id] = set()  # cancelled, by removal or on arrival
        self.shut_out: set[Id] = set()  # on the wire when a cancel found nothing
        self.facts: Counter[tuple[str, Id]] = Counter()
        self.wipes = 0
        self.excused: Counter[tuple[str, Id]] = Counter()
        self.swept: set[Id] = set()
        self.forgiven: set[Id] = set()

    # -- what callers say -------------------------------------------------------------------

    def add_called(self, task: str, due: int, retry: bool) -> AddCall:
        self.adds.append(AddCall(task, due, retry))
        return self.adds[-1]

    def drawn(self, call: AddCall, run: int) -> None:
        id = (call.task, run)
        if call not in self.calls[id]:
            self.calls[id].append(call)
        call.runs.append(run)
        self.shut_out.discard(id)  # drawn again, so called again
        if call.retry and (call.task, run - 1) in self.forgiven:
            self.forgiven.add(id)  # a run that was doubled by a wipe may retry twice

    def add_answered(self, call: AddCall, answer: str) -> None:
        call.answer = answer

    def cancel_called(self, task: str, run: int | None) -> CancelCall:
        return CancelCall(task, run, self.wipes)

    def cancel_answered(self, call: CancelCall, answer: str) -> None:
        call.answer = answer
        if call.wipes != self.wipes or answer == UNKNOWN:
            return
        if call.removed and answer != CANCELLED:
            raise Broken(f"{call} removed an entry and was then answered {answer}")
        if answer == CANCELLED and not any(task == call.task for task, _ in self.dropped):
            raise Broken(f"{call} was answered CANCELLED, but nothing was cancelled")

    # -- what the stores do -----------------------------------------------------------------

    def stored(self, id: Id) -> None:
        if id[0] in self.live:
            raise Broken(f"{id} was stored beside {self.live[id[0]]}: two live entries")
        self.live[id[0]] = id
        self.facts[SCHEDULED, id] += 1

    def handed_off(self, id: Id, now: int) -> None:
        self.live.pop(id[0], None)
        self.handed[id] += 1
        self.facts[DISPATCHED, id] += 1
        if now < min(call.due for call in self.calls[id]):
            raise Broken(f"{id} was handed off early, at {now}")
        if id in self.forgiven:
            return
        if self.handed[id] > 1:
            raise Broken(f"{id} was handed off twice")
        if id in self.dropped:
            raise Broken(f"{id} was handed off after it was CANCELLED")
        if id in self.shut_out:
            raise Broken(f"{id}, on the wire when a cancel answered NOT_FOUND, was handed off")
        for call in self.calls[id]:
            if sum(self.handed[call.task, run] for run in set(call.runs)) > 1:
                raise Broken(f"{call} was handed off as several runs")

    def cancelled(self, call: CancelCall, id: Id) -> None:
        if call.run is not None and id[1] > call.run:
            raise Broken(f"{call} removed the later run {id}")
        if call.answer in (CANCELLED, TOO_LATE, NOT_FOUND) and call.wipes == self.wipes:
            raise Broken(f"{call} removed {id} after its caller was answered {call.answer}")
        call.removed = True
        self.cancelled_on_arrival(id)
        self.live.pop(id[0], None)

    def cancelled_on_arrival(self, id: Id) -> None:
        if self.handed[id] and id not in self.forgiven:
            raise Broken(f"{id} was CANCELLED after it was handed off")
        self.dropped.add(id)
        self.facts[CANCELLED, id] += 1

    def barred(self, task: str, bound: int) -> None:
        mine = {id for id in self.calls if id[0] == task and id[1] <= bound}
        self.shut_out |= {id for id in mine if not self.handed[id]}

    def reported(self, state: str, id: Id) -> None:
        self.facts[state, id] += 1

    def cursor_moved(self, old: int, new: int) -> None:
        # The event's key alone would keep the table right. But the cursor is the one statement
        # that SQL has everything up to here, and pruning old events relies on it.
        if new < old:
            raise Broken(f"the cursor went back from {old} to {new}")

    def given_up(self, id: Id) -> None:
        taken = id in self.swept or any(e == id for (_, e), n in self.excused.items() if n)
        if not taken:
            raise Broken(f"{id} was called LOST, but no wipe took it")

    def wiped(self, undrained: Iterable[tuple[str, Id]]) -> None:
        self.wipes += 1
        self.swept |= set(self.live.values())
        self.excused.update(undrained)
        self.forgiven |= set(self.calls)
        self.live.clear()
        self.shut_out.clear()

    # -- at rest ----------------------------------------------------------------------------

    def settled(
        self, events: Iterable[tuple[str, Id]], state_of: Callable[[Id], str | None]
    ) -> None:
        for id in list(self.calls):
            self._promise_to_callers(id)
        rows = Counter(events)
        for fact in sorted(self.facts.keys() | rows.keys()):
            happened, excused = self.facts[fact], self.excused[fact]
            if not happened - excused <= rows[fact] <= happened:
                raise Broken(f"{fact} happened {happened} times and is in SQL {rows[fact]} times")
        for id in sorted({id for _, id in self.facts}):
            self._agreement(id, state_of(id))

    def _promise_to_callers(self, id: Id) -> None:
        acknowledged = sum(c.answer in (OK, GONE) for c in self.calls[id] if c.runs[-1] == id[1])
        if id in self.forgiven:
            acknowledged = min(acknowledged, 1)  # both runs of a doubled task may retry
        if acknowledged > self.handed[id] + (id in self.dropped) and id not in self.swept:
            raise Broken(f"{id} was acknowledged and is lost")
        for call in self.calls[id]:
            refused = call.answer in (ALREADY, LATE) and id not in self.forgiven
            if refused and self.facts[SCHEDULED, id]:
                raise Broken(f"{call} was answered {call.answer}, yet {id} was stored")
            if call.answer == CANCELLED and call.runs[-1] == id[1] and id not in self.dropped:
                raise Broken(f"{call} was answered CANCELLED, yet {id} was not")

    def _agreement(self, id: Id, state: str | None) -> None:
        """SQL's last word on an entry is what happened to it, OutcomeUnknown or not."""
        seen = {state for (state, e), n in self.facts.items() if e == id and n}
        if id in self.swept:
            seen.add(LOST)
        if any(self.excused[fact, id] for fact in seen):
            right = state in seen | {LOST, None} - {SCHEDULED}
        else:
            right = state == max(seen, key=RANK.__getitem__, default=None)
        if not right or state == SCHEDULED:
            raise Broken(f"SQL says {state} of {id}, but what happened is {sorted(seen)}")
