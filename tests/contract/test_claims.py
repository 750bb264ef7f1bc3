"""The claim path's scripts on a real Redis, 7 and 6.2: who has an entry, and until when.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celery_delay.domain.claims import Claims
from celery_delay.domain.entries import PUBLISHED, Claimed, EntryId, template_id
from celery_delay.domain.ports import StaleEpoch
from celery_delay.domain.states import CancelOutcome
from celery_delay.domain.timetable import Wanted
from celery_delay.exceptions import AlreadyScheduled, StoreUnavailable
from celery_delay.store import additions as additions_module
from celery_delay.store.claims import BLOCKED, QUARANTINE, SCHEDULE
from celery_delay.store.records import decode
from tests.contract.bench import NOW, WINDOW, Bench, answers
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

TTL = 3_000
ORDERS = shape("orders", PUBLISHED)


def out(task_id: str, delay_ms: int = 0, **options: Any) -> Any:
    """An addition that a beat has to publish."""
    options.setdefault("template", ORDERS)
    return addition(task_id, delay_ms, **options)


def claim(bench: Bench, token: str = "mine", limit: int = 10, **options: Any) -> Claims:
    return bench.store.claim(token=token, limit=limit, ttl_ms=TTL, **options)


def ids(claims: Claims) -> list[str]:
    return [one.entry_id.task_id for one in claims.taken]


def nothing_is_left(bench: Bench) -> bool:
    """No entry, no claim, no count of anything."""
    keys, raw = bench.keys, bench.raw
    places = (keys.entries, keys.schedule, keys.outbound, keys.blocked, keys.quarantine)
    held = (keys.claims, keys.claimed, keys.attempts)
    counts = set(raw.hvals(keys.template_uses))
    return raw.exists(*places, *held) == 0 and counts <= {"0"}


def let_end(bench: Bench) -> None:
    """The time of a claim, as the store counts it."""
    bench.now += TTL


# --- claim -------------------------------------------------------------------------------


@answers("claim", "OK now next_due_ms")
def test_what_is_due_is_taken_out_the_earliest_first(bench: Bench) -> None:
    for task_id, at in (("b", -20), ("a", -30), ("not yet", 7)):
        bench.store.add([out(task_id, at_ms=NOW + at)])
    bench.store.add([addition("moved")])

    claims = claim(bench)

    assert claims._replace(taken=()) == Claims(NOW, NOW + 7)
    assert [one[:4] for one in claims.taken] == [
        (EntryId("a", NOW), 1, NOW - 30, 0),
        (EntryId("b", NOW), 1, NOW - 20, 0),
    ]
    envelope = claims.taken[0].envelope
    assert (envelope["id"], envelope["run"], envelope["eta"]) == ("a", NOW, NOW - 30)
    assert (envelope["epoch"], envelope["value"]) == (bench.epoch, "v")
    # Then a record is live or claimed, never both
    assert sorted(bench.raw.hkeys(bench.keys.entries)) == ["moved", "not yet"]
    assert sorted(bench.raw.hkeys(bench.keys.claimed)) == ["a", "b"]
    # and nothing has been handed off yet
    assert {state for state, _ in bench.states()} == {"SCHEDULED"}
    assert ids(claim(bench, "other")) == []


def test_the_two_schedules_do_not_meet(bench: Bench) -> None:
    bench.store.add([out("published"), addition("moved")])

    assert bench.store.move().moved == 1
    assert ids(claim(bench)) == ["published"]

    assert [one["id"] for one in bench.queue()] == ["moved"]
    assert bench.raw.exists("orders") == 0


def test_where_no_move_is_possible_the_schedule_is_claimed_too(bench: Bench) -> None:
    bench.store.add([addition("a")])

    [one] = claim(bench, source="schedule").taken
    assert one.envelope["id"] == "a"
    # Then it returns to the schedule that it came from, and may as well be moved
    let_end(bench)
    assert bench.store.rescue() == 1
    assert bench.store.move().moved == 1

    assert nothing_is_left(bench)


def test_a_claim_is_bounded(bench: Bench) -> None:
    bench.store.add([out(one) for one in "abc"])

    assert [ids(claim(bench, token, limit=2)) for token in ("t1", "t2", "t3")] == [
        ["a", "b"], ["c"], [],
    ]  # fmt: skip


def test_entries_are_held_back_for_as_long_as_asked(bench: Bench) -> None:
    bench.store.add([out("old", at_ms=NOW - 2_000), out("new")])

    assert ids(claim(bench, hold_ms=1_000)) == ["old"]


@answers("claim", "EPOCH now")
def test_a_claimant_that_knows_another_history_takes_nothing(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench, limit=0)
    bench.raw.hset(bench.keys.mark, "epoch", bench.epoch + 1)

    with pytest.raises(StaleEpoch):
        claim(bench)

    assert bench.store.get("a") is not None
    assert ids(claim(bench)) == ["a"]  # it has looked again


def test_a_history_without_a_name_lets_nobody_claim(bench: Bench) -> None:
    bench.store.add([out("a")])
    bench.raw.hdel(bench.keys.mark, "epoch")

    with pytest.raises(StaleEpoch):
        claim(bench)


@answers("claim", "STANDBY now")
def test_a_standby_takes_only_what_a_silent_leader_leaves(bench: Bench) -> None:
    bench.store.add([out("a"), out("b", 900)])
    claim(bench, "leader", hold_ms=5_000)

    bench.now += 250
    assert claim(bench, "standby", steal_ms=250) == Claims(bench.now)
    bench.now += 1
    # the leader's moves tell nothing of its claims
    bench.store.move()
    assert ids(claim(bench, "standby", steal_ms=250)) == ["a"]


def test_claims_from_the_schedule_keep_to_the_progress_of_the_move(bench: Bench) -> None:
    bench.store.add([addition("a")])
    bench.now += 1_000
    claim(bench, "leader", hold_ms=5_000, source="schedule")

    assert bench.store.move(steal_ms=250).moved == 0
    assert bench.raw.hget(bench.keys.mark, "progress") == str(bench.now)
    assert bench.raw.hget(bench.keys.mark, "published") is None


@answers("claim", "JUMPED now")
def test_nothing_is_claimed_when_the_clock_is_later_than_it_can_be(bench: Bench) -> None:
    bench.store.add([out("a")])

    assert claim(bench, latest_ms=NOW - 1) == Claims(NOW, unmoved=True)

    assert ids(claim(bench, latest_ms=NOW)) == ["a"]


def test_an_expired_entry_leaves_without_a_message(bench: Bench) -> None:
    bench.store.add([out("a", 1_000, expires_ms=NOW + 1_001)])
    bench.now += 1_001

    claims = claim(bench)

    assert (claims.taken, claims.expired, claims.handled) == ([], 1, 1)
    assert bench.states() == [("SCHEDULED", "a"), ("EXPIRED", "a")]
    assert nothing_is_left(bench)


def test_an_unknown_codec_version_is_set_aside_and_comes_back_to_its_own_schedule(
    bench: Bench,
) -> None:
    bench.store.add([out("a"), out("b")])
    record = bench.raw.hget(bench.keys.entries, "a")
    assert record
    bench.raw.hset(bench.keys.entries, "a", "2" + record[1:])

    claims = claim(bench)
    assert (ids(claims), claims.blocked, claims.quarantined) == (["b"], 1, 0)
    assert "unknown version 2" in claims.failure

    # When somebody who understands it is there
    bench.raw.hset(bench.keys.entries, "a", record)
    assert bench.store.merge_back(term=bench.term) == 1
    assert bench.store.move().handled == 0
    assert ids(claim(bench)) == ["a"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda record: "rubbish", "record is damaged"),
        (lambda record: record[:-1] + "x", "record is damaged"),
        (lambda record: None, "record is missing"),
    ],
)
def test_a_bad_record_is_parked_and_the_claim_goes_on(
    bench: Bench, damage: Callable[[str], str | None], why: str
) -> None:
    bench.store.add([out("bad"), out("good")])
    record = damage(bench.raw.hget(bench.keys.entries, "bad") or "")
    if record is None:
        bench.raw.hdel(bench.keys.entries, "bad")
    else:
        bench.raw.hset(bench.keys.entries, "bad", record)

    claims = claim(bench)

    assert (ids(claims), claims.quarantined) == (["good"], 1)
    assert why in bench.store.quarantined()["bad"]
    assert ("QUARANTINED", "bad") in bench.states()


def test_a_lost_template_parks_its_entries_until_they_are_sent_again(bench: Bench) -> None:
    bench.store.add([out("a")])
    bench.raw.hdel(bench.keys.templates, template_id(ORDERS))
    assert claim(bench).quarantined == 1
    assert bench.store.send_again(["a"]) == "D"

    # When another entry has brought the template again
    bench.store.add([out("b")])
    assert bench.store.send_again(["a"]) == "S"

    assert sorted(ids(claim(bench))) == ["a", "b"]


def test_a_message_that_is_no_json_is_parked_and_the_others_are_claimed(bench: Bench) -> None:
    bench.store.add([out("a"), out("bad", values=('"v',)), out("c")])

    claims = claim(bench)

    assert (ids(claims), claims.quarantined) == (["a", "c"], 1)
    assert "cannot be read" in bench.store.quarantined()["bad"]


def test_an_inline_template_says_itself_which_way_its_entry_goes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additions_module, "TEMPLATE_CAP", 0)
    bench.store.add([out("published"), addition("moved")])
    assert bench.store.sizes()["templates"] == 0

    assert bench.store.move().moved == 1
    [one] = claim(bench).taken
    let_end(bench)
    assert bench.store.rescue() == 1
    [again] = claim(bench).taken

    assert again.envelope == one.envelope
    assert bench.store.ack("mine", ["published"]) == 1
    assert nothing_is_left(bench)


def test_a_claim_whose_answer_is_lost_comes_back_when_it_ends(bench: Bench) -> None:
    bench.store.add([out("a")])
    bench.links.plan = ["answer"]
    with pytest.raises(StoreUnavailable):
        claim(bench, "lost")

    assert ids(claim(bench, "next")) == []
    let_end(bench)
    assert bench.store.rescue() == 1

    [one] = claim(bench, "next").taken
    assert one.attempt == 1


# --- ack ---------------------------------------------------------------------------------


@answers("ack", "number of entries forgotten")
def test_an_ack_forgets_what_its_token_holds_and_writes_it_down_once(bench: Bench) -> None:
    bench.store.add([out(one, at_ms=NOW - 5) for one in "abc"])
    claim(bench, "mine", limit=2)
    claim(bench, "others")
    bench.now += 40

    assert bench.store.ack("mine", ["a", "b", "c", "never heard of"]) == 2
    assert bench.store.ack("mine", ["a", "b"]) == 0

    handed = [e for _, some in bench.store.read_journal("0", 9) for e in some if e.data]
    assert [(e.state, *e.entry_id, e.version, e.eta_ms, e.data) for e in handed] == [
        ("DISPATCHED", one, NOW, 1, NOW - 5, {"lag_ms": 45}) for one in "ab"
    ]
    assert bench.store.ack("others", ["c"]) == 1
    assert nothing_is_left(bench)


def test_a_clock_that_was_set_back_makes_no_negative_lag(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench)
    bench.now -= 60_000

    bench.store.ack("mine", ["a"])

    [*_, (_, [event])] = bench.store.read_journal("0", 9)
    assert event.data == {"lag_ms": 0}


def test_an_ack_counts_in_a_history_that_got_a_new_name_meanwhile(bench: Bench) -> None:
    # Given a failover between the publishing and its ack, to a replica that has the claim
    bench.store.add([out("a")])
    claim(bench)
    bench.raw.hset(bench.keys.mark, mapping={"epoch": bench.epoch + 1, "run_id": "other"})

    # Then the message is not sent a second time
    assert bench.store.ack("mine", ["a"]) == 1
    let_end(bench)
    assert nothing_is_left(bench)


def test_a_token_that_came_back_late_changes_nothing(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench, "slow")
    let_end(bench)
    bench.store.rescue()

    # Then neither while the entry waits, nor while another has it
    assert bench.store.ack("slow", ["a"]) == 0
    assert bench.store.give_back("slow", [("a", QUARANTINE, "no")]) == 0
    claim(bench, "next")
    assert bench.store.ack("slow", ["a"]) == 0
    assert bench.store.give_back("slow", [("a", QUARANTINE, "no")]) == 0

    assert bench.store.ack("next", ["a"]) == 1
    assert bench.states() == [("SCHEDULED", "a"), ("DISPATCHED", "a")]


def test_an_ack_after_the_claims_end_counts_until_somebody_has_rescued(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench)
    bench.now += 60_000

    assert bench.store.ack("mine", ["a"]) == 1
    assert bench.store.rescue() == 0


def test_a_damaged_claim_holds_up_no_other_ack(bench: Bench) -> None:
    bench.store.add([out("a"), out("b"), out("c")])
    claim(bench)
    held = bench.raw.hget(bench.keys.claimed, "a")
    assert held
    bench.raw.hset(bench.keys.claimed, "a", held[: held.index("\n")] + "\nrubbish")
    bench.raw.hset(bench.keys.claimed, "b", "rubbish")

    assert bench.store.ack("mine", ["a", "b", "c"]) == 2

    # and what nobody can read is parked, not dropped
    let_end(bench)
    assert bench.store.rescue() == 1
    assert bench.store.quarantined() == {"b": "the record is damaged"}


# --- give_back ---------------------------------------------------------------------------


@answers("give_back", "number of entries put back")
def test_what_the_broker_has_not_got_goes_where_the_claimant_says(bench: Bench) -> None:
    bench.store.add([out(one) for one in "abcd"])
    claim(bench)

    given = [("a", SCHEDULE, ""), ("b", BLOCKED, "full"), ("c", QUARANTINE, 'no "queue"')]
    assert bench.store.give_back("mine", [*given, ("e", SCHEDULE, "")]) == 3
    assert bench.store.give_back("mine", given) == 0

    # Then the first can be claimed at once, without a word of an earlier attempt
    [one] = claim(bench, "next").taken
    assert (one.entry_id.task_id, one.attempt) == ("a", 0)
    assert bench.store.sizes()["blocked"] == 1
    assert bench.store.quarantined() == {"c": 'no "queue"'}
    [*_, (_, [event])] = bench.store.read_journal("0", 9)
    assert (event.state, event.entry_id, event.version) == ("QUARANTINED", EntryId("c", NOW), 1)
    assert (event.eta_ms, event.data) == (NOW, {"error": 'no "queue"'})
    # and the last is still under its claim
    assert bench.store.ack("mine", ["d"]) == 1

    # When the queue has room again
    assert bench.store.merge_back(term=bench.term) == 1
    assert ids(claim(bench, "third")) == ["b"]
    assert bench.store.ack("next", ["a"]) + bench.store.ack("third", ["b"]) == 2
    assert bench.store.cancel("c", data={}).outcome is CancelOutcome.CANCELLED
    assert nothing_is_left(bench)


def test_a_parked_entry_keeps_its_task_id_until_somebody_acts(bench: Bench) -> None:
    # Given an entry that no broker takes
    [first] = bench.store.add([out("a")])
    _park(bench, "a")
    bench.now += 60_000

    # Then another one cannot push it out of the quarantine
    with pytest.raises(AlreadyScheduled):
        bench.store.add([addition("a")])
    assert bench.store.add([out("a", run=first.entry_id.run)])[0].code == "G"

    bench.store.cancel("a", data={})
    bench.now += 1
    assert bench.store.add([addition("a")])[0].code == "A"


def test_a_run_from_inside_a_parked_one_takes_its_place(bench: Bench) -> None:
    # Given a message that was sent without a word of it, and then refused
    bench.store.add([out("a")])
    claim(bench)
    let_end(bench)
    bench.store.rescue()
    _park(bench, "a")

    [retry] = bench.store.add([out("a", run=NOW + 1)])

    assert retry.code == "A"
    assert bench.store.quarantined() == {}
    assert [(state, run) for state, _, run in bench.journal()][-2:] == [
        ("DISPATCHED", NOW), ("SCHEDULED", NOW + 1),
    ]  # fmt: skip
    bench.store.cancel("a", data={})
    assert nothing_is_left(bench)


# --- rescue ------------------------------------------------------------------------------


@answers("rescue", "number of entries returned")
def test_a_claim_ends_by_the_stores_clock_and_no_sooner(bench: Bench) -> None:
    bench.store.add([out("a", at_ms=NOW - 9), out("later", 10_000)])
    claim(bench)
    bench.clock.now += 3_600

    bench.now += TTL - 1
    assert bench.store.rescue() == 0
    bench.now += 1
    assert bench.store.rescue() == 1

    # Then it is what it was, but that the next message can say which attempt it is
    [one] = claim(bench, "next").taken
    assert one == Claimed(EntryId("a", NOW), 1, NOW - 9, 1, one.envelope)
    let_end(bench)
    assert bench.store.rescue() == 1
    assert [one.attempt for one in claim(bench, "third").taken] == [2]
    assert bench.store.ack("third", ["a"]) == 1
    assert bench.states()[2:] == [("DISPATCHED", "a")]
    assert bench.raw.exists(bench.keys.attempts) == 0


@answers("rescue", "EPOCH")
def test_a_rescuer_that_knows_another_history_returns_nothing(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench)
    let_end(bench)
    given = {"epoch": bench.epoch + 1, "latest_ms": 0, "limit": 10}

    assert bench.script("rescue", **given) == b"EPOCH"
    assert bench.store.sizes()["claimed"] == 1

    # The store's method looks again
    bench.raw.hset(bench.keys.mark, "epoch", bench.epoch + 1)
    assert bench.store.rescue() == 1


def test_nothing_is_rescued_when_the_clock_has_jumped(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench)
    bench.now += 3_600_000

    assert bench.store.rescue(latest_ms=bench.now - 1) == 0
    assert bench.store.rescue(latest_ms=bench.now) == 1


def test_a_rescue_is_bounded(bench: Bench) -> None:
    bench.store.add([out(one) for one in "abc"])
    claim(bench)
    let_end(bench)
    given = {"epoch": bench.epoch, "latest_ms": 0, "limit": 2}

    assert [bench.script("rescue", **given) for _ in range(3)] == [2, 1, 0]


def test_an_expired_entry_is_not_published_again(bench: Bench) -> None:
    bench.store.add([out("a", expires_ms=NOW + 1_000)])
    claim(bench)
    let_end(bench)
    bench.store.rescue()

    assert claim(bench, "next").expired == 1

    assert nothing_is_left(bench)


# --- send_again --------------------------------------------------------------------------


def _park(bench: Bench, *task_ids: str, why: str = "no queue") -> None:
    claim(bench)
    bench.store.give_back("mine", [(one, QUARANTINE, why) for one in task_ids])


@answers("send_again", "one letter per id")
def test_a_quarantined_entry_is_sent_again_as_a_higher_version(bench: Bench) -> None:
    bench.store.add([out("a", story='{"name":"shop.pay"}'), addition("moved")])
    _park(bench, "a")
    bench.raw.delete(bench.keys.wake)

    assert bench.store.send_again(["a", "b", "a"]) == "SNN"

    assert bench.raw.lrange(bench.keys.wake, 0, -1) == ["1"]
    [*_, (_, [event])] = bench.store.read_journal("0", 9)
    assert (event.state, event.version, event.data) == ("SCHEDULED", 2, {})
    [one] = claim(bench, "next").taken
    assert (one.entry_id, one.version, one.eta_ms, one.attempt) == (EntryId("a", NOW), 2, NOW, 0)
    assert bench.store.ack("next", ["a"]) == 1
    [*_, (_, [event])] = bench.store.read_journal("0", 9)
    assert (event.state, event.version) == ("DISPATCHED", 2)
    bench.store.move()
    assert nothing_is_left(bench)


def test_what_a_move_has_parked_can_be_sent_again_to_be_moved(bench: Bench) -> None:
    bench.store.add([addition("a"), addition("b", 60_000)])
    text = bench.raw.hget(bench.keys.templates, template_id(shape())) or ""
    bench.raw.hdel(bench.keys.templates, template_id(shape()))
    assert bench.store.move().quarantined == 1
    bench.raw.hset(bench.keys.templates, template_id(shape()), text)

    assert bench.store.send_again(["a"]) == "S"

    assert bench.store.move().moved == 1


def _again(bench: Bench, task_id: str) -> None:
    """Add another run beside a parked one, which no add does."""
    parked = bench.raw.hget(bench.keys.quarantine, task_id) or ""
    bench.raw.hdel(bench.keys.quarantine, task_id)
    bench.now += 1
    bench.store.add([out(task_id)])
    bench.raw.hset(bench.keys.quarantine, task_id, parked)


def test_what_cannot_be_sent_again_stays_in_quarantine(bench: Bench) -> None:
    for task_id in ("live", "claimed", "damaged", "missing"):
        bench.store.add([out(task_id)])
    bench.raw.hset(bench.keys.entries, "damaged", "rubbish")
    bench.raw.hdel(bench.keys.entries, "missing")
    _park(bench, "live", "claimed")
    _again(bench, "claimed")
    claim(bench, "other")
    _again(bench, "live")

    assert bench.store.send_again(["live", "claimed", "damaged", "missing"]) == "LLDD"

    assert bench.store.quarantined().keys() == {"live", "claimed", "damaged", "missing"}


# --- beside a claim: add -----------------------------------------------------------------


def test_a_repeat_of_the_add_of_a_claimed_entry_is_told_that_it_is_gone(bench: Bench) -> None:
    [first] = bench.store.add([out("a")])
    claim(bench)

    # also when no tombstone is left of it
    for _ in range(2):
        [again] = bench.store.add([out("a", run=first.entry_id.run)])
        assert again.code == "G"
        bench.raw.delete(bench.keys.tombstones_even, bench.keys.tombstones_odd)

    assert bench.raw.exists(bench.keys.entries) == 0


def test_a_run_from_inside_a_claimed_one_proves_that_that_was_published(bench: Bench) -> None:
    bench.store.add([out("a", at_ms=NOW - 5)])
    claim(bench)
    bench.now += 20

    # When the worker is faster than the ack
    [retry] = bench.store.add([out("a", 1_000, run=NOW + 1)])

    assert retry.code == "A"
    assert bench.journal() == [
        ("SCHEDULED", "a", NOW), ("DISPATCHED", "a", NOW), ("SCHEDULED", "a", NOW + 1),
    ]  # fmt: skip
    assert bench.store.ack("mine", ["a"]) == 0
    assert bench.store.sizes() == {**bench.store.sizes(), "claimed": 0, "pending": 1}
    bench.now += 2_000
    [one] = claim(bench, "next").taken
    assert (one.entry_id.run, one.attempt) == (NOW + 1, 0)
    bench.store.ack("next", ["a"])
    assert nothing_is_left(bench)


def test_a_run_from_inside_a_rescued_one_takes_its_place(bench: Bench) -> None:
    # Given a message that the broker had, without a word to the beat that then died
    bench.store.add([out("a")])
    claim(bench)
    let_end(bench)
    bench.store.rescue()

    [retry] = bench.store.add([addition("a", run=NOW + 1)])

    # Then the run that has certainly run is not sent a second time
    assert retry.code == "A"
    assert ids(claim(bench, "next")) == []
    assert bench.store.move().moved == 1
    assert [(state, run) for state, _, run in bench.journal()] == [
        ("SCHEDULED", NOW), ("DISPATCHED", NOW), ("SCHEDULED", NOW + 1), ("DISPATCHED", NOW + 1),
    ]  # fmt: skip
    assert nothing_is_left(bench)


def test_a_run_from_inside_one_that_was_never_claimed_is_a_second_entry(bench: Bench) -> None:
    bench.store.add([out("a")])

    with pytest.raises(AlreadyScheduled):
        bench.store.add([out("a", run=NOW + 1)])


@pytest.mark.parametrize("rescued", [False, True])
def test_an_id_that_is_used_again_meanwhile_is_refused(bench: Bench, rescued: bool) -> None:
    bench.store.add([out("a")])
    claim(bench)
    bench.now += 1
    if rescued:
        let_end(bench)
        bench.store.rescue()

    with pytest.raises(AlreadyScheduled):
        bench.store.add([out("b"), out("a")])

    assert bench.store.get("b") is None
    # and may be used once the first one's message is on its queue
    if rescued:
        claim(bench)
    bench.store.ack("mine", ["a"])
    assert bench.store.add([out("a")])[0].code == "A"


def test_a_higher_version_may_change_the_way_out(bench: Bench) -> None:
    [first] = bench.store.add([out("a", 9_000)])
    run = first.entry_id.run

    bench.store.add([addition("a", 0, run=run, version=2)])
    assert ids(claim(bench)) == []
    assert bench.store.move().moved == 1
    assert nothing_is_left(bench)

    [first] = bench.store.add([addition("b", 9_000)])
    bench.store.add([out("b", 0, run=first.entry_id.run, version=2)])
    assert bench.store.move().handled == 0
    assert ids(claim(bench)) == ["b"]
    bench.now += 20_000
    assert bench.store.move().handled == 0


def test_the_leader_is_woken_by_an_earlier_head_of_either_schedule(bench: Bench) -> None:
    bench.store.add([addition("moved", 1_000)])
    bench.raw.delete(bench.keys.wake)

    for one, woken in (("published", 1), ("later", 0)):
        bench.store.add([out(one, 5_000)])
        assert bench.raw.llen(bench.keys.wake) == woken, one
        bench.raw.delete(bench.keys.wake)


def test_the_heads_of_both_schedules_are_told_to_the_electors(bench: Bench) -> None:
    bench.store.add([out("a", at_ms=NOW + 7), addition("b", at_ms=NOW + 9)])
    claim(bench)

    answer = bench.script("elect", holder="you", seen_term=0, seen_seq=0, may_take=0)

    assert [int(one) for one in answer[4:]] == [NOW + 9, 0, NOW + 7, NOW]


# --- beside a claim: cancel, reads, periodic ---------------------------------------------


def test_a_claimed_entry_cannot_be_cancelled(bench: Bench) -> None:
    bench.store.add([out("a")])
    claim(bench)

    for run in (0, NOW):
        answer = bench.store.cancel("a", run=run, data={})
        assert answer == (CancelOutcome.TOO_LATE, None)
    assert bench.store.ack("mine", ["a"]) == 1

    # When it was given back instead, it certainly is on no queue
    bench.now += 1
    bench.store.add([out("b")])
    claim(bench)
    bench.store.give_back("mine", [("b", SCHEDULE, "")])
    assert bench.store.cancel("b", data={}).outcome is CancelOutcome.CANCELLED
    assert nothing_is_left(bench)


def test_a_claim_that_ended_in_silence_keeps_its_entry_from_being_cancelled(bench: Bench) -> None:
    # Given an entry whose message may be on its queue
    bench.store.add([out("a")])
    claim(bench)
    let_end(bench)
    bench.store.rescue()

    # Then nobody is told that it will not run, and it is not lost either
    for _ in range(2):
        assert bench.store.cancel("a", data={}).outcome is CancelOutcome.TOO_LATE
    assert ids(claim(bench)) == ["a"]
    assert [state for state, _ in bench.states()] == ["SCHEDULED"]


def test_a_parked_entry_with_a_silent_claim_can_be_dropped_but_not_cancelled(bench: Bench) -> None:
    bench.store.add([out("a"), out("b")])
    claim(bench)
    let_end(bench)
    bench.store.rescue()
    _park(bench, "a", "b")

    # The operator gets rid of it, and is not told that it has not run
    answer = bench.store.cancel("a", run=NOW, data={})
    again = bench.store.cancel("a", run=NOW, data={})
    assert answer.outcome is again.outcome is CancelOutcome.TOO_LATE
    assert bench.store.quarantined().keys() == {"b"}
    # and what is sent again says which attempt it is
    bench.store.send_again(["b"])
    assert [one.attempt for one in claim(bench, "next").taken] == [1]
    bench.store.ack("next", ["b"])
    assert nothing_is_left(bench)


def test_while_a_run_is_claimed_the_cancel_takes_no_earlier_one_for_it(bench: Bench) -> None:
    bench.store.add([out("a")])
    _park(bench, "a")
    _again(bench, "a")
    claim(bench, "next")

    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.TOO_LATE

    assert bench.store.quarantined().keys() == {"a"}


def test_a_waiting_entry_is_cancelled_out_of_its_own_schedule(bench: Bench) -> None:
    bench.store.add([out("a", 1_000)])

    answer = bench.store.cancel("a", data={})

    assert answer.outcome is CancelOutcome.CANCELLED
    assert answer.entry is not None
    assert answer.entry.envelope["value"] == "v"
    assert nothing_is_left(bench)


def test_both_schedules_are_listed_as_one(bench: Bench) -> None:
    bench.store.add([out("p1", 1_000), addition("m1", 2_000), out("p2", 3_000), out("due")])
    claim(bench)
    everything = {"after_ms": 0, "before_ms": 10**15}

    found = bench.store.between(**everything, limit=2, offset=1)

    assert [one.entry_id.task_id for one in found] == ["m1", "p2"]
    assert bench.store.count(**everything) == 3
    sizes = bench.store.sizes()
    assert (sizes["pending"], sizes["claimed"]) == (3, 1)
    # what a beat publishes is neither waiting nor missing
    assert bench.store.get("due") is None
    assert bench.store.get("p2") is not None
    asked = [EntryId(one, NOW) for one in ("p1", "due", "gone")]
    assert bench.store.missing(asked) == [EntryId("gone", NOW)]


def _fire(bench: Bench, task_id: str, at_ms: int) -> bytes:
    one = out(task_id, run=NOW)
    record = additions_module.record_text(one, NOW + WINDOW, False)
    rest = [task_id, "+0", record, "{}", template_id(one.template), one.template]
    given = {"name": "tick", "expected": at_ms, "cursor": at_ms, "next": at_ms + 10}
    given |= {"revision": 0, "missed_from": 0, "missed_to": 0}
    answer: bytes = bench.script("fire", *rest, epoch=bench.epoch, term=bench.term, **given)
    return answer


def test_a_periodic_entry_is_published_too(bench: Bench) -> None:
    schedules = {"tick": Wanted("v1", NOW)}
    bench.store.sync_schedules(term=bench.term, revision=0, schedules=schedules)
    bench.raw.delete(bench.keys.wake)

    assert _fire(bench, "o1", NOW) == b"OK"

    assert bench.raw.llen(bench.keys.wake) == 1
    assert ids(claim(bench)) == ["o1"]
    # while it is claimed it is as live as while it waits
    assert _fire(bench, "o1", NOW + 10) == b"LIVE"
    bench.store.ack("mine", ["o1"])
    assert nothing_is_left(bench)


# --- a full Redis ------------------------------------------------------------------------


@contextmanager
def _full(bench: Bench) -> Iterator[None]:
    bench.raw.config_set("maxmemory-policy", "noeviction")
    bench.raw.config_set("maxmemory", 1)
    try:
        yield
    finally:
        bench.raw.config_set("maxmemory", 0)


@pytest.mark.parametrize("forgotten", [False, True], ids=["scripts loaded", "scripts forgotten"])
def test_a_full_redis_lets_claims_go_on(bench: Bench, forgotten: bool) -> None:
    bench.store.add([out(one) for one in ("acked", "back", "parked", "silent")])

    with _full(bench):
        if forgotten:
            bench.raw.script_flush()
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            bench.store.add([out("refused")])
        assert len(claim(bench).taken) == 4
        assert bench.store.ack("mine", ["acked"]) == 1
        given = [("back", SCHEDULE, ""), ("parked", QUARANTINE, "no queue")]
        assert bench.store.give_back("mine", given) == 2
        let_end(bench)
        assert bench.store.rescue() == 1
        assert bench.store.send_again(["parked"]) == "S"
        assert sorted(ids(claim(bench, "next"))) == ["back", "parked", "silent"]
        assert bench.store.ack("next", ["back", "parked", "silent"]) == 3

    assert nothing_is_left(bench)


def test_a_full_journal_counts_what_it_leaves_out(bench: Bench) -> None:
    bench.store.add([out("a"), out("b")])
    bench.store._journal_max = 1
    claim(bench)

    bench.store.ack("mine", ["a"])
    bench.store.give_back("mine", [("b", QUARANTINE, "no")])

    assert bench.raw.hget(bench.keys.mark, "gap") == "2"


# --- what is told ------------------------------------------------------------------------


def test_a_failure_of_the_broker_is_told_until_it_is_over(bench: Bench) -> None:
    bench.store.tell_broker("connection refused")
    assert bench.raw.hget(bench.keys.mark, "broker_failure") == "connection refused"

    bench.store.tell_broker("")
    assert bench.raw.hget(bench.keys.mark, "broker_failure") is None


def test_a_claimed_record_is_the_entrys_own(bench: Bench) -> None:
    bench.store.add([out("a")])
    record = bench.raw.hget(bench.keys.entries, "a")
    claim(bench, "mine")

    held = bench.raw.hget(bench.keys.claimed, "a") or ""

    assert held == f"mine 0 {NOW}\n{record}"
    text = bench.raw.hget(bench.keys.templates, template_id(ORDERS)) or ""
    entry = decode("a", NOW, (record or "").encode(), text.encode())
    assert entry is not None
    assert (entry.queue, json.dumps(entry.envelope["value"])) == ("orders", '"v"')
