"""The store on a real Redis against a model on dicts, step by step, under faults.

Redis' clock is the test's: it goes on, and steps back.  Answers and requests are lost,
and requests arrive late.  Beats claim what they publish, and are late, unsure, or never heard
of again.  After each step Redis holds what the model holds, and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celery_delay.domain.entries import (
    PUBLISHED,
    Addition,
    Claimed,
    Due,
    EntryId,
    Record,
    template_id,
)
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change, JournalPosition, StaleEpoch
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import AlreadyScheduled, JournalFull, OutcomeUnknown, StoreUnavailable
from celery_delay.store import additions as store_module
from celery_delay.store import scripts
from celery_delay.store.keys import ShardKeys
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore
from tests.properties.gate_model import GATES, NAMESPACE
from tests.properties.store_model import BATCH, CAP, WINDOW, Model
from tests.shards import FaultyLinks, SetClock, addition, shape, shard, to_links

TASKS = ("a", "b/1", "ü c", "d")
QUEUES = ("0/delay-q0", "0/delay-q1", "1/delay-q0")
SHAPES = [shape(queue[2:], int(queue[0]), body) for queue in QUEUES for body in ("x", "yy")]
OUT = [shape(queue, PUBLISHED, body) for queue in ("out0", "out1") for body in ("x", "yy")]
SHAPES += OUT
TTL = 3_000
#: What beats do on the claim path, and others beside them; S, B and Q: give back.
ACTS = [
    "claim", "steal", "claim in vain", "ack", "unknown", "S", "B", "Q",
    "end", "end", "rescue", "rescue", "cancel", "retry", "send again", "hold", "put off", "replace",
]  # fmt: skip
#: Instants are told from now.
CHANGES = [
    Change(Due(0, True), hold=False), Change(Due(700, True)), Change(Due(-50, False)),
    Change(Due(3_000, False)), Change(shift_ms=-1_000), Change(shift_ms=400),
    Change(shift_ms=-(10**14)), Change(hold=True), Change(hold=True), Change(hold=True),
    Change(Due(900, True), hold=True), Change(),
]  # fmt: skip
LEGAL = {CancelOutcome.CANCELLED, CancelOutcome.NOT_FOUND, CancelOutcome.TOO_LATE}

tasks = st.sampled_from(TASKS)
faults = st.lists(st.sampled_from(["ok", "answer", "request"]), max_size=3)


@dataclass
class Beat:
    """A claim in a beat's hands.  What it has given back, it does not publish."""

    token: str
    taken: Sequence[Claimed]
    returned: bool = False


