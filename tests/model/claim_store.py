"""The claim path's two places, each with its atomic steps, and what really happened in them.

A *copy* of an entry is what one accepted add has stored; it bears a number, and so does each
message that is made of it.  What happened is judged by these numbers.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .ledger import Broken
from .words import ALREADY, CANCELLED, NOT_FOUND, OK, TOO_LATE

TTL, PUBLISHING, BATCH, WINDOW = 3_000, 1_500, 8, 2
CONFIRMED, REFUSED, DECLINED, AWAY, UNKNOWN = "CONFIRMED", "REFUSED", "DECLINED", "AWAY", "UNKNOWN"


class Copy(NamedTuple):
    number: int
    task: str
    run: int
    due: int


class Claim(NamedTuple):
    token: str
    until: int
    copy: Copy


@dataclass
class State:
    """What is in Redis."""

    epoch: int = 1
    outbound: dict[str, Copy] = field(default_factory=dict)
    blocked: dict[str, Copy] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    parked: dict[str, tuple[Copy, int]] = field(default_factory=dict)

    def fork(self) -> State:
        return replace(
            self,
            outbound=dict(self.outbound),
            blocked=dict(self.blocked),
            claims=dict(self.claims),
            attempts=Counter(self.attempts),
            parked=dict(self.parked),
        )

    def places(self) -> set[object]:
        """Each copy with what is known of it."""
        waiting = (*self.outbound.values(), *self.blocked.values())
        held = self.claims.items()
        return {
            *((copy, self.attempts[copy.task]) for copy in waiting),
            *((claim.copy, claim.token, self.attempts[task]) for task, claim in held),
            *self.parked.values(),
        }


class Record:
    """What happened to each copy, and how much of it was to be expected."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []
        self.taken: Counter[int] = Counter()  # messages that the broker has taken
        # by task id and run: a run that was doubled may ask twice for the next one
        self.handed_off: set[tuple[object, ...]] = set()
        self.rescued: Counter[int] = Counter()
        self.refused: set[int] = set()
        self.cancelled: set[int] = set()
        self.dropped: set[int] = set()
        self.excused: set[int] = set()  # its last steps went with a suffix that Redis lost
        self.allowed = 0  # messages that may be on their queue twice
        self.rollbacks = 0

    def stored(self, task: str, run: int, due: int) -> Copy:
        self.copies.append(Copy(len(self.copies), task, run, due))
        return self.copies[-1]

    def published(self, copy: Copy, now: int) -> None:
        if now < copy.due:
            raise Broken(f"{copy} was published early, at {now}")
        if copy.number in self.cancelled - self.excused:
            raise Broken(f"{copy} was published after it was CANCELLED")
        self.taken[copy.number] += 1
        self.handed_off.add(copy[1:3])

    def cancel(self, copy: Copy) -> None:
        if self.taken[copy.number] and copy.number not in self.excused:
            raise Broken(f"{copy} was CANCELLED after it was published")
        self.cancelled.add(copy.number)

    def told_dispatched(self, copy: Copy) -> None:
        if copy[1:3] not in self.handed_off and copy.number not in self.excused:
            raise Broken(f"{copy} is called DISPATCHED, but the broker never got it")

    def settled(self, parked: set[int]) -> None:
        doubled = 0
        for copy in self.copies:
            taken, ended = self.taken[copy.number], self.cancelled | self.dropped | self.excused
            found = ended | (parked & self.refused)
            if copy[1:3] not in self.handed_off and copy.number not in found:
                raise Broken(f"{copy} is lost")
            if taken > 1 + self.rescued[copy.number] + self.rollbacks:
                raise Broken(f"{copy} was published more often than its claims have ended")
            doubled += 0 if copy.number in self.excused else max(0, taken - 1)
        if doubled > self.allowed:
            raise Broken(f"{doubled} messages too many, where {self.allowed} may be")


