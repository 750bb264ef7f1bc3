"""Unique keys and idempotency keys: who has one, for how long, and what that does to others."""

from __future__ import annotations

from typing import Any

import pytest

from celery_delay.domain.entries import Added, Addition, EntryId
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.domain.uniqueness import Keys, Unique
from celery_delay.exceptions import AlreadyScheduled, StoreUnavailable, UniqueConflict
from tests.contract.bench import NOW, Bench, answers
from tests.shards import addition

pytestmark = pytest.mark.redis62

POLICIES = ("keep", "error", "replace", "extend")
LEASE = 60_000


def keyed(task_id: str, on: str | None = "keep", **options: Any) -> Addition:
    """An addition with a key; *on* ``None``: as a retry has it."""
    more = {
        name: options.pop(name) for name in ("idempotency", "idempotency_ms") if name in options
    }
    key, until = options.pop("key", "k"), options.pop("until", "dispatched")
    unique = Unique(key, until, 0 if until == "dispatched" else LEASE) if key else None
    labels = Labels(unique=unique)
    keys = Keys(on, **more) if on is not None else None
    return addition(task_id, options.pop("delay_ms", 1_000), labels=labels, keys=keys, **options)


def add(bench: Bench, *additions: Addition) -> list[Added]:
    return bench.store.add(additions)


def keys_left(bench: Bench) -> dict[str, str]:
    return bench.raw.hgetall(bench.keys.uniques)


def ends_left(bench: Bench) -> list[str]:
    return bench.raw.zrange(bench.keys.unique_ends, 0, -1)


def dispatch(bench: Bench, token: str = "") -> None:
    """Hand off what is due: by the move, or with a *token* under a claim."""
    if not token:
        assert bench.store.move().moved == 1
        return
    claims = bench.store.claim(token=token, limit=10, ttl_ms=3_000, source="schedule")
    assert bench.store.ack(token, [one.entry_id.task_id for one in claims.taken]) == 1


# --- the four policies ---------------------------------------------------------------------


@answers("add", "OK now codes")
def test_keep_answers_with_the_entry_that_has_the_key(bench: Bench) -> None:
    [first] = add(bench, keyed("a"))
    bench.now += 10

    [second] = add(bench, keyed("b", delay_ms=5_000))

    assert second == Added(EntryId("a", first.entry_id.run), "K", first.due_ms)
    assert bench.store.get("b") is None
    assert bench.states() == [("SCHEDULED", "a")]


@answers("add", "UNIQUE now key task_id")
def test_error_names_the_key_and_who_has_it(bench: Bench) -> None:
    add(bench, keyed("a"))

    with pytest.raises(UniqueConflict) as caught:
        add(bench, keyed("b", "error"), addition("c"))

    assert (caught.value.key, caught.value.task_id) == ("k", "a")
    assert "'a'" in str(caught.value)
    assert bench.store.get("b") is None
    assert bench.store.get("c") is None


def test_replace_cancels_the_entry_and_takes_its_key_in_one_step(bench: Bench) -> None:
    [first] = add(bench, keyed("a"))

    [second] = add(bench, keyed("b", "replace"))

    assert (second.entry_id.task_id, second.code) == ("b", "A")
    assert second.replaced is not None
    assert second.replaced.entry_id == first.entry_id
    assert second.replaced.eta_ms == first.due_ms
    assert bench.store.get("a") is None
    assert bench.states() == [("SCHEDULED", "a"), ("CANCELLED", "a"), ("SCHEDULED", "b")]
    reasons = [
        one.data for _, events in bench.store.read_journal("0", 9) for one in events
        if one.state == "CANCELLED"
    ]  # fmt: skip
    assert reasons == [{"reason": "replaced", "replaced_by": "b"}]
    assert add(bench, keyed("c"))[0].entry_id.task_id == "b"
    # and a late repeat of the first add is refused, as after a cancel
    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED


def test_extend_moves_the_eta_of_the_entry(bench: Bench) -> None:
    [first] = add(bench, keyed("a"))
    bench.now += 10

    [second] = add(bench, keyed("b", "extend", delay_ms=9_000))

    assert second == Added(first.entry_id, "E", bench.now + 9_001)
    entry = bench.store.get("a")
    assert entry is not None
    assert (entry.eta_ms, entry.version) == (bench.now + 9_001, 2)
    assert bench.store.get("b") is None
    assert bench.states() == [("SCHEDULED", "a"), ("SCHEDULED", "a")]


