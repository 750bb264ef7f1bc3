"""Each answer that a Lua command can give, on a real Redis: 7 and 6.2.

``@answers`` names the alternative of the file's RETURNS line that a test shows;
``test_answers.py`` sees to it that none is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celery_delay.domain.entries import EntryId, template_id
from celery_delay.domain.ports import JournalPosition, Leaderless, StaleEpoch, Transition
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.exceptions import AlreadyScheduled, JournalFull, OutcomeUnknown, StoreUnavailable
from celery_delay.store import additions as additions_module
from celery_delay.store.journal import PAGE
from tests.contract.bench import NOW, TOMBSTONE, WINDOW, Bench, answers
from tests.shards import addition, shape, shard, to_links

pytestmark = pytest.mark.redis62

# --- add ---------------------------------------------------------------------------------


@answers("add", "OK now codes")
def test_a_delay_counts_from_the_end_of_redis_millisecond(bench: Bench) -> None:
    soon, at, past, now = bench.store.add(
        [
            addition("soon", 500),
            addition("at", at_ms=NOW + 500),
            addition("past", at_ms=NOW - 500),
            addition("now", 0),
        ]
    )

    assert [one.code for one in (soon, at, past, now)] == ["A"] * 4
    assert soon.due_ms == NOW + 501
    assert at.due_ms == NOW + 500
    assert past.due_ms == NOW - 500
    assert now.due_ms == NOW
    assert {one.entry_id.run for one in (soon, at, past, now)} == {NOW}


def test_an_instant_in_the_year_9999_comes_back_to_the_millisecond(bench: Bench) -> None:
    last = 253_402_300_799_999

    [added] = bench.store.add([addition("far", at_ms=last)])

    assert added.due_ms == last
    found = bench.store.get("far")
    assert found is not None
    assert found.eta_ms == last
    assert bench.store.read_journal("0", 1)[0][1][0].eta_ms == last


def test_nothing_to_add_asks_nothing(bench: Bench) -> None:
    assert bench.store.add([]) == []


@pytest.mark.parametrize("bad", ["a\nb", "a\tb"])
def test_an_id_that_would_break_the_journal_is_refused(bench: Bench, bad: str) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        bench.store.add([addition("good"), addition(bad)])

    assert bench.store.get("good") is None


@pytest.mark.parametrize(
    "task_id", ["it's", 'say "hi"', "naïve/ü 🎉", "a b", "%s", "\\x", "x" * 255]
)
def test_an_id_may_have_any_printable_character(bench: Bench, task_id: str) -> None:
    # the message is made without the id in it: JSON's escapes are the envelope's business
    template = shape().replace("\1i", "\1B")
    values = ('"v"', json.dumps(task_id)[1:-1])

    bench.store.add([addition(task_id, template=template, values=values)])
    assert bench.store.move().moved == 1

    assert bench.queue()[0]["id"] == task_id
    assert bench.states() == [("SCHEDULED", task_id), ("DISPATCHED", task_id)]


@answers("add", "LATE now")
def test_an_add_that_arrives_after_its_deadline_writes_nothing(bench: Bench) -> None:
    one = addition("a", run=NOW)._replace(template=shape())
    rest = additions_module.Attempt([one], NOW + WINDOW).rest()
    bench.now += WINDOW + 1

    answer = _add(bench, *rest)

    assert answer == [b"LATE", str(bench.now).encode()]
    assert bench.store.get("a") is None


def _add(bench: Bench, *rest: object, **values: object) -> Any:
    options = {
        "window": WINDOW, "refuse_when_full": 0, "template_cap": 10, "template_count": 0,
        "leader_grace": 0, "epoch": 0,
    }  # fmt: skip
    return bench.script("add", *rest, **{**options, **values})


def test_a_producer_that_stood_still_draws_anew_if_nothing_can_have_been_written(
    bench: Bench,
) -> None:
    # Given a producer that is stopped between drawing its run and sending it
    bench.store._test_now = lambda: next(times)
    times = iter([NOW, NOW + WINDOW + 1, NOW + WINDOW + 1, *[NOW + WINDOW + 2] * 9])

    [added] = bench.store.add([addition("a")])

    assert added.code == "A"
    assert added.entry_id.run == NOW + WINDOW + 1


def test_a_producer_that_always_comes_too_late_gives_up_with_nothing_stored(bench: Bench) -> None:
    real = bench.store._draw
    bench.store._draw = lambda some: _aged(real(some))  # type: ignore[method-assign]

    with pytest.raises(StoreUnavailable):
        bench.store.add([addition("a")])

    assert bench.store.sizes()["pending"] == 0


def _aged(attempt: Any) -> Any:
    attempt.deadline_ms -= WINDOW + 1
    return attempt


def test_late_after_an_unknown_attempt_is_unknown(bench: Bench) -> None:
    # Given an attempt without an answer, and a pause longer than the window
    bench.links.plan = ["request"]
    bench.clock.asleep = lambda _: setattr(bench, "now", bench.now + WINDOW + 1)

    with pytest.raises(OutcomeUnknown) as caught:
        bench.store.add([addition("a")])

    assert caught.value.entry_id == EntryId("a", NOW)


@answers("add", "FULL now")
def test_a_full_journal_refuses_new_entries_but_answers_repeats(make: Callable[..., Bench]) -> None:
    bench = make(journal_full="refuse")
    bench.store._journal_max = 2
    bench.links.plan = ["ok", "ok", "answer"]
    bench.store.add([addition("a")])

    # the first answer is lost, and the entry itself has filled the journal
    [added] = bench.store.add([addition("b")])
    assert added.code == "D"

    with pytest.raises(JournalFull):
        bench.store.add([addition("c")])
    assert bench.store.get("c") is None
    # what is in the store goes on
    assert bench.store.move().moved == 2


def test_a_full_journal_counts_what_it_leaves_out(bench: Bench) -> None:
    bench.store._journal_max = 1
    bench.store.add([addition("a"), addition("b")])
    bench.store.move()
    bench.store.add([addition("c")])
    [(last, _)] = bench.store.read_journal("0", 10)

    # When there is room again, the number comes before the next event
    bench.store.trim_journal(JournalPosition(0, bench.epoch, last), term=bench.term)
    bench.store._journal_max = 9
    bench.store.add([addition("d")])
    bench.store.add([addition("e")])

    (_, [gap]), (_, [event]), (_, [following]) = bench.store.read_journal("0", 10)
    assert following.state == "SCHEDULED"
    assert (gap.state, gap.data) == ("GAP", {"missing": 3})
    assert (event.state, event.entry_id.task_id) == ("SCHEDULED", "d")


@answers("add", "CONFLICT now task_id")
def test_a_second_live_entry_for_a_task_is_refused_with_all_of_its_call(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000)])
    bench.now += 5

    with pytest.raises(AlreadyScheduled) as caught:
        bench.store.add([addition("b"), addition("a")])

    assert caught.value.task_id == "a"
    assert bench.store.get("b") is None


def test_two_calls_in_one_millisecond_are_two(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000)])

    with pytest.raises(AlreadyScheduled):
        bench.store.add([addition("a", 1_000, values=('"other"',))])


def test_one_id_twice_in_a_call_is_refused(bench: Bench) -> None:
    with pytest.raises(AlreadyScheduled):
        bench.store.add([addition("a"), addition("a")])

    assert bench.store.sizes()["pending"] == 0


def test_a_conflict_after_an_unknown_attempt_is_unknown(bench: Bench) -> None:
    bench.links.plan = ["request"]
    other = shard(to_links(bench.links._options["path"] and _url(bench)), lambda: bench.now)

    def meanwhile(_: float) -> None:
        bench.now += 1
        other.add([addition("a", 1_000)])

    bench.clock.asleep = meanwhile
    with pytest.raises(OutcomeUnknown):
        bench.store.add([addition("a", 1_000)])
    other.close()


def _url(bench: Bench) -> str:
    return f"unix://{bench.links._options['path']}"


def test_a_retry_that_is_sent_again_by_a_redelivered_run_is_the_same_entry(bench: Bench) -> None:
    [first] = bench.store.add([addition("a", 1_000, run=NOW - 9_999)])
    bench.now += 700

    [again] = bench.store.add([addition("a", 1_000, run=NOW - 9_999)])

    assert (again.code, again.due_ms) == ("D", first.due_ms)
    assert bench.states() == [("SCHEDULED", "a")]


@answers("add", "TEMPLATE now id")
def test_a_template_is_asked_for_once(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000)])
    sent: list[Any] = []
    bench.links.ran = lambda command, answer: sent.append(answer[0])

    bench.store.add([addition("b", 1_000)])
    other = shape("delay-other")
    bench.store.add([addition("c", 1_000, template=other), addition("d", 1_000, template=other)])

    assert sent == [b"OK", b"TEMPLATE", b"OK"]
    uses = bench.raw.hgetall(bench.keys.template_uses)
    assert uses == {template_id(shape()): "2", template_id(other): "2"}


@pytest.mark.parametrize("alive", [None, NOW - 5_001, NOW + 5_001])
@answers("add", "LEADERLESS now")
def test_an_add_that_needs_a_leader_writes_nothing_without_one(
    make: Callable[..., Bench], alive: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a leader that was never seen, or last long ago, or before the clock was set back
    bench = make(leader_grace=5.0)
    bench.raw.hdel(bench.keys.mark, "alive")
    if alive is not None:
        bench.raw.hset(bench.keys.mark, "alive", alive)

    with pytest.raises(Leaderless):
        bench.store.add([addition("a", 1_000)], needs_leader=True)

    # Then nothing was written, but what needs none is stored, with one warning
    assert bench.store.sizes() == {**bench.store.sizes(), "pending": 0, "templates": 0}
    for one in ("b", "c"):
        bench.store.add([addition(one, 1_000)])
    assert [record.event for record in caplog.records] == ["no_leader"]


def test_a_leader_is_seen_until_its_grace_is_over(
    make: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = make(leader_grace=5.0)
    bench.script("elect", holder="me", seen_term=0, seen_seq=0, may_take=0)
    bench.now += 5_000

    [added] = bench.store.add([addition("a", 1_000)], needs_leader=True)

    assert added.code == "A"
    assert caplog.records == []
    bench.now += 1
    bench.store.add([addition("b", 1_000)])
    # and each time that the leader is away again is told
    bench.script("elect", holder="me", seen_term=0, seen_seq=0, may_take=0)
    bench.store.add([addition("c", 1_000)])
    bench.now += 6_000
    bench.store.add([addition("d", 1_000)])
    assert [record.event for record in caplog.records] == ["no_leader"] * 2


def test_only_the_holder_of_the_lease_is_a_sign_of_life(bench: Bench) -> None:
    bench.raw.hdel(bench.keys.mark, "alive")

    bench.script("elect", holder="you", seen_term=0, seen_seq=0, may_take=0)

    assert bench.raw.hget(bench.keys.mark, "alive") is None


def test_an_add_in_doubt_is_stored_without_a_leader(bench: Bench) -> None:
    # Given a first attempt whose request is lost, so that it may yet arrive
    bench.raw.hdel(bench.keys.mark, "alive")
    bench.links.plan = ["request"]

    [added] = bench.store.add([addition("a", 1_000)], needs_leader=True)

    assert added.code == "A"


@answers("add", "INLINE now")
def test_beyond_the_cap_templates_go_into_the_records(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additions_module, "TEMPLATE_CAP", 2)
    shapes = [shape(body=f"shape {number}") for number in range(4)]

    for number, one in enumerate(shapes):
        bench.store.add([addition(f"t{number}", template=one)])

    # Then two are shared and two are not, and all become messages
    assert bench.store.sizes()["templates"] == 2
    assert bench.store.move().moved == 4
    assert {one["body"] for one in bench.queue()} == {f"shape {n}" for n in range(4)}
    # and what nobody uses any more makes room
    bench.store.add([addition("next", 1_000, template=shape(body="next"))])
    kept = bench.raw.hkeys(bench.keys.templates)
    assert kept == [template_id(shape(body="next"))]


def test_more_than_three_thousand_shapes(bench: Bench) -> None:
    shapes = [shape(body=f"shape {number}") for number in range(3_010)]

    for start in range(0, 3_010, 602):
        bench.store.add(
            [
                addition(f"t{number}", template=shapes[number])
                for number in range(start, start + 602)
            ]
        )

    assert bench.store.sizes() == {
        "pending": 3_010, "claimed": 0, "blocked": 0, "gated": 0, "held": 0, "quarantined": 0,
        "journal": 5, "templates": 2_408,
    }  # fmt: skip
    found = bench.store.between(after_ms=0, before_ms=10**15, limit=4_000, offset=0)
    assert {one.envelope["body"] for one in found} == {f"shape {n}" for n in range(3_010)}


def test_a_thousand_entries_in_one_add(bench: Bench) -> None:
    added = bench.store.add([addition(f"t{n}", 5) for n in range(1_000)])

    assert [one.code for one in added] == ["A"] * 1_000
    assert bench.store.count(after_ms=0, before_ms=10**15) == 1_000
    bench.now += 6
    moved = 0
    while batch := bench.store.move().moved:
        moved += batch
    assert moved == 1_000
    assert len({one["id"] for one in bench.queue()}) == 1_000


def test_large_messages_are_moved_in_smaller_batches(bench: Bench) -> None:
    large = '"' + "x" * 200_000 + '"'
    bench.store.add([addition(f"t{n}", values=(large,)) for n in range(120)])

    # Then a batch ends soon after 8 MiB, though 300 entries are allowed
    first = bench.store.move()
    assert 0 < first.moved < 120
    assert first.next_due_ms == NOW
    assert first.moved + bench.store.move().moved + bench.store.move().moved == 120
    assert all(len(one["value"]) == 200_000 for one in bench.queue())


def test_a_repeat_is_told_what_became_of_the_entry(bench: Bench) -> None:
    # D: it waits; G: it was handed off; C: it was cancelled
    bench.store.add([addition("first", 60_000)])
    for task_id, between, code in (
        ("waits", lambda: None, "D"),
        ("gone", lambda: bench.store.move(), "G"),
        ("cancelled", lambda: bench.store.cancel("cancelled", data={}), "C"),
    ):
        delay = 0 if code == "G" else 1_000
        bench.links.plan = ["answer", "answer"]
        bench.clock.asleep = lambda _, between=between: _without_faults(bench, between)
        [added] = bench.store.add([addition(task_id, delay)])
        assert added.code == code, task_id

    assert bench.states()[1:] == [
        ("SCHEDULED", "waits"), ("SCHEDULED", "gone"), ("DISPATCHED", "gone"),
        ("SCHEDULED", "cancelled"), ("CANCELLED", "cancelled"),
    ]  # fmt: skip


def _without_faults(bench: Bench, act: Callable[[], object]) -> None:
    plan, bench.links.plan = bench.links.plan, []
    bench.now += 1
    act()
    bench.links.plan = plan


def test_a_repeat_of_an_entry_that_has_expired_adds_nothing(bench: Bench) -> None:
    [first] = bench.store.add([addition("a", expires_ms=NOW)])
    assert bench.store.move().expired == 1

    [again] = bench.store.add([addition("a", expires_ms=NOW, run=first.entry_id.run)])

    assert again.code == "G"
    assert bench.states() == [("SCHEDULED", "a"), ("EXPIRED", "a")]


def test_a_refused_add_is_journalled_once(bench: Bench) -> None:
    bench.store.cancel("a", data={})

    codes = [bench.store.add([addition("a", run=NOW)])[0].code for _ in range(3)]

    assert codes == ["C", "C", "C"]
    assert bench.states() == [("SCHEDULED", "a"), ("CANCELLED", "a")]
    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED


def test_an_id_may_be_used_again_right_after_its_cancellation(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000)])
    bench.store.cancel("a", data={})

    [added] = bench.store.add([addition("a", 2_000)])

    assert added.code == "A"


def test_a_higher_version_takes_the_place_of_the_entry(bench: Bench) -> None:
    other = shape("delay-other")
    [first] = bench.store.add([addition("a", 9_000)])

    [second] = bench.store.add(
        [addition("a", 0, run=first.entry_id.run, version=2, template=other)]
    )
    [third] = bench.store.add([addition("a", 5_000, run=first.entry_id.run)])

    assert (second.code, third.code, third.due_ms) == ("A", "D", NOW)
    assert bench.store.move().moved == 1
    assert [one["id"] for one in bench.queue("delay-other")] == ["a"]
    uses = bench.raw.hgetall(bench.keys.template_uses)
    assert set(uses.values()) == {"0"}


def test_a_new_head_wakes_the_leader_once(bench: Bench) -> None:
    bench.store.add([addition("a", 5_000)])
    bench.store.add([addition("later", 9_000)])
    assert bench.raw.lrange(bench.keys.wake, 0, -1) == ["1"]
    bench.raw.delete(bench.keys.wake)

    bench.store.add([addition("later still", 9_000)])
    assert bench.raw.llen(bench.keys.wake) == 0

    bench.store.add([addition("sooner", 1_000)])
    bench.store.add([addition("soonest", 500)])
    assert bench.raw.lrange(bench.keys.wake, 0, -1) == ["1"]


# --- cancel ------------------------------------------------------------------------------


@answers("cancel", "CANCELLED now run", "CANCELLED now 0")
def test_a_cancelled_entry_never_comes(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000)])

    first = bench.store.cancel("a", data={"by": "me"})
    again = bench.store.cancel("a", data={"by": "me"})

    assert first.outcome is again.outcome is CancelOutcome.CANCELLED
    assert first.entry is not None
    assert first.entry.eta_ms == NOW + 1_001
    assert first.entry.envelope["value"] == "v"
    assert again.entry is None
    bench.now += 2_000
    assert bench.store.move().moved == 0
    assert bench.states() == [("SCHEDULED", "a"), ("CANCELLED", "a")]
    assert bench.raw.hgetall(bench.keys.template_uses) == {template_id(shape()): "0"}


@answers("cancel", "NOT_FOUND now")
def test_an_add_that_comes_after_its_cancellation_is_refused(bench: Bench) -> None:
    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.NOT_FOUND

    [added] = bench.store.add([addition("a", run=NOW - 1)])

    assert added.code == "C"
    assert bench.store.get("a") is None


@answers("cancel", "TOO_LATE now")
def test_what_has_been_handed_off_is_too_late(bench: Bench) -> None:
    [added] = bench.store.add([addition("a")])
    bench.store.move()

    answer = bench.store.cancel("a", run=added.entry_id.run, data={})

    assert answer.outcome is CancelOutcome.TOO_LATE


@answers("cancel", "LATE now")
def test_a_cancel_that_arrives_after_its_deadline_does_nothing(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    bench.now += WINDOW + 1

    answer = bench.script("cancel", epoch=0, deadline=NOW + WINDOW, task_id="a", run=0, data="{}")

    assert answer[0] == b"LATE"
    assert bench.store.get("a") is not None


@answers("cancel", "EPOCH now")
def test_a_cancel_meant_for_another_history_does_nothing(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    options = {"deadline": NOW + WINDOW, "task_id": "a", "run": 0, "data": "{}"}

    assert bench.script("cancel", epoch=bench.epoch + 1, **options)[0] == b"EPOCH"

    assert bench.store.get("a") is not None
    assert bench.script("cancel", epoch=bench.epoch, **options)[0] == b"CANCELLED"


def test_a_cancel_learns_the_new_history_by_itself(bench: Bench) -> None:
    bench.store.add([addition("a", 60_000)])
    bench.store.move()  # the idle link knows the epoch now
    bench.raw.hset(bench.keys.mark, "epoch", bench.epoch + 5)

    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED


def test_a_mark_that_changes_all_the_time_ends_a_cancel_after_its_window(bench: Bench) -> None:
    # Given a mark that no attempt ever meets as it was read
    bench.store._epoch = lambda link: bench.epoch + 1  # type: ignore[method-assign]
    bench.store._offset_ms = None
    real = bench.clock.boot
    bench.clock.boot = lambda: (setattr(bench.clock, "now", bench.clock.now + 0.5), real())[1]  # type: ignore[method-assign,func-returns-value]

    with pytest.raises(StoreUnavailable):
        bench.store.cancel("a", data={})


@pytest.mark.parametrize("turns", [1, 2, 15])
def test_a_lower_clock_lowers_no_refusal(bench: Bench, turns: int) -> None:
    bench.store.cancel("a", data={})
    bench.now -= turns * TOMBSTONE
    bench.store.cancel("a", data={})

    [added] = bench.store.add([addition("a", run=NOW)])

    assert added.code == "C"


@pytest.mark.parametrize("steps", [(-4_000,), (-60_000,), (-4_000, -4_000, 3_000)])
def test_tombstones_outlive_a_clock_that_steps_back(bench: Bench, steps: tuple[int, ...]) -> None:
    bench.store.cancel("a", data={})

    for step in steps:  # each new mark would drop an old turn's
        bench.now += step
        bench.store.cancel("other", data={})

    [added] = bench.store.add([addition("a", run=NOW)])
    assert added.code == "C"


@pytest.mark.parametrize("text", [b"rubbish", b"\xff\xfe", b"9 0123\n5\n1\n0\n0\nx", b""])
def test_an_unreadable_entry_can_be_cancelled(bench: Bench, text: bytes) -> None:
    bench.store.add([addition("a", 60_000)])
    bench.raw.hset(bench.keys.entries, "a", text)  # type: ignore[arg-type]

    answer = bench.store.cancel("a", data={})

    assert answer == (CancelOutcome.CANCELLED, None)
    assert bench.store.sizes()["pending"] == 0
    assert bench.raw.hlen(bench.keys.entries) == 0


def test_an_entry_without_a_record_can_be_cancelled(bench: Bench) -> None:
    bench.store.add([addition("a")])
    bench.raw.hdel(bench.keys.entries, "a")

    assert bench.store.cancel("a", data={}) == (CancelOutcome.CANCELLED, None)

    assert bench.store.move().handled == 0


def test_a_parked_entry_can_be_cancelled(bench: Bench) -> None:
    bench.store.add([addition("a")])
    bench.raw.hdel(bench.keys.templates, template_id(shape()))
    assert bench.store.move().quarantined == 1

    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED

    assert bench.store.quarantined() == {}
    assert [state for state, _ in bench.states()] == ["SCHEDULED", "QUARANTINED", "CANCELLED"]


def test_a_blocked_entry_can_be_cancelled(bench: Bench) -> None:
    bench.raw.set("delay-queue", "not a list")
    bench.store.add([addition("a")])
    assert bench.store.move().blocked == 1

    assert bench.store.cancel("a", data={}).outcome is CancelOutcome.CANCELLED

    assert bench.store.sizes()["blocked"] == 0


# --- move --------------------------------------------------------------------------------


@answers("move", "OK now next_due_ms")
def test_what_is_due_goes_to_its_queue_the_earliest_first(bench: Bench) -> None:
    for task_id, at in (("b", -20), ("a", -30), ("c", 0), ("not yet", 1)):
        bench.store.add([addition(task_id, at_ms=NOW + at)])

    moved = bench.store.move()

    assert moved == (NOW, NOW + 1, 3, 30, 0, 0, 0, "", False, 0, False, None)
    assert [(one["id"], one["run"], one["eta"], one["epoch"]) for one in bench.queue()] == [
        ("a", NOW, NOW - 30, bench.epoch),
        ("b", NOW, NOW - 20, bench.epoch),
        ("c", NOW, NOW, bench.epoch),
    ]
    assert bench.states()[-3:] == [("DISPATCHED", one) for one in "abc"]
    assert bench.raw.hkeys(bench.keys.entries) == ["not yet"]


def test_for_whoever_counts_a_move_tells_lags_and_routes(bench: Bench) -> None:
    slow, other = shape(queue_name="slow", task="shop.mail"), shape(task="shop.pay", body="other")
    dues = [("a", -5_000, slow), ("b", -10, None), ("c", -11, other), ("d", 0, None)]
    for task_id, at, template in dues:
        bench.store.add([addition(task_id, at_ms=NOW + at, template=template)])
    bench.store.lag_bounds_ms = (10, 100, 1_000)

    counts = bench.store.move().counts

    # a bound is within its bucket, as Prometheus has it
    assert counts is not None
    assert (counts.lag_ms, counts.buckets) == (5_021, [2, 1, 0, 1])
    assert sorted(counts.routes) == [
        ("shop.mail", "slow", 1), ("shop.pay", "delay-queue", 1), ("shop.pay", "delay-queue", 2),
    ]  # fmt: skip
    assert bench.store.move().counts is None, "nothing was moved"


@answers("move", "EPOCH now")
def test_a_mover_that_knows_another_history_moves_nothing(bench: Bench) -> None:
    bench.store.add([addition("a")])
    bench.store.move()
    bench.raw.hset(bench.keys.mark, "epoch", bench.epoch + 1)
    bench.store.add([addition("b")])

    with pytest.raises(StaleEpoch):
        bench.store.move()

    assert bench.store.get("b") is not None
    assert bench.store.move().moved == 1  # it has looked again


@answers("move", "STANDBY now")
def test_a_standby_takes_only_what_a_silent_leader_leaves(bench: Bench) -> None:
    bench.store.add([addition("a"), addition("b", 900)])
    bench.store.move(hold_ms=5_000)  # the leader makes progress, but moves nothing

    bench.now += 250
    assert bench.store.move(steal_ms=250).moved == 0
    bench.now += 1
    assert bench.store.move(steal_ms=250).moved == 1

    assert [one["id"] for one in bench.queue()] == ["a"]


@answers("move", "JUMPED now")
def test_nothing_is_moved_when_the_clock_is_later_than_it_can_be(bench: Bench) -> None:
    bench.store.add([addition("a")])

    assert bench.store.move(latest_ms=NOW - 1).unmoved

    assert bench.queue() == []
    assert bench.store.move(latest_ms=NOW).moved == 1


def test_entries_are_held_back_for_as_long_as_asked(bench: Bench) -> None:
    bench.store.add([addition("old", at_ms=NOW - 2_000), addition("new")])

    assert bench.store.move(hold_ms=1_000).moved == 1

    assert [one["id"] for one in bench.queue()] == ["old"]


def test_a_batch_is_bounded(make: Callable[..., Bench]) -> None:
    bench = make(batch_size=2)
    bench.store.add([addition(one) for one in "abc"])

    assert [bench.store.move().moved for _ in range(3)] == [2, 1, 0]


def test_queues_in_other_databases_and_several_shapes_in_one_batch(bench: Bench) -> None:
    shapes = [shape("delay-q", db, body) for body in ("one", "two") for db in (3, 0, 5)]
    bench.store.add([addition(f"t{n}", template=one) for n, one in enumerate(shapes)])

    moved = bench.store.move()

    assert (moved.moved, moved.quarantined) == (6, 0)
    for db in (3, 0, 5):
        bench.raw.select(db)
        assert sorted(one["body"] for one in bench.queue("delay-q")) == ["one", "two"]
    bench.raw.select(0)


def test_a_database_that_does_not_exist_blocks_only_its_entries(bench: Bench) -> None:
    bench.store.add([addition("a", template=shape(database=99)), addition("b")])

    moved = bench.store.move()

    assert (moved.moved, moved.blocked) == (1, 1)
    assert "DB 99" in moved.failure


def test_a_queue_with_a_time_to_live_gets_it_with_each_push(bench: Bench) -> None:
    expiring = ("delay-queue", "delay-queue-9")
    template = shape(expires_ms=60_000, expiring=expiring)
    bench.store.add([addition("a", template=template)])

    bench.store.move()

    assert 0 < bench.raw.pttl("delay-queue") <= 60_000


def test_a_queue_of_the_wrong_type_blocks_its_entries_and_no_others(bench: Bench) -> None:
    bench.raw.sadd("delay-broken", "not a list")
    bench.store.add([addition(f"b{n}", template=shape("delay-broken")) for n in range(3)])
    bench.store.add([addition("good")])

    moved = bench.store.move()
    assert (moved.moved, moved.blocked) == (1, 3)
    assert "delay-broken" in moved.failure
    # Then they do not stand in the way, and can be seen
    assert bench.store.move().handled == 0
    assert bench.store.count(after_ms=0, before_ms=10**15) == 3
    assert bench.store.get("b0") is not None

    # When the key is repaired, they come back and go
    bench.raw.delete("delay-broken")
    assert bench.store.merge_back(term=bench.term) == 3
    assert bench.store.move().moved == 3
    assert len(bench.queue("delay-broken")) == 3


def test_an_expired_entry_leaves_without_a_message(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000, expires_ms=NOW + 1_001)])
    bench.now += 1_001

    assert bench.store.move().expired == 1

    assert bench.queue() == []
    assert bench.states() == [("SCHEDULED", "a"), ("EXPIRED", "a")]


def test_an_unknown_codec_version_stays_in_place_and_is_told(bench: Bench) -> None:
    bench.store.add([addition("a"), addition("b")])
    record = bench.raw.hget(bench.keys.entries, "a")
    assert record
    bench.raw.hset(bench.keys.entries, "a", "2" + record[1:])

    moved = bench.store.move()

    assert (moved.moved, moved.blocked, moved.quarantined) == (1, 1, 0)
    assert "unknown version 2" in moved.failure
    assert bench.raw.hget(bench.keys.entries, "a") == "2" + record[1:]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda record: "rubbish", "record is damaged"),
        (lambda record: record[:-1] + "x", "record is damaged"),
        (lambda record: None, "record is missing"),
    ],
)
def test_a_bad_record_is_parked_and_the_batch_goes_on(
    bench: Bench, damage: Callable[[str], str | None], why: str
) -> None:
    bench.store.add([addition("bad"), addition("good")])
    record = damage(bench.raw.hget(bench.keys.entries, "bad") or "")
    if record is None:
        bench.raw.hdel(bench.keys.entries, "bad")
    else:
        bench.raw.hset(bench.keys.entries, "bad", record)

    moved = bench.store.move()

    assert (moved.moved, moved.quarantined) == (1, 1)
    assert why in bench.store.quarantined()["bad"]
    assert ("QUARANTINED", "bad") in bench.states()


@pytest.mark.parametrize("lost", [True, False])
def test_a_bad_template_parks_its_entries_and_the_next_add_heals_it(
    bench: Bench, lost: bool
) -> None:
    bench.store.add([addition("a")])
    name = template_id(shape())
    if lost:
        bench.raw.hdel(bench.keys.templates, name)
    else:
        bench.raw.hset(bench.keys.templates, name, "rubbish")

    assert bench.store.move().quarantined == 1
    assert bench.store.quarantined() == {"a": "its template is missing or damaged"}

    bench.store.add([addition("b")])
    assert bench.store.move().moved == 1


def test_values_that_do_not_fit_their_template_are_parked(bench: Bench) -> None:
    bench.store.add([addition("few", values=()), addition("good")])

    moved = bench.store.move()

    assert (moved.moved, moved.quarantined) == (1, 1)
    assert bench.store.quarantined() == {"few": "its values do not fit its template"}


def test_an_empty_value_keeps_the_others_in_their_places(bench: Bench) -> None:
    template = shape().replace('"value":\1A', '"value":"\1A","second":\1B')
    bench.store.add([addition("a", template=template, values=("", "2"))])

    bench.store.move()

    assert (bench.queue()[0]["value"], bench.queue()[0]["second"]) == ("", 2)


# --- merge_back --------------------------------------------------------------------------


@answers("merge_back", "EPOCH", "TERM", "number of entries returned")
def test_only_the_leader_of_this_history_merges_back(bench: Bench) -> None:
    bench.raw.set("delay-queue", "not a list")
    bench.store.add([addition("a")])
    bench.store.move()
    right = {"epoch": bench.epoch, "term": bench.term, "limit": 10}

    assert bench.script("merge_back", **{**right, "epoch": bench.epoch - 1}) == b"EPOCH"
    assert bench.script("merge_back", **{**right, "term": bench.term + 1}) == b"TERM"
    assert bench.store.sizes()["blocked"] == 1

    assert bench.script("merge_back", **right) == 1
    assert bench.store.sizes()["blocked"] == 0


def test_entries_that_stay_blocked_do_not_keep_those_behind_them(
    make: Callable[..., Bench],
) -> None:
    # Given more blocked entries than a batch, all in front of one whose queue is repaired
    bench = make(batch_size=2)
    bench.raw.set("delay-broken", "not a list")
    bench.raw.set("delay-queue", "not a list")
    broken = shape("delay-broken")
    for number in range(5):
        bench.store.add([addition(f"b{number}", at_ms=NOW - 50 + number, template=broken)])
    bench.store.add([addition("good")])
    while bench.store.move().blocked:
        pass
    bench.raw.delete("delay-queue")

    for _ in range(5):
        bench.store.merge_back(term=bench.term)
        while bench.store.move().handled:
            pass

    assert [one["id"] for one in bench.queue()] == ["good"]
    assert bench.store.sizes()["blocked"] == 5


# --- begin_epoch -------------------------------------------------------------------------


@answers("begin_epoch", "TERM", "epoch run_id_before")
def test_only_the_leader_names_a_history_and_its_number_grows(bench: Bench) -> None:
    first = bench.epoch
    assert first >= NOW
    # naming it again changes nothing
    same = bench.store.begin_epoch(term=bench.term, known_epoch=first + 1)
    assert same is not None
    assert same[0] == first

    # Given another server's mark, as after a restart
    bench.raw.hset(bench.keys.mark, "run_id", "before")
    assert bench.store.begin_epoch(term=bench.term + 1, known_epoch=0) is None
    begun = bench.store.begin_epoch(term=bench.term, known_epoch=first + 70_000)
    assert begun == (first + 70_001, "before")


def test_a_history_is_newer_than_the_one_before_though_the_clock_went_back(bench: Bench) -> None:
    bench.raw.hset(bench.keys.mark, "run_id", "before")
    bench.now -= 3_600_000

    begun = bench.store.begin_epoch(term=bench.term, known_epoch=0)

    assert begun == (bench.epoch + 1, "before")


# --- journal: record, trim ---------------------------------------------------------------


@answers("record", "now")
def test_transitions_from_workers_are_journalled(bench: Bench) -> None:
    entry_id = EntryId("a", 7)
    bench.store.record(
        [
            Transition(entry_id, 1, State.STARTED, {"worker": "w"}),
            Transition(entry_id, 1, State.FAILED, {"error": "Oops\nwith\ttabs"}),
        ]
    )

    events = [event for _, some in bench.store.read_journal("0", 9) for event in some]

    assert [(one.state, one.entry_id, one.at_ms) for one in events] == [
        ("STARTED", entry_id, NOW),
        ("FAILED", entry_id, NOW),
    ]
    assert events[1].data == {"error": "Oops\nwith\ttabs"}
    assert events[1].epoch == bench.epoch


def test_what_a_worker_could_not_tell_is_a_gap_before_what_it_tells(bench: Bench) -> None:
    bench.store.record([Transition(EntryId("a", 7), 1, State.STARTED, {})], missing=3)
    bench.store.record([], missing=2)
    bench.store.record([Transition(EntryId("a", 7), 1, State.SUCCEEDED, {})])

    events = [event for _, some in bench.store.read_journal("0", 9) for event in some]

    assert [(one.state, one.data) for one in events] == [
        ("GAP", {"missing": 3}), ("STARTED", {}), ("GAP", {"missing": 2}), ("SUCCEEDED", {}),
    ]  # fmt: skip


def test_the_journal_is_read_to_the_entry_that_brings_enough_events(bench: Bench) -> None:
    for name, size in zip("abcde", (1, 1, 3, 3, 1), strict=True):
        bench.store.add([addition(f"{name}{number}", 1_000) for number in range(size)])
    whole = bench.store.read_journal("0", 100)
    assert [len(events) for _, events in whole] == [1, 1, 3, 3, 1]

    # an entry is never divided, and what the limit cuts off comes with the next reading
    for limit, sizes in {1: [1], 2: [1, 1], 3: [1, 1, 3], 5: [1, 1, 3], 6: [1, 1, 3, 3]}.items():
        assert bench.store.read_journal("0", limit) == whole[: len(sizes)]
    assert bench.store.read_journal(whole[2][0], 2) == whole[3:4]
    assert bench.store.read_journal(whole[3][0], 2) == whole[4:]
    assert bench.store.read_journal(whole[4][0], 2) == []


def test_a_long_journal_is_read_in_pages_without_a_gap(bench: Bench) -> None:
    for number in range(3 * PAGE):
        bench.store.add([addition(f"t{number}", 1_000)])

    read, after = [], "0"
    while page := bench.store.read_journal(after, 2 * PAGE):
        read += page
        after = page[-1][0]

    assert [one.entry_id.task_id for _, [one] in read] == [f"t{n}" for n in range(3 * PAGE)]


@answers("trim", "EPOCH", "TERM", "number of entries forgotten")
def test_the_journal_is_trimmed_by_the_leader_of_its_history(bench: Bench) -> None:
    for task_id in "abc":
        bench.store.add([addition(task_id, 1_000)])
    _, (second, _), (third, _) = bench.store.read_journal("0", 9)
    right = {"epoch": bench.epoch, "term": bench.term, "last_id": second}

    assert bench.script("trim", **{**right, "epoch": bench.epoch + 1}) == b"EPOCH"
    assert bench.script("trim", **{**right, "term": bench.term + 1}) == b"TERM"
    assert bench.store.trimmed() is None
    assert bench.script("trim", **right) == 2

    assert bench.store.trimmed() == JournalPosition(0, bench.epoch, second)
    assert [one for one, _ in bench.store.read_journal("0", 9)] == [third]


def test_what_cannot_be_read_in_the_journal_is_a_gap_and_the_rest_is_read(bench: Bench) -> None:
    bench.raw.xadd(bench.keys.journal, {"what": "no event"})
    good, bad = "a\t5\t1\t\t{}", "no event"
    event = {"s": "STARTED", "e": bench.epoch, "t": NOW, "d": f"{good}\n{bad}\n{good}"}
    bench.raw.xadd(bench.keys.journal, event)

    (_, [first]), (_, events) = bench.store.read_journal("0", 9)

    assert (first.state, first.data["missing"]) == ("GAP", 1)
    assert [(one.state, one.position) for one in events] == [
        ("STARTED", 0), ("GAP", 1), ("STARTED", 2),
    ]  # fmt: skip
    assert "no event" in str(events[1].data)


# --- elect, release: see also test_lease.py -----------------------------------------------


@answers("elect", "holder term seq")
@answers("release", "1 given back", "0 it was not")
def test_the_lease_and_the_head_are_told_with_each_call(bench: Bench) -> None:
    bench.store.add([addition("a", at_ms=NOW + 7)])
    bench.store.move()

    answer = bench.script("elect", holder="you", seen_term=0, seen_seq=0, may_take=0)
    assert answer == [
        b"me", str(bench.term).encode(), b"1", str(NOW).encode(),
        str(NOW + 7).encode(), str(NOW).encode(), b"-1", b"0",
    ]  # fmt: skip
    assert bench.script("release", holder="you", term=bench.term) == 0
    assert bench.script("release", holder="me", term=bench.term) == 1
