"""Unique keys and idempotency keys against a dict, in random sequences on a real Redis.

Every call has a task of its own, so what a call must answer follows from who has the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from celery_delay.domain.entries import Added, Addition, EntryId
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change
from celery_delay.domain.uniqueness import Keys, Unique
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable, UniqueConflict
from tests.shards import FaultyLinks, SetClock, addition, lead, shard, to_links

LEASE, MEMORY, TTL = 5_000, 20_000, 3_000
POLICIES = ("keep", "error", "replace", "extend")
faults = st.lists(st.sampled_from(["ok", "answer", "request"]), max_size=3)
keys = st.sampled_from(["k", "l"])


@dataclass
class Task:
    """A task that was stored, and what has become of it."""

    entry_id: EntryId
    due: int
    key: str
    until: str
    version: int = 1
    is_held: bool = False
    place: str = "waiting"  # out, claimed, parked, lost (parked, and may have run), left
    ends: int = 0  # of its lease
    token: str = ""
    claim_ends: int = 0
    silent: int = 0

    def has_key(self, now: int) -> bool:
        if self.place == "left":
            return now < self.ends
        return True


class KeyMachine(RuleBasedStateMachine):
    server: EmbeddedRedis

    def __init__(self) -> None:
        super().__init__()
        self.raw = redis.Redis(unix_socket_path=str(self.server.socket))
        self.raw.flushall()
        self.now = 1_700_000_000_000
        self.clock = SetClock()
        self.clock.asleep = self._slept
        self.links = FaultyLinks(to_links(self.server.url))
        self.store = shard(self.links, lambda: self.now, clock=self.clock)
        self.term = lead(self.store)
        self.number = 0
        self.tasks: list[Task] = []
        self.calls: dict[str, tuple[int, Added]] = {}  # idempotency key -> end, answer
        self.meanwhile = ""

    def teardown(self) -> None:
        self.store.close()
        self.raw.flushall()
        self.raw.close()

    # -- the dict -----------------------------------------------------------------------

    def holder(self, key: str) -> Task | None:
        found = [one for one in self.tasks if one.key == key and one.has_key(self.now)]
        assert len(found) <= 1, found
        return found[0] if found else None

    def _leaves(self, task: Task, handed_off: bool = False) -> None:
        task.place, task.ends = "left", 0
        if handed_off and task.until != "dispatched":
            task.ends = self.now + LEASE

    def _slept(self, seconds: float) -> None:
        self._pass(round(seconds * 1000))
        what, self.meanwhile = self.meanwhile, ""
        if what:
            plan, self.links.plan = self.links.plan, []
            getattr(self, what)()
            self.links.plan = plan

    def _pass(self, ms: int) -> None:
        self.now += ms

    # -- producers ----------------------------------------------------------------------

    def _addition(self, key: str, on: str, until: str, delay: int, again: str) -> Addition:
        self.number += 1
        labels = Labels(unique=Unique(key, until, 0 if until == "dispatched" else LEASE))
        more = (again, MEMORY) if again else (None, 0)
        return addition(f"t{self.number}", delay, labels=labels, keys=Keys(on, *more))

    @rule(
        key=keys, on=st.sampled_from(POLICIES), delay=st.sampled_from([0, 300, 9_000]),
        until=st.sampled_from(["dispatched", "started", "done"]), plan=faults,
        again=st.sampled_from(["", "", "i"]), meanwhile=st.sampled_from(["", "", "move", "claim"]),
    )  # fmt: skip
    def add(
        self, key: str, on: str, until: str, delay: int, plan: list[str], again: str,
        meanwhile: str,
    ) -> None:  # fmt: skip
        one = self._addition(key, on, until, delay, again)
        # between an attempt whose request was lost and the next, others may come in between
        self.meanwhile = meanwhile if "answer" not in plan else ""
        self.links.plan = list(plan)
        try:
            [added] = self.store.add([one])
        except UniqueConflict as caught:
            self._refused(caught, key, on)
            return
        except (StoreUnavailable, OutcomeUnknown) as caught:
            # it is being published, and waiting for that had an end
            holder = self.holder(key)
            assert holder is not None
            assert holder.place in ("claimed", "out")
            assert on in ("replace", "extend")
            assert set(plan) - {"ok"} or not isinstance(caught, OutcomeUnknown)  # noqa: PT017
            return
        finally:
            self.links.plan, self.meanwhile = [], ""
        self._added(one, added, key, on, until, again)

    def _refused(self, error: UniqueConflict, key: str, on: str) -> None:
        holder = self.holder(key)
        assert holder is not None
        assert (error.key, error.task_id) == (key, holder.entry_id.task_id)
        assert on == "error" or (on != "keep" and holder.place in ("left", "parked", "lost"))

    def _added(
        self, one: Addition, added: Added, key: str, on: str, until: str, again: str
    ) -> None:
        known = self.calls.get(again)
        holder = self.holder(key)
        if known is not None and self.now < known[0]:
            assert added.code == "K"
            assert added.entry_id == known[1].entry_id
            return
        if holder is None:
            assert added.code in ("A", "D")
        elif on == "keep":
            assert (added.code, added.entry_id) == ("K", holder.entry_id)
        elif on == "extend":
            assert (added.code, added.entry_id, holder.place) == ("E", holder.entry_id, "waiting")
            holder.due = added.due_ms
        else:
            assert on == "replace"
            assert added.code in ("A", "D")
            assert holder.place in ("waiting", "parked")
            assert added.code == "D" or added.replaced is not None
            self._leaves(holder)
        if added.code in ("A", "D"):
            assert added.entry_id.task_id == one.entry_id.task_id
            self.tasks.append(Task(added.entry_id, added.due_ms, key, until))
        if again:
            self.calls[again] = (self.now + MEMORY, added)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.tasks:
            task = data.draw(st.sampled_from(self.tasks))
            outcome = self.store.cancel(task.entry_id.task_id, data={}).outcome
            # one that is parked after a silent claim goes too, although it may have run
            if task.place == "lost" or (outcome and task.place in ("waiting", "parked")):
                self._leaves(task)

    @rule(data=st.data(), hold=st.booleans())
    def steer(self, data: st.DataObject, hold: bool) -> None:
        if waiting := [one for one in self.tasks if one.place == "waiting"]:
            task = data.draw(st.sampled_from(waiting))
            assert self.store.steer(task.entry_id.task_id, Change(hold=hold)).is_done
            task.is_held = hold

    # -- beats --------------------------------------------------------------------------

    def _due(self) -> list[Task]:
        places = ("waiting", "out")
        some = [one for one in self.tasks if one.place in places and not one.is_held]
        return [one for one in some if one.due <= self.now]

    @rule()
    def move(self) -> None:
        due = self._due()
        assert self.store.move().moved == len(due)
        for one in due:
            self._leaves(one, True)

    @rule()
    def claim(self) -> None:
        self.number += 1
        token, due = f"c{self.number}", self._due()
        taken = self.store.claim(token=token, limit=99, ttl_ms=TTL, source="schedule").taken
        assert {one.entry_id for one in taken} == {one.entry_id for one in due}
        for one in due:
            one.place, one.token, one.claim_ends = "claimed", token, self.now + TTL

    @rule(data=st.data(), act=st.sampled_from(["ack", "S", "Q"]))
    def go_on(self, data: st.DataObject, act: str) -> None:
        if not (claimed := [one for one in self.tasks if one.place == "claimed"]):
            return
        task = data.draw(st.sampled_from(claimed))
        if act == "ack":
            assert self.store.ack(task.token, [task.entry_id.task_id]) == 1
            self._leaves(task, True)
            return
        assert self.store.give_back(task.token, [(task.entry_id.task_id, act, "no")]) == 1
        if act == "Q":
            task.place = "lost" if task.silent else "parked"
        else:
            task.place = "out" if task.silent else "waiting"

    @rule()
    def rescue(self) -> None:
        over = [o for o in self.tasks if o.place == "claimed" and o.claim_ends <= self.now]
        assert self.store.rescue() == len(over)
        for one in over:
            one.place, one.silent = "out", one.silent + 1

    @rule()
    def merge_back(self) -> None:
        self.store.merge_back(term=self.term)

    # -- workers ------------------------------------------------------------------------

    @rule(data=st.data(), other=st.sampled_from([0, 0, 0, 1, -1]))
    def let_go(self, data: st.DataObject, other: int) -> None:
        """A worker says that a run has come so far; perhaps of another run, perhaps late."""
        if not (left := [one for one in self.tasks if one.place == "left"]):
            return
        task = data.draw(st.sampled_from(left))
        task_id, run = task.entry_id
        freed = self.store.let_go(task.key, EntryId(task_id, run + other))
        if other >= 0 and task.has_key(self.now):
            assert freed
        if other >= 0:
            task.ends = 0

    # -- time, and what is always so ----------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.4, 3.1, 5.0, 20.0]))
    def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        self._pass(round(seconds * 1000))

    @invariant()
    def the_store_says_who_has_a_key(self) -> None:
        for key in ("k", "l"):
            holder, told = self.holder(key), self.store.holder_of(key)
            assert (told.entry_id if told else None) == (holder.entry_id if holder else None)
        ends = {one for one, _ in self.raw.zscan_iter(self.store.keys.unique_ends)}
        fields: dict[bytes, Any] = self.raw.hgetall(self.store.keys.uniques)
        assert ends == {one for one, value in fields.items() if not value.startswith(b"0 ")}


@pytest.fixture
def machine(redis_server: EmbeddedRedis) -> type[KeyMachine]:
    return type("Machine", (KeyMachine,), {"server": redis_server})


@pytest.mark.redis62
def test_keys_are_held_and_freed_as_told(machine: type[KeyMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
