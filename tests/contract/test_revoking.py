"""Messages that are taken off their queue, and marks, on a real Redis, 7 and 6.2.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celery_delay.domain.entries import PUBLISHED, EntryId, Template
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store import revoking
from celery_delay.store.revoking import KEPT_MS, LONGEST, TakenOff
from tests.contract.bench import NOW, WINDOW, Bench, answers
from tests.shards import PREFIX, addition

pytestmark = pytest.mark.redis62

QUEUE = "delay-queue"
TWICE = "it may have run before, or stands there twice"
NOWHERE = TakenOff(False, None, "it is on none")


def shape(queue: str = QUEUE, database: int = 0) -> str:
    """The text of a template like kombu's envelopes."""
    own = '{"task_id":"\1i","run":\1r,"eta_ms":\1d}'
    tag = '"\1i.\1r.\1n"'
    text = (
        f'{{"body":\1A,"headers":{{"id":"\1i","task":"note","root_id":"\1i","celery_delay":{own}}},'
        f'"properties":{{"delivery_tag":{tag},"delivery_info":{{"routing_key":"q"}}}}}}'
    )
    return Template(database, queue, "note", queue, 0, (), text).encode()


SHAPE = shape()


def moved(bench: Bench, *task_ids: str, **options: Any) -> None:
    """Entries that a move has put onto their queue."""
    options = {"template": SHAPE, **options}
    bench.store.add([addition(one, **options) for one in task_ids])
    assert bench.store.move().moved == len(task_ids)


def lines(bench: Bench, key: str = QUEUE) -> list[str]:
    return [json.loads(one)["headers"]["id"] for one in reversed(bench.raw.lrange(key, 0, -1))]


def raw(bench: Bench, **given: Any) -> Any:
    """The script as it is, past the store's repeats."""
    values = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": "one", "task_id": "a", "run": 0,
        "database": 0, "longest": 1_000, "most_bytes": 10**6, "data": "{}", **given,
    }  # fmt: skip
    rest = values.pop("rest", ())
    answer = bench.script("take_off", *rest, **values)
    return [one.decode() if isinstance(one, bytes) else one for one in answer]


def change(bench: Bench, edit: Callable[[Any], None], key: str = QUEUE) -> None:
    """Make the only message on the queue another one."""
    [text] = bench.raw.lrange(key, 0, -1)
    message = json.loads(text)
    edit(message)
    bench.raw.delete(key)
    bench.raw.lpush(key, json.dumps(message))


# --- off its queue -------------------------------------------------------------------------


@answers("take_off", "TAKEN now run message")
def test_a_message_that_no_worker_has_had_is_taken_off(bench: Bench) -> None:
    moved(bench, "b", "a", "c")

    taken = bench.store.take_off("a", data={"by": "me"})

    assert taken.is_taken
    assert taken.entry is not None
    assert taken.entry.entry_id == EntryId("a", NOW)
    assert (taken.entry.task, taken.entry.eta_ms) == ("note", NOW)
    assert lines(bench) == ["b", "c"]
    assert bench.journal()[-1] == ("REVOKED", "a", NOW)
    assert len(bench.journal()) == 7
    assert bench.store.take_off("a") == NOWHERE


@answers("take_off", "MISSED now")
def test_one_that_a_worker_has_taken_is_not_there(bench: Bench) -> None:
    moved(bench, "a")
    bench.raw.rpop(QUEUE)
    before = bench.journal()

    assert bench.store.take_off("a", run=NOW) == NOWHERE
    assert bench.store.take_off("nobody") == NOWHERE
    assert bench.journal() == before


def test_a_message_that_only_mentions_the_id_stays(bench: Bench) -> None:
    moved(bench, "ab", "xa")
    moved(bench, "c", values=('"a"',))
    moved(bench, "d")
    change_last = json.loads(bench.raw.lpop(QUEUE))
    change_last["headers"].update(parent_id="a", root_id="a", group="a")
    bench.raw.lpush(QUEUE, json.dumps(change_last))
    bench.raw.lpush(QUEUE, '{"id":"a"', '"a"', '["a"]', '{"headers":"a"}', '{"headers":{"id":7}}a')
    everything = bench.raw.lrange(QUEUE, 0, -1)

    assert bench.store.take_off("a") == NOWHERE
    assert bench.raw.lrange(QUEUE, 0, -1) == everything


