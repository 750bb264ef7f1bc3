"""Another message for a waiting entry on a real Redis, 7 and 6.2: each answer, and its promise.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_delay.domain.entries import PUBLISHED, Addition, Due
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store import additions as additions_module
from celery_delay.store.claims import QUARANTINE
from celery_delay.store.replacing import Replaceable
from tests.contract.bench import NOW, WINDOW, Bench, answers
from tests.contract.test_steering import HOLD, ORDERS, claim, events, out, places, steer, to
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

OTHER, ELSEWHERE = shape("delay-other"), shape("elsewhere", PUBLISHED)


def read(bench: Bench, task_id: str = "a") -> Replaceable:
    found = bench.store.replaceable(task_id)
    assert found is not None
    return found


def made_of(before: Replaceable, value: str = "new", **options: Any) -> Addition:
    """Another message for the same entry."""
    entry_id = before.entry.entry_id
    return addition(entry_id.task_id, run=entry_id.run, values=(json.dumps(value),), **options)


def replace(bench: Bench, before: Replaceable, value: str = "new", **options: Any) -> str:
    return bench.store.replace(before, made_of(before, value, **options), {"call": value})


def uses(bench: Bench) -> dict[str, int]:
    """How often each template is needed, by its queue."""
    texts = bench.raw.hgetall(bench.keys.templates)
    counts = bench.raw.hgetall(bench.keys.template_uses)
    return {texts[name].split("\n")[2]: int(count) for name, count in counts.items()}


def raw(bench: Bench, before: Replaceable, **given: Any) -> Any:
    """The script as it is, past the store's repeats."""
    record = additions_module.record_text(made_of(before), 0, inline=False)
    values = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": "one", "task_id": "a",
        "digest": before.digest, "record": record, "data": '{"by":"me"}', "template": "",
        "template_cap": 100, **given,
    }  # fmt: skip
    return [one.decode() for one in bench.script("replace", **values)]


# --- what is replaced ----------------------------------------------------------------------


@answers("replace", "DONE now version", "TEMPLATE now")
@pytest.mark.parametrize("template", [shape(), ORDERS])
def test_a_waiting_entry_gets_another_message_and_keeps_its_eta(
    bench: Bench, template: str
) -> None:
    new = addition("a", 10_000, template=template, expires_ms=NOW + 50_000)
    bench.store.add([new, addition("b")])
    before = read(bench)

    assert replace(bench, before, template=OTHER, expires_ms=NOW + 70_000) == "DONE"

    after = read(bench).entry
    assert (after.entry_id, after.eta_ms) == (before.entry.entry_id, before.entry.eta_ms)
    assert (after.version, after.state) == (2, State.SCHEDULED)
    assert (after.expires_ms, after.queue) == (NOW + 70_000, "delay-other")
    assert after.envelope["value"] == "new"
    assert after == bench.store.get("a")
    assert places(bench, "a") == {"schedule": NOW + 10_001}
    assert events(bench)[-1] == ("SCHEDULED", 2, NOW + 10_001, {"call": "new"})
    assert uses(bench)["delay-other"] == 1
    assert uses(bench).get("orders", 0) == 0
    bench.now += 10_001
    bench.store.move()
    assert [one["value"] for one in bench.queue("delay-other")] == ["new"]
    assert uses(bench)["delay-other"] == 0


def test_with_its_own_template_its_count_stays(bench: Bench) -> None:
    bench.store.add([addition("a", 10), addition("b", 10)])

    assert replace(bench, read(bench)) == "DONE"

    assert uses(bench) == {"delay-queue": 2}
    assert bench.raw.hlen(bench.keys.templates) == 1


@pytest.mark.parametrize(
    ("new", "template", "place"),
    [(addition, ELSEWHERE, "outbound"), (out, OTHER, "schedule"), (out, ELSEWHERE, "outbound")],
)
def test_it_waits_for_its_new_way(bench: Bench, new: Any, template: str, place: str) -> None:
    bench.store.add([new("a", 10)])
    bench.raw.delete(bench.keys.wake)

    assert replace(bench, read(bench), template=template) == "DONE"

    assert places(bench, "a") == {place: NOW + 11}
    # it is the head of a schedule whose head the leader does not know
    assert bench.raw.llen(bench.keys.wake) == (0 if (new, place) == (out, "outbound") else 1)
    bench.now += 11
    if place == "schedule":
        assert bench.store.move().moved == 1
    else:
        assert claim(bench) == ["a"]
        assert bench.store.ack("mine", ["a"]) == 1
    assert set(uses(bench).values()) == {0}


