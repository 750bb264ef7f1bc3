"""SQL as the truth, Redis as its mirror: one protocol for what several modes need.

``sync`` (SQL commits before Redis is told), the outbox (a row in the caller's own transaction), the
cold tier (rows whose time has not come stay in SQL) and the rebuild of a Redis that has lost
something are the same protocol; here it is, before there is code for it, as a machine whose steps
can be shuffled, like ``protocol.py``::

    caller -> SQL row, committed -> add -> entries -> move -> queue
                 |      ^                     |
     cold: page-in      +---- drain <---- journal        after a failover: rebuild, then ready

The rules, in one breath.  A row's version grows with each change that Redis is to hear of, and each
version has a deadline until which its add may arrive, in the epoch in which it was decided.  Redis
applies only higher versions.  Whoever finds an entry absent in Redis may act on that only after its
journal was looked at, and then by compare-and-set on state, version and tier.  A version's add may
be repeated by anybody until its deadline; after it, only as the next version.  Where lower versions
may be on the wire, an operation that found nothing leaves a tombstone that keeps them out.  A
cancel is answered when Redis has decided, SQL has committed, and the epoch is still the same.
Nothing is moved in a Redis history before a beat has compared it with SQL.

Promises: what was committed and not cancelled is handed off, whatever Redis loses; what was rolled
back never is; CANCELLED never runs; after an answered reschedule nothing older runs; nothing runs
early; and nothing twice, but for hand-offs of which a failover lost the last trace.

Not modelled: runs and retries, claims, expiry, shards, leadership (it guards nothing here), and
what a worker does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .backed_stores import (
    ABSENT,
    CANCELLED,
    COLD,
    DISPATCHED,
    DONE,
    EPOCH,
    GONE,
    HOT,
    OK,
    SCHEDULED,
    TOO_LATE,
    UNKNOWN,
    WINDOW,
    Entry,
    Ledger,
    Mirror,
    Row,
    Truth,
)
from .ledger import Broken
from .wires import Process, Running, Unanswered, Wires

STEPS, TICK, HOT_WINDOW, ROUNDS = 600, 40, 4_000, 6
BEATS, MOST_TASKS = ("beat1", "beat2"), 5

#: rule -> what it says, and the faults in which its absence must show.
RULES = {
    "add_epoch": ("an add counts only in the epoch in which it was decided", "network failover"),
    "add_window": ("an add past its version's deadline writes nothing", "network"),
    "higher_version": ("Redis applies only higher versions", "network sql failover"),
    "superseded_tombstone": ("what was absent at a reschedule keeps lower versions out", "network"),
    "cancel_tombstone": ("what was absent at a cancel is kept out", "network"),
    "gone_tombstone": ("what leaves within its window leaves a tombstone", "network"),
    "gone_for_all": ("which keeps higher versions out too", "network"),
    "ready_gate": ("nothing is moved before a history was compared with SQL", "failover"),
    "mark_of_server": ("a mark that another server was given is none", "failover"),
    "cancel_cas": ("a cancel is a compare-and-set in SQL", "network"),
    "reschedule_cas": ("so is a reschedule", "network"),
    "page_in_cas": ("so is a page-in", "network"),
    "take_back_cas": ("so is a take-back of what Redis has lost", "network failover"),
    "page_in_journal": ("what was hot before is looked for in the journal before a page-in", ""),
    "take_back_waits": ("what is taken back was looked for after its deadline", ""),
    "take_back_journal": ("absent is only what is not in the journal either", "network"),
    "cancel_journal": ("a cancel that found nothing looks at the journal", "network"),
    "reschedule_journal": ("so does a reschedule", "network"),
    "cancel_confirm": ("a cancel is answered only if the epoch is still the same", "failover"),
    "repeat_rereads": ("whoever repeats an add reads SQL again after the journal", "network"),
    "repeat_in_window": ("after the deadline an add is repeated as the next version", "network"),
    "rebuild_versions": ("a rebuild brings entries to SQL's version", "network sql failover"),
    "rebuild_drops": ("a rebuild takes out what SQL says is over", "failover"),
    "stale_cancel_event": ("a cancel of an older version than SQL's is none", "network failover"),
}


class BackedSimulation(Wires):
    """``faults``: any of stall, crash, network, sql, failover."""

    def __init__(self, seed: int, faults: frozenset[str], broken: frozenset[str]) -> None:
        assert broken <= RULES.keys()
        self.rng, self.seed, self.faults, self.broken = random.Random(seed), seed, faults, broken
        self.ledger = Ledger()
        self.mirror = Mirror(self.ledger, broken)
        self.truth = Truth(self.mirror, self.ledger, broken)
        self.loss = self.rng.choice((0.04, 0.12)) if "network" in faults else 0.0
        self.most_tasks = self.rng.choice((1, 2, MOST_TASKS))  # few, to make their calls meet
        self.calling = self.rng.choice((0.04, 0.1))
        self.cancelling = self.rng.choice((0.0, 0.4, 1.0))
        self.delays = self.rng.choice(((0, 400, 1_000), (0, 2_500), (0, 400, 2_000, 3_000, 9_000)))
        self.failing = self.rng.choice((0.02, 0.06))
        self.running: list[Running] = []
        self.tasks: list[str] = []
        self.calls = 0
        self.trace: list[tuple[int, str, str, Any]] = []
        self.spawn_beats()

    # -- the wires ------------------------------------------------------------------------

    @property
    def sql_is_up(self) -> bool:  # type: ignore[override]
        return self.truth.up

    def run_step(self, who: str, step: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        said = f"{step.__name__}({', '.join(map(str, args))})"
        self.trace.append((self.mirror.now, who, said, "raised"))
        answer = step(*args)
        self.trace[-1] = (self.mirror.now, who, said, answer)
        return answer

    # -- callers --------------------------------------------------------------------------

    def producer(self, who: str, id: str, delay: int, fate: str) -> Process:
        """*fate*: commit; rollback; crash, between the commit and the mirror."""
        epoch, _ = yield from self.redis(who, self.mirror.mark)
        if fate == "rollback":
            return
        eta = self.mirror.now + delay
        tier = COLD if delay > HOT_WINDOW else HOT
        row = yield from self.sql(who, self.truth.insert, id, tier, eta, epoch)
        if fate == "crash" or tier == COLD or not epoch:
            return
        for _ in range(3):
            with suppress(Unanswered):
                yield from self.redis(who, self.mirror.add, id, entry_of(row), epoch)
                return

    def canceller(self, who: str, id: str) -> Process:
        self.ledger.cancel_calls.add(id)
        for _ in range(ROUNDS):
            with suppress(Unanswered):
                answer = yield from self.cancel_once(who, id)
                if answer == CANCELLED:
                    self.ledger.cancel_answered(id)
                elif answer == TOO_LATE:
                    self.ledger.too_late.add(id)
                if answer:
                    return
        return

    def cancel_once(self, who: str, id: str) -> Process:
        epoch, _ = yield from self.redis(who, self.mirror.mark)
        seen = yield from self.sql(who, self.truth.read, id)
        if not epoch or seen is None:
            return ""
        if seen.state == DISPATCHED:
            return TOO_LATE
        found = yield from self.redis(who, self.mirror.cancel, id, epoch)
        if found == GONE:
            return TOO_LATE
        if found == EPOCH:
            return ""
        if found == ABSENT and "cancel_journal" not in self.broken:
            looked = yield from self.redis(who, self.mirror.look, id, epoch)
            if looked == EPOCH:
                return ""
            if DISPATCHED in looked[1]:
                return TOO_LATE
        if not (yield from self.sql(who, self.truth.cancel, id, seen)):
            return ""
        if "cancel_confirm" not in self.broken:
            again, _ = yield from self.redis(who, self.mirror.mark)
            if again != epoch:
                return ""
        return CANCELLED

    def rescheduler(self, who: str, id: str, delay: int) -> Process:
        with suppress(Unanswered):
            for _ in range(ROUNDS):
                answer = yield from self.reschedule_once(who, id, delay)
                if answer == TOO_LATE:
                    self.ledger.too_late.add(id)
                elif answer.startswith(DONE):
                    self.ledger.floor[id] = max(self.ledger.floor[id], int(answer.split()[1]))
                if answer:
                    return

    def reschedule_once(self, who: str, id: str, delay: int) -> Process:
        epoch, _ = yield from self.redis(who, self.mirror.mark)
        seen = yield from self.sql(who, self.truth.read, id)
        if not epoch or seen is None:
            return ""
        if seen.state != SCHEDULED:
            return TOO_LATE if seen.state == DISPATCHED else UNKNOWN
        tier = COLD if delay > HOT_WINDOW else HOT
        eta = self.mirror.now + delay
        row = yield from self.sql(who, self.truth.reschedule, id, seen, tier, eta, epoch)
        if row is None:
            return ""
        if tier == HOT:
            found = yield from self.redis(who, self.mirror.apply, id, entry_of(row), epoch)
        else:
            found = yield from self.redis(who, self.mirror.withdraw, id, row.version, epoch)
        if found == OK:
            return f"{DONE} {row.version}"
        if found != ABSENT:
            return TOO_LATE if found == GONE else UNKNOWN
        return (yield from self.reschedule_absent(who, id, row, epoch))

    def reschedule_absent(self, who: str, id: str, row: Row, epoch: int) -> Process:
        """Either it has been handed off, or it was not there yet; lower versions are kept out."""
        if "reschedule_journal" not in self.broken:
            looked = yield from self.redis(who, self.mirror.look, id, epoch)
            if looked == EPOCH:
                return UNKNOWN
            if DISPATCHED in looked[1]:
                return TOO_LATE
            now = yield from self.sql(who, self.truth.read, id)
            if now.state != SCHEDULED:
                return TOO_LATE if now.state == DISPATCHED else UNKNOWN
        if row.tier == COLD:
            return f"{DONE} {row.version}"
        added = yield from self.redis(who, self.mirror.add, id, entry_of(row), epoch)
        return f"{DONE} {row.version}" if added == OK else UNKNOWN

    # -- beats ----------------------------------------------------------------------------

    def beat(self, who: str) -> Process:
        """Name and rebuild a history, move, drain, reconcile, page in; for ever.

        Two of them at once do no harm, so nobody is elected here.
        """
        while True:
            with suppress(Unanswered):
                epoch, is_ready = yield from self.redis(who, self.mirror.mark)
                if not epoch or not (is_ready or "ready_gate" in self.broken):
                    yield from self.rebuild(who, epoch)
                    continue
                yield from self.redis(who, self.mirror.move, epoch)
                yield from self.drain(who, epoch)
                dice = self.rng.random()
                if dice < 0.3:
                    yield from self.reconcile(who, epoch)
                elif dice < 0.6:
                    yield from self.page_in(who, epoch)

    def drain(self, who: str, epoch: int) -> Process:
        events = yield from self.redis(who, self.mirror.read, epoch)
        if events:
            yield from self.sql(who, self.truth.commit, events)
            yield from self.redis(who, self.mirror.trim, epoch, events)

    def reconcile(self, who: str, epoch: int) -> Process:
        """Mirror what a crash or a lost request left in SQL alone."""
        rows = yield from self.sql(who, self.truth.open)
        for id, row in rows.items():
            if row.tier == HOT:
                yield from self.mirror_one(who, id, row, epoch)

    def mirror_one(self, who: str, id: str, row: Row, epoch: int) -> Process:
        # asked before the look: an add that lands after that could leave again unseen
        elsewhen = row.epoch != epoch
        is_over = elsewhen or self.mirror.now > row.deadline
        looked = yield from self.redis(who, self.mirror.look, id, epoch)
        if "take_back_waits" in self.broken:
            is_over = elsewhen or self.mirror.now > row.deadline
        if looked == EPOCH:
            return
        live, told = looked
        if live and live < row.version:
            if "rebuild_versions" not in self.broken:
                yield from self.redis(who, self.mirror.apply, id, entry_of(row), epoch)
            return
        if live or (told and "take_back_journal" not in self.broken):
            return
        if is_over and "repeat_in_window" not in self.broken:
            row = yield from self.sql(who, self.truth.take_back, id, row, epoch)
        elif is_over:
            row = row._replace(deadline=self.mirror.now + WINDOW)
        elif "repeat_rereads" not in self.broken:
            now = yield from self.sql(who, self.truth.read, id)
            row = row if now == row else None
        if row is not None:
            yield from self.redis(who, self.mirror.add, id, entry_of(row), epoch)

    def page_in(self, who: str, epoch: int) -> Process:
        rows = yield from self.sql(who, self.truth.open)
        for id, seen in rows.items():
            if seen.tier == COLD and seen.eta < self.mirror.now + HOT_WINDOW:
                if "page_in_journal" not in self.broken:
                    looked = yield from self.redis(who, self.mirror.look, id, epoch)
                    if looked == EPOCH or looked[1]:
                        continue
                row = yield from self.sql(who, self.truth.page_in, id, seen, epoch)
                if row is not None:
                    yield from self.redis(who, self.mirror.add, id, entry_of(row), epoch)

    def rebuild(self, who: str, epoch: int) -> Process:
        """Compare a Redis history with SQL, whatever it has kept, and say that it is ready."""
        if not epoch:
            epoch = yield from self.sql(who, self.truth.begin_epoch)
            yield from self.redis(who, self.mirror.begin, epoch)
        while (yield from self.redis(who, self.mirror.read, epoch)):
            yield from self.drain(who, epoch)
        for id, row in (yield from self.sql(who, self.truth.open)).items():
            if row.tier == HOT:
                yield from self.mirror_one(who, id, row, epoch)
        for id, version in (yield from self.redis(who, self.mirror.live, epoch)).items():
            row = yield from self.sql(who, self.truth.read, id)
            is_over = row is None or row.state != SCHEDULED or row.tier == COLD
            if is_over and "rebuild_drops" not in self.broken:
                yield from self.redis(who, self.mirror.drop, id, version, epoch)
        yield from self.redis(who, self.mirror.ready, epoch)

    # -- the run --------------------------------------------------------------------------

    def spawn(self, who: str, steps: Process, asleep: int = 0) -> None:
        self.running.append(Running(who, steps, self.mirror.now + asleep))

    def spawn_beats(self) -> None:
        alive = {one.who for one in self.running}
        for who in BEATS:
            if who not in alive:
                self.spawn(who, self.beat(who), 300)

    def run(self) -> str | None:
        """None, or what was broken and how it came about."""
        try:
            for _ in range(STEPS):
                self.turn()
            self.come_to_rest()
            self.ledger.settled(self.truth.rows, set(self.mirror.has.entries))
        except Broken as broken:
            return self.story(broken)
        return None

    def turn(self) -> None:
        rng = self.rng
        self.mirror.now += TICK
        dice = rng.random()
        if dice < 0.03 and len(self.tasks) < self.most_tasks:
            id = "abcdefgh"[len(self.tasks)]
            self.tasks.append(id)
            fate = rng.choice(("commit", "commit", "crash", "rollback"))
            delay = rng.choice(self.delays)
            self.spawn(f"producer of {id}", self.producer(f"producer of {id}", id, delay, fate))
        elif dice < 0.05:
            self.mirror.now += rng.choice((200, 1_000, 2_500))
        elif dice < 0.08 and self.running and "stall" in self.faults:
            rng.choice(self.running).asleep = self.mirror.now + rng.choice((500, 3_500, 8_000))
        elif dice < 0.08 + self.failing:
            self.fault()
        elif dice < 0.08 + self.failing + self.calling and self.tasks:
            self.call(rng.choice(self.tasks))
        else:
            awake = [one for one in self.running if one.asleep <= self.mirror.now]
            if awake:
                self.advance(rng.choice(awake))

    def call(self, id: str) -> None:
        self.calls += 1
        if self.rng.random() < self.cancelling:
            who = f"canceller{self.calls}"
            self.spawn(who, self.canceller(who, id))
        else:
            who = f"rescheduler{self.calls}"
            delay = self.rng.choice(self.delays)
            self.spawn(who, self.rescheduler(who, id, delay))

    def fault(self) -> None:
        kind = self.rng.choice(("crash", "crash", "sql", "failover"))
        if kind not in self.faults:
            return
        self.trace.append((self.mirror.now, "FAULT", kind, ""))
        if kind == "crash":
            victim = self.running.pop(self.rng.randrange(len(self.running)))
            self.trace[-1] = (self.mirror.now, "FAULT", f"crash of {victim.who}", "")
            victim.steps.close()
            self.spawn_beats()
        elif kind == "sql":
            self.truth.up = not self.truth.up
        else:
            known = {id for id, row in self.truth.rows.items() if row.state == DISPATCHED}
            back = self.rng.randrange(len(self.mirror.before) + 1)
            self.mirror.fail_over(known, back=back)

    def advance(self, one: Running) -> None:
        try:
            next(one.steps)
        except (StopIteration, Unanswered):
            self.running.remove(one)

    def come_to_rest(self) -> None:
        """No more faults: whoever stalled wakes, what is on the wire arrives, beats go on."""
        self.trace.append((self.mirror.now, "", "the faults end", ""))
        self.loss, self.truth.up = 0.0, True
        for _ in range(1_500):
            for one in list(self.running):
                self.mirror.now += TICK
                if one.asleep <= self.mirror.now:
                    self.advance(one)
            has = self.mirror.has
            waits = has.entries or has.journal or self.truth.open()
            if len(self.running) == len(BEATS) and not waits and has.is_ready:
                return
        raise Broken(f"no rest: {self.mirror.has} {self.truth.open()}")

    def story(self, broken: Broken) -> str:
        lines = [f"seed {self.seed}, faults {sorted(self.faults)}: {broken}"]
        for now, who, what, answer in self.trace:
            if what.startswith(("mark", "open")) or answer in (0, [], {}) or what == "read([])":
                continue  # they would hide the story
            lines.append(f"{now:>10}  {who:<22} {what} -> {answer}")
        return "\n".join(lines)


def entry_of(row: Row) -> Entry:
    """What Redis is told of a row."""
    return Entry(row.version, row.eta, row.deadline)