def test_an_entry_that_is_held_stays_so_when_it_is_extended(bench: Bench) -> None:
    add(bench, keyed("a"))
    bench.store.steer("a", Change(hold=True))

    assert add(bench, keyed("b", "extend", delay_ms=9_000))[0].code == "E"

    entry = bench.store.get("a")
    assert entry is not None
    assert (entry.state, entry.eta_ms) == (State.HELD, NOW + 9_001)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_free_key_is_taken_whatever_the_policy(bench: Bench, policy: str) -> None:
    [added] = add(bench, keyed("a", policy))

    assert (added.code, added.replaced) == ("A", None)
    assert list(keys_left(bench)) == ["u:k"]


def test_another_key_is_another_key(bench: Bench) -> None:
    codes = [one.code for one in add(bench, keyed("a", key="x"), keyed("b", key='y "ü"\\n'))]

    assert codes == ["A", "A"]
    assert set(keys_left(bench)) == {"u:x", 'u:y "ü"\\n'}


@pytest.mark.parametrize(("policy", "code"), [("keep", "K"), ("extend", "E")])
def test_the_same_task_id_again_is_the_same_task(bench: Bench, policy: str, code: str) -> None:
    [first] = add(bench, keyed("a", policy))
    bench.now += 10

    [again] = add(bench, keyed("a", policy, delay_ms=5_000))

    assert (again.entry_id, again.code) == (first.entry_id, code)


@pytest.mark.parametrize("policy", ["error", "replace"])
def test_the_same_task_id_is_refused_where_it_would_be_another_task(
    bench: Bench, policy: str
) -> None:
    add(bench, keyed("a", policy))
    bench.now += 10

    with pytest.raises(AlreadyScheduled):
        add(bench, keyed("a", policy, delay_ms=5_000))


# --- until when it is kept -----------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "t"])
def test_the_hand_off_frees_the_key(bench: Bench, token: str) -> None:
    add(bench, keyed("a", delay_ms=0))
    dispatch(bench, token)

    assert keys_left(bench) == {}
    assert add(bench, keyed("b"))[0].code == "A"


@pytest.mark.parametrize("token", ["", "t"])
@pytest.mark.parametrize("until", ["started", "done"])
def test_the_hand_off_makes_a_lease_of_it_that_ends(bench: Bench, until: str, token: str) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until=until))
    dispatch(bench, token)

    assert add(bench, keyed("b", until=until)) == [Added(first.entry_id, "K", first.due_ms)]
    bench.now += LEASE - 1
    assert add(bench, keyed("b", until=until))[0].code == "K"
    bench.now += 1
    assert add(bench, keyed("c", until=until))[0].code == "A"
    assert ends_left(bench) == []


@pytest.mark.parametrize("policy", ["error", "replace", "extend"])
def test_who_has_a_lease_cannot_be_changed_any_more(bench: Bench, policy: str) -> None:
    add(bench, keyed("a", delay_ms=0, until="done"))
    dispatch(bench)

    with pytest.raises(UniqueConflict):
        add(bench, keyed("b", policy, until="done"))


@answers("let_go", "1 it is free now")
@answers("let_go", "0 it was not (or no longer) this task's")
def test_the_lease_is_given_back_by_the_entry_that_has_it(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="done"))
    dispatch(bench)
    run = first.entry_id.run

    assert not bench.store.let_go("k", EntryId("b", run))
    assert not bench.store.let_go("k", EntryId("a", run - 1))
    assert not bench.store.let_go("x", EntryId("a", run))
    assert bench.store.let_go("k", EntryId("a", run))
    assert not bench.store.let_go("k", EntryId("a", run))
    assert (keys_left(bench), ends_left(bench)) == ({}, [])


def test_a_retry_past_the_store_gives_the_lease_back(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="done"))
    dispatch(bench)

    assert bench.store.let_go("k", EntryId("a", first.entry_id.run + 1))


def test_a_worker_that_is_quicker_than_the_ack_frees_the_key_for_good(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="started"))
    bench.store.claim(token="t", limit=10, ttl_ms=3_000, source="schedule")

    assert bench.store.let_go("k", first.entry_id)
    assert add(bench, keyed("b", until="started", delay_ms=9_000))[0].code == "A"
    assert bench.store.ack("t", ["a"]) == 1

    assert add(bench, keyed("c"))[0].entry_id.task_id == "b"