@answers("take_off", "DOUBTFUL now")
@pytest.mark.parametrize(
    "edit",
    [
        # a broker's redelivery, as kombu marks it: in both places, in older messages in one
        lambda one: one["headers"].update(redelivered=True),
        lambda one: one["properties"]["delivery_info"].update(redelivered=True),
        # published by a beat, or by Celery: nobody knows how often
        lambda one: one["properties"].update(delivery_tag="2d9f4c1e-0f53"),
        lambda one: one["properties"].update(delivery_tag=f"a.{NOW}.1.again"),
        lambda one: one["properties"].update(delivery_tag=f"a.{NOW + 1}.1"),
        lambda one: one["properties"].pop("delivery_tag"),
        lambda one: one.pop("properties"),
        # not ours, or another task's header
        lambda one: one["headers"].pop("celery_delay"),
        lambda one: one["headers"].update(celery_delay="mine"),
        lambda one: one["headers"]["celery_delay"].update(task_id="b"),
        lambda one: one["headers"]["celery_delay"].update(run=None),
    ],
)
def test_one_that_may_have_run_stays(bench: Bench, edit: Any) -> None:
    moved(bench, "a")
    change(bench, edit)

    assert bench.store.take_off("a") == TakenOff(False, None, TWICE)
    assert lines(bench) == ["a"]
    assert [one[0] for one in bench.journal()] == ["SCHEDULED", "DISPATCHED"]


def test_one_that_stands_there_twice_stays_twice(bench: Bench) -> None:
    moved(bench, "a")
    bench.raw.lpush("delay-other", *bench.raw.lrange(QUEUE, 0, -1))

    assert bench.store.take_off("a", queues=[(0, "delay-other")]) == TakenOff(False, None, TWICE)
    assert lines(bench) + lines(bench, "delay-other") == ["a", "a"]


def test_a_moved_entry_that_a_beat_may_have_published_before_is_doubtful(bench: Bench) -> None:
    """A beat claims what could be moved where it believes that no move is possible."""
    moved(bench, "other")
    bench.store.add([addition("a", template=SHAPE), addition("b", template=SHAPE)])
    claims = bench.store.claim(token="lost", limit=1, ttl_ms=1_000, source="schedule")
    assert [one.entry_id.task_id for one in claims.taken] == ["a"]
    bench.now += 1_001
    assert bench.store.rescue() == 1
    assert bench.store.move().moved == 2

    assert bench.store.take_off("a") == TakenOff(False, None, TWICE)
    assert bench.store.take_off("b").is_taken
    # and the next run is as good as any
    moved(bench, "a", run=NOW + 2)
    bench.raw.lrem(QUEUE, 1, bench.raw.lindex(QUEUE, -2))
    assert bench.store.take_off("a").is_taken


def test_priorities_and_other_databases_are_known_by_their_templates(bench: Bench) -> None:
    places = {"one": (QUEUE + "\x06\x163", 0), "two": ("delay-mail", 1), "three": ("far:mail", 0)}
    for task_id, place in places.items():
        moved(bench, task_id, template=shape(*place))
    moved(bench, "four")

    for task_id in ("one", "two", "three", "four"):
        assert bench.store.take_off(task_id).is_taken
    for key in (QUEUE, *(key for key, _ in places.values())):
        assert bench.raw.exists(key) == 0
    assert bench.raw.exists(bench.keys.journal) == 1
    assert bench.store.move().moved == 0  # in the store's own DB again


def test_a_queue_whose_templates_are_gone_is_named_by_the_caller(bench: Bench) -> None:
    moved(bench, "a")
    bench.raw.delete(bench.keys.templates)

    assert bench.store.take_off("a") == NOWHERE
    assert bench.store.take_off("a", queues=[(1, "no"), (0, QUEUE), (0, QUEUE)]).is_taken


def test_entries_that_a_beat_publishes_are_on_no_queue_of_this_server(bench: Bench) -> None:
    bench.store.add([addition("a", template=shape("orders", PUBLISHED))])

    assert bench.store.take_off("a") == NOWHERE


# --- bounds --------------------------------------------------------------------------------


def test_a_long_queue_is_not_searched(bench: Bench) -> None:
    moved(bench, "a")
    bench.raw.lpush(QUEUE, *["{}"] * (LONGEST - 1))
    assert raw(bench, operation="x", task_id="nobody")[2:] == [0, ""]
    bench.raw.lpush(QUEUE, "{}")

    assert bench.store.take_off("a") == TakenOff(
        False, None, "1 queues are too long to be searched"
    )
    bench.raw.lpop(QUEUE)
    assert bench.store.take_off("a").is_taken


def test_no_more_is_read_than_allowed(bench: Bench) -> None:
    moved(bench, *(f"{number:03}" for number in range(120)))
    one = len(bench.raw.lindex(QUEUE, 0))

    # fifty at a time, from the side at which the workers take
    assert raw(bench, task_id="060", most_bytes=one * 49)[::2] == ["MISSED", 1]
    assert raw(bench, task_id="049", most_bytes=one * 49)[0] == "TAKEN"
    assert raw(bench, task_id="061", operation="two", most_bytes=one * 51)[0] == "TAKEN"