def test_nobody_is_woken_for_what_is_not_the_head(bench: Bench) -> None:
    bench.store.add([addition("a", 20), out("b", 10)])
    bench.raw.delete(bench.keys.wake)

    assert replace(bench, read(bench), template=ELSEWHERE) == "DONE"

    assert bench.raw.llen(bench.keys.wake) == 0


def test_what_is_held_stays_held(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    steer(bench, "a", HOLD)

    assert replace(bench, read(bench), template=ELSEWHERE) == "DONE"

    assert read(bench).entry.state is State.HELD
    assert places(bench, "a") == {"held": NOW + 11}
    assert events(bench)[-1] == ("HELD", 3, NOW + 11, {"call": "new"})
    assert bench.store.send_again(["a"]) == "S"
    assert places(bench, "a") == {"outbound": NOW + 11}


def test_what_is_blocked_stays_blocked_until_it_is_merged_back(bench: Bench) -> None:
    bench.raw.set("delay-queue", "not a list")
    bench.store.add([addition("a")])
    assert bench.store.move().blocked == 1

    assert replace(bench, read(bench), template=OTHER) == "DONE"

    assert places(bench, "a") == {"blocked": NOW}
    assert read(bench).entry.state is State.SCHEDULED
    assert bench.store.merge_back(term=bench.term) == 1
    assert bench.store.move().moved == 1
    assert [one["value"] for one in bench.queue("delay-other")] == ["new"]
    bench.raw.delete("delay-queue")


def test_what_waits_at_a_gate_goes_if_it_has_none_any_more(bench: Bench) -> None:
    bench.store.pause("queue:delay-queue", {"by": "me"})
    bench.store.add([addition("a"), addition("b")])
    assert bench.store.move().gated == 2

    assert replace(bench, read(bench), template=OTHER) == "DONE"
    assert replace(bench, read(bench, "b")) == "DONE"

    assert bench.raw.hkeys(bench.keys.gate_of) == []
    moved = bench.store.move()
    assert (moved.moved, moved.gated) == (1, 1)
    assert [one["id"] for one in bench.queue("delay-other")] == ["a"]
    assert places(bench, "b") == {"gated": NOW}


def test_labels_stay(bench: Bench) -> None:
    labels = Labels("acme", ("vip",))
    bench.store.add([addition("a", 10, labels=labels)])
    before = read(bench)
    assert before.entry.labels == labels

    assert replace(bench, before, labels=labels, template=OTHER) == "DONE"

    assert read(bench).entry.labels == labels


def test_what_is_quarantined_is_mended_and_stays_parked(bench: Bench) -> None:
    bench.store.add([out("a", 10)])
    bench.now += 11
    claim(bench)
    bench.store.give_back("mine", [("a", QUARANTINE, "no queue 'orders'")])
    before = read(bench)
    assert before.entry.state is State.QUARANTINED

    assert replace(bench, before, template=OTHER) == "DONE"

    assert bench.store.quarantined() == {"a": "no queue 'orders'"}
    assert bench.store.get("a") is None
    assert read(bench).entry.envelope["value"] == "new"
    error = {"call": "new", "error": "no queue 'orders'"}
    assert events(bench)[-1] == ("QUARANTINED", 2, NOW + 11, error)
    assert {"orders": 0, "delay-other": 1}.items() <= uses(bench).items()
    assert bench.store.send_again(["a"]) == "S"
    assert places(bench, "a") == {"schedule": NOW + 11}
    assert bench.store.move().moved == 1
    assert [one["value"] for one in bench.queue("delay-other")] == ["new"]


def test_a_repeat_of_the_add_is_a_repeat_still(bench: Bench) -> None:
    """The record keeps the deadline of its add."""
    bench.store.add([addition("a", 1_000, run=NOW - 1)])
    assert replace(bench, read(bench)) == "DONE"

    [again] = bench.store.add([addition("a", 1_000, run=NOW - 1)])
    assert (again.code, again.due_ms) == ("D", NOW + 1_001)
    bench.now += 1_001
    bench.store.move()
    [again] = bench.store.add([addition("a", 1_000, run=NOW - 1)])
    assert again.code == "G"


@answers("replace", "INLINE now")
def test_a_template_for_which_there_is_no_room_goes_into_the_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.store.add([addition("a", 10), addition("b", 10)])
    monkeypatch.setattr(additions_module, "TEMPLATE_CAP", 1)

    assert replace(bench, read(bench), template=OTHER) == "DONE"

    assert uses(bench) == {"delay-queue": 1}
    assert read(bench).entry.queue == "delay-other"
    # back into the room that an unused one leaves
    bench.now += 11
    assert bench.store.move().moved == 2
    bench.store.add([addition("a", 10, template=shape("delay-queue", body="x"))])
    assert replace(bench, read(bench), template=OTHER) == "DONE"
    assert bench.raw.hlen(bench.keys.templates) == 1
    # what was inline before releases no template
    assert replace(bench, read(bench), "newer", template=shape()) == "DONE"
    assert all(count >= 0 for count in uses(bench).values())


# --- against others ------------------------------------------------------------------------


@answers("replace", "STALE now")
def test_of_two_messages_made_of_the_same_one_the_second_is_refused(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    before = read(bench)

    assert replace(bench, before, "first") == "DONE"
    assert replace(bench, before, "second") == "STALE"

    assert read(bench).entry.envelope["value"] == "first"
    assert [version for _, version, *_ in events(bench)] == [1, 2]
    assert replace(bench, read(bench), "second") == "DONE"
    assert uses(bench) == {"delay-queue": 1}


def test_a_message_made_of_another_run_is_refused(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    before = read(bench)
    bench.store.cancel("a", data={})
    bench.now += WINDOW + 2
    bench.store.add([addition("a", 10)])

    assert replace(bench, before) == "STALE"

    assert read(bench).entry.envelope["value"] == "v"


def test_what_others_do_to_its_eta_and_place_meanwhile_stays(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    before = read(bench)
    steer(bench, "a", to(NOW + 500))
    assert replace(bench, before, "first") == "DONE"
    assert (read(bench).entry.eta_ms, read(bench).entry.version) == (NOW + 500, 3)

    before = read(bench)
    steer(bench, "a", HOLD)
    assert replace(bench, before, "second") == "DONE"
    assert read(bench).entry.state is State.HELD

    before = read(bench)
    steer(bench, "a", Change(Due(0, True), hold=False))
    assert replace(bench, before, "third") == "DONE"
    assert bench.store.move().moved == 1
    assert [one["value"] for one in bench.queue()] == ["third"]


@answers("replace", "TOO_LATE now")
def test_what_was_moved_meanwhile_is_too_late(bench: Bench) -> None:
    bench.store.add([addition("a")])
    before = read(bench)
    bench.store.move()

    assert replace(bench, before, template=OTHER) == "TOO_LATE"

    assert bench.store.replaceable("a") is None
    assert [one["value"] for one in bench.queue()] == ["v"]
    assert uses(bench) == {"delay-queue": 0}


def test_what_is_being_published_is_too_late(bench: Bench) -> None:
    bench.store.add([out("a")])
    before = read(bench)
    claim(bench)

    assert bench.store.replaceable("a") is None
    assert replace(bench, before) == "TOO_LATE"
    # also when nobody knows how far the claimant came
    bench.now += 3_000
    assert bench.store.rescue() == 1
    assert replace(bench, read(bench)) == "TOO_LATE"
    # and when the next one could not be published
    claim(bench, "next")
    bench.store.give_back("next", [("a", QUARANTINE, "no queue")])
    assert replace(bench, read(bench)) == "TOO_LATE"
    assert read(bench).entry.envelope["value"] == "v"


@answers("replace", "NOT_FOUND now")
def test_what_was_cancelled_meanwhile_is_not_found(bench: Bench) -> None:
    bench.store.add([addition("a", 10)])
    before = read(bench)
    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED

    assert replace(bench, before, template=OTHER) == "NOT_FOUND"

    assert places(bench, "a") == {}
    assert bench.store.replaceable("a") is None


@answers("replace", "DAMAGED now")
@pytest.mark.parametrize("record", ["rubbish", "payload", "newer", None])
@pytest.mark.parametrize("parked", [False, True])
def test_a_damaged_record_is_left_alone(bench: Bench, record: str | None, parked: bool) -> None:
    bench.store.add([out("a")])
    if parked:
        claim(bench)
        bench.store.give_back("mine", [("a", QUARANTINE, "no queue")])
    before = read(bench)
    quarantine, entries = bench.keys.quarantine, bench.keys.entries
    found = json.loads(bench.raw.hget(quarantine, "a")) if parked else []
    stored = found[2] if parked else bench.raw.hget(entries, "a")
    text = {"payload": stored + "!", "newer": "9" + stored[1:]}.get(str(record), record)
    if parked:
        found[2] = text or ""
        bench.raw.hset(quarantine, "a", json.dumps(found))
    elif text is None:
        bench.raw.hdel(entries, "a")
    else:
        bench.raw.hset(entries, "a", text)

    assert replace(bench, before, template=OTHER) == "DAMAGED"

    if parked:
        assert json.loads(bench.raw.hget(quarantine, "a")) == found
    else:
        assert bench.raw.hget(entries, "a") == text


@pytest.mark.parametrize("parked", ["rubbish", "[1]", '["why", "soon", "record"]'])
def test_what_cannot_be_read_is_not_offered_for_a_change(bench: Bench, parked: str) -> None:
    bench.raw.hset(bench.keys.quarantine, "a", parked)
    assert bench.store.replaceable("a") is None
    bench.raw.delete(bench.keys.quarantine)

    bench.store.add([addition("a", 10)])
    bench.raw.delete(bench.keys.templates)
    assert bench.store.replaceable("a") is None
    bench.raw.delete(bench.keys.schedule)
    assert bench.store.replaceable("a") is None


@answers("replace", "LATE now")
def test_a_message_that_arrives_after_its_deadline_does_nothing(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    before = read(bench)
    bench.now += WINDOW + 1

    assert raw(bench, before)[0] == "LATE"

    assert read(bench) == before


@answers("replace", "EPOCH now")
def test_a_message_meant_for_another_history_does_nothing(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    before = read(bench)

    assert raw(bench, before, epoch=bench.epoch + 1)[0] == "EPOCH"
    assert read(bench) == before
    assert raw(bench, before, epoch=bench.epoch) == ["DONE", str(NOW), "2"]


def test_on_a_full_redis_nothing_is_replaced(bench: Bench) -> None:
    """As with an add: it may need more memory; what waits goes out all the same."""
    bench.store.add([addition("a", 10)])
    before = read(bench)
    bench.raw.config_set("maxmemory-policy", "noeviction")
    bench.raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            replace(bench, before, template=OTHER)
        assert read(bench) == before
        bench.now += 11
        assert bench.store.move().moved == 1
    finally:
        bench.raw.config_set("maxmemory", 0)


# --- lost answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        ["answer"], ["request"], ["ok", "answer"], ["ok", "request", "answer", "answer"],
        ["answer", "ok", "answer"],
    ],
)  # fmt: skip
def test_it_is_replaced_once_however_often_its_answer_is_lost(
    bench: Bench, plan: list[str]
) -> None:
    bench.store.add([addition("a", 10_000)])
    before = read(bench)
    bench.links.plan = list(plan)

    assert replace(bench, before, template=OTHER) == "DONE"

    assert read(bench).entry.version == 2
    assert len(events(bench)) == 2
    assert uses(bench) == {"delay-queue": 0, "delay-other": 1}


def test_a_repeat_does_not_undo_what_others_have_done_since(bench: Bench) -> None:
    bench.store.add([addition("a", 10_000)])
    before = read(bench)

    assert raw(bench, before) == ["DONE", str(NOW), "2"]
    replace(bench, read(bench), "newer")
    assert raw(bench, before) == ["DONE", str(NOW), "2"]
    assert read(bench).entry.envelope["value"] == "newer"
    # nor bring back what has gone
    bench.now += 10_001
    bench.store.move()
    assert raw(bench, before, deadline=bench.now)[0] != "TEMPLATE"
    assert places(bench, "a") == {}


def test_an_answer_that_never_comes_is_unknown(bench: Bench) -> None:
    bench.store.add([addition("a", 10_000)])
    before = read(bench)
    bench.links.plan = ["answer"] * 1_000

    with pytest.raises(OutcomeUnknown):
        replace(bench, before)

    bench.links.plan = []
    assert read(bench).entry.envelope["value"] == "new"