def test_a_cancelled_entry_frees_its_key(bench: Bench) -> None:
    add(bench, keyed("a", until="done"))
    bench.store.cancel("a", data={})

    assert (keys_left(bench), ends_left(bench)) == ({}, [])


@pytest.mark.parametrize("token", ["", "t"])
def test_an_expired_entry_frees_its_key(bench: Bench, token: str) -> None:
    add(bench, keyed("a", delay_ms=0, until="done", expires_ms=NOW + 1))
    bench.now += 10
    if token:
        bench.store.claim(token=token, limit=10, ttl_ms=3_000, source="schedule")
    else:
        bench.store.move()

    assert bench.states()[-1] == ("EXPIRED", "a")
    assert keys_left(bench) == {}


def test_an_entry_that_is_given_back_or_quarantined_keeps_its_key(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="done"))
    bench.store.claim(token="t", limit=10, ttl_ms=3_000, source="schedule")
    bench.store.give_back("t", [("a", "S", "")])
    assert add(bench, keyed("b"))[0] == Added(first.entry_id, "K", NOW)

    bench.store.claim(token="u", limit=10, ttl_ms=3_000, source="schedule")
    assert add(bench, keyed("b"))[0] == Added(first.entry_id, "K", NOW)
    bench.store.give_back("u", [("a", "Q", "no such queue")])

    assert add(bench, keyed("b"))[0] == Added(first.entry_id, "K", NOW)
    with pytest.raises(UniqueConflict):
        add(bench, keyed("b", "extend"))
    [replacing] = add(bench, keyed("b", "replace"))
    assert replacing.code == "A"
    assert replacing.replaced is not None
    assert bench.store.quarantined() == {}


def test_a_quarantined_entry_whose_message_may_be_out_is_not_replaced(bench: Bench) -> None:
    add(bench, keyed("a", delay_ms=0))
    bench.store.claim(token="t", limit=10, ttl_ms=3_000, source="schedule")
    bench.now += 3_001
    assert bench.store.rescue() == 1
    bench.store.claim(token="u", limit=10, ttl_ms=3_000, source="schedule")
    bench.store.give_back("u", [("a", "Q", "no such queue")])

    with pytest.raises(UniqueConflict):
        add(bench, keyed("b", "replace"))


@answers("add", "BUSY now key task_id")
@pytest.mark.parametrize("policy", ["replace", "extend"])
def test_one_that_is_being_published_is_waited_for(bench: Bench, policy: str) -> None:
    add(bench, keyed("a", delay_ms=0))
    bench.store.claim(token="t", limit=10, ttl_ms=3_000, source="schedule")
    bench.clock.asleep = lambda seconds: bench.store.ack("t", ["a"]) and None

    [added] = add(bench, keyed("b", policy))

    assert (added.entry_id.task_id, added.code) == ("b", "A")


def test_one_that_is_published_for_too_long_is_an_error_with_nothing_stored(bench: Bench) -> None:
    add(bench, keyed("a", delay_ms=0))
    bench.store.claim(token="t", limit=10, ttl_ms=60_000, source="schedule")

    with pytest.raises(StoreUnavailable, match=r"'a'.*'k'.*call again"):
        add(bench, keyed("b", "replace"))

    with pytest.raises(UniqueConflict):
        add(bench, keyed("b", "error"))
    assert bench.store.get("b") is None


# --- nothing leaves a key stuck ------------------------------------------------------------


def test_a_key_whose_entry_is_gone_is_free(bench: Bench) -> None:
    add(bench, keyed("a"))
    # as after a loss of some keys, which nobody has heard of
    bench.raw.hdel(bench.keys.entries, "a")
    bench.raw.zrem(bench.keys.schedule, "a")

    assert add(bench, keyed("b"))[0].code == "A"


def test_a_key_of_another_run_of_the_task_is_free(bench: Bench) -> None:
    [first] = add(bench, keyed("a"))
    bench.raw.hset(bench.keys.uniques, "u:k", f"0 {first.entry_id.run - 1} {NOW} a")

    assert add(bench, keyed("b"))[0].code == "A"


def test_a_damaged_entry_keeps_its_key_and_can_be_replaced(bench: Bench) -> None:
    add(bench, keyed("a"))
    bench.raw.hset(bench.keys.entries, "a", "nonsense")

    with pytest.raises(UniqueConflict):
        add(bench, keyed("b", "extend"))
    assert add(bench, keyed("b"))[0].code == "K"
    assert add(bench, keyed("b", "replace"))[0].code == "A"
    assert bench.store.get("a") is None