def test_a_key_that_is_no_list_is_told(bench: Bench) -> None:
    moved(bench, "a")
    bench.raw.set("delay-other", "text")

    assert bench.store.take_off("a", queues=[(0, "delay-other")]).is_taken
    missed = bench.store.take_off("a", queues=[(0, "delay-other"), (99, QUEUE)])
    assert not missed.is_taken
    assert "99" in missed.why
    assert "WRONGTYPE" in bench.store.take_off("b", queues=[(0, "delay-other")]).why


# --- repeats -------------------------------------------------------------------------------


@answers("take_off", 'TAKEN now run message ("" if an earlier call took it)')
def test_a_lost_answer_is_asked_for_again(bench: Bench) -> None:
    moved(bench, "a", "b")
    bench.links.plan = ["answer"]

    assert bench.store.take_off("a") == TakenOff(True, None, "")
    # another call that knows the run hears the same; one that does not, might mean a newer one
    assert bench.store.take_off("a", run=NOW).is_taken
    assert bench.store.take_off("a", run=NOW + 1) == bench.store.take_off("a") == NOWHERE
    assert lines(bench) == ["b"]
    assert [one for one in bench.states() if one[0] == "REVOKED"] == [("REVOKED", "a")]


def test_an_id_that_is_used_again_is_taken_again(bench: Bench) -> None:
    moved(bench, "a")
    assert bench.store.take_off("a", run=NOW).is_taken
    bench.now += 1
    moved(bench, "a")
    bench.raw.rpop(QUEUE)

    assert bench.store.take_off("a", run=NOW + 1) == bench.store.take_off("a") == NOWHERE


@answers("take_off", "EPOCH now", "LATE now")
def test_another_history_and_a_late_attempt_change_nothing(bench: Bench) -> None:
    moved(bench, "a")

    assert raw(bench, epoch=bench.epoch + 1) == ["EPOCH", str(NOW)]
    assert raw(bench, deadline=NOW - 1) == ["LATE", str(NOW)]
    assert lines(bench) == ["a"]


def test_an_outcome_that_stays_unknown_is_said(bench: Bench) -> None:
    moved(bench, "a")
    bench.links.plan = ["answer"] * 1_000

    with pytest.raises(OutcomeUnknown):
        bench.store.take_off("a")
    bench.links.plan = []


# --- marks ---------------------------------------------------------------------------------


@answers("mark_revoked", "now")
def test_a_mark_counts_for_runs_that_were_scheduled_before_it(bench: Bench) -> None:
    bench.now += 5

    bench.store.mark_revoked(["a", "b"])

    at = NOW + 5
    runs = [EntryId("a", NOW), EntryId("a", at), EntryId("a", at + 1), EntryId("c", NOW)]
    assert [bench.store.is_revoked(one) for one in runs] == [True, True, False, False]
    # the same id, scheduled anew by whoever has revoked it
    [added] = bench.store.add([addition("a", 1_000)])
    assert not bench.store.is_revoked(added.entry_id)
    # and revoked anew
    bench.now += 1
    bench.store.mark_revoked(["a"])
    assert bench.store.is_revoked(added.entry_id)
    assert bench.raw.zrange(bench.keys.revoked, 0, -1) == ["b", "a"]


@answers("mark_revoked", "EPOCH")
def test_a_mark_of_another_history_is_made_in_this_one(bench: Bench) -> None:
    values = {"epoch": bench.epoch + 1, "keep_ms": 1, "most": 1}
    assert bench.script("mark_revoked", "a", **values) == b"EPOCH"
    assert bench.raw.exists(bench.keys.revoked) == 0
    with bench.store._link() as link:
        link.learnt[bench.store._epoch_name] = bench.epoch + 1

    bench.store.mark_revoked(["a"])

    assert bench.store.is_revoked(EntryId("a", NOW))


def test_marks_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store.mark_revoked([f"{number:03}" for number in range(150)])
    bench.now += KEPT_MS - 1
    bench.store.mark_revoked(["new"])
    assert bench.store.is_revoked(EntryId("000", NOW))
    bench.now += 1

    # a hundred at a time
    for left in (51, 1, 1):
        bench.store.mark_revoked(["new"])
        assert bench.raw.zcard(bench.keys.revoked) == left
    monkeypatch.setattr(revoking, "MOST_MARKS", 3)
    bench.now += 1
    bench.store.mark_revoked(["1", "2", "3", "4"])
    assert bench.raw.zrange(bench.keys.revoked, 0, -1) == ["2", "3", "4"]


def test_a_mark_whose_answers_are_lost_is_no_certainty(bench: Bench) -> None:
    bench.links.plan = ["answer"]
    bench.store.mark_revoked(["a"])
    assert bench.store.is_revoked(EntryId("a", NOW))
    bench.links.plan = ["request", "request"]

    with pytest.raises(StoreUnavailable, match="lost the answer of mark_revoked"):
        bench.store.mark_revoked(["b"])
    assert not bench.store.is_revoked(EntryId("b", NOW))
    assert bench.keys.revoked == f"{{{PREFIX}0}}:revoked"
