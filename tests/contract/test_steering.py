"""Changes of one waiting entry on a real Redis, 7 and 6.2: each answer, and what it promises.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from celery_delay.domain.entries import PUBLISHED, Due
from celery_delay.domain.ports import Change, Steered
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.domain.timetable import Wanted
from celery_delay.exceptions import AlreadyScheduled, OutcomeUnknown, StoreUnavailable
from celery_delay.store.claims import QUARANTINE
from tests.contract.bench import NOW, WINDOW, Bench, answers
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

ORDERS = shape("orders", PUBLISHED)
HOLD, FREE = Change(hold=True), Change(Due(0, True), hold=False)
EVERYTHING = {"after_ms": 0, "before_ms": 10**15}


def to(at_ms: int) -> Change:
    return Change(Due(at_ms, False))


def out(task_id: str, delay_ms: int = 0) -> Any:
    """An addition that a beat has to publish."""
    return addition(task_id, delay_ms, template=ORDERS)


def claim(bench: Bench, token: str = "mine", **options: Any) -> list[str]:
    claims = bench.store.claim(token=token, limit=10, ttl_ms=3_000, **options)
    return [one.entry_id.task_id for one in claims.taken]


def steer(bench: Bench, task_id: str, change: Change, **options: Any) -> str:
    return bench.store.steer(task_id, change, **options).answer


def places(bench: Bench, task_id: str) -> dict[str, float]:
    """The zsets that have it."""
    keys = bench.keys
    names = ("schedule", "outbound", "blocked", "gated", "held", "claims")
    scores = {one: bench.raw.zscore(getattr(keys, one), task_id) for one in names}
    return {name: score for name, score in scores.items() if score is not None}


def raw(bench: Bench, **given: Any) -> Any:
    """The script as it is, past the store's repeats."""
    values = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": "one", "task_id": "a", "run": 0,
        "due": "", "hold": "", "data": "{}", **given,
    }  # fmt: skip
    return [one.decode() for one in bench.script("steer", **values)]


def events(bench: Bench) -> list[tuple[str, int, int | None, Any]]:
    read = bench.store.read_journal("0", 100)
    return [(one.state, one.version, one.eta_ms, one.data) for _, some in read for one in some]


# --- another eta ---------------------------------------------------------------------------


@answers("steer", "DONE now due_ms")
@pytest.mark.parametrize(
    ("change", "eta_ms"),
    [
        (to(NOW + 5), NOW + 5),
        (Change(Due(500, True)), NOW + 501),  # from the end of this millisecond: never early
        (Change(Due(0, True)), NOW),
        (Change(shift_ms=700), NOW + 10_701),
        (Change(shift_ms=-10_000), NOW + 1),
        (Change(shift_ms=-NOW * 2), 0),
        (Change(shift_ms=10**15), 253_402_300_799_000),
        (to(-5), 0),
    ],
)
@pytest.mark.parametrize("new", [addition, out])
def test_a_waiting_entry_gets_another_eta(
    bench: Bench, new: Any, change: Change, eta_ms: int
) -> None:
    bench.store.add([new("a", 10_000)])
    before = bench.store.get("a")

    assert bench.store.steer("a", change, data={"by": "me"}) == Steered("DONE", eta_ms, 0)

    after = bench.store.get("a")
    assert before is not None
    assert after is not None
    assert (after.eta_ms, after.version, after.state) == (eta_ms, 2, State.SCHEDULED)
    assert (after.entry_id, after.envelope["value"]) == (before.entry_id, "v")
    assert list(places(bench, "a").values()) == [eta_ms]
    assert events(bench)[-1] == ("SCHEDULED", 2, eta_ms, {"by": "me"})


def test_it_runs_at_its_new_eta_and_not_before(bench: Bench) -> None:
    bench.store.add([addition("later"), addition("sooner", 60_000)])
    steer(bench, "later", to(NOW + 100))
    steer(bench, "sooner", to(NOW + 50))

    assert bench.store.move().moved == 0
    for at, moved in ((49, []), (50, ["sooner"]), (99, ["sooner"]), (100, ["sooner", "later"])):
        bench.now = NOW + at
        bench.store.move()
        assert [one["id"] for one in bench.queue()] == moved
    assert [one["eta"] for one in bench.queue()] == [NOW + 50, NOW + 100]