class StoreMachine(RuleBasedStateMachine):
    server: EmbeddedRedis

    @initialize(refuse=st.booleans(), room=st.sampled_from([4, 1_000]))
    def begin(self, refuse: bool, room: int) -> None:
        self.raw = [redis.Redis(unix_socket_path=str(self.server.socket), db=n) for n in (0, 1)]
        self.raw[0].flushall()
        self.model = Model(refuse, room)
        self.clock = SetClock()
        self.clock.asleep = self._slept
        self.links = FaultyLinks(to_links(self.server.url))
        self.links.ran = self._ran
        self.store = self._new_store(self.links)
        self.stepped = self.corrupted = self.wiped = False
        self.late: list[tuple[int, tuple[Any, ...]]] = []
        self.meanwhile: str | None = None
        self.calls = 0
        self.answers: dict[int, tuple[Any, ...]] = {}
        self.moved: Counter[tuple[str, int]] = Counter()
        self.handed_off: Counter[tuple[str, int]] = Counter()
        self.beats: list[Beat] = []
        self.silent: Counter[tuple[str, int]] = Counter()
        self.promised: set[tuple[str, int]] = set()
        self.term = 0
        self.lead()

    def _new_store(self, links: FaultyLinks) -> RedisStore:
        store = shard(
            links,
            lambda: self.model.now,
            clock=self.clock,
            batch_size=BATCH,
            journal_full="refuse" if self.model.refuse else "gap",
        )
        store._journal_max = self.model.journal_max  # below what the setting takes
        return store

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.raw[0].flushall()
            for one in self.raw:
                one.close()

    # -- what the server runs, the model follows ------------------------------------------

    def _ran(self, command: Sequence[Any], answer: Any) -> None:
        keys = int(command[2])
        argv = [str(one) for one in command[3 + keys :]]
        name = _SCRIPTS[command[1]]
        values = dict(zip(scripts.load(name).arguments, argv, strict=False))
        model = self.model
        if name == "add":
            rest = argv[len(scripts.load(name).arguments) :]
            count = 2 * int(values["template_count"])
            given = dict(zip(rest[:count:2], rest[1:count:2], strict=True))
            grew = self.raw[0].xlen(self.keys.journal) > len(model.journal)
            model.add(given, rest[count:], answer, grew)
        elif name == "cancel":
            model.cancel(
                int(values["epoch"]), int(values["deadline"]), values["task_id"],
                int(values["run"]), answer,
            )  # fmt: skip
        elif name == "move":
            model.move(
                int(values["epoch"]), int(values["hold_ms"]), int(values["steal_ms"]), answer
            )
            self._take_messages()
        elif name == "merge_back" and isinstance(answer, int):
            model.merge_back(answer)
        elif name == "steer":
            model.steer(values, answer)
        elif name == "pause":
            model.pause(values, answer)
        elif name == "resume":
            model.resume(values, answer)
        elif name == "open_gates" and isinstance(answer, list):
            model.open_gates(answer)
        elif name == "replace":
            model.replace(values, answer)
        elif name in ("claim", "ack", "give_back", "rescue", "send_again"):
            self._ran_on_claims(name, values, argv[len(scripts.load(name).arguments) :], answer)

    def _ran_on_claims(
        self, name: str, values: dict[str, str], rest: list[str], answer: Any
    ) -> None:
        model = self.model
        if name == "claim":
            model.claim(values, answer)
        elif name == "ack":
            model.ack(values["token"], rest, answer)
        elif name == "give_back":
            model.give_back(values["token"], rest, answer)
        elif name == "send_again":
            model.send_again(values, rest, answer)
        elif isinstance(answer, int):
            for task_id in model.rescue(answer):
                self.silent[task_id, model.entries[task_id].run] += 1

    def _take_messages(self) -> None:
        """The workers: take what is on the queues, and look at it."""
        for queue in QUEUES:
            number, key = int(queue[0]), queue[2:]
            expected = self.model.queues.pop(queue, [])
            if queue in self.model.unusable:
                assert not expected
                continue
            for task_id, run, due, value in expected:
                message = json.loads(self.raw[number].rpop(key))
                assert (message["id"], message["run"], message["eta"]) == (task_id, run, due)
                assert message["value"] == json.loads(value), "it has been replaced"
                assert message["epoch"] == self.model.epoch
                assert message["eta"] <= self.model.now
                self.handed_off[task_id, run] += 1
                self.moved[task_id, run] += 1
                assert self.moved[task_id, run] == 1, "handed off twice"
                assert (task_id, run) not in self.promised, "cancelled, and yet handed off"
            assert self.raw[number].llen(key) == 0

    def _slept(self, seconds: float) -> None:
        self._pass(round(seconds * 1000))
        if self.meanwhile is not None:
            what, self.meanwhile = self.meanwhile, None
            plan, self.links.plan = self.links.plan, []
            other = self._new_store(self.links)
            with suppress(StaleEpoch):
                if what == "move":
                    other.move()
                elif what == "claim":
                    self._claim(other)
                elif what == "release":
                    other.send_again(sorted(self.model.held) or [TASKS[0]])
                elif what == "replace":
                    for one in sorted(self.model.places()):
                        self._replace(one, OUT[1])
                else:
                    other.cancel(what, data={"call": "cancel"})
            self.links.plan = plan

    def _pass(self, ms: int) -> None:
        self.model.now += ms
        self.model.boot += ms

    @property
    def keys(self) -> ShardKeys:
        return self.store.keys

    # -- producers ------------------------------------------------------------------------

    @rule(
        task_ids=st.lists(tasks, min_size=1, max_size=3, unique=True),
        delay=st.sampled_from([0, 1, 500, 2_000, 10_000]),
        at=st.booleans(),
        which=st.integers(0, len(SHAPES) - 1),
        expires=st.sampled_from([0, 0, 0, 300, 5_000]),
        plan=faults,
        meanwhile=st.sampled_from([None, "move", "claim", *TASKS]),
    )
    def add(
        self,
        task_ids: list[str],
        delay: int,
        at: bool,
        which: int,
        expires: int,
        plan: list[str],
        meanwhile: str | None,
    ) -> None:
        options: dict[str, Any] = {"expires_ms": self.model.now + expires if expires else 0}
        if at:
            options["at_ms"] = self.model.now + delay
        templates = [SHAPES[(which + i) % len(SHAPES)] for i in range(len(task_ids))]
        calls = [
            self._call(one, delay, template=template, **options)
            for one, template in zip(task_ids, templates, strict=True)
        ]
        self._add(calls, plan, meanwhile)

    @precondition(lambda self: self.handed_off)
    @rule(data=st.data(), plan=faults, delay=st.sampled_from([0, 700]))
    def retry(self, data: st.DataObject, plan: list[str], delay: int) -> None:
        """A task that was handed off asks, from inside its run, for the next one."""
        task_id, run = data.draw(st.sampled_from(sorted(self.handed_off)))
        if (task_id, run + 1) not in self.handed_off:
            self._add([self._call(task_id, delay, run=run + 1)], plan, None)

    @precondition(lambda self: self.model.waiting())
    @rule(data=st.data(), plan=faults)
    def add_a_higher_version(self, data: st.DataObject, plan: list[str]) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.model.waiting())))
        entry = self.model.entries[task_id]
        if entry.damage == "":
            options = {"run": entry.run, "version": entry.version + 1}
            self._add([self._call(task_id, 1_000, **options)], plan, None)

    def _call(self, task_id: str, delay: int, **options: Any) -> Addition:
        self.calls += 1
        options.setdefault("template", SHAPES[self.calls % len(SHAPES)])
        if self.calls % 3 == 0:
            options["labels"] = Labels(NAMESPACE, ("x",))
        story = json.dumps({"call": self.calls})
        # an empty value, and one with what separates the parts of a template
        return addition(task_id, delay, story=story, values=('"v\\n"', ""), **options)

    def _add(self, additions: list[Addition], plan: list[str], meanwhile: str | None) -> None:
        self.links.plan, self.meanwhile = list(plan), meanwhile
        faulty = set(plan) != {"ok"} and bool(plan)
        before = len(self.links.lost)
        try:
            for one in self.store.add(additions):
                if one.code == "C":
                    self.promised.add(one.entry_id)
        except (AlreadyScheduled, JournalFull):
            assert "answer" not in plan[: plan.index("ok") if "ok" in plan else None]
        except OutcomeUnknown:
            assert faulty
        finally:
            self.links.plan, self.meanwhile = [], None
            # requests that are thought to be lost may be on their way
            self.late += [(self.model.boot, one) for one in self.links.lost[before:]]

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def arrive_late(self, data: st.DataObject) -> None:
        sent, command = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        if self.stepped and self.model.boot - sent > WINDOW:
            return  # a clock that steps back makes deadlines longer than the network's patience
        changed = list(command)
        changed[3 + int(command[2])] = self.model.now
        with self.store._link() as link:
            link.call(*changed)

    @rule(
        task_id=tasks,
        known=st.booleans(),
        plan=faults,
        meanwhile=st.sampled_from([None, "move", "claim"]),
    )
    def cancel(self, task_id: str, known: bool, plan: list[str], meanwhile: str | None) -> None:
        runs = [run for one, run in self.handed_off if one == task_id]
        entry = self.model.entries.get(task_id)
        run = max(runs, default=0) if known else 0
        self.links.plan, self.meanwhile = list(plan), meanwhile
        if "request" in plan:
            meanwhile = self.meanwhile = None
        try:
            answer = self.store.cancel(task_id, run=run, data={"call": "cancel"})
        except OutcomeUnknown:
            assert "answer" in plan
            return
        finally:
            self.links.plan, self.meanwhile = [], None
        assert answer.outcome in LEGAL
        if answer.entry is not None:
            self.promised.add(answer.entry.entry_id)
            assert answer.entry.envelope["run"] == answer.entry.entry_id.run
        whole = entry is not None and entry.damage in ("", "payload")
        if entry is not None and whole and not meanwhile and answer.outcome:
            self.promised.add(EntryId(task_id, entry.run))

    # -- whoever steers -------------------------------------------------------------------

    @rule(
        task_id=tasks,
        template=st.sampled_from([SHAPES[0], OUT[0]]),
        steps=st.lists(st.tuples(st.sampled_from(CHANGES), faults), min_size=1, max_size=6),
        known=st.booleans(),
        meanwhile=st.sampled_from([None, None, "move", "claim", "release", *TASKS]),
    )
    def steer(
        self,
        task_id: str,
        template: str,
        steps: list[tuple[Change, list[str]]],
        known: bool,
        meanwhile: str | None,
    ) -> None:
        """Change after change of one task, which mostly waits."""
        if known and task_id not in self.model.places():
            self._add([self._call(task_id, 2_000, template=template)], [], None)
        for change, plan in steps:
            self._steer(task_id, change, known, plan, meanwhile)
            self.holds()

    def _steer(
        self,
        task_id: str,
        change: Change,
        known: bool = True,
        plan: Sequence[str] = (),
        meanwhile: str | None = None,
    ) -> None:
        due = change.due
        if due is not None and not due.is_delay:
            change = change._replace(due=Due(self.model.now + due.ms, False))
        runs = [run for one, run in self.handed_off if one == task_id]
        run = max(runs, default=0) if known else 0
        self.calls += 1
        data = {"call": self.calls}
        self._change(lambda: self.store.steer(task_id, change, run=run, data=data), plan, meanwhile)

    @rule(plan=faults, meanwhile=st.sampled_from([None, "move", "claim", *TASKS]))
    def release(self, plan: list[str], meanwhile: str | None) -> None:
        kept = sorted(self.model.held.keys() | self.model.parked.keys())
        self._change(lambda: self.store.send_again([*kept, TASKS[0]]), plan, meanwhile)

    @rule(
        task_id=tasks,
        known=st.booleans(),
        templates=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
        expires=st.sampled_from([0, 0, 3_000]),
        between=st.sampled_from(
            [None, None, "move", "claim", "hold", "put off", "replace", "cancel"]
        ),
        plan=faults,
        meanwhile=st.sampled_from([None, "move", "claim", "release", "replace", *TASKS]),
    )
    def replace(
        self,
        task_id: str,
        known: bool,
        templates: list[str],
        expires: int,
        between: str | None,
        plan: list[str],
        meanwhile: str | None,
    ) -> None:
        """Message after message of one task; others change it *between* reading and writing."""
        if known and task_id not in self.model.places():
            self._add([self._call(task_id, 2_000)], [], None)
        for template in templates:
            self._replace(task_id, template, expires, between, plan, meanwhile)
            self.holds()

    def _replace(
        self,
        task_id: str,
        template: str,
        expires: int = 0,
        between: str | None = None,
        plan: Sequence[str] = (),
        meanwhile: str | None = None,
    ) -> None:
        before = self.store.replaceable(task_id)
        model = self.model
        entry = model.entries.get(task_id) or model.parked.get(task_id)
        if before is None:
            damaged = entry is None or entry.damage or entry.template not in model.templates
            assert damaged or self.corrupted
            return
        assert entry is not None
        assert before.digest == entry.record.split("\n")[0].split()[1]
        assert (before.entry.entry_id.run, before.entry.version) == (entry.run, entry.version)
        if between in ("move", "claim") and model.epoch:
            self.store.move() if between == "move" else self._claim(self.store)
        elif between == "hold":
            self._steer(task_id, Change(hold=True))
        elif between == "put off":
            self._steer(task_id, Change(shift_ms=900, hold=False))
        elif between == "replace":
            self._replace(task_id, OUT[2])
        elif between == "cancel":
            self._cancel(task_id, 0)
        self.calls += 1
        call, run = self.calls, before.entry.entry_id.run
        instant = model.now + expires if expires else 0
        new = addition(
            task_id, run=run, template=template, values=(f"{call}", ""), expires_ms=instant
        )
        self._change(lambda: self.store.replace(before, new, {"call": call}), plan, meanwhile)

    def _change(self, call: Callable[[], Any], plan: Sequence[str], meanwhile: str | None) -> None:
        self.links.plan, self.meanwhile = list(plan), meanwhile
        before = len(self.links.lost)
        try:
            call()
        except OutcomeUnknown:
            assert set(plan) - {"ok"}
        finally:
            self.links.plan, self.meanwhile = [], None
            # requests that are thought to be lost may be on their way
            self.late += [(self.model.boot, one) for one in self.links.lost[before:]]

    # -- beats ----------------------------------------------------------------------------

    @rule(hold=st.sampled_from([0, 0, 0, 1_000]), steal=st.sampled_from([0, 0, 0, 250]))
    def move(self, hold: int, steal: int) -> None:
        if self.model.epoch:
            self.store.move(hold_ms=hold, steal_ms=steal)
        else:
            with pytest.raises(StaleEpoch):
                self.store.move(hold_ms=hold, steal_ms=steal)

    @rule()
    def lose_the_answer_of_a_move(self) -> None:
        if self.model.epoch:
            self.links.plan = ["answer"]
            with pytest.raises(StoreUnavailable):
                self.store.move()

    @rule(
        fresh=st.lists(tasks, min_size=1, max_size=3, unique=True),
        acts=st.lists(st.sampled_from(ACTS), min_size=3, max_size=9),
        old=st.booleans(),
        lost=st.sampled_from([False, False, True]),
    )
    def publish(self, fresh: list[str], acts: list[str], old: bool, lost: bool) -> None:
        """Beats publish, one act after the other; an *old* one goes on where it had stopped."""
        for number, task_id in enumerate(fresh):
            self._add([self._call(task_id, 0, template=OUT[number])], [], None)
        if not self.model.epoch:
            with pytest.raises(StaleEpoch):
                self._claim(self.store)
            self.lead()
        for act in ["claim", *acts]:
            if act in ("claim", "steal"):
                self._claim(self.store, steal_ms=250 if act == "steal" else 0)
            elif act == "claim in vain":
                self.links.plan = ["answer"]
                with pytest.raises(StoreUnavailable):
                    self._claim(self.store)
            elif act == "end":
                self.clock.now += TTL / 1000
                self._pass(TTL)
            elif act == "rescue":
                self.store.rescue()
            elif act == "cancel":
                self._cancel(fresh[0], 0)
            elif act == "retry":
                self._retry(fresh[0])
            elif act == "hold":
                self._steer(fresh[0], Change(hold=True))
            elif act == "put off":
                self._steer(fresh[0], Change(Due(500, True), hold=False))
            elif act == "replace":
                self._replace(fresh[0], OUT[3])
            elif act == "send again":
                self.store.send_again([*sorted(self.model.parked), fresh[0]])
            elif self.beats:
                self._go_on(self.beats[0 if old else -1], act, lost)
            self.holds()

    def _claim(self, store: RedisStore, **options: int) -> None:
        self.calls += 1
        token = f"t{self.calls}"
        claims = store.claim(token=token, limit=BATCH, ttl_ms=TTL, **options)
        if claims.taken:
            self.beats.append(Beat(token, claims.taken))

    def _go_on(self, beat: Beat, act: str, lost: bool) -> None:
        """With what *beat* has claimed, however long ago that was: the broker's answer."""
        token, named = beat.token, [one.entry_id.task_id for one in beat.taken]
        if act in ("ack", "unknown") and not beat.returned:
            for one in beat.taken:
                self._published(one)
        if act == "unknown":
            return
        beat.returned = beat.returned or act != "ack"

        def tell() -> int:
            if act == "ack":
                return self.store.ack(token, named)
            return self.store.give_back(token, [(one, act, "no room") for one in named])

        if lost:
            self.links.plan = ["answer"]
            with pytest.raises(StoreUnavailable):
                tell()
            assert tell() == 0
        else:
            tell()

    def _published(self, one: Claimed) -> None:
        task_id, run = one.entry_id
        claim = self.model.claims.get(task_id)
        assert (one.envelope["id"], one.envelope["run"]) == (task_id, run)
        assert one.eta_ms <= self.model.now or self.stepped
        assert one.entry_id not in self.promised, "cancelled, and yet published"
        if claim is not None and claim.entry.run == run:
            assert claim.attempt == self.silent[task_id, run]
            assert one.envelope["value"] == json.loads(claim.entry.values[0])
        self.handed_off[task_id, run] += 1

    def _retry(self, task_id: str) -> None:
        run = max((run for one, run in self.handed_off if one == task_id), default=0)
        if run:
            self._add([self._call(task_id, 0, run=run + 1)], [], None)

    def _cancel(self, task_id: str, run: int) -> None:
        entry = self.model.entries.get(task_id)
        answer = self.store.cancel(task_id, run=run, data={"call": "cancel"})
        if answer.outcome and entry is not None:
            self.promised.add(EntryId(task_id, entry.run))

    @rule(
        closed=st.lists(st.sampled_from(GATES), min_size=1, max_size=2),
        fresh=st.lists(tasks, min_size=1, max_size=4, unique=True),
        then=st.lists(
            st.sampled_from(["move", "claim", "open", "resume", "slowly", "wait", "pause"]),
            max_size=8,
        ),
        plan=faults,
    )
    def pause_and_resume(
        self, closed: list[str], fresh: list[str], then: list[str], plan: list[str]
    ) -> None:
        """Gates close and open, on what is due."""
        for number, task_id in enumerate(fresh):
            template = [SHAPES[0], OUT[0], SHAPES[-1]][number % 3]
            self._add([self._call(task_id, 0, template=template)], [], None)
        for gate in closed:
            self._change(lambda gate=gate: self.store.pause(gate, {"by": "me"}), plan, None)
        for number, act in enumerate(["move", "claim", *then]):
            self._act_at_gates(act, closed[number % len(closed)], plan)
            self.holds()

    def _act_at_gates(self, act: str, gate: str, plan: list[str]) -> None:
        if act == "pause":
            self._change(lambda: self.store.pause(gate, {"by": "you"}), plan, None)
        elif act in ("resume", "slowly"):
            over = 0 if act == "resume" else 2_000
            self._change(lambda: self.store.resume(gate, over), plan, None)
        elif act == "open":
            self.store.open_gates(term=self.term)
        elif act == "wait":
            self.clock.now += 0.7
            self._pass(700)
        elif self.model.epoch:
            self.store.move() if act == "move" else self._claim(self.store)

    @rule(gate=st.sampled_from(GATES))
    def open_a_gate(self, gate: str) -> None:
        self._change(lambda: self.store.resume(gate, 0), [], None)
        self.store.open_gates(term=self.term)

    @rule()
    def merge_back(self) -> None:
        merged = self.store.merge_back(term=self.term)
        assert self.model.epoch or not merged

    @rule(seconds=st.sampled_from([0.001, 0.3, 1.0, 2.9, 4.1, 9.0]))
    def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        self._pass(round(seconds * 1000))

    @rule(seconds=st.sampled_from([0.5, 4.0, 60.0]))
    def step_back(self, seconds: float) -> None:
        self.stepped = True
        self.model.now -= round(seconds * 1000)

    @precondition(lambda self: not self.model.epoch)
    @rule()
    def lead(self) -> None:
        lease = RedisLease(self.links.link(), self.keys, "me")
        self.term = lease.elect(seen=None, may_take=False).term
        lease.close()
        assert self.store.begin_epoch(term=self.term + 1, known_epoch=0) is None
        begun = self.store.begin_epoch(term=self.term, known_epoch=0)
        assert begun is not None
        self.model.epoch, before = begun
        assert before == ""

    @precondition(lambda self: self.calls > 12 and not self.wiped)
    @rule(at_once=st.booleans())
    def wipe(self, at_once: bool) -> None:
        self.wiped = True
        self.raw[0].flushall()
        self.model.wipe()
        self.late.clear()
        # what is lost with the tombstones is not promised
        self.moved.clear()
        self.handed_off.clear()
        self.promised.clear()
        self.beats.clear()
        self.silent.clear()
        if at_once:
            self.lead()

    # -- the auditor ----------------------------------------------------------------------

    @precondition(lambda self: self.model.epoch)
    @rule(limit=st.integers(1, 5))
    def drain(self, limit: int) -> None:
        read = self.store.read_journal("0", limit)
        expected = []
        while limit > 0 and len(expected) < len(self.model.journal):
            expected.append(self.model.journal[len(expected)])
            limit -= len(expected[-1][2])
        # entries that one move hands to several queues come in any order
        told = [sorted(_plain(events), key=repr) for _, events in read]
        lines = [
            sorted(((state, epoch, *one) for one in some), key=repr)
            for state, epoch, some in expected
        ]
        assert told == lines, (told, lines)
        if read:
            position = JournalPosition(0, self.model.epoch, read[-1][0])
            assert self.store.trim_journal(position, term=self.term + 1) == 0
            assert self.store.trim_journal(position, term=self.term) == len(read)
            del self.model.journal[: len(expected)]

    # -- damage ---------------------------------------------------------------------------

    @precondition(lambda self: self.model.waiting() | self.model.held)
    @rule(data=st.data(), how=st.sampled_from(["head", "payload", "missing", "codec"]))
    def corrupt_a_record(self, data: st.DataObject, how: str) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.model.waiting() | self.model.held)))
        entry = self.model.entries[task_id]
        if entry.damage:
            return
        self.corrupted, entry.damage = True, how
        text = {
            "head": "rubbish\xff",
            "payload": entry.record + "!",
            "codec": "9" + entry.record[1:],
            "missing": "",
        }[how]
        entry.record = text
        if how == "missing":
            self.raw[0].hdel(self.keys.entries, task_id)
        else:
            self.raw[0].hset(self.keys.entries, task_id, text.encode("latin-1", "replace"))

    @precondition(lambda self: self.model.templates)
    @rule(data=st.data(), lose=st.booleans())
    def corrupt_a_template(self, data: st.DataObject, lose: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.templates)))
        self.corrupted = True
        if lose:
            self.raw[0].hdel(self.keys.templates, name)
            del self.model.templates[name]
        else:
            self.raw[0].hset(self.keys.templates, name, "rubbish")
            self.model.templates[name] = "rubbish"

    @rule(queue=st.sampled_from(QUEUES))
    def occupy_or_free_a_queue(self, queue: str) -> None:
        raw, key = self.raw[int(queue[0])], queue[2:]
        if queue in self.model.unusable:
            raw.delete(key)
            self.model.unusable.remove(queue)
        else:
            raw.set(key, "not a list")
            self.model.unusable.add(queue)

    # -- after each step ------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "store"):
            self._redis_holds_what_the_model_holds()
            self._templates_are_counted()
            self._live_entries_can_be_read()

    def _redis_holds_what_the_model_holds(self) -> None:
        model, keys = self.model, self.keys
        with self.raw[0].pipeline(transaction=False) as pipe:
            places = (keys.schedule, keys.outbound, keys.blocked, keys.held, keys.gated)
            for zset in (*places, keys.claims):
                pipe.zrange(zset, 0, -1, withscores=True)
            for kept in (keys.claimed, keys.attempts, keys.quarantine):
                pipe.hgetall(kept)
            pipe.hkeys(keys.entries).hkeys(keys.templates).xlen(keys.journal).keys("*")
            *zsets, claimed, attempts, parked, entries, templates, events, names = pipe.execute()
        untils = {one: claim.until for one, claim in model.claims.items()}
        expected = [model.schedule, model.outbound, model.blocked, model.held]
        assert [_scores(one) for one in zsets] == [*expected, model.gates.gated, untils]
        self._gates_hold_what_the_model_holds()
        held = {one.decode(): text.decode() for one, text in claimed.items()}
        assert held == {
            one: f"{claim.token} {claim.attempt} {claim.due}\n{claim.entry.record}"
            for one, claim in model.claims.items()
        }
        assert not held.keys() & model.entries.keys()
        assert {one.decode(): int(n) for one, n in attempts.items()} == model.attempts
        texts = {one.decode(): text.decode(errors="replace") for one, text in parked.items()}
        silent = {one: int(json.loads(text)[3]) for one, text in texts.items()}
        assert silent == model.silent
        assert model.silent.keys() == model.parked.keys()
        present = {one for one, entry in model.entries.items() if entry.damage != "missing"}
        assert {one.decode() for one in entries} == present
        assert {one.decode() for one in templates} == model.templates.keys(), model
        assert len(model.templates) <= CAP
        assert events == len(model.journal)
        known = {*keys.all(), *(f"{keys.gated}:{one}" for one in GATES), "delay-q0", "delay-q1"}
        assert set(names) <= {key.encode() for key in known}

    def _gates_hold_what_the_model_holds(self) -> None:
        raw, keys, gates = self.raw[0], self.keys, self.model.gates
        kept = {one.decode(): text[:1] for one, text in raw.hgetall(keys.gates).items()}
        assert kept == {one: b"P" if gates.is_closed(one) else b"R" for one in gates.gates}
        named = {one.decode(): text.decode() for one, text in raw.hgetall(keys.gate_of).items()}
        assert named == gates.gate_of
        for gate in GATES:
            side = raw.zrange(f"{keys.gated}:{gate}", 0, -1, withscores=True)
            assert _scores(side) == gates.at(gate)

    def _templates_are_counted(self) -> None:
        stored = self.raw[0].hgetall(self.keys.template_uses)
        uses = {name.decode(): int(count) for name, count in stored.items() if int(count)}
        assert uses == {name: count for name, count in self.model.uses.items() if count}
        if not self.corrupted:
            records = [one.decode() for one in self.raw[0].hvals(self.keys.entries)]
            claimed = self.raw[0].hvals(self.keys.claimed)
            records += [one.decode().partition("\n")[2] for one in claimed]
            parked = self.raw[0].hvals(self.keys.quarantine)
            records += [json.loads(one)[2] for one in parked]
            named = Counter(Record.decode(one).template for one in records)
            assert uses == {name: n for name, n in named.items() if name[0] != "="}

    def _live_entries_can_be_read(self) -> None:
        found = self.store.between(after_ms=0, before_ms=10**15, limit=50, offset=0)
        readable = {
            one
            for one, entry in self.model.entries.items()
            # what damages the payload damages the labels, which are its last line
            if (entry.damage == "" or (entry.damage == "payload" and "\n~" not in entry.record))
            and self.model.templates.get(entry.template) != "rubbish"
            and (entry.template == "=" or entry.template in self.model.templates)
        }
        assert {one.entry_id.task_id for one in found} == readable
        assert {one.entry_id.task_id for one in found if one.state is State.HELD} == {
            one for one in readable if one in self.model.held
        }
        gates = {one.entry_id.task_id: one.gate for one in found if one.gate}
        assert gates == {one: at for one, at in self.model.gates.gate_of.items() if one in readable}
        waiting = len(self.model.places())
        assert self.store.count(after_ms=0, before_ms=10**15) == waiting