class ClaimStore:
    """The Redis side.  Each public method is one script."""

    def __init__(self, record: Record, broken: frozenset[str]) -> None:
        self.record, self.broken, self.state = record, broken, State()
        self.before: deque[State] = deque(maxlen=8)
        self.now = 1_000_000
        self.tokens = 0

    def _write(self) -> State:
        self.before.append(self.state.fork())
        return self.state

    def roll_back(self, steps: int) -> None:
        """A failover to a replica that lacks the last *steps* writes."""
        lost = self.state
        for _ in range(min(steps, len(self.before))):
            self.state = self.before.pop()
        self.before.clear()
        differing = lost.places() ^ self.state.places()
        for place in differing:
            copy = place[0]  # type: ignore[index]
            self.record.excused.add(copy.number)
        self.state.epoch = lost.epoch + 1
        self.record.rollbacks += 1

    def add(self, task: str, run: int, due: int, inside: Copy | None = None) -> str:
        """*inside*: the message in whose run this one was sent."""
        state = self._write()
        claim, live = state.claims.get(task), self._live(task)
        parked, _ = state.parked.get(task, (None, 0))
        out = claim.copy if claim else live or (None if "parked_id" in self.broken else parked)
        if out and out.run == run:
            return OK
        follows = out and (out.run + 1 == run or ("next_run" in self.broken and out.run < run))
        if out and inside and follows and self._proves(claim, task):
            self._hand_off(task, out)
        elif out and not (claim and self._overlooks(inside)):
            if out == inside and out.number not in self.record.excused:
                raise Broken(f"a retry, run {run}, was refused because of {out}")
            return ALREADY
        state.outbound[task] = self.record.stored(task, run, due)
        return OK

    def _proves(self, claim: Claim | None, task: str) -> bool:
        if claim:
            return "claimed_run_settles" not in self.broken
        if not self._live(task):
            return True
        return self.state.attempts[task] > 0 and "rescued_run_settles" not in self.broken

    def _overlooks(self, inside: Copy | None) -> bool:
        rule = "claimed_run_settles" if inside else "reused_id"
        return rule in self.broken

    def _live(self, task: str) -> Copy | None:
        return self.state.outbound.get(task) or self.state.blocked.get(task)

    def _hand_off(self, task: str, copy: Copy) -> None:
        self.state.claims.pop(task, None)
        self.state.outbound.pop(task, None)
        self.state.blocked.pop(task, None)
        self.state.parked.pop(task, None)
        del self.state.attempts[task]
        self.record.told_dispatched(copy)

    def cancel(self, task: str) -> str:
        state = self._write()
        live, parked = self._live(task), state.parked.get(task)
        if task in state.claims and "claimed_is_too_late" not in self.broken:
            return TOO_LATE
        if live and state.attempts[task]:
            return TOO_LATE
        if live:
            state.outbound.pop(task, None)
            state.blocked.pop(task, None)
            self.record.cancel(live)
            return CANCELLED
        if task in state.claims:
            self.record.cancel(state.claims.pop(task).copy)
            return CANCELLED
        if parked:
            del state.parked[task]
            if parked[1]:
                self.record.dropped.add(parked[0].number)
                return TOO_LATE
            self.record.cancel(parked[0])
            return CANCELLED
        return NOT_FOUND

    def claim(self, token: str, epoch: int) -> list[Copy]:
        state = self._write()
        if epoch != state.epoch:
            return []
        due = [copy for copy in state.outbound.values() if copy.due <= self.now]
        taken = sorted(due, key=lambda copy: copy.due)[:BATCH]
        for copy in taken:
            if "claim_removes" not in self.broken:
                del state.outbound[copy.task]
            state.claims[copy.task] = Claim(token, self.now + TTL, copy)
        return taken

    def _held(self, token: str, task: str, rule: str) -> Copy | None:
        claim = self.state.claims.get(task)
        if claim and (claim.token == token or rule in self.broken):
            return claim.copy
        return None

    def ack(self, token: str, epoch: int, tasks: list[str]) -> None:
        state = self._write()
        if epoch != state.epoch and "ack_in_any_epoch" in self.broken:
            return
        for task in tasks:
            copy = self._held(token, task, "ack_token")
            if copy:
                self._hand_off(task, copy)

    def give_back(self, token: str, returns: list[tuple[str, str]]) -> None:
        state = self._write()
        for task, where in returns:
            copy = self._held(token, task, "give_back_token")
            if not copy:
                continue
            del state.claims[task]
            if where == REFUSED:
                silent = state.attempts.pop(task, 0)
                state.parked[task] = (copy, 0 if "parked_attempts" in self.broken else silent)
            else:
                (state.blocked if where == DECLINED else state.outbound)[task] = copy

    def rescue(self, epoch: int) -> None:
        state = self._write()
        if epoch != state.epoch:
            return
        for task, claim in list(state.claims.items()):
            if self.now < claim.until and "rescue_waits" not in self.broken:
                continue
            del state.claims[task]
            if "rescue_returns" not in self.broken:
                state.outbound[task] = claim.copy
            if "attempts_counted" not in self.broken:
                state.attempts[task] += 1
            self.record.rescued[claim.copy.number] += 1

    def tend(self, parked: bool) -> None:
        """Blocked ones come back; and, when an operator asks, parked ones."""
        state = self._write()
        state.outbound.update(state.blocked)
        state.blocked.clear()
        for task, (copy, silent) in list(state.parked.items()) if parked else []:
            if not self._live(task) and task not in state.claims:
                del state.parked[task]
                state.outbound[task] = copy
                state.attempts[task] = silent

    def read_epoch(self) -> int:
        return self.state.epoch


class Broker:
    """Queues, and what a publisher hears of a message."""

    def __init__(self, record: Record, rng: random.Random) -> None:
        self.record, self.rng = record, rng
        self.queue: deque[Copy] = deque()
        self.trouble = 0.0
        self.on_the_wire: list[tuple[int, Copy]] = []

    def take(self, copy: Copy, now: int) -> None:
        self.record.published(copy, now)
        self.queue.append(copy)

    def publish(self, copy: Copy, now: int) -> str:
        if self.rng.random() >= self.trouble:
            self.take(copy, now)
            return CONFIRMED
        outcome = self.rng.choice((REFUSED, DECLINED, AWAY, UNKNOWN, UNKNOWN, UNKNOWN))
        if outcome == REFUSED:
            self.record.refused.add(copy.number)
        elif outcome == UNKNOWN:
            self.record.allowed += 1
            delay = self.rng.choice((None, 0, 0, 600, 4_000, 7_000))
            if delay is not None:
                self.on_the_wire.append((now + delay, copy))
        return outcome

    def arrive(self, now: int) -> None:
        for one in [one for one in self.on_the_wire if one[0] <= now]:
            self.on_the_wire.remove(one)
            self.take(one[1], now)
