"""The delay protocol as a small machine whose steps can be shuffled.

What is modelled: audit mode ``async`` with the move inside Redis. Every Redis script is one atomic
step and every SQL transaction is one atomic step; these are the only two kinds of atomicity the
real system has. Everything else is a *process*, written as a generator. A ``yield`` is a place
where anything may come between: another process, a crash, a pause of seconds, the death of a reply
on the wire. A request may also be *late*: its sender has given up, yet the request still arrives
and runs.

    caller -> add -> schedule + entries -> move -> queue -> worker -> (retry: an add with run + 1)
                          |    every script appends what it did to the journal    |
                          +-> journal -> drain: read, commit with cursor, trim -> SQL

The rules, in one breath. An entry is (task_id, run). A new task's run is the estimated store time
of the call; a retry's is its parent's run + 1. An add carries a deadline, drawn once and kept over
repeats; past it the script writes nothing and answers LATE. Within it a repeat is answered from
the live entry or from a tombstone, which is why a tombstone outlives one window. A cancel speaks
for all runs up to a bound (the run it was given, or the estimated time of the call), has a
deadline too, and leaves its answer behind as a tombstone, so that each attempt at it hears the
same; unless it came too late, that tombstone also refuses an add still on the wire, which is then
journalled CANCELLED. An answer that says "nothing written" (LATE, ALREADY) is final only if no
earlier attempt is unknown. Leadership is an observed lease without expiry and guards nothing: the
move is safe whoever calls it. The journal is trimmed only to what SQL has committed, and the
cursor moves by compare-and-set.

Each rule the model can switch off has a name in ``RULES``; a machine with one rule off is a
mutant, and ``test_protocol.py`` demands that every mutant breaks a promise kept in ``ledger.py``.
What only saves work has no mutant, for nothing may depend on it: the term in the trim, the
progress mark that holds standbys back, the time for which a leader trusts itself (left out
altogether).

What is not modelled: modes ``sync`` and ``off``, outbox, cold tier; claims and a broker elsewhere;
versions and reschedule; shards, templates, full memory; schedules; a failover that loses only a
suffix of the writes (a wipe loses all); a store clock that steps back by more than GRACE, or
estimates that are wrong by more; two adds for one task_id that draw the same millisecond (they are
one entry); the loss of a message between queue and worker, which is Celery's. Times are integer
milliseconds. They count the store's clock and, for durations, everybody's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .ledger import Ledger
from .stores import WINDOW, Audit, Clock, Store, View
from .wires import Process, Unanswered, Wires
from .words import ALREADY, EPOCH, LATE, RETRIED, STARTED, SUCCEEDED, UNKNOWN, Id

LEASE, BACKSTOP = 1_000, 250  # a standby's patience before it leads; and before it steals
ATTEMPTS = 4

RULES = {
    "add_window": "an add past its deadline writes nothing",
    "deadline_kept": "a repeat comes under the deadline of the first attempt",
    "late_after_unknown": "LATE after an unknown attempt is no reason to draw a new run",
    "already_after_unknown": "ALREADY after an unknown attempt is not final",
    "one_live_entry": "an add for a task_id with another live run is refused",
    "gone_tombstone": "an entry that leaves within its window leaves a tombstone",
    "barrier_tombstone": "a cancel that found nothing refuses the adds still on the wire",
    "found_tombstone": "a cancel that removed an entry answers its own repeat",
    "cancel_bound": "a cancel removes no run later than the one it means",
    "retry_run": "a retry from inside a run is run + 1",
    "move_journals": "the move journals in the same script",
    "move_atomic": "reading what is due and pushing it are one step",
    "store_clock": "the store's clock says what is due, not the caller's",
    "unmarked_epoch": "a script that finds no mark names the history before it journals",
    "trim_epoch": "the trim is refused when the history is another one",
    "trim_after_commit": "the journal is trimmed after SQL committed",
    "cursor_cas": "the cursor moves by compare-and-set",
    "cursor_per_epoch": "a new history is read from its start",
    "event_once": "an event SQL already has is not inserted again",
    "event_epoch": "an event's key holds the epoch it was written in",
    "audit_by_run": "SQL keeps one row per (task_id, run), not per task_id",
    "lost_checks_journal": "an entry whose end is still in the journal is not LOST",
}


@dataclass
class System(Wires):
    """The processes, and the wires between them and the two stores."""

    rng: random.Random
    broken: frozenset[str]
    loss: float  # how often a request or its reply is lost or late
    spawn: Callable[[str, Process, int], None]
    trace: list[tuple[int, str, str, tuple[Any, ...], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock, self.ledger = Clock(), Ledger()
        self.store = Store(self.clock, self.ledger, self.broken)
        self.audit = Audit(self.ledger, self.broken)

    @property
    def sql_is_up(self) -> bool:  # type: ignore[override]
        return self.audit.up

    def run_step(self, who: str, step: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        row = len(self.trace)
        self.trace.append((self.clock.now, who, step.__name__, args, "raised"))
        answer = step(*args)
        self.trace[row] = (*self.trace[row][:4], answer)
        return answer

    def estimate(self) -> int:
        """A caller's idea of the store's time; off by less than a tick, so draws differ."""
        return self.clock.now + 5 * self.rng.randrange(10)

    def producer(self, who: str, task: str, delay: int, parent: int | None = None) -> Process:
        call = self.ledger.add_called(task, self.estimate() + delay, parent is not None)
        unknown, run, deadline = False, 0, 0
        for _ in range(ATTEMPTS):
            if not deadline:  # drawn once per logical add, and anew only if nothing can be written
                deadline = self.estimate() + WINDOW
                run = deadline - WINDOW if parent is None else parent + 1
                if "retry_run" in self.broken and parent is not None:
                    run = parent
                self.ledger.drawn(call, run)
            elif "deadline_kept" in self.broken:
                deadline = self.estimate() + WINDOW
            try:
                answer = yield from self.redis(who, self.store.add, call, run, deadline)
            except Unanswered:
                unknown = True
                continue
            if answer == LATE and (not unknown or "late_after_unknown" in self.broken):
                deadline = 0
                continue
            if answer == LATE or (answer == ALREADY and unknown):
                trusting = answer == ALREADY and "already_after_unknown" in self.broken
                answer = ALREADY if trusting else UNKNOWN
            return self.ledger.add_answered(call, answer)
        return self.ledger.add_answered(call, UNKNOWN if unknown else LATE)

    def canceller(self, who: str, task: str, run: int | None) -> Process:
        call = self.ledger.cancel_called(task, run)
        unknown, bound, deadline, epoch = False, 0, 0, 0
        for _ in range(ATTEMPTS):
            if not deadline:
                now = self.estimate()
                deadline, bound = now + WINDOW, now if run is None else run
            try:
                epoch = epoch or (yield from self.redis(who, self.store.read_epoch))
                cancel = self.store.cancel
                answer = yield from self.redis(who, cancel, call, bound, deadline, epoch)
            except Unanswered:
                unknown = True
                continue
            if answer == EPOCH:
                epoch = 0
            elif answer == LATE and not unknown:
                deadline = 0
            else:
                return self.ledger.cancel_answered(call, UNKNOWN if answer == LATE else answer)
        return self.ledger.cancel_answered(call, UNKNOWN)

    def worker(self, who: str) -> Process:
        while True:
            try:
                message = yield from self.redis(who, self.store.pop)
            except Unanswered:
                continue
            if message is not None:
                self.spawn(f"run of {message}", self._execute(*message), 0)

    def _execute(self, task: str, run: int) -> Process:
        who, id = f"run of {task, run}", (task, run)
        yield from self._report(who, STARTED, id)
        if run % 5 < 3 and self.rng.random() < 0.4:
            delay = self.rng.choice((0, 500, 5_000))
            yield from self.producer(who, task, delay, parent=run)
            yield from self._report(who, RETRIED, id)
        else:
            yield from self._report(who, SUCCEEDED, id)

    def _report(self, who: str, state: str, id: Id) -> Process:
        # Not repeated when it gets no answer: nothing tells the repeat of an append from a second.
        with suppress(Unanswered):
            yield from self.redis(who, self.store.report, state, id)

    def beat(self, who: str) -> Process:
        """Elect, then move (or steal), then drain; for ever. Its own wall clock is 2 s fast."""
        observed, since = (0, 0), self.clock.now
        while True:
            try:
                patient = self.clock.now - since > LEASE
                view = yield from self.redis(who, self.store.elect, who, observed, patient)
                if (view.lease.term, view.lease.seq) != observed:
                    observed, since = (view.lease.term, view.lease.seq), self.clock.now
                leads, epoch = view.lease.holder == who, view.epoch
                if leads and epoch is None:
                    epoch = yield from self.redis(who, self.store.draw_epoch, who)
                if epoch is None:
                    continue
                yield from self._dispatch(who, epoch, leads, view)
                # Now and then a standby drains as well, as a leader does that has just let go.
                if leads or self.rng.random() < 0.1:
                    yield from self._drain(who, epoch, view.lease.term)
                if leads and self.rng.random() < 0.3:
                    yield from self._reconcile(who, epoch)
            except Unanswered:
                pass

    def _dispatch(self, who: str, epoch: int, leads: bool, view: View) -> Process:
        ripe = self.clock.now - BACKSTOP
        steals = view.head is not None and view.head < ripe and view.progress < ripe
        if steals and not leads and "move_atomic" in self.broken:
            batch = yield from self.redis(who, self.store.due, self.clock.now)
            yield from self.redis(who, self.store.push, batch)
        elif leads or steals:
            yield from self.redis(who, self.store.move, epoch, leads, self.clock.now + 2_000)

    def _drain(self, who: str, epoch: int, term: int) -> Process:
        last = yield from self.sql(who, self.audit.cursor, epoch)
        events = yield from self.redis(who, self.store.read, epoch, last)
        upto = events[-1].stream_id if events else last
        if "trim_after_commit" in self.broken:
            yield from self.redis(who, self.store.trim, epoch, term, upto)
        if events and not (yield from self.sql(who, self.audit.commit, epoch, last, events)):
            return
        yield from self.redis(who, self.store.trim, epoch, term, upto)

    def _reconcile(self, who: str, epoch: int) -> Process:
        """Say LOST of open rows that are nowhere. SQL is read first, so a quick drain wins."""
        ids = yield from self.sql(who, self.audit.open_rows)
        gone = yield from self.redis(who, self.store.missing, epoch, ids)
        if gone:
            yield from self.sql(who, self.audit.give_up, gone)