def _scores(pairs: list[tuple[bytes, float]]) -> dict[str, int]:
    return {member.decode(): int(score) for member, score in pairs}


def _plain(events: list[Any]) -> list[tuple[Any, ...]]:
    plain = []
    for one in events:
        told: Any = one.data.get("call", one.data.get("missing"))
        eta = "" if one.eta_ms is None else one.eta_ms
        plain.append((one.state, one.epoch, *one.entry_id, one.version, eta, told))
    return plain


_NAMES = (
    "add", "cancel", "move", "merge_back", "begin_epoch", "trim", "elect",
    "claim", "ack", "give_back", "rescue", "send_again", "steer", "replace", "pause", "resume",
    "open_gates",
)  # fmt: skip
#: What a script is called by, and its text, on each server → its name.
_SCRIPTS = {
    known: name
    for name in _NAMES
    for version in ((6, 2), (7, 0))
    for text in [scripts.load(name).text(version)]
    for known in (scripts.sha1(text), text)
}
assert len({template_id(one) for one in SHAPES}) == len(SHAPES)


@pytest.mark.redis62
@pytest.mark.timeout(600)
def test_the_store_does_what_the_model_does(redis_server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(redis_server.url) as raw:
        version = tuple(int(one) for one in raw.info()["redis_version"].split(".")[:2])
        for name in _NAMES:  # Hypothesis wants each run of an example to go the same way
            raw.script_load(scripts.load(name).text(version))
    machine = type("Machine", (StoreMachine,), {"server": redis_server})
    with mock.patch.object(store_module, "TEMPLATE_CAP", CAP):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=30,
                database=None,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