def test_the_leader_is_woken_for_an_earlier_head_only(bench: Bench) -> None:
    bench.store.add([addition("head", 1_000), addition("other", 5_000)])

    for change, woken in ((to(NOW + 3_000), 0), (Change(shift_ms=500), 0), (to(NOW + 900), 1)):
        bench.raw.delete(bench.keys.wake)
        steer(bench, "other", change)
        assert bench.raw.llen(bench.keys.wake) == woken
    bench.raw.delete(bench.keys.wake)
    steer(bench, "other", HOLD)
    assert bench.raw.llen(bench.keys.wake) == 0
    steer(bench, "other", FREE)
    assert bench.raw.llen(bench.keys.wake) == 1


def test_the_answer_bears_the_expiry(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000, expires_ms=NOW + 2_000)])

    assert bench.store.steer("a", to(NOW + 3_000)) == Steered("DONE", NOW + 3_000, NOW + 2_000)


def test_a_blocked_entry_is_found_and_leaves_its_place(bench: Bench) -> None:
    bench.raw.set("delay-queue", "not a list")
    bench.store.add([addition("a"), addition("b")])
    assert bench.store.move().blocked == 2

    assert steer(bench, "a", to(NOW + 60_000)) == "DONE"
    assert steer(bench, "b", HOLD) == "DONE"

    assert places(bench, "a") == {"schedule": NOW + 60_000}
    assert places(bench, "b") == {"held": NOW}
    assert bench.store.merge_back(term=bench.term) == 0
    bench.raw.delete("delay-queue")


def test_a_repeat_of_the_add_is_a_repeat_still(bench: Bench) -> None:
    """The record keeps the deadline of its add."""
    [added] = bench.store.add([addition("a", 1_000, run=NOW - 1)])
    steer(bench, "a", to(NOW + 7))

    [again] = bench.store.add([addition("a", 1_000, run=NOW - 1)])
    assert (again.entry_id, again.code, again.due_ms) == (added.entry_id, "D", NOW + 7)
    bench.now += 10
    bench.store.move()
    [again] = bench.store.add([addition("a", 1_000, run=NOW - 1)])
    assert again.code == "G"


def test_of_a_thousand_concurrent_changes_the_last_accepted_one_counts(bench: Bench) -> None:
    """It is handed off once, at that eta; which one that was, the journal tells."""
    bench.store.add([addition("a", 60_000)])
    start = threading.Barrier(8)

    def change(worker: int) -> None:
        start.wait()
        for step in range(125):
            assert steer(bench, "a", to(NOW + 1_000 + step * 8 + worker)) == "DONE"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))

    read = bench.store.read_journal("0", 2_000)
    told = [(one.version, one.eta_ms) for _, some in read for one in some][1:]
    assert [version for version, _ in told] == list(range(2, 1_002))
    assert sorted(eta for _, eta in told) == [NOW + 1_000 + n for n in range(1_000)]  # type: ignore[type-var]
    last = told[-1][1]
    assert last is not None
    bench.now = last - 1
    assert bench.store.move().moved == 0
    for at in (last, last + 1, NOW + 60_001):
        bench.now = at
        bench.store.move()
        assert [one["eta"] for one in bench.queue()] == [last]


# --- held ----------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [addition, out])
def test_what_is_held_goes_nowhere_by_itself(bench: Bench, new: Any) -> None:
    bench.store.add([new("a")])

    assert steer(bench, "a", HOLD, data={"by": "me", "reason": "wait"}) == "DONE"

    bench.now += 3_600_000
    assert bench.store.move().handled == 0
    assert claim(bench) == claim(bench, "t2", source="schedule") == []
    assert bench.store.rescue() == bench.store.merge_back(term=bench.term) == 0
    assert places(bench, "a") == {"held": NOW}
    assert events(bench)[-1] == ("HELD", 2, NOW, {"by": "me", "reason": "wait"})


