"""Tracking and guard as a machine whose steps can be shuffled: hand-off, worker, watchdog.

As in ``protocol.py``: each script is one atomic step, all else is a process written as a generator,
and a ``yield`` is where anything may come between::

    hand-off -> queue -> (in a worker's hands) -> unacked -> claim -> begin -> effect -> end -> ack
                  ^                                  |
                  +-- visibility time-out, requeue --+      the watchdog: copies of what is nowhere

The promises: a task that is acknowledged early is begun, or fails because the process of the pool
that had it was lost; one that is acknowledged late has its effect; a copy is sent only of what no
living worker has; and with the guard an effect comes twice only if a process that had it was
killed, or its worker stood still for longer than the patience.

*Begun* is what a worker tells right before a task's first line; it can be killed in between.

Not modelled: the journal, SQL, shards, queues that are too long to search, retries (other runs),
a store that does not answer a claim, giving up after five copies.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .ledger import Broken
from .wires import Process

STEPS, TICK = 800, 10
PATIENCE, VISIBILITY, AGAIN = 1_000, 2_500, 200
EARLY, LATE = "early", "late"
#: Stands for each process of a pool that was killed after an effect.
KILLED = "a killed process"

#: rule -> what it says, and the faults in which its absence must show; guard unless it says track.
RULES = {
    "watched": ("what is handed off is watched", "kill"),
    "two_looks": ("one look that finds nothing is not enough", "track"),
    "queue_counts": ("what is on its queue is left there", "track"),
    "unacked_counts": ("what a worker has written down is left there", "track"),
    "fetched_is_told": ("what a worker has fetched and not written down it tells", "track"),
    "begun_is_told": ("the begin of an early task ends its watch", "track"),
    "late_to_the_end": ("a late task is watched until it is over", "track kill"),
    "late_reports": ("what could not be told at its time is told later", "track network"),
    "stages": ("a claim is not yet a begin", "kill"),
    "dead_give_way": ("a dead worker's claim is taken over", "kill"),
    "living_are_heeded": ("a living worker's claim is heeded", ""),
    "over_is_known": ("that a run is over is known", ""),
    "copies_wait": ("a redelivered copy waits for the one that runs", "kill elsewhere"),
    "lost_is_no_end": ("a message that goes back to its queue ends no watch", "track kill child"),
    "requeue_gives_back": ("a message that goes back to its queue gives its claim back", "requeue"),
}


class Task(NamedTuple):
    number: int
    acks: str


class Message(NamedTuple):
    task: Task
    copy: int
    redelivered: bool


@dataclass
class Watch:
    next_look: int
    misses: int = 0
    copies: int = 0


@dataclass
class Worker:
    """One life of a worker."""

    name: str
    running: list[Process] = field(default_factory=list)
    hands: set[Task] = field(default_factory=set)
    asleep: int = 0
    #: It was told to end: what it runs it runs to the end, what it merely has goes back.
    ending: bool = False
    owed: list[tuple[str, Task]] = field(default_factory=list)


class GuardSimulation:
    """``faults``: any of track (no guard), elsewhere (another broker), kill, child (a process of
    the pool is killed), end (by SIGTERM), stall, network, requeue."""

    def __init__(self, seed: int, faults: frozenset[str], broken: frozenset[str]) -> None:
        assert broken <= RULES.keys()
        self.rng, self.seed, self.faults, self.broken = random.Random(seed), seed, faults, broken
        self.guards = "track" not in faults
        self.now = 0
        self.queue: deque[Message] = deque()
        self.unacked: dict[tuple[Task, int], tuple[Message, int]] = {}
        self.watched: dict[Task, Watch] = {}
        self.marks: dict[Task, tuple[str, object, str]] = {}
        self.over: set[Task] = set()
        self.signs: dict[str, int] = {}
        self.tasks: list[Task] = []
        self.begun: set[Task] = set()
        self.effects: dict[Task, list[str]] = {}
        self.gone: set[str] = {KILLED}  # killed, or silent for too long
        #: Acknowledged early, and its process was lost: Celery has written a failure.
        self.failed: set[Task] = set()
        #: Begun by workers that were killed before they could tell.
        self.untold: set[Task] = set()
        self.redelivered: set[Task] = set()
        self.lives = 0
        self.loss = self.rng.choice((0.1, 0.3)) if "network" in faults else 0.0
        self.workers = [self.born() for _ in range(2)]
        self.trace: list[str] = []

    # -- the store's steps ----------------------------------------------------------------

    def tell(self, what: str) -> None:
        self.trace.append(f"{self.now:>7}  {what}")

    def hand_off(self) -> None:
        task = Task(len(self.tasks), self.rng.choice((EARLY, LATE)))
        self.tasks.append(task)
        self.queue.appendleft(Message(task, 0, False))
        if "watched" not in self.broken and "elsewhere" not in self.faults:
            self.watched[task] = Watch(self.now + PATIENCE)
        self.tell(f"hand-off of {task}")

    def watch_over(self) -> None:
        for task, watch in list(self.watched.items()):
            if watch.next_look > self.now:
                continue
            watch.next_look = self.now + PATIENCE
            stands = any(one.task == task for one in self.queue)
            kept = any(key[0] == task for key in self.unacked)
            stands = stands and "queue_counts" not in self.broken
            kept = kept and "unacked_counts" not in self.broken
            if stands or kept:
                watch.misses = 0
                continue
            watch.misses += 1
            if watch.misses == (1 if "two_looks" in self.broken else 2):
                watch.misses, watch.copies = 0, watch.copies + 1
                self.tell(f"copy {watch.copies} of {task}")
                self.judge_copy(task)
                self.queue.appendleft(Message(task, watch.copies, False))

    def judge_copy(self, task: Task) -> None:
        owed = {of for one in self.workers for _, of in one.owed}
        # what has come twice has one place in unacked for both
        if task in self.redelivered | owed | self.untold:
            return
        if any(task in one.hands and one.name not in self.gone for one in self.workers):
            raise Broken(f"{task} was sent again, and a living worker has it")
        if any(one.task == task for one in self.queue):
            raise Broken(f"{task} was sent again, and stands on its queue")
        if task.acks == EARLY and task in self.begun:
            raise Broken(f"{task} was sent again, and has begun")

    def restore(self) -> None:
        """What kombu does when the visibility time-out is over."""
        for key, (message, since) in list(self.unacked.items()):
            if since + VISIBILITY <= self.now:
                del self.unacked[key]
                self.queue.append(message._replace(redelivered=True))
                self.redelivered.add(message.task)
                self.tell(f"{message.task} comes again")

    def is_alive(self, worker: str) -> bool:
        return self.now - self.signs.get(worker, -PATIENCE) <= PATIENCE

    def claim(self, message: Message, token: object, worker: str) -> str:
        task = message.task
        if task in self.over:
            return "DROP"
        comes_again = task.acks == LATE or message.redelivered
        stage, holder, whose = self.marks.get(task, ("", None, ""))
        if stage and holder is not token:
            only_copy = stage == "C" or comes_again
            if "stages" in self.broken:
                only_copy = comes_again
            lives = whose == worker or self.is_alive(whose)
            if lives and "living_are_heeded" not in self.broken:
                if "copies_wait" in self.broken:
                    return "DROP"
                return "WAIT" if only_copy else "DROP"
            if not lives and "dead_give_way" in self.broken:
                return "WAIT"
            if not only_copy and "living_are_heeded" not in self.broken:
                return "DROP"
        self.marks[task] = ("C", token, worker)
        return "RUN"

    def take_report(self, worker: Worker, what: str, task: Task) -> None:
        """A worker tells of begin or end; or keeps it, to tell it with the next."""
        if self.rng.random() < self.loss:
            if "late_reports" not in self.broken:
                worker.owed.append((what, task))
            return
        for one, of in [*worker.owed, (what, task)]:
            self.note(one, of)
        worker.owed.clear()

    def note(self, what: str, task: Task) -> None:
        until_end = task.acks == LATE and "late_to_the_end" not in self.broken
        if what == "end" or (not until_end and "begun_is_told" not in self.broken):
            self.watched.pop(task, None)
        if what == "end":
            self.marks.pop(task, None)
            if "over_is_known" not in self.broken:
                self.over.add(task)
        elif task in self.marks:
            self.marks[task] = ("S", *self.marks[task][1:])

    # -- workers --------------------------------------------------------------------------

    def born(self) -> Worker:
        self.lives += 1
        worker = Worker(f"w{self.lives}")
        worker.running.append(self.fetch(worker))
        return worker

    def fetch(self, worker: Worker) -> Process:
        while True:
            yield
            if worker.ending:
                return
            if self.queue and len(worker.hands) < 2:
                message = self.queue.pop()
                worker.hands.add(message.task)
                # another broker knows at once what it has given to whom
                # a full worker leaves one in its socket
                waits = self.rng.choice((1, 1, 1, 1, 8, 8, 8, 150))
                for _ in range(0 if "elsewhere" in self.faults else waits):
                    yield
                    if message.task in self.watched and "fetched_is_told" not in self.broken:
                        self.watched[message.task].misses = 0
                self.unacked[message.task, message.copy] = (message, self.now)
                worker.running.append(self.handle(worker, message))

    def ack(self, message: Message) -> None:
        self.unacked.pop((message.task, message.copy), None)

    def send_back(self, worker: Worker, message: Message) -> None:
        """To its queue, if the broker has it still: who had it too may have acknowledged it."""
        worker.hands.discard(message.task)
        if self.unacked.pop((message.task, message.copy), None) is not None:
            self.queue.appendleft(message._replace(redelivered=True))
            self.redelivered.add(message.task)

    def child_dies(self) -> bool:
        return "child" in self.faults and self.rng.random() < 0.1

    def lose(self, worker: Worker, message: Message, token: object) -> Process:
        """What a worker does when the process is gone that had a task."""
        task = message.task
        self.tell(f"{worker.name} loses its process with {message}")
        if ("begin", task) in worker.owed:
            worker.owed.remove(("begin", task))
            self.untold.add(task)
        yield
        if task.acks == EARLY:
            self.failed.add(task)
            self.take_report(worker, "end", task)
            worker.hands.discard(task)
            return
        if "lost_is_no_end" in self.broken:
            self.take_report(worker, "end", task)
        # it may have been silent, and another have taken the run over
        if self.marks.get(task, ("", None, ""))[1] is token:
            del self.marks[task]
        yield
        self.send_back(worker, message)

    def handle(self, worker: Worker, message: Message) -> Process:
        task, token = message.task, object()
        yield
        while self.guards and not worker.ending:
            answer = self.claim(message, token, worker.name)
            self.tell(f"{worker.name} claims {message}: {answer}")
            if answer == "RUN":
                break
            if answer == "DROP":
                worker.hands.discard(task)
                yield
                self.ack(message)
                return
            until = self.now + AGAIN
            while self.now < until and not worker.ending:
                yield
        if worker.ending and self.marks.get(task, ("", None, ""))[1] is not token:
            self.send_back(worker, message)
            return
        yield
        if task.acks == EARLY:
            self.ack(message)
            yield
        if self.child_dies():
            yield from self.lose(worker, message, token)
            return
        self.begun.add(task)
        self.take_report(worker, "begin", task)
        for _ in range(self.rng.choice((0, 30, 100, 170))):
            yield
        if task.acks == LATE and "requeue" in self.faults and self.rng.random() < 0.3:
            if "requeue_gives_back" not in self.broken:
                self.marks.pop(task, None)
            yield
            self.send_back(worker, message)
            return
        if self.child_dies():
            yield from self.lose(worker, message, token)
            return
        self.effect(worker, task)
        if self.child_dies():
            self.effects[task][-1] = KILLED
            yield from self.lose(worker, message, token)
            return
        yield
        self.take_report(worker, "end", task)
        yield
        worker.hands.discard(task)
        if task.acks == LATE:
            self.ack(message)

    def effect(self, worker: Worker, task: Task) -> None:
        self.tell(f"{worker.name} has the effect of {task}")
        on = self.effects.setdefault(task, [])
        on.append(worker.name)
        # an end that nobody could tell is like a death between effect and report
        excused = task in self.untold
        if self.guards and not excused and sum(one not in self.gone for one in on) > 1:
            raise Broken(f"{task} had its effect on each of {on}")

    # -- chance ---------------------------------------------------------------------------

    def run(self) -> str | None:
        """None, or what was broken and how it came about."""
        try:
            for _ in range(STEPS):
                self.turn()
            self.come_to_rest()
            self.settled()
        except Broken as broken:
            return "\n".join(
                [f"seed {self.seed}, faults {sorted(self.faults)}: {broken}", *self.trace]
            )
        return None

    def turn(self) -> None:
        rng = self.rng
        dice = rng.random()
        if dice < 0.04 and len(self.tasks) < 12:
            self.hand_off()
        elif dice < 0.05 and self.faults & {"kill", "stall", "end"}:
            self.fault()
        self.pass_time()

    def pass_time(self) -> None:
        self.now += TICK
        for worker in self.workers:
            if worker.asleep <= self.now:
                self.signs[worker.name] = self.now
        steps: list[Callable[[], None]] = [self.watch_over, self.restore]
        if self.rng.random() < 0.5:
            self.rng.choice(steps)()
        for worker in self.workers:
            if worker.asleep <= self.now:
                one = self.rng.choice(worker.running)
                try:
                    next(one)
                except StopIteration:
                    worker.running.remove(one)
        for position, worker in enumerate(self.workers):
            if worker.ending and not worker.running:
                self.workers[position] = self.ended(worker)

    def ended(self, worker: Worker) -> Worker:
        """It says what it owes, and that it ends; another takes its place."""
        self.tell(f"{worker.name} has ended")
        self.signs.pop(worker.name, None)
        for what, task in worker.owed:
            if self.rng.random() < self.loss:
                self.untold.add(task)
            else:
                self.note(what, task)
        return self.born()

    def fault(self) -> None:
        kind = self.rng.choice(("kill", "stall", "end"))
        if kind not in self.faults:
            return
        position = self.rng.randrange(len(self.workers))
        victim = self.workers[position]
        self.tell(f"{kind} of {victim.name}")
        if kind == "end":
            victim.ending = True
            return
        self.gone.add(victim.name)
        if kind == "kill":
            for one in victim.running:
                one.close()
            self.untold |= {task for _, task in victim.owed}
            self.workers[position] = self.born()
        else:
            # time passes for the others while it stands still
            victim.asleep = self.now + self.rng.choice((2, 5)) * PATIENCE

    def come_to_rest(self) -> None:
        """No more faults: whoever stalled wakes, and all goes on until nothing is left."""
        self.tell("the faults end")
        self.loss, self.faults = 0.0, self.faults - {"requeue", "child"}
        for _ in range(20_000):
            self.pass_time()
            idle = all(
                len(one.running) == 1 and not one.hands and not one.ending for one in self.workers
            )
            if idle:
                for worker in self.workers:
                    for what, task in worker.owed:
                        self.note(what, task)
                    worker.owed.clear()
            if idle and not (self.queue or self.unacked or self.watched):
                return
        raise Broken(f"no rest: {self.queue} {self.unacked} {self.watched} {self.marks}")

    def settled(self) -> None:
        for task in self.tasks:
            if task.acks == EARLY and ("elsewhere" in self.faults or task in self.failed):
                continue
            if task not in self.begun or (task.acks == LATE and task not in self.effects):
                raise Broken(f"{task} was handed off and is lost")
