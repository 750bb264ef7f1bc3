"""Gates on a real Redis, 7 and 6.2: who is kept back, who passes, and that nobody is lost.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celery_delay.domain.entries import PUBLISHED, Due
from celery_delay.domain.gates import EVERYTHING, Gate, Opened
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from tests.contract.bench import NOW, WINDOW, Bench, answers
from tests.contract.test_steering import EVERYTHING as ALL_ETAS
from tests.contract.test_steering import places
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

PAY, MAIL = shape(task="shop.pay"), shape(task="shop.mail")
SLOW = shape("delay-slow", task="shop.pay")
ORDERS = shape("orders", PUBLISHED, task="shop.mail")
TASK, QUEUE, TENANT = "task:shop.mail", "queue:delay-slow", "namespace:acme"


def add(bench: Bench, *ids: str, **options: Any) -> None:
    bench.store.add([addition(one, **options) for one in ids])


def pause(bench: Bench, gate: str = TASK, **facts: object) -> Gate:
    return bench.store.pause(gate, {"by": "me", **facts})


def open_gates(bench: Bench) -> Opened:
    return bench.store.open_gates(term=bench.term)


def ids(bench: Bench, key: str = "delay-queue") -> list[str]:
    return [one["id"] for one in bench.queue(key)]


def traces(bench: Bench) -> set[str]:
    """The gates' keys that are there."""
    keys = bench.keys
    known = set(bench.raw.scan_iter(match=f"{keys.gated}*"))
    return known | {one for one in (keys.gates, keys.gate_of) if bench.raw.exists(one)}


# --- closing -----------------------------------------------------------------------------


@answers("pause", "PAUSED now facts")
@pytest.mark.parametrize(
    ("gate", "stopped"),
    [
        (EVERYTHING, {"pay", "mail", "slow", "acme"}),
        (TASK, {"mail", "acme"}),
        (QUEUE, {"slow"}),
        (TENANT, {"acme"}),
        ("task:shop.ma", set()),
        ("namespace:acm", set()),
    ],
)
def test_what_meets_a_closed_gate_waits_and_the_rest_goes(
    bench: Bench, gate: str, stopped: set[str]
) -> None:
    add(bench, "pay", template=PAY)
    add(bench, "mail", template=MAIL)
    add(bench, "slow", template=SLOW)
    add(bench, "acme", template=MAIL, labels=Labels("acme", ("x",)))
    pause(bench, gate)

    moved = bench.store.move()

    went = {*ids(bench), *ids(bench, "delay-slow")}
    assert went == {"pay", "mail", "slow", "acme"} - stopped
    assert (moved.gated, moved.moved, moved.openable) == (len(stopped), len(went), False)
    for one in stopped:
        entry = bench.store.get(one)
        assert entry is not None
        assert (entry.state, entry.gate) == (State.SCHEDULED, gate)
        assert places(bench, one) == {"gated": NOW}
    waiting = {one.entry_id.task_id for one in bench.store.between(limit=9, offset=0, **ALL_ETAS)}
    assert waiting == stopped
    assert bench.store.count(state=State.SCHEDULED, **ALL_ETAS) == len(stopped)


def test_what_is_not_due_stays_in_its_schedule(bench: Bench) -> None:
    add(bench, "later", delay_ms=5_000, template=MAIL)
    pause(bench)

    bench.store.move()
    assert "schedule" in places(bench, "later")

    bench.now += 6_000
    bench.store.move()
    assert set(places(bench, "later")) == {"gated"}


def test_a_pause_keeps_what_it_was_told_first(bench: Bench) -> None:
    first = pause(bench, reason="the shop is shut")
    bench.now += 1_000

    again = pause(bench, reason="never mind")

    assert again == first == Gate(TASK, "paused", NOW, "me", "the shop is shut", 0)
    assert bench.store.gates() == [first]


@answers("pause", "LATE now")
@answers("resume", "LATE now")
def test_an_attempt_that_comes_late_closes_and_opens_nothing(bench: Bench) -> None:
    given = {"gate": TASK, "deadline": NOW - 1}
    assert bench.script("pause", facts="{}", most=9, **given)[0] == b"LATE"
    assert bench.store.gates() == []
    pause(bench)
    assert bench.script("resume", operation="one", over=0, **given)[0] == b"LATE"
    assert [one.status for one in bench.store.gates()] == ["paused"]


