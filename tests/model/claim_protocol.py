"""The claim path as a machine whose steps can be shuffled: claim, publish, ack.

As in ``protocol.py``: each script is one atomic step, all else is a process written as a
generator, and a ``yield`` is where anything may come between.  Here it is the claim path alone,
with a broker elsewhere, so that a beat needs three steps for what the move does in one::

    add -> outbound -> claim -> claims -> publish -> the broker's queue -> worker -> (retry: add)
              ^                   |          |
              |  give back, rescue +          +-> confirmed: ack
              +-------------------------------+-> no word: nothing; the claim ends, and is rescued

The promises (``claim_store.Record``): nothing is lost; nothing is published early; what was
answered CANCELLED is never published; DISPATCHED is told of nothing that the broker never got; and
a message is published twice only for a reason: for each beat that is killed or stands still in
the middle of its work, and for each ack that Redis never answered, as many as its window has (what
it sends after a pause amid a write is in the window, too); one for each message of whose fate the
broker said nothing; and what a Redis that lost a suffix had in that suffix.

A beat sends several messages at once, and hears of each in its own time: the window is what it has
sent and not acked, whether heard of or not.

Not modelled: what ``protocol.py`` models (repeats of an add, tombstones, the journal's way to
SQL, leadership), expiry, damage, shards.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .claim_store import (
    AWAY,
    CONFIRMED,
    DECLINED,
    PUBLISHING,
    REFUSED,
    UNKNOWN,
    WINDOW,
    Broker,
    ClaimStore,
    Copy,
    Record,
)
from .ledger import Broken
from .wires import Process, Running, Unanswered, Wires

STEPS, TICK = 700, 4
BEATS, WORKERS, TASKS = ("beat1", "beat2", "beat3"), ("worker",), "abcdefgh"

#: rule -> what it says, and the faults in which its absence must show.
RULES = {
    "claim_removes": ("a claim takes its entries out of the schedule", ""),
    "rescue_waits": ("a claim is rescued only after its end", ""),
    "rescue_returns": ("a rescued entry goes back to its schedule", "crash"),
    "claimed_run_settles": ("a retry of a claimed run settles that run's claim", ""),
    "rescued_run_settles": ("a retry of a rescued run takes its place", "crash broker"),
    "next_run": ("only the very next run does", "crash"),
    "reused_id": ("an id that is used again is refused while it is claimed", "crash"),
    "parked_id": ("and while it is parked", "broker"),
    "claimed_is_too_late": ("a claimed entry cannot be cancelled", ""),
    "ack_token": ("an ack counts only under the claim's own token", "stall crash network"),
    "give_back_token": ("so does a return", "stall crash network broker"),
    "ack_after_confirm": ("only what the broker has confirmed is acked", "broker"),
    "publish_window": ("a beat looks at the clock before each write", "stall"),
    "window": ("a beat has no more under way than may be doubled", "crash"),
    "unknown_is_left": ("what is unknown is neither acked nor given back", "broker"),
    "unknown_is_no_refusal": ("a confirm that times out is no refusal", "broker"),
    "attempts_counted": ("a rescue counts the attempt, so that no cancel is sure", "crash"),
    "parked_attempts": ("silent attempts go along into quarantine", "crash broker"),
    "ack_in_any_epoch": ("an ack counts in a later history too", "rollback"),
}


class ClaimSimulation(Wires):
    """``faults``: any of stall, crash, network, broker, rollback."""

    LOST = 3

    def __init__(self, seed: int, faults: frozenset[str], broken: frozenset[str]) -> None:
        assert broken <= RULES.keys()
        self.rng, self.seed, self.faults, self.broken = random.Random(seed), seed, faults, broken
        self.record = Record()
        self.store = ClaimStore(self.record, broken)
        self.broker = Broker(self.record, self.rng)
        self.broker.trouble = self.rng.choice((0.1, 0.4)) if "broker" in faults else 0.0
        self.loss = self.rng.choice((0.03, 0.1)) if "network" in faults else 0.0
        self.tasks = TASKS[: self.rng.choice((1, 4, 8))]
        self.running: list[Running] = []
        self.busy: set[str] = set()  # beats with a claim in their hands
        self.tokens = self.adds = self.cancels = 0
        self.trace: list[tuple[int, str, str, Any]] = []
        self.spawn_services()

    # -- processes ------------------------------------------------------------------------

    def spawn(self, who: str, steps: Process, asleep: int = 0) -> None:
        self.running.append(Running(who, steps, self.store.now + asleep))

    def spawn_services(self) -> None:
        alive = {one.who for one in self.running}
        for who in BEATS:
            if who not in alive:
                self.spawn(who, self.beat(who))
        for who in WORKERS:
            if who not in alive:
                self.spawn(who, self.worker())

    def run_step(self, who: str, step: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        told = (who, f"{step.__name__}{args}")
        self.trace.append((self.store.now, *told, "raised"))
        answer = step(*args)
        self.trace[-1] = (self.store.now, *told, answer)
        return answer

    def producer(self, who: str, task: str, delay: int) -> Process:
        yield
        now = self.store.now
        self.run_step(who, self.store.add, (task, now, now + delay))

    def canceller(self, who: str, task: str) -> Process:
        yield
        self.run_step(who, self.store.cancel, (task,))

    def operator(self, who: str) -> Process:
        yield
        self.run_step(who, self.store.tend, (True,))

    def worker(self) -> Process:
        while True:
            yield
            self.broker.arrive(self.store.now)
            if self.broker.queue:
                copy = self.broker.queue.popleft()
                long = self.rng.choice((0, 0, 500, 3_100))
                self.spawn(f"run of {copy.task, copy.run}", self._execute(copy), long)

    def _execute(self, copy: Copy) -> Process:
        yield
        if self.rng.random() < 0.4:
            due = self.store.now + self.rng.choice((0, 0, 500))
            args = (copy.task, copy.run + 1, due, copy)
            self.run_step(f"run of {copy.task, copy.run}", self.store.add, args)

    def beat(self, who: str) -> Process:
        while True:
            self.busy.discard(who)
            with suppress(Unanswered):
                epoch = yield from self.redis(who, self.store.read_epoch)
                yield from self.redis(who, self.store.rescue, epoch)
                if self.rng.random() < 0.2:
                    yield from self.redis(who, self.store.tend, False)
                self.tokens += 1
                token, until = f"t{self.tokens}", self.store.now + PUBLISHING
                self.busy.add(who)
                taken = yield from self.redis(who, self.store.claim, token, epoch)
                if taken:
                    yield from self._publish(who, token, epoch, until, taken)

    def _publish(self, who: str, token: str, epoch: int, until: int, taken: list[Copy]) -> Process:
        confirmed: list[str] = []
        returns: list[tuple[str, str]] = []
        under_way: deque[tuple[Copy, str]] = deque()
        left, broken = list(taken), False
        while under_way or (left and not broken):
            late = self.store.now > until and "publish_window" not in self.broken
            if late or broken:
                returns += [(copy.task, AWAY) for copy in left]
                left.clear()
            room = WINDOW - len(confirmed) - len(under_way)
            if "window" in self.broken:
                room = len(left)
            # in one write; a pause comes after the look at the clock, or amid the write
            for _ in range(min(len(left), room)):
                yield
                copy = left.pop(0)
                outcome = self.run_step(who, self.broker.publish, (copy, self.store.now))
                under_way.append((copy, outcome))
                if "ack_after_confirm" in self.broken:
                    confirmed.append(copy.task)
                if outcome in (AWAY, UNKNOWN):
                    broken = True  # the connection is gone; the confirms before it came
                    break
            if "ack_after_confirm" in self.broken:
                yield from self._ack(who, token, epoch, confirmed)
            yield
            for _ in range(self.rng.randint(1, len(under_way)) if under_way else 0):
                copy, outcome = under_way.popleft()
                if outcome == CONFIRMED:
                    confirmed.append(copy.task)
                elif outcome in (REFUSED, DECLINED, AWAY):
                    returns.append((copy.task, outcome))
                elif "unknown_is_left" in self.broken:
                    returns.append((copy.task, AWAY))
                elif "unknown_is_no_refusal" in self.broken:
                    returns.append((copy.task, REFUSED))
            if len(confirmed) >= WINDOW // 2:
                yield from self._ack(who, token, epoch, confirmed)
        yield from self._ack(who, token, epoch, confirmed)
        returns += [(copy.task, AWAY) for copy in left]
        if returns:
            yield from self.redis(who, self.store.give_back, token, returns)

    def _ack(self, who: str, token: str, epoch: int, confirmed: list[str]) -> Process:
        acked, confirmed[:] = list(confirmed), []
        for _ in range(3 if acked else 0):
            with suppress(Unanswered):
                yield from self.redis(who, self.store.ack, token, epoch, acked)
                return
        self.record.allowed += len(acked)

    # -- chance ---------------------------------------------------------------------------

    def run(self) -> str | None:
        """None, or what was broken and how it came about."""
        try:
            for _ in range(STEPS):
                self.turn()
            self.come_to_rest()
            parked = {copy.number for copy, _ in self.store.state.parked.values()}
            self.record.settled(parked)
        except Broken as broken:
            return self.story(broken)
        return None

    def turn(self) -> None:
        rng = self.rng
        self.store.now += TICK
        dice = rng.random()
        if dice < 0.03 and self.adds < 8:
            self.adds += 1
            delay = rng.choice((0, 0, 300, 2_000))
            for task in rng.sample(self.tasks, rng.choice((1, len(self.tasks)))):
                self.spawn("producer", self.producer("producer", task, delay))
        elif dice < 0.05 and self.cancels < 16:
            self.cancels += 1
            self.spawn("canceller", self.canceller("canceller", rng.choice(self.tasks)))
        elif dice < 0.06 and "broker" in self.faults:
            self.spawn("operator", self.operator("operator"))
        elif dice < 0.09 and not self.busy:
            self.store.now += rng.choice((200, 1_000, 3_000))
        elif dice < 0.11:
            self.fault()
        else:
            self.advance()

    def fault(self) -> None:
        kind = self.rng.choice(("stall", "stall", "crash", "rollback"))
        if kind not in self.faults:
            return
        beats = [one for one in self.running if one.who in BEATS]
        at_work = [one for one in beats if one.who in self.busy]
        if at_work and self.rng.random() < 0.7:
            beats = at_work
        victim = self.rng.choice(beats)
        self.trace.append((self.store.now, "FAULT", f"{kind} of {victim.who}", ""))
        if kind == "rollback":
            self.store.roll_back(self.rng.randrange(1, 9))
        elif kind == "crash":
            self.record.allowed += WINDOW if victim.who in self.busy else 0
            self.busy.discard(victim.who)
            self.running.remove(victim)
            victim.steps.close()
            self.spawn_services()
        else:
            # the others go on meanwhile: first a little, then the time passes
            self.record.allowed += WINDOW if victim.who in self.busy else 0
            self.busy.discard(victim.who)
            victim.asleep = self.store.now + self.rng.choice((3_500, 8_000))

    def advance(self) -> None:
        awake = [one for one in self.running if one.asleep <= self.store.now]
        if awake:
            self.step(self.rng.choice(awake))

    def step(self, one: Running) -> None:
        try:
            next(one.steps)
        except StopIteration:
            self.running.remove(one)

    def come_to_rest(self) -> None:
        """No more faults: whoever stalled wakes, and the beats go on until nothing is left."""
        self.trace.append((self.store.now, "", "the faults end", ""))
        self.loss = self.broker.trouble = 0.0
        for _ in range(3_000):
            self.store.now += 0 if self.busy else 50
            for one in list(self.running):
                self.store.now += TICK
                if one.asleep <= self.store.now:
                    self.step(one)
            state = self.store.state
            waiting = state.outbound or state.blocked or state.claims
            on_its_way = self.broker.queue or self.broker.on_the_wire
            if len(self.running) == len(BEATS) + len(WORKERS) and not (waiting or on_its_way):
                return
        raise Broken(f"no rest: {self.store.state}")

    def story(self, broken: Broken) -> str:
        lines = [f"seed {self.seed}, faults {sorted(self.faults)}: {broken}"]
        for now, who, what, answer in self.trace:
            if what.startswith(("read_epoch", "rescue", "tend")) or answer == []:
                continue  # they would hide the story
            lines.append(f"{now:>10}  {who:<18} {what} -> {answer}")
        return "\n".join(lines)
