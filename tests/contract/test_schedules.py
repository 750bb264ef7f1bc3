"""Periodic schedules on a real Redis, 7 and 6.2: each answer, and what it promises.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import json
from threading import Thread
from typing import Any

import pytest

from celery_delay.domain.entries import template_id
from celery_delay.domain.timetable import UNKNOWN, DueSchedules, Standing, Stored, Wanted
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store import additions as additions_module
from celery_delay.store.firing import DUE_LIMIT
from tests.contract.bench import NOW, WINDOW, Bench, answers
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

# --- what the leader does: sync_schedules, due_schedules, fire ---------------------------


def revision(bench: Bench) -> int:
    return int(bench.raw.hget(bench.keys.mark, "revision") or 0)


def sync(bench: Bench, **schedules: tuple[str, int] | Wanted) -> bool:
    wanted = {name: Wanted(*one) for name, one in schedules.items()}
    return bench.store.sync_schedules(term=bench.term, revision=revision(bench), schedules=wanted)


def fire(bench: Bench, task_id: str | None = "o1", **changes: Any) -> Any:
    rest: list[object] = []
    if task_id is not None:
        one = addition(task_id, run=NOW)
        record = additions_module.record_text(one, NOW + WINDOW, False)
        rest = [task_id, "+0", record, "{}", template_id(one.template), one.template]
    right = {
        "epoch": bench.epoch, "term": bench.term, "revision": revision(bench), "name": "tick",
        "expected": NOW, "cursor": NOW, "next": NOW + 10, "missed_from": 0, "missed_to": 0,
    }  # fmt: skip
    return bench.script("fire", *rest, **{**right, **changes})


def state(bench: Bench, name: str = "tick") -> dict[str, str]:
    found: dict[str, str] = json.loads(bench.raw.hget(bench.keys.schedules, name) or "{}")
    return found


@answers("sync_schedules", "EPOCH", "TERM", "STALE", "OK")
@answers("due_schedules", "revision now next_ms")
def test_schedules_become_the_callers_and_the_unchanged_keep_their_place(bench: Bench) -> None:
    right = {"epoch": bench.epoch, "term": bench.term, "revision": 0}
    rest = ("tick", "v1", NOW, "{}")
    assert bench.script("sync_schedules", *rest, **{**right, "epoch": 1}) == b"EPOCH"
    assert bench.script("sync_schedules", *rest, **{**right, "term": 99}) == b"TERM"
    assert bench.script("sync_schedules", *rest, **{**right, "revision": 7}) == b"STALE"
    assert bench.store.due_schedules() == DueSchedules(NOW, [], None, 0)

    assert bench.script("sync_schedules", *rest, "other", "v1", NOW + 5, "", **right) == b"OK"
    assert bench.store.due_schedules() == DueSchedules(NOW, [("tick", NOW)], NOW + 5, 0)

    assert sync(bench, tick=("v1", NOW + 99), new=("v1", -1))
    assert bench.store.due_schedules() == DueSchedules(NOW, [("tick", NOW)], None, 0)


def test_what_code_has_is_told_to_others(bench: Bench) -> None:
    sync(bench, tick=Wanted("v1", NOW, "times\ncall"), added=Wanted("v1", NOW))
    assert bench.raw.hgetall(bench.keys.statics) == {"tick": "times\ncall"}
    # also when only that has changed, and until the code has it no more
    sync(bench, tick=Wanted("v1", NOW, "times\nanother"))
    assert bench.raw.hgetall(bench.keys.statics) == {"tick": "times\nanother"}
    sync(bench, added=Wanted("v1", NOW))
    assert bench.raw.hgetall(bench.keys.statics) == {}


def test_a_schedule_that_cannot_be_read_is_left_as_it_is(bench: Bench) -> None:
    sync(bench, tick=("v1", NOW))
    before = state(bench)
    sync(bench, tick=("", UNKNOWN))
    assert state(bench) == before
    assert bench.store.due_schedules().due == [("tick", NOW)]


def test_one_look_tells_of_so_many_and_the_longest_overdue_first(bench: Bench) -> None:
    sync(bench, **{f"s{number}": ("v1", NOW - number) for number in range(DUE_LIMIT + 5)})
    due = bench.store.due_schedules().due
    assert len(due) == DUE_LIMIT
    assert due[0] == (f"s{DUE_LIMIT + 4}", NOW - DUE_LIMIT - 4)


@answers("fire", "EPOCH", "TERM", "STALE", "FIRED", "OK")
def test_an_occurrence_is_fired_once(bench: Bench) -> None:
    sync(bench, tick=("v1", NOW))

    assert fire(bench, epoch=1) == b"EPOCH"
    assert fire(bench, term=99) == b"TERM"
    assert fire(bench, revision=99) == b"STALE"
    assert bench.store.sizes()["pending"] == 0
    assert fire(bench) == b"OK"
    assert fire(bench, "o2") == b"FIRED"

    assert bench.store.standing("tick") == Standing(NOW)
    assert state(bench)["fired"] == str(NOW)
    assert bench.store.due_schedules() == DueSchedules(NOW, [], NOW + 10, 0)
    assert bench.store.move().moved == 1
    assert bench.states() == [("SCHEDULED", "o1"), ("DISPATCHED", "o1")]
    assert bench.raw.hgetall(bench.keys.template_uses) == {template_id(shape()): "0"}


def test_the_last_occurrence_ends_the_schedule(bench: Bench) -> None:
    sync(bench, tick=("v1", NOW))

    assert fire(bench, None, next=-1) == b"OK"

    assert bench.store.due_schedules() == DueSchedules(NOW, [], None, 0)
    assert bench.store.sizes()["pending"] == 0
    assert "fired" not in state(bench)


@answers("fire", "LIVE")
def test_an_occurrence_whose_entry_waits_moves_its_schedule_on(bench: Bench) -> None:
    sync(bench, tick=("v1", NOW))
    bench.store.add([addition("o1", 1_000)])

    assert fire(bench) == b"LIVE"

    assert bench.store.due_schedules() == DueSchedules(NOW, [], NOW + 10, 0)
    assert bench.store.sizes()["pending"] == 1


def test_a_link_that_knows_an_older_history_fires_all_the_same(bench: Bench) -> None:
    bench.store.move()  # the idle link has learnt the epoch
    bench.raw.hset(bench.keys.mark, "epoch", bench.epoch + 1)

    assert sync(bench, tick=("v1", NOW))


def test_what_is_passed_over_is_remembered(bench: Bench) -> None:
    sync(bench, tick=("v1", NOW))
    step = 10
    # Given one that fires after two that were missed, one that fires, and two that are skipped
    fire(bench, "a", expected=NOW, cursor=NOW + 20, next=NOW + 30, missed_from=NOW,
         missed_to=NOW + 20)  # fmt: skip
    fire(bench, "b", expected=NOW + 30, cursor=NOW + 30, next=NOW + 40)
    for at in (NOW + 40, NOW + 50):
        fire(bench, None, expected=at, next=at + step, missed_from=at, missed_to=at + step)
    [listed] = bench.store.list_schedules()
    assert listed.gaps == [(NOW, NOW + 20), (NOW + 40, NOW + 60)]
    assert (listed.since_ms, listed.fired_ms, listed.next_ms) == (NOW, NOW + 30, NOW + 60)


def test_of_many_gaps_the_oldest_is_forgotten(bench: Bench) -> None:
    sync(bench, tick=("v1", NOW))
    for number in range(102):
        at = NOW + number * 10
        fire(bench, None, expected=at, next=at + 10, missed_from=at, missed_to=at + 5)
    gaps = bench.store.find_schedule("tick").gaps
    assert len(gaps) == 100
    assert gaps[0] == (NOW + 20, NOW + 25)


# --- pause_schedule ------------------------------------------------------------------------


def pause(bench: Bench, on: bool = True, name: str = "tick", **more: Any) -> str:
    given = {"known": False, "by": "me", "reason": "", **more}
    return bench.store.pause_schedule(name, on, **given)


def raw_pause(bench: Bench, **given: Any) -> list[str]:
    right = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": "one", "name": "tick", "pause": 1,
        "known": 0, "by": "me", "reason": "", **given,
    }  # fmt: skip
    return [one.decode() for one in bench.script("pause_schedule", **right)]


@answers("pause_schedule", "NOT_FOUND now", "DONE now", "SAME now")
def test_a_schedule_is_paused_and_goes_on(bench: Bench) -> None:
    assert pause(bench) == "NOT_FOUND"
    sync(bench, tick=Wanted("v1", NOW, "{}"))

    assert pause(bench, reason="the shop is closed") == "DONE"
    assert pause(bench) == "SAME"

    assert bench.store.standing("tick").paused
    listed = bench.store.find_schedule("tick")
    assert (listed.paused_ms, listed.paused_by, listed.reason) == (NOW, "me", "the shop is closed")
    bench.now += 5
    assert pause(bench, False) == "DONE"
    assert pause(bench, False) == "SAME"
    assert bench.store.standing("tick") == Standing(NOW, False, NOW + 5)
    assert bench.store.find_schedule("tick").reason == ""


@answers("pause_schedule", "EPOCH now", "LATE now")
def test_a_pause_of_another_history_or_too_late_does_nothing(bench: Bench) -> None:
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    assert raw_pause(bench, epoch=bench.epoch + 1) == ["EPOCH", str(NOW)]
    assert raw_pause(bench, deadline=NOW - 1) == ["LATE", str(NOW)]
    assert not bench.store.standing("tick").paused


def test_a_leader_that_looked_before_the_pause_fires_no_more(bench: Bench) -> None:
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    before = bench.store.due_schedules().revision
    pause(bench)

    assert fire(bench, revision=before) == b"STALE"
    assert bench.store.sizes()["pending"] == 0


def test_a_pause_outlives_changes_of_the_times_and_of_the_code(bench: Bench) -> None:
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    pause(bench)
    sync(bench, tick=Wanted("v2", NOW + 5, "{}"))
    assert bench.store.standing("tick").paused
    # a deployment that has it not, and one that has it again
    sync(bench)
    assert bench.store.due_schedules().due == []
    sync(bench, tick=Wanted("v2", NOW + 5, "{}"))
    assert bench.store.standing("tick").paused
    assert pause(bench, False) == "DONE"
    sync(bench)
    assert bench.raw.hgetall(bench.keys.schedules) == {}


def test_what_only_the_callers_code_has_can_be_paused_before_any_beat(bench: Bench) -> None:
    assert pause(bench, known=True) == "DONE"
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    assert bench.store.standing("tick").paused


@pytest.mark.parametrize("plan", [["answer"], ["request"], ["answer", "answer"]])
def test_a_pause_is_made_once_however_often_its_answer_is_lost(
    bench: Bench, plan: list[str]
) -> None:
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    bench.links.plan = list(plan)
    assert pause(bench) == "DONE"
    assert revision(bench) == 1


def test_a_repeat_does_not_undo_what_others_have_done_since(bench: Bench) -> None:
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    assert raw_pause(bench) == ["DONE", str(NOW)]
    pause(bench, False)
    assert raw_pause(bench) == ["DONE", str(NOW)]
    assert not bench.store.standing("tick").paused


def test_an_answer_that_never_comes_is_unknown(bench: Bench) -> None:
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    bench.links.plan = ["answer"] * 1_000
    with pytest.raises(OutcomeUnknown, match="the change of the schedule 'tick' was stored"):
        pause(bench)
    bench.links.plan = []
    assert bench.store.standing("tick").paused


def test_without_redis_nothing_has_changed(bench: Bench) -> None:
    def away() -> Any:
        raise StoreUnavailable("away")

    bench.store._links.take = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        pause(bench)
    with pytest.raises(StoreUnavailable):
        bench.store.due_schedules()


# --- put_schedule, remove_schedule -----------------------------------------------------------


def put(bench: Bench, how: str = "add", **given: Any) -> tuple[str, int]:
    right = {"name": "new", "timing": "times", "call": "call", **given}
    return bench.store.put_schedule(how=how, **right)


def raw_put(bench: Bench, **given: Any) -> list[str]:
    right = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": "one", "name": "new", "how": "add",
        "expected": 0, "most": 2, "timing": "times", "call": "call", **given,
    }  # fmt: skip
    return [one.decode() for one in bench.script("put_schedule", **right)]


@answers("put_schedule", "DONE now version", "EXISTS now", "SAME now version")
def test_a_schedule_is_added_once_and_becomes_another(bench: Bench) -> None:
    assert put(bench) == ("DONE", 1)
    assert put(bench, call="other") == ("EXISTS", 0)
    assert bench.store.definitions() == {"new": Stored(1, NOW, "times", "call")}

    bench.now += 5
    assert put(bench, "put") == ("SAME", 1)
    assert revision(bench) == 1
    # another call keeps its phase, other times start anew
    assert put(bench, "put", call="other") == ("DONE", 2)
    assert bench.store.definitions() == {"new": Stored(2, NOW, "times", "other")}
    sync(bench, new=("v1", NOW + 60_000))
    assert put(bench, "put", timing="others", call="other") == ("DONE", 3)
    assert bench.store.definitions() == {"new": Stored(3, NOW + 5, "others", "other")}
    assert bench.store.due_schedules() == DueSchedules(NOW + 5, [], None, 3)
    assert put(bench, "put", name="more") == ("DONE", 1)


@answers("put_schedule", "NOT_FOUND now", "STALE now", "STATIC now", "FULL now")
def test_what_cannot_be_put_is_told_and_nothing_is_done(bench: Bench) -> None:
    assert put(bench, "set", expected=1) == ("NOT_FOUND", 0)
    put(bench)
    assert put(bench, "set", expected=2, call="other") == ("STALE", 0)
    assert put(bench, "set", expected=1, call="other") == ("DONE", 2)
    sync(bench, new=("v1", NOW), tick=Wanted("v1", NOW, "{}"))
    for how in ("add", "put", "set"):
        assert put(bench, how, name="tick") == ("STATIC", 0)
    assert raw_put(bench, name="b")[0] == "DONE"
    assert raw_put(bench, name="c", operation="two") == ["FULL", str(NOW)]
    assert bench.store.definitions().keys() == {"new", "b"}
    assert revision(bench) == 3


@answers("put_schedule", "EPOCH now", "LATE now")
@answers("remove_schedule", "EPOCH now", "LATE now")
def test_a_change_of_another_history_or_too_late_does_nothing(bench: Bench) -> None:
    for wrong, answer in (({"epoch": bench.epoch + 1}, "EPOCH"), ({"deadline": NOW - 1}, "LATE")):
        assert raw_put(bench, **wrong) == [answer, str(NOW)]
        assert raw_remove(bench, **wrong) == [answer, str(NOW)]
    assert bench.store.definitions() == {}


def raw_remove(bench: Bench, **given: Any) -> list[str]:
    right = {"epoch": 0, "deadline": NOW + WINDOW, "operation": "gone", "name": "new", **given}
    return [one.decode() for one in bench.script("remove_schedule", **right)]


@answers("remove_schedule", "NOT_FOUND now", "STATIC now", "DONE now")
def test_a_schedule_that_was_added_can_be_removed(bench: Bench) -> None:
    assert bench.store.remove_schedule("new") == "NOT_FOUND"
    sync(bench, tick=Wanted("v1", NOW, "{}"))
    assert bench.store.remove_schedule("tick") == "STATIC"
    put(bench)
    sync(bench, tick=Wanted("v1", NOW, "{}"), new=("v1", NOW))
    before = bench.store.due_schedules().revision

    assert bench.store.remove_schedule("new") == "DONE"

    # a leader that has read it before neither fires it nor brings it back
    assert fire(bench, name="new", revision=before) == b"STALE"
    wanted = {"new": Wanted("v1", NOW)}
    assert not bench.store.sync_schedules(term=bench.term, revision=before, schedules=wanted)
    assert [one.name for one in bench.store.list_schedules()] == ["tick"]
    assert bench.store.due_schedules().due == [("tick", NOW)]


def test_one_that_code_hides_is_removed_and_the_codes_goes_on(bench: Bench) -> None:
    put(bench)
    sync(bench, new=Wanted("v1", NOW, "{}"))
    assert bench.store.remove_schedule("new") == "DONE"
    assert bench.store.due_schedules().due == [("new", NOW)]


def test_what_is_added_anew_is_not_paused(bench: Bench) -> None:
    put(bench)
    pause(bench, name="new")
    bench.store.remove_schedule("new")
    put(bench)
    assert not bench.store.standing("new").paused
    # nor by what is left of code
    sync(bench, old=Wanted("v1", NOW, "{}"))
    pause(bench, name="old")
    sync(bench)
    put(bench, name="old")
    assert not bench.store.standing("old").paused


def test_of_two_processes_that_add_one_name_one_wins(bench: Bench) -> None:
    won: list[str] = []

    def race(number: int) -> None:
        answer, _ = put(bench, call=f"call {number}")
        if answer == "DONE":
            won.append(f"call {number}")

    threads = [Thread(target=race, args=(number,)) for number in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = bench.store.definitions()["new"]
    assert found is not None
    assert won == [found.call]
    assert found.version == 1


@pytest.mark.parametrize("plan", [["answer"], ["request"], ["answer", "answer"]])
def test_changes_are_made_once_however_often_their_answers_are_lost(
    bench: Bench, plan: list[str]
) -> None:
    bench.links.plan = list(plan)
    assert put(bench) == ("DONE", 1)
    bench.links.plan = list(plan)
    assert bench.store.remove_schedule("new") == "DONE"
    assert revision(bench) == 2


def test_a_repeat_of_an_add_does_not_undo_a_removal(bench: Bench) -> None:
    assert raw_put(bench) == ["DONE", str(NOW), "1"]
    bench.store.remove_schedule("new")
    assert raw_put(bench) == ["DONE", str(NOW), "1"]
    assert bench.store.definitions() == {}


def test_a_definition_that_is_damaged_is_told_apart(bench: Bench) -> None:
    put(bench)
    bench.raw.hset(bench.keys.definitions, "bad", "nonsense")
    found = bench.store.definitions()
    assert found["bad"] is None
    assert found["new"] is not None


# --- backfill --------------------------------------------------------------------------------


def occurrences(*instants: int, step: int = 10, ids: str = "o") -> list[Any]:
    return [(one, one + step, addition(f"{ids}{one - NOW}", run=one)) for one in instants]


def backfill(bench: Bench, *instants: int, force: bool = False, ids: str = "o") -> str:
    return bench.store.backfill(
        "tick", revision=revision(bench), force=force, occurrences=occurrences(*instants, ids=ids)
    )


def gaps(bench: Bench) -> list[tuple[int, int]]:
    return [(one - NOW, two - NOW) for one, two in bench.store.find_schedule("tick").gaps]


def with_a_gap(bench: Bench) -> None:
    """Started at 0, fired at 0, 40 and 50; 10 to 30 were passed over; 60 is to come; now is 55."""
    sync(bench, tick=("v1", NOW))
    fire(bench, "a", cursor=NOW, next=NOW + 10)
    fire(bench, "b", expected=NOW + 10, cursor=NOW + 40, next=NOW + 50, missed_from=NOW + 10,
         missed_to=NOW + 40)  # fmt: skip
    fire(bench, "c", expected=NOW + 50, cursor=NOW + 50, next=NOW + 60)
    bench.now = NOW + 55
    bench.store.move()


@answers("backfill", "DONE now codes")
def test_what_was_passed_over_is_fired_once(bench: Bench) -> None:
    with_a_gap(bench)
    every = [NOW + at for at in range(-20, 70, 10)]
    assert backfill(bench, *every) == "AAFAAAFFN"
    assert backfill(bench, *every) == "FFFFFFFFN"
    assert gaps(bench) == []
    assert bench.store.move().moved == 5
    assert bench.raw.hgetall(bench.keys.template_uses) == {template_id(shape()): "0"}
    # the schedule itself goes on as if nothing had been
    assert bench.store.due_schedules() == DueSchedules(NOW + 55, [], NOW + 60, 0)
    assert bench.store.find_schedule("tick").fired_ms == NOW + 50


def test_in_the_middle_of_a_gap_the_rest_stays_open(bench: Bench) -> None:
    with_a_gap(bench)
    assert backfill(bench, NOW + 20) == "A"
    assert gaps(bench) == [(10, 20), (30, 40)]
    # what is told of before it started is told of exactly, too
    assert backfill(bench, NOW - 30) == "A"
    assert gaps(bench) == [(-20, 0), (10, 20), (30, 40)]
    assert backfill(bench, NOW - 30, NOW - 20, NOW - 10, NOW) == "FAAF"
    assert gaps(bench) == [(10, 20), (30, 40)]


def test_by_force_what_was_fired_is_fired_again_but_not_while_it_waits(bench: Bench) -> None:
    with_a_gap(bench)
    assert backfill(bench, NOW, NOW + 10, force=True) == "AA"
    assert backfill(bench, NOW, NOW + 10, force=True) == "FF"
    assert backfill(bench, NOW, NOW + 10, force=True, ids="new") == "AA"
    assert bench.store.move().moved == 4


@answers("backfill", "EPOCH now", "LATE now", "STALE now", "UNSEEN now")
def test_a_backfill_by_what_is_no_more_does_nothing(bench: Bench) -> None:
    assert backfill(bench, NOW) == "UNSEEN"
    with_a_gap(bench)
    right = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": "one", "name": "tick", "force": 0,
        "revision": 0,
    }  # fmt: skip
    for wrong, answer in (
        ({"epoch": bench.epoch + 1}, b"EPOCH"), ({"deadline": NOW - 1}, b"LATE"),
        ({"revision": 9}, b"STALE"),
    ):  # fmt: skip
        assert bench.script("backfill", **{**right, **wrong})[0] == answer
    assert gaps(bench) == [(10, 40)]


@pytest.mark.parametrize("plan", [["answer"], ["request"], ["answer", "answer"]])
def test_a_backfill_is_made_once_however_often_its_answer_is_lost(
    bench: Bench, plan: list[str]
) -> None:
    with_a_gap(bench)
    bench.links.plan = list(plan)
    assert backfill(bench, NOW + 10, NOW + 20) == "AA"
    assert bench.store.move().moved == 2