@answers("pause", "FULL now")
def test_there_are_only_so_many_gates(bench: Bench) -> None:
    pause(bench)
    answer = bench.script("pause", gate="task:b", facts="{}", most=1, deadline=NOW + WINDOW)
    assert answer[0] == b"FULL"
    again = bench.script("pause", gate=TASK, facts="{}", most=1, deadline=NOW + WINDOW)
    assert again[0] == b"PAUSED"


def test_a_pause_whose_answer_is_lost_is_asked_for_again(bench: Bench) -> None:
    bench.links.plan = ["answer", "answer"]
    assert pause(bench).status == "paused"
    bench.links.plan = ["answer"]
    add(bench, "a", template=MAIL)
    bench.store.move()
    bench.links.plan = ["answer"]
    assert bench.store.resume(TASK, 0) == 1


def test_a_pause_without_any_answer_is_unknown(bench: Bench) -> None:
    bench.links.plan = ["answer"] * 1_000
    with pytest.raises(OutcomeUnknown):
        pause(bench)


def test_a_standby_obeys_too(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    pause(bench)
    bench.now += 5_000

    moved = bench.store.move(steal_ms=250)

    assert (moved.moved, moved.gated) == (0, 1)


def test_many_that_are_kept_back_are_set_aside_by_one_call(make: Callable[..., Bench]) -> None:
    # Given more overdue entries of a paused task than a batch, and others behind them
    bench = make(batch_size=10)
    add(bench, *(f"m{number:03}" for number in range(75)), template=MAIL)
    add(bench, *(f"p{number:03}" for number in range(20)), delay_ms=1, template=PAY)
    pause(bench)
    bench.now += 10

    first = bench.store.move()

    assert (first.gated, first.moved) == (75, 10)
    assert bench.store.move().moved == 10


def test_what_is_due_last_does_not_wait_for_all_to_be_set_aside(make: Callable[..., Bench]) -> None:
    bench = make(batch_size=10)
    add(bench, *(f"m{number:03}" for number in range(300)), template=MAIL)
    add(bench, "p", "q", "r", delay_ms=1, template=PAY)
    pause(bench)
    bench.now += 10

    first = bench.store.move()

    assert (first.gated, first.moved) == (87, 3)
    assert ids(bench) == ["p", "q", "r"]
    while bench.store.move().handled:
        pass
    assert bench.store.sizes()["gated"] == 300


def test_bad_and_expired_ones_end_as_ever(bench: Bench) -> None:
    pause(bench)
    add(bench, "old", template=MAIL, expires_ms=NOW + 10, delay_ms=20)
    add(bench, "bad", template=MAIL)
    bench.raw.hset(bench.keys.entries, "bad", "nonsense")
    bench.now += 50

    moved = bench.store.move()

    assert (moved.expired, moved.quarantined, moved.gated) == (1, 1, 0)


# --- opening -----------------------------------------------------------------------------


@answers("resume", "RESUMED now waiting")
@answers("open_gates", "OK returned wait_ms")
def test_what_waits_comes_back_when_the_gate_opens(bench: Bench) -> None:
    add(bench, "a", "b", template=MAIL)
    pause(bench)
    bench.store.move()

    assert bench.store.resume(TASK, 0) == 2
    add(bench, "new", template=MAIL)
    moved = bench.store.move()
    assert (moved.openable, ids(bench)) == (True, ["new"])
    assert [one.status for one in bench.store.gates()] == ["releasing"]
    assert open_gates(bench) == Opened(2, 0)
    bench.store.move()

    assert ids(bench) == ["new", "a", "b"]
    assert open_gates(bench) == Opened(0, None)
    assert traces(bench) == set()
    assert not bench.store.move().openable


def test_resuming_wakes_the_leader(bench: Bench) -> None:
    pause(bench)
    bench.raw.delete(bench.keys.wake)
    bench.store.resume(TASK, 0)
    assert bench.raw.llen(bench.keys.wake) == 1


@answers("resume", "NOT_PAUSED now")
def test_only_what_is_paused_can_be_resumed(bench: Bench) -> None:
    assert bench.store.resume(TASK, 0) is None
    pause(bench)
    assert bench.store.resume(TASK, 0) == 0
    assert traces(bench) == set()


def test_a_repeat_of_a_resume_gets_the_first_answer(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    pause(bench)
    bench.store.move()
    given = {"gate": TASK, "deadline": NOW + WINDOW, "operation": "one", "over": 0}
    first = bench.script("resume", **given)
    open_gates(bench)
    open_gates(bench)

    assert bench.script("resume", **given) == first


def test_a_release_is_spread_over_its_time(bench: Bench) -> None:
    add(bench, *(f"m{number}" for number in range(10)), template=MAIL)
    pause(bench)
    bench.store.move()
    bench.store.resume(TASK, 10_000)

    gone = []
    for _ in range(12):
        opened = open_gates(bench)
        gone.append(bench.store.move().moved)
        assert opened.wait_ms in (1_000, 0, None)
        bench.now += 1_000

    assert gone == [0, *[1] * 10, 0]
    assert ids(bench) == [f"m{number}" for number in range(10)]
    assert traces(bench) == set()


def test_a_release_can_be_hurried_and_stopped(bench: Bench) -> None:
    add(bench, *"abcd", template=MAIL)
    pause(bench)
    bench.store.move()
    bench.store.resume(TASK, 4_000)
    bench.now += 1_000
    open_gates(bench)
    assert bench.store.move().moved == 1

    pause(bench)  # it is closed again, for what is left
    bench.now += 60_000
    assert open_gates(bench) == Opened(0, None)

    assert bench.store.resume(TASK, 8_000_000) == 3
    assert bench.store.resume(TASK, 0) == 3
    assert open_gates(bench).returned == 3


def test_two_gates_one_behind_the_other(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    pause(bench, EVERYTHING)
    pause(bench)
    bench.store.move()
    bench.store.resume(EVERYTHING, 0)
    open_gates(bench)

    assert bench.store.move().gated == 1

    [entry] = bench.store.between(limit=9, offset=0, **ALL_ETAS)
    assert entry.gate == TASK


def test_what_comes_back_does_not_go_in_front_of_a_full_schedule(
    make: Callable[..., Bench],
) -> None:
    bench = make(batch_size=5)
    add(bench, *(f"m{number}" for number in range(20)), template=MAIL)
    pause(bench)
    while bench.store.move().gated:
        pass
    bench.store.resume(TASK, 0)

    assert open_gates(bench) == Opened(5, 0)
    assert open_gates(bench) == Opened(0, 20)
    bench.store.move()
    assert open_gates(bench) == Opened(5, 0)


def test_what_comes_back_does_not_keep_others_back_for_ever(make: Callable[..., Bench]) -> None:
    """GIVEN a slow broker, which takes two at a time WHEN much comes back that is older
    THEN another task that falls due goes within a few batches all the same."""
    bench = make(batch_size=30)
    add(bench, *(f"m{number:03}" for number in range(200)), template=ORDERS)
    pause(bench)
    while bench.store.claim(token="t", limit=50, ttl_ms=9_000).handled:
        pass
    bench.store.resume(TASK, 0)
    bench.now += 10
    add(bench, "other", template=shape("orders", PUBLISHED, task="shop.pay"))
    looks = 0
    while "outbound" in places(bench, "other"):
        open_gates(bench)
        bench.store.claim(token=f"t{looks}", limit=2, ttl_ms=9_000)
        looks += 1
        assert looks < 60
    assert len(ids_claimed(bench)) < 100


def ids_claimed(bench: Bench) -> list[str]:
    return bench.raw.hkeys(bench.keys.claimed)


@answers("open_gates", "EPOCH")
@answers("open_gates", "TERM")
def test_only_the_leader_lets_anything_pass(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    pause(bench)
    bench.store.move()
    bench.store.resume(TASK, 0)
    given = {"limit": 9, "probe": 1, "limits": ""}

    assert bench.script("open_gates", epoch=bench.epoch + 1, term=bench.term, **given) == b"EPOCH"
    assert bench.script("open_gates", epoch=bench.epoch, term=bench.term + 1, **given) == b"TERM"
    assert bench.store.open_gates(term=bench.term + 1) == Opened()
    assert set(places(bench, "a")) == {"gated"}


def test_expiry_goes_on_at_a_gate(bench: Bench) -> None:
    add(bench, "a", template=MAIL, expires_ms=NOW + 1_000)
    pause(bench)
    bench.store.move()
    bench.now += 2_000
    bench.store.resume(TASK, 0)
    open_gates(bench)

    assert bench.store.move().expired == 1
    assert traces(bench) - {bench.keys.gates} == set()


# --- what else can be done to it -----------------------------------------------------------


def test_a_paused_entry_can_be_cancelled(bench: Bench) -> None:
    add(bench, "a", "b", template=MAIL)
    pause(bench)
    bench.store.move()

    assert bench.store.cancel("a", data={})[0] is CancelOutcome.CANCELLED

    assert places(bench, "a") == {}
    assert [one.waiting for one in bench.store.gates()] == [1]
    bench.store.resume(TASK, 0)
    open_gates(bench)
    bench.store.move()
    assert ids(bench) == ["b"]
    assert bench.store.sizes()["gated"] == 0


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (Change(Due(60_000, True)), "schedule"),
        (Change(shift_ms=60_000), "schedule"),
        (Change(hold=True), "held"),
        (Change(Due(0, True), hold=False), "schedule"),
    ],
)
def test_a_paused_entry_can_be_changed(bench: Bench, change: Change, place: str) -> None:
    add(bench, "a", template=MAIL)
    pause(bench)
    bench.store.move()

    assert bench.store.steer("a", change).is_done

    assert set(places(bench, "a")) == {place}
    assert traces(bench) == {bench.keys.gates}


def test_a_paused_entry_that_is_to_run_at_once_stays_paused(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    pause(bench)
    bench.store.move()
    bench.store.steer("a", Change(Due(0, True), hold=False))

    assert bench.store.move().moved == 0
    assert set(places(bench, "a")) == {"gated"}


def test_a_newer_version_of_a_paused_entry_takes_its_place(bench: Bench) -> None:
    [added] = bench.store.add([addition("a", run=NOW - WINDOW, template=MAIL)])
    pause(bench)
    bench.store.move()

    bench.store.add([addition("a", 9_000, run=added.entry_id.run, template=MAIL, version=5)])

    assert set(places(bench, "a")) == {"schedule"}
    assert traces(bench) == {bench.keys.gates}


def test_scanning_finds_paused_entries(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    pause(bench)
    bench.store.move()
    bench.store.resume(TASK, 0)
    found = [one for page in bench.store.pages() for one in page.entries]
    assert [(one.entry_id.task_id, one.state) for one in found] == [("a", State.SCHEDULED)]


# --- the claim path ------------------------------------------------------------------------


def test_a_claim_takes_nothing_through_a_closed_gate(bench: Bench) -> None:
    add(bench, "a", template=ORDERS)
    add(bench, "b", template=shape("orders", PUBLISHED, task="shop.pay"))
    pause(bench)

    claims = bench.store.claim(token="mine", limit=10, ttl_ms=3_000)

    assert [one.entry_id.task_id for one in claims.taken] == ["b"]
    assert (claims.gated, claims.handled) == (1, 2)
    bench.store.resume(TASK, 0)
    assert open_gates(bench).returned == 1
    assert set(places(bench, "a")) == {"outbound"}


def test_a_claim_that_ended_in_silence_waits_at_the_gate_too(bench: Bench) -> None:
    add(bench, "a", template=ORDERS)
    bench.store.claim(token="mine", limit=10, ttl_ms=1)
    pause(bench)
    bench.now += 10
    bench.store.rescue()

    assert bench.store.claim(token="other", limit=10, ttl_ms=3_000).gated == 1
    assert bench.store.cancel("a", data={})[0] is CancelOutcome.TOO_LATE
    bench.store.resume(TASK, 0)
    open_gates(bench)
    [again] = bench.store.claim(token="third", limit=10, ttl_ms=3_000).taken
    assert again.attempt == 1


def test_what_the_gates_keep_is_json(bench: Bench) -> None:
    pause(bench, reason='a "quoted" word')
    value = bench.raw.hget(bench.keys.gates, TASK)
    assert json.loads(value[1:]) == {"by": "me", "reason": 'a "quoted" word', "since": NOW}


def test_a_full_redis_still_lets_a_gate_close(bench: Bench) -> None:
    add(bench, "a", template=MAIL)
    bench.raw.config_set("maxmemory", 1)
    try:
        pause(bench)
        assert bench.store.move().gated == 1
        bench.store.resume(TASK, 0)
        assert open_gates(bench).returned == 1
    finally:
        bench.raw.config_set("maxmemory", 0)


def test_too_many_gates_are_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_delay.store.gating.MOST_GATES", 1)
    pause(bench)
    with pytest.raises(StoreUnavailable, match="resume one first"):
        pause(bench, QUEUE)