def test_the_leader_forgets_keys_that_have_ended_a_batch_at_a_time(make: Any) -> None:
    bench = make(batch_size=2)
    for name in "abc":
        add(bench, keyed(name, delay_ms=0, key=name, until="done"))
        dispatch(bench)
    add(bench, keyed("d", key="d", until="done"))
    bench.store.merge_back(term=bench.term)
    assert len(keys_left(bench)) == 4

    bench.now += LEASE
    bench.store.merge_back(term=bench.term)
    assert len(keys_left(bench)) == 2
    bench.store.merge_back(term=bench.term)

    assert (list(keys_left(bench)), ends_left(bench)) == (["u:d"], [])


# --- retries -------------------------------------------------------------------------------


def test_a_retry_through_the_store_takes_the_key_over(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="done"))
    dispatch(bench)
    run = first.entry_id.run + 1

    [again] = add(bench, keyed("a", None, run=run, until="done", delay_ms=2 * LEASE))

    assert again.code == "A"
    assert not bench.store.let_go("k", first.entry_id)
    bench.now += LEASE + 1
    assert add(bench, keyed("b"))[0].entry_id == EntryId("a", run)


def test_a_retry_takes_it_over_also_before_the_ack(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="done"))
    bench.store.claim(token="t", limit=10, ttl_ms=3_000, source="schedule")
    run = first.entry_id.run + 1

    assert add(bench, keyed("a", None, run=run, until="done"))[0].code == "A"

    assert bench.store.ack("t", ["a"]) == 0
    assert add(bench, keyed("b"))[0].entry_id == EntryId("a", run)


def test_a_retry_goes_without_a_key_that_another_has_by_now(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=0, until="done"))
    dispatch(bench)
    bench.now += LEASE
    add(bench, keyed("b"))

    retry = keyed("a", None, run=first.entry_id.run + 1, until="done", delay_ms=0)
    assert add(bench, retry)[0].code == "A"
    dispatch(bench)

    assert add(bench, keyed("c"))[0].entry_id.task_id == "b"


# --- many in one step ----------------------------------------------------------------------


def test_of_two_calls_of_one_step_the_second_is_kept_back(bench: Bench) -> None:
    first, second, third = add(bench, keyed("a"), keyed("b"), addition("c"))

    assert (first.code, third.code) == ("A", "A")
    assert second == Added(first.entry_id, "K", first.due_ms)


@pytest.mark.parametrize("policy", ["error", "replace", "extend"])
def test_two_calls_of_one_step_are_refused_otherwise(bench: Bench, policy: str) -> None:
    with pytest.raises(UniqueConflict):
        add(bench, keyed("a", policy), keyed("b", policy))

    assert bench.store.get("a") is None


def test_a_step_may_replace_and_extend_several(bench: Bench) -> None:
    add(bench, *(keyed(one, key=one) for one in "abc"))

    added = add(
        bench,
        keyed("A", "replace", key="a"),
        keyed("B", "extend", key="b", delay_ms=7_000),
        keyed("C", "replace", key="c"),
        keyed("D", "keep", key="b"),
    )

    assert [one.code for one in added] == ["A", "E", "A", "K"]
    gone = [one.replaced and one.replaced.entry_id.task_id for one in added]
    assert gone == ["a", None, "c", None]
    assert added[3].entry_id.task_id == "b"
    assert added[3].due_ms == added[1].due_ms == NOW + 7_001


# --- lost answers --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["answer", "request"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_lost_answer_to_the_first_call_changes_nothing(
    bench: Bench, policy: str, fault: str
) -> None:
    bench.links.plan = ["ok", fault]  # the first answer asks for the template

    [added] = add(bench, keyed("a", policy))

    assert added.code == ("D" if fault == "answer" else "A")
    assert bench.states() == [("SCHEDULED", "a")]


