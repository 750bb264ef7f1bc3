"""The two places where the protocol keeps its state: Redis and SQL.

Every public method is one atomic step: a script of the store, a transaction of the audit. What a
step really did is told to the ledger, which stands outside and is never asked. A rule that is in
``broken`` is left out; ``protocol.py`` says in words what each rule is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from .ledger import AddCall, CancelCall, Ledger
from .words import (
    ALREADY,
    CANCELLED,
    DISPATCHED,
    EPOCH,
    GONE,
    LATE,
    LOST,
    NOT_FOUND,
    OK,
    RANK,
    SCHEDULED,
    TOO_LATE,
    Id,
)

WINDOW, GRACE = 3_000, 1_000  # an add's time to land; what a tombstone lives longer than that
BATCH = 3


class Event(NamedTuple):
    epoch: int
    stream_id: int
    state: str
    id: Id


class Entry(NamedTuple):
    run: int
    deadline: int


class Tombstone(NamedTuple):
    answer: str
    until: int


@dataclass
class Lease:
    holder: str = ""
    term: int = 0
    seq: int = 0


@dataclass
class Mark:
    epoch: int = 0
    server: int = 0  # the run_id the mark was made for; 0: no leader has made one yet
    progress: int = 0


class View(NamedTuple):
    """What an election call tells a beat, leader or not."""

    lease: Lease
    epoch: int | None  # None: the mark is not of this server, the leader must draw a new one
    progress: int
    head: int | None


@dataclass
class Clock:
    now: int = 1_000_000


class Store:
    """The Redis side. Each public method is one script."""

    def __init__(self, clock: Clock, ledger: Ledger, broken: frozenset[str]) -> None:
        self.clock, self.ledger, self.broken = clock, ledger, broken
        self.server = 1
        self.wipe()

    def wipe(self) -> None:
        self.schedule: dict[str, int] = {}
        self.entries: dict[str, Entry] = {}
        self.settled: dict[Id, Tombstone] = {}  # of one run: GONE or CANCELLED
        self.cancels: dict[Id, Tombstone] = {}  # of a cancel, by task and bound: its answer
        self.journal: list[Event] = []
        self.last_id = 0  # stream ids begin anew, so only the epoch tells the histories apart
        self.mark, self.lease = Mark(), Lease()
        self.queue: deque[Id] = deque()

    def _append(self, state: str, id: Id) -> None:
        if not self.mark.epoch and "unmarked_epoch" not in self.broken:
            self.mark.epoch = self.clock.now
        self.last_id += 1
        self.journal.append(Event(self.mark.epoch, self.last_id, state, id))

    def _bury(self, place: dict[Id, Tombstone], id: Id, answer: str) -> None:
        place[id] = Tombstone(answer, self.clock.now + WINDOW + GRACE)

    def _alive(self, place: dict[Id, Tombstone], task: str) -> dict[int, str]:
        now = self.clock.now
        return {i[1]: t.answer for i, t in place.items() if i[0] == task and t.until >= now}

    def add(self, call: AddCall, run: int, deadline: int) -> str:
        task, id = call.task, (call.task, run)
        if self.clock.now > deadline and "add_window" not in self.broken:
            return LATE
        settled = self._alive(self.settled, task)
        if run in settled:
            return settled[run]
        cancels = self._alive(self.cancels, task).items()
        if any(run <= bound and answer != TOO_LATE for bound, answer in cancels):
            self._bury(self.settled, id, CANCELLED)  # so that a repeat is not journalled again
            self.ledger.cancelled_on_arrival(id)
            self._append(CANCELLED, id)
            return CANCELLED
        live = self.entries.get(task)
        if live and live.run == run:
            return OK
        if live and "one_live_entry" not in self.broken:
            return ALREADY
        self.schedule[task], self.entries[task] = call.due, Entry(run, deadline)
        self.ledger.stored(id)
        self._append(SCHEDULED, id)
        return OK

    def cancel(self, call: CancelCall, bound: int, deadline: int, epoch: int) -> str:
        if epoch != self.mark.epoch:
            return EPOCH
        if self.clock.now > deadline:
            return LATE
        task = call.task
        settled, cancels = self._alive(self.settled, task), self._alive(self.cancels, task)
        if settled.get(bound) == CANCELLED:
            return CANCELLED
        if bound in cancels:
            return cancels[bound]
        live = self.entries.get(task)
        if live and (live.run <= bound or "cancel_bound" in self.broken):
            self._cancel_live(call, (task, live.run), bound)
            return CANCELLED
        if any(run <= bound and answer == GONE for run, answer in settled.items()):
            self._bury(self.cancels, (task, bound), TOO_LATE)  # a late repeat spares a retry
            return TOO_LATE
        if "barrier_tombstone" not in self.broken:
            self._bury(self.cancels, (task, bound), NOT_FOUND)
        self.ledger.barred(task, bound)
        return NOT_FOUND

    def _cancel_live(self, call: CancelCall, id: Id, bound: int) -> None:
        if "found_tombstone" not in self.broken:
            self._bury(self.settled, id, CANCELLED)
            self._bury(self.cancels, (call.task, bound), CANCELLED)
        elif self.clock.now <= self.entries[call.task].deadline:
            self._bury(self.settled, id, GONE)
        self._remove(call.task)
        self.ledger.cancelled(call, id)
        self._append(CANCELLED, id)

    def _remove(self, task: str) -> None:
        self.schedule.pop(task, None)
        self.entries.pop(task, None)

    def due(self, now: int) -> list[tuple[str, Entry]]:
        ripe = sorted((due, task) for task, due in self.schedule.items() if due <= now)
        return [(task, self.entries[task]) for _, task in ripe[:BATCH]]

    def push(self, batch: list[tuple[str, Entry]]) -> int:
        for task, entry in batch:
            id = (task, entry.run)
            self._remove(task)
            if self.clock.now <= entry.deadline and "gone_tombstone" not in self.broken:
                self._bury(self.settled, id, GONE)
            self.queue.append(id)
            self.ledger.handed_off(id, self.clock.now)
            if "move_journals" not in self.broken:
                self._append(DISPATCHED, id)
        return len(batch)

    def move(self, epoch: int, leading: bool, callers_now: int) -> str | int:
        if epoch != self.mark.epoch:
            return EPOCH
        if leading:
            self.mark.progress = self.clock.now
        now = callers_now if "store_clock" in self.broken else self.clock.now
        return self.push(self.due(now))

    def elect(self, me: str, observed: tuple[int, int], may_take: bool) -> View:
        lease = self.lease
        if lease.holder == me:
            lease.seq += 1
        elif not lease.holder or (may_take and observed == (lease.term, lease.seq)):
            self.lease = Lease(me, lease.term + 1, lease.seq + 1)
        epoch = self.mark.epoch if self.mark.server == self.server else None
        head = min(self.schedule.values(), default=None)
        return View(replace(self.lease), epoch, self.mark.progress, head)

    def draw_epoch(self, me: str) -> int:
        if self.lease.holder == me and self.mark.server != self.server:
            self.mark = Mark(max(self.mark.epoch + 1, self.clock.now), self.server)
        return self.mark.epoch

    def read_epoch(self) -> int:
        return self.mark.epoch

    def read(self, epoch: int, after: int) -> list[Event]:
        same = epoch == self.mark.epoch
        return [e for e in self.journal if same and e.stream_id > after][: BATCH * 2]

    def trim(self, epoch: int, term: int, upto: int) -> None:
        if epoch != self.mark.epoch and "trim_epoch" not in self.broken:
            return
        if term == self.lease.term:
            self.journal = [e for e in self.journal if e.stream_id > upto]

    def missing(self, epoch: int, ids: list[Id]) -> list[Id]:
        known = {(task, entry.run) for task, entry in self.entries.items()}
        if "lost_checks_journal" not in self.broken:
            known |= {event.id for event in self.journal}
        return [id for id in ids if id not in known] if epoch == self.mark.epoch else []

    def report(self, state: str, id: Id) -> None:
        self.ledger.reported(state, id)
        self._append(state, id)

    def pop(self) -> Id | None:
        return self.queue.popleft() if self.queue else None


class Audit:
    """The SQL side. Each public method is one transaction."""

    def __init__(self, ledger: Ledger, broken: frozenset[str]) -> None:
        self.ledger, self.broken, self.up = ledger, broken, True
        self.cursors: dict[int, int] = {}
        self.events: dict[tuple[int, ...], Event] = {}
        self.states: dict[Id, str] = {}

    def _cursor_key(self, epoch: int) -> int:
        return 0 if "cursor_per_epoch" in self.broken else epoch

    def cursor(self, epoch: int) -> int:
        return self.cursors.get(self._cursor_key(epoch), 0)

    def commit(self, epoch: int, last: int, events: list[Event]) -> bool:
        if self.cursor(epoch) != last and "cursor_cas" not in self.broken:
            return False
        self.ledger.cursor_moved(self.cursor(epoch), events[-1].stream_id)
        self.cursors[self._cursor_key(epoch)] = events[-1].stream_id
        for event in events:
            self._insert(event)
        return True

    def _insert(self, event: Event) -> None:
        key: tuple[int, ...] = (event.epoch, event.stream_id)
        if "event_epoch" in self.broken:
            key = key[1:]
        if key in self.events:
            if "event_once" not in self.broken:
                return
            key += (len(self.events),)
        self.events[key] = event
        if RANK[event.state] > RANK.get(self.state(event.id) or "", -1):
            self.states[self._row(event.id)] = event.state

    def _row(self, id: Id) -> Id:
        if "audit_by_run" in self.broken:
            return next((row for row in self.states if row[0] == id[0]), id)
        return id

    def state(self, id: Id) -> str | None:
        return self.states.get(self._row(id))

    def open_rows(self) -> list[Id]:
        return [id for id, state in self.states.items() if state == SCHEDULED]

    def give_up(self, ids: list[Id]) -> None:
        for id in ids:
            if self.states[id] == SCHEDULED:  # compare-and-set: the drain may have been quicker
                self.states[id] = LOST
                self.ledger.given_up(id)
