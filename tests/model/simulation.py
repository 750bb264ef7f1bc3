"""One random run of the protocol: shuffle the processes, let faults in, come to rest, judge."""

from __future__ import annotations

import random

from .ledger import Broken
from .protocol import RULES, System
from .wires import Process, Running
from .words import SCHEDULED

POLLS = ("elect", "pop", "cursor", "read_epoch", "open_rows")
STEPS, TICK = 400, 50
TASKS = ("a", "b")
BEATS, WORKERS = ("beat1", "beat2", "beat3"), ("worker",)


class Simulation:
    """``faults``: any of crash, network, sql, restart, wipe. A stall can always happen."""

    def __init__(self, seed: int, faults: frozenset[str], broken: frozenset[str]) -> None:
        assert broken <= RULES.keys()
        self.rng, self.seed, self.faults = random.Random(seed), seed, faults
        self.tasks = TASKS[: self.rng.choice((1, 2))]  # one id, to make its runs meet
        loss = self.rng.choice((0.03, 0.12)) if "network" in faults else 0.0
        self.system = System(self.rng, broken, loss, self.spawn)
        self.clock = self.system.clock
        self.running: list[Running] = []
        self.adds = self.cancels = 0
        self.spawn_services()

    def spawn(self, who: str, steps: Process, asleep: int) -> None:
        self.running.append(Running(who, steps, self.clock.now + asleep))

    def spawn_services(self) -> None:
        alive = {one.who for one in self.running}
        for who in BEATS:
            if who not in alive:
                self.spawn(who, self.system.beat(who), 500)
        for who in WORKERS:
            if who not in alive:
                self.spawn(who, self.system.worker(who), 500)

    def run(self) -> str | None:
        """None, or what was broken and how it came about."""
        try:
            for _ in range(STEPS):
                self.turn()
            self.come_to_rest()
            events = [(event.state, event.id) for event in self.system.audit.events.values()]
            self.system.ledger.settled(events, self.system.audit.state)
        except Broken as broken:
            return self.story(broken)
        return None

    def turn(self) -> None:
        rng = self.rng
        self.clock.now += TICK
        dice = rng.random()
        if dice < 0.03 and self.adds < 8:
            self.adds += 1
            who, delay = f"producer{self.adds}", rng.choice((0, 300, 2_000, 6_000))
            self.spawn(who, self.system.producer(who, rng.choice(self.tasks), delay), 0)
        elif dice < 0.05:
            self.cancel(rng.choice(self.tasks))
        elif dice < 0.07:
            self.clock.now += rng.choice((200, 1_000, 2_500))
        elif dice < 0.09:
            rng.choice(self.running).asleep = self.clock.now + rng.choice((500, 3_500, 8_000))
        elif dice < 0.11:
            self.fault()
        else:
            self.step()

    def cancel(self, task: str) -> None:
        """By task_id, or by the entry id of some run the caller knows of."""
        known = [run for name, run in self.system.ledger.calls if name == task]
        run = self.rng.choice(known) if known and self.rng.random() < 0.5 else None
        self.cancels += 1
        who = f"canceller{self.cancels}"
        self.spawn(who, self.system.canceller(who, task, run), 0)

    def fault(self) -> None:
        kind = self.rng.choice(("crash", "crash", "network", "sql", "restart", "wipe"))
        if kind not in self.faults or kind == "network":
            return
        system = self.system
        system.trace.append((self.clock.now, "FAULT", kind, (), ""))
        if kind == "crash":
            victim = self.running.pop(self.rng.randrange(len(self.running)))
            system.trace[-1] = (self.clock.now, "FAULT", f"crash of {victim.who}", (), "")
            victim.steps.close()
            self.spawn_services()
        elif kind == "sql":
            system.audit.up = not system.audit.up
        elif kind == "restart":
            system.store.server += 1
        else:
            kept = set(system.audit.events.values())
            system.ledger.wiped(
                (event.state, event.id) for event in system.store.journal if event not in kept
            )
            system.store.wipe()

    def step(self) -> None:
        awake = [one for one in self.running if one.asleep <= self.clock.now]
        if awake:
            self.advance(self.rng.choice(awake))

    def advance(self, one: Running) -> None:
        try:
            next(one.steps)
        except StopIteration:
            self.running.remove(one)

    def come_to_rest(self) -> None:
        """No more faults: whoever stalled wakes, what is on the wire arrives, beats go on."""
        system = self.system
        system.trace.append((self.clock.now, "", "the faults end", (), ""))
        system.loss, system.audit.up = 0.0, True
        for _ in range(1_000):
            for one in list(self.running):
                self.clock.now += TICK
                if one.asleep <= self.clock.now:
                    self.advance(one)
            if len(self.running) == len(BEATS) + len(WORKERS) and self.at_rest():
                return
        raise Broken(f"no rest: {system.store.entries} {system.store.journal}")

    def at_rest(self) -> bool:
        store, states = self.system.store, self.system.audit.states.values()
        return not (store.entries or store.queue or store.journal or SCHEDULED in states)

    def story(self, broken: Broken) -> str:
        lines = [f"seed {self.seed}, faults {sorted(self.faults)}: {broken}"]
        for now, who, what, args, answer in self.system.trace:
            if what in POLLS or (what, answer) in (("move", 0), ("read", [])):
                continue  # they would hide the story
            said = ", ".join(map(str, args))
            lines.append(f"{now:>10}  {who:<22} {what}({said}) -> {answer}")
        return "\n".join(lines)