@pytest.mark.parametrize("fault", ["answer", "request"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_lost_answer_to_a_conflict_changes_nothing(bench: Bench, policy: str, fault: str) -> None:
    add(bench, keyed("a"))
    bench.links.plan = [fault]

    if policy == "error":
        with pytest.raises(UniqueConflict):
            add(bench, keyed("b", policy))
        assert bench.states() == [("SCHEDULED", "a")]
        return
    [added] = add(bench, keyed("b", policy, delay_ms=5_000))

    told = {"keep": ("a", "K"), "extend": ("a", "E")}
    mine = ("b", "D" if fault == "answer" else "A")
    assert (added.entry_id.task_id, added.code) == told.get(policy, mine)
    states = {
        "keep": [],
        "extend": [("SCHEDULED", "a")],
        "replace": [("CANCELLED", "a"), ("SCHEDULED", "b")],
    }
    assert bench.states() == [("SCHEDULED", "a"), *states[policy]]


@pytest.mark.parametrize("policy", ["keep", "extend"])
def test_a_repeat_gets_the_first_answer_also_when_the_key_is_free_by_then(
    bench: Bench, policy: str
) -> None:
    add(bench, keyed("a", delay_ms=10))
    bench.links.plan = ["answer"]

    def hand_off(_seconds: float) -> None:
        bench.now += 100
        bench.links.plan = []
        bench.store.move()

    bench.clock.asleep = hand_off
    [added] = add(bench, keyed("b", policy, delay_ms=50))

    assert added.entry_id.task_id == "a"
    assert bench.states()[-1] == ("DISPATCHED", "a")
    assert bench.store.get("b") is None


@pytest.mark.parametrize("policy", ["keep", "error"])
def test_a_first_attempt_that_comes_last_is_answered_like_the_others(
    bench: Bench, policy: str
) -> None:
    add(bench, keyed("a", delay_ms=10))
    bench.links.plan = ["request"]
    if policy == "error":
        with pytest.raises(UniqueConflict):
            add(bench, keyed("b", policy))
    else:
        add(bench, keyed("b", policy))
    bench.now += 100
    bench.store.move()

    [late] = bench.links.lost
    with bench.store._link() as link:
        answer = link.call(*late)

    assert answer[0] == b"UNIQUE" if policy == "error" else answer[2] == b"K"
    assert bench.store.get("b") is None


# --- idempotency keys ----------------------------------------------------------------------


def once(task_id: str, **options: Any) -> Addition:
    return keyed(task_id, key=None, idempotency="call-1", idempotency_ms=LEASE, **options)


def test_a_repeated_call_gets_the_first_result_whatever_became_of_it(bench: Bench) -> None:
    [first] = add(bench, once("a", delay_ms=5))
    assert first.code == "A"
    told = Added(first.entry_id, "K", first.due_ms)

    assert add(bench, once("b")) == [told]
    bench.now += 10
    dispatch(bench)
    assert add(bench, once("c")) == [told]
    bench.now += LEASE - 11
    assert add(bench, once("d")) == [told]
    bench.now += 1
    assert add(bench, once("e"))[0].code == "A"


def test_it_is_the_first_result_also_after_a_cancel(bench: Bench) -> None:
    [first] = add(bench, once("a"))
    bench.store.cancel("a", data={})

    assert add(bench, once("b")) == [Added(first.entry_id, "K", first.due_ms)]
    assert bench.states() == [("SCHEDULED", "a"), ("CANCELLED", "a")]


def test_a_call_that_was_kept_back_is_remembered_with_what_it_got(bench: Bench) -> None:
    [first] = add(bench, keyed("a", delay_ms=5))
    both = {"idempotency": "call-1", "idempotency_ms": LEASE}
    add(bench, keyed("b", **both))
    bench.now += 10
    dispatch(bench)

    assert add(bench, keyed("c", **both)) == [Added(first.entry_id, "K", first.due_ms)]
    assert add(bench, keyed("d"))[0].code == "A"


def test_a_repeated_call_may_bring_its_own_task_id(bench: Bench) -> None:
    [first] = add(bench, once("a", delay_ms=5))
    bench.now += 1

    assert add(bench, once("a")) == [Added(first.entry_id, "K", first.due_ms)]


def test_two_calls_of_one_step_with_one_idempotency_key_are_one(bench: Bench) -> None:
    first, second = add(bench, once("a"), once("b"))

    assert second == Added(first.entry_id, "K", first.due_ms)


def test_a_lost_answer_of_a_first_call_is_repeated_as_its_own(bench: Bench) -> None:
    bench.links.plan = ["ok", "answer"]

    assert add(bench, once("a"))[0].code == "D"
    assert add(bench, once("b"))[0].entry_id.task_id == "a"


def test_a_step_that_is_refused_remembers_no_key(bench: Bench) -> None:
    add(bench, keyed("a"))
    with pytest.raises(UniqueConflict):
        add(bench, once("b"), keyed("c", "error"))

    assert list(keys_left(bench)) == ["u:k"]