def test_what_is_held_is_seen(bench: Bench) -> None:
    bench.store.add([addition("a", 10), addition("b", 20)])
    steer(bench, "a", HOLD)

    held = bench.store.get("a")
    assert held is not None
    assert (held.state, held.eta_ms, held.version) == (State.HELD, NOW + 11, 2)
    assert bench.store.held() == ["a"]
    assert bench.store.sizes()["held"] == bench.store.sizes()["pending"] == 1
    assert bench.store.missing([held.entry_id]) == []
    for state, ids in ((None, ["a", "b"]), (State.HELD, ["a"]), (State.SCHEDULED, ["b"])):
        found = bench.store.between(**EVERYTHING, limit=9, offset=0, state=state)
        assert [one.entry_id.task_id for one in found] == ids
        assert bench.store.count(**EVERYTHING, state=state) == len(ids)
    assert bench.store.count(**EVERYTHING, state=State.FAILED) == 0


def test_to_hold_twice_changes_nothing_more(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])

    assert bench.store.steer("a", HOLD) == bench.store.steer("a", HOLD)

    assert [state for state, *_ in events(bench)] == ["SCHEDULED", "HELD"]
    assert steer(bench, "a", Change()) == "DONE"
    assert bench.store.held() == ["a"]


def test_a_held_entry_gets_another_eta_and_stays_held(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    steer(bench, "a", HOLD)

    assert bench.store.steer("a", Change(shift_ms=5)) == Steered("DONE", NOW + 16, 0)

    assert places(bench, "a") == {"held": NOW + 16}
    assert events(bench)[-1][:3] == ("HELD", 3, NOW + 16)
    assert bench.store.send_again(["a"], {"by": "me"}) == "S"
    assert places(bench, "a") == {"schedule": NOW + 16}
    assert events(bench)[-1] == ("SCHEDULED", 4, NOW + 16, {"by": "me"})


@pytest.mark.parametrize("way", ["run now", "release"])
@pytest.mark.parametrize("new", [addition, out])
def test_it_is_let_go_the_way_it_came(bench: Bench, new: Any, way: str) -> None:
    bench.store.add([new("a", 60_000)])
    steer(bench, "a", HOLD)
    bench.now += 90_000
    bench.raw.delete(bench.keys.wake)

    if way == "run now":
        assert bench.store.steer("a", FREE) == Steered("DONE", bench.now, 0)
    else:
        assert bench.store.send_again(["a", "b"]) == "SN"

    assert bench.raw.llen(bench.keys.wake) == 1
    assert bench.store.held() == []
    if new is out:
        assert claim(bench) == ["a"]
        assert bench.store.ack("mine", ["a"]) == 1
    else:
        assert bench.store.move().moved == 1
    assert bench.raw.exists(bench.keys.entries) == 0
    assert set(bench.raw.hvals(bench.keys.template_uses)) == {"0"}


def test_what_is_held_past_its_expiry_does_not_run(bench: Bench) -> None:
    bench.store.add([addition("a", 10, expires_ms=NOW + 100)])
    steer(bench, "a", HOLD)
    bench.now += 200

    assert bench.store.send_again(["a"]) == "S"

    assert bench.store.move().expired == 1


def test_what_is_held_can_be_cancelled(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    steer(bench, "a", HOLD)

    outcome, entry = bench.store.cancel("a", data={})

    assert outcome is CancelOutcome.CANCELLED
    assert entry is not None
    assert entry.eta_ms == NOW + 11
    assert events(bench)[-1][:3] == ("CANCELLED", 2, NOW + 11)
    assert places(bench, "a") == {}
    assert set(bench.raw.hvals(bench.keys.template_uses)) == {"0"}
    assert bench.store.send_again(["a"]) == "N"


def test_a_held_entry_is_live_for_whoever_adds_its_id_again(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    steer(bench, "a", HOLD)
    bench.now += 1

    with pytest.raises(AlreadyScheduled):
        bench.store.add([addition("a")])
    with pytest.raises(AlreadyScheduled):  # a follow-up of a run that has not run
        bench.store.add([addition("a", run=NOW + 1)])

    assert bench.store.held() == ["a"]


def test_an_occurrence_that_is_held_is_not_fired_again(bench: Bench) -> None:
    schedules = {"s": Wanted("1", NOW)}
    bench.store.sync_schedules(term=bench.term, revision=0, schedules=schedules)
    fired = {"term": bench.term, "revision": 0, "name": "s", "cursor_ms": NOW, "missed": None}
    assert bench.store.fire(
        **fired, expected_ms=NOW, next_ms=NOW + 9, addition=addition("o", 60_000, run=1)
    )
    steer(bench, "o", HOLD)

    assert not bench.store.fire(
        **fired, expected_ms=NOW + 9, next_ms=None, addition=addition("o", run=1)
    )

    assert places(bench, "o") == {"held": NOW + 60_001}


def test_a_damaged_entry_that_is_held_is_not_let_go(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    steer(bench, "a", HOLD)
    bench.raw.hset(bench.keys.entries, "a", "rubbish")

    assert bench.store.send_again(["a"]) == "D"

    assert places(bench, "a") == {"held": NOW + 11}
    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED


# --- the other answers ---------------------------------------------------------------------

CHANGES = [to(NOW + 5), Change(shift_ms=5), HOLD, FREE]
each_change = pytest.mark.parametrize("change", CHANGES)


@answers("steer", "NOT_FOUND now")
@each_change
def test_there_is_nothing_to_change(bench: Bench, change: Change) -> None:
    assert bench.store.steer("a", change, run=NOW) == Steered("NOT_FOUND")

    assert places(bench, "a") == {}
    [added] = bench.store.add([addition("a", run=NOW - 1)])
    assert added.code == "A"  # an add that comes later is none of its business


@answers("steer", "TOO_LATE now")
@each_change
def test_what_was_moved_is_too_late(bench: Bench, change: Change) -> None:
    [added] = bench.store.add([addition("a")])
    bench.store.move()

    assert bench.store.steer("a", change, run=added.entry_id.run) == Steered("TOO_LATE")

    assert places(bench, "a") == {}
    assert [one["id"] for one in bench.queue()] == ["a"]


@each_change
def test_what_is_being_published_is_too_late(bench: Bench, change: Change) -> None:
    bench.store.add([out("a")])
    claim(bench)

    assert steer(bench, "a", change) == "TOO_LATE"
    # also when nobody knows how far the claimant came
    bench.now += 3_000
    assert bench.store.rescue() == 1
    assert steer(bench, "a", change) == "TOO_LATE"

    assert claim(bench, "next") == ["a"]
    assert bench.store.ack("next", ["a"]) == 1


@answers("steer", "QUARANTINED now")
@each_change
def test_what_is_quarantined_is_to_be_released_first(bench: Bench, change: Change) -> None:
    bench.store.add([out("a")])
    claim(bench)
    bench.store.give_back("mine", [("a", QUARANTINE, "no queue")])

    assert steer(bench, "a", change) == "QUARANTINED"

    assert bench.store.send_again(["a"]) == "S"
    assert steer(bench, "a", HOLD) == "DONE"


@answers("steer", "DAMAGED now")
@each_change
@pytest.mark.parametrize("record", ["rubbish", "payload", "newer", None])
def test_a_damaged_record_is_left_alone(bench: Bench, change: Change, record: str | None) -> None:
    bench.store.add([addition("a", 1_000)])
    stored = bench.raw.hget(bench.keys.entries, "a") or ""
    text = {"payload": stored + "!", "newer": "9" + stored[1:]}.get(str(record), record)
    if text is None:
        bench.raw.hdel(bench.keys.entries, "a")
    else:
        bench.raw.hset(bench.keys.entries, "a", text)

    assert steer(bench, "a", change) == "DAMAGED"

    assert bench.raw.hget(bench.keys.entries, "a") == text
    assert places(bench, "a") == {"schedule": NOW + 1_001}
    assert [state for state, *_ in events(bench)] == ["SCHEDULED"]


@answers("steer", "LATE now")
@answers("send_again", "LATE")
def test_a_change_that_arrives_after_its_deadline_does_nothing(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    bench.now += WINDOW + 1

    assert raw(bench, hold="1")[0] == "LATE"
    assert places(bench, "a") == {"schedule": NOW + 60_001}
    steer(bench, "a", HOLD)
    late = {"epoch": 0, "deadline": NOW + WINDOW, "operation": "x", "data": "{}"}
    assert bench.script("send_again", "a", **late) == b"LATE"
    assert bench.store.held() == ["a"]


@answers("steer", "EPOCH now")
@answers("send_again", "EPOCH")
def test_a_change_meant_for_another_history_does_nothing(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    epoch = bench.epoch + 1

    assert raw(bench, hold="1", epoch=epoch)[0] == "EPOCH"
    assert bench.store.held() == []
    assert raw(bench, hold="1", epoch=bench.epoch)[0] == "DONE"
    given = {"epoch": epoch, "deadline": NOW + WINDOW, "operation": "x", "data": "{}"}
    assert bench.script("send_again", "a", **given) == b"EPOCH"
    assert bench.store.held() == ["a"]
    # and the store looks again by itself
    bench.raw.hset(bench.keys.mark, "epoch", epoch)
    assert bench.store.send_again(["a"]) == "S"


# --- lost answers --------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [["answer"], ["request"], ["answer", "answer", "request"]])
def test_a_change_is_made_once_however_often_its_answer_is_lost(
    bench: Bench, plan: list[str]
) -> None:
    bench.store.add([addition("a", 10_000)])
    bench.links.plan = list(plan)

    assert bench.store.steer("a", Change(shift_ms=1_000)) == Steered("DONE", NOW + 11_001, 0)

    entry = bench.store.get("a")
    assert entry is not None
    assert (entry.eta_ms, entry.version) == (NOW + 11_001, 2)
    assert len(events(bench)) == 2


def test_a_release_whose_answer_is_lost_is_answered_by_the_first_attempt(bench: Bench) -> None:
    bench.store.add([addition("a"), addition("b")])
    steer(bench, "a", HOLD)
    bench.clock.asleep = lambda seconds: bench.store.move() and None
    bench.links.plan = ["answer"]

    assert bench.store.send_again(["a", "b"]) == "SN"

    assert bench.queue() != []


def test_a_repeat_does_not_undo_what_others_have_done_since(bench: Bench) -> None:
    bench.store.add([addition("a", 10_000)])

    assert raw(bench, due=f"@{NOW + 1}") == ["DONE", str(NOW), str(NOW + 1), "0"]
    steer(bench, "a", to(NOW + 2))
    assert raw(bench, due=f"@{NOW + 1}") == ["DONE", str(NOW), str(NOW + 1), "0"]
    assert places(bench, "a") == {"schedule": NOW + 2}
    # nor bring back what has gone
    bench.now += 5
    bench.store.move()
    assert raw(bench, due=f"@{NOW + 1}")[0] == "DONE"
    assert places(bench, "a") == {}


def test_an_answer_that_never_comes_is_unknown(bench: Bench) -> None:
    bench.store.add([addition("a", 10_000)])
    bench.links.plan = ["answer"] * 1_000

    with pytest.raises(OutcomeUnknown):
        steer(bench, "a", HOLD)

    bench.links.plan = []
    assert bench.store.held() == ["a"]


def test_without_redis_nothing_has_changed(bench: Bench) -> None:
    def away() -> Any:
        raise StoreUnavailable("away")

    bench.store._links.take = away  # type: ignore[method-assign]

    with pytest.raises(StoreUnavailable):
        steer(bench, "a", HOLD)
