"""The watch over hand-offs and the guard's marks, on a real Redis, 7 and 6.2.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Transition
from celery_delay.domain.states import State
from celery_delay.domain.watches import Look
from celery_delay.store import watching
from celery_delay.store.guarding import FORGET_WORKERS_MS, Claim
from tests.contract.bench import NOW, Bench, answers
from tests.contract.test_revoking import QUEUE, SHAPE, change, moved, shape
from tests.shards import PREFIX, addition

pytestmark = pytest.mark.redis62

PATIENCE, KEEP = 30_000, 60_000
TRACK = {"guard": "track", "guard_keep": KEEP / 1000}
GUARD = {"guard": "guard", "guard_keep": KEEP / 1000}


@pytest.fixture
def tracked(make: Callable[..., Bench]) -> Bench:
    """A shard that watches its hand-offs, and a worker that serves the queue and reports."""
    bench = make(**TRACK)
    bench.store.give_sign("w@host 1", [QUEUE])
    return bench


def guarded(make: Callable[..., Bench], **options: Any) -> Bench:
    bench = make(**GUARD, **options)
    bench.store.give_sign("w@host 1", [QUEUE])
    bench.store.give_sign("v@host 2", [QUEUE])
    return bench


def look(bench: Bench, after_ms: int = PATIENCE, **options: Any) -> Look:
    bench.now += after_ms
    found = bench.store.watch_over(term=bench.term, **options)
    assert found is not None
    return found


def tell(bench: Bench, task_id: str, state: State, run: int | None = None) -> None:
    entry_id = EntryId(task_id, run if run is not None else NOW)
    bench.store.record([Transition(entry_id, 1, state, {})])


def take(bench: Bench, *, unacked: bool) -> dict[str, Any]:
    """What a worker does first: take a message, and write down that it has it."""
    message: dict[str, Any] = json.loads(bench.raw.rpop(QUEUE))
    if unacked:
        tag = message["properties"]["delivery_tag"]
        bench.raw.hset("unacked", tag, json.dumps([message, "", QUEUE]))
    return message


def watched(bench: Bench) -> set[str]:
    members = set(bench.raw.zrange(bench.keys.watched, 0, -1))
    assert members == set(bench.raw.hkeys(bench.keys.watching))
    return {one.rpartition("/")[0] for one in members}


def uses(bench: Bench) -> set[int]:
    return {int(one) for one in bench.raw.hvals(bench.keys.template_uses)}


def entry(task_id: str = "a", run: int = NOW) -> EntryId:
    return EntryId(task_id, run)


def begin(bench: Bench, worker: str = "w@host 1", token: str = "one", **options: Any) -> Claim:
    options = {"comes_again": False, **options}
    return bench.store.begin_run(entry(), token=token, worker=worker, **options)


def guard_keys(bench: Bench) -> Mapping[str, Any]:
    return {one: bench.raw.type(one) for one in bench.raw.scan_iter(f"*{PREFIX}*guard:*")}


# --- the watch -----------------------------------------------------------------------------


@answers("watch_over", "OK now next_look_ms looked sent missing")
def test_what_is_found_nowhere_at_two_looks_is_sent_again(tracked: Bench) -> None:
    moved(tracked, "a")
    first = take(tracked, unacked=False)

    found = look(tracked)
    assert (found.missing, found.sent) == (1, [])
    assert tracked.queue(QUEUE) == []

    found = look(tracked)
    [sent] = found.sent
    [message] = tracked.queue(QUEUE)
    assert sent.task_id == "a"
    tag = first["properties"].pop("delivery_tag")
    assert message["properties"].pop("delivery_tag") == f"{tag}.w1"
    assert message == first
    assert tracked.states() == [("SCHEDULED", "a"), ("DISPATCHED", "a"), ("DISPATCHED", "a")]
    assert found.next_look_ms == tracked.now + PATIENCE


def test_what_a_worker_has_fetched_is_not_sent_again_while_it_says_so(tracked: Bench) -> None:
    moved(tracked, "a")
    take(tracked, unacked=False)
    for _ in range(3):
        assert look(tracked).missing == 1
        tracked.store.tell_fetched([entry(), entry("unknown")])
    assert watched(tracked) == {"a"}
    assert tracked.states() == [("SCHEDULED", "a"), ("DISPATCHED", "a")]

    look(tracked)
    assert look(tracked).sent == [entry()], "its worker has fallen silent"


def test_a_copy_bears_the_context_of_the_span_that_has_sent_it(tracked: Bench) -> None:
    moved(tracked, "a")
    first = take(tracked, unacked=False)["headers"]["celery_delay"]
    assert "dispatch" not in first

    look(tracked, traceparent="00-1-2-01")
    found = look(tracked, traceparent="00-3-4-01")
    [message] = tracked.queue(QUEUE)
    assert message["headers"]["celery_delay"] == {**first, "dispatch": "00-3-4-01"}
    assert found.max_lag_ms == tracked.now - first["eta_ms"]


def test_a_second_copy_has_another_tag_and_then_there_is_an_end(tracked: Bench) -> None:
    moved(tracked, "a")
    tags = set()
    for _ in range(1 + watching.MOST_COPIES):
        tags.add(take(tracked, unacked=False)["properties"]["delivery_tag"])
        look(tracked)
        found = look(tracked)

    assert len(tags) == 1 + watching.MOST_COPIES
    assert [one.task_id for one in found.given_up] == ["a"]
    assert (watched(tracked), uses(tracked), found.next_look_ms) == (set(), {0}, None)


@pytest.mark.parametrize("where", ["on its queue", "on the list of another priority", "unacked"])
def test_what_is_somewhere_is_left_there(tracked: Bench, where: str) -> None:
    tracked.store.endings = ("", "\x06\x163")
    moved(tracked, "a")
    if where == "unacked":
        take(tracked, unacked=True)
    elif where != "on its queue":
        tracked.raw.rename(QUEUE, QUEUE + "\x06\x163")

    for _ in range(3):
        assert look(tracked)[2:7] == (1, 0, 0, 0, [])


def test_a_copy_that_a_worker_has_counts_as_well(tracked: Bench) -> None:
    moved(tracked, "a")
    take(tracked, unacked=False)
    look(tracked)
    assert len(look(tracked).sent) == 1
    take(tracked, unacked=True)

    for _ in range(3):
        found = look(tracked)
        assert (found.missing, found.sent) == (0, [])


def test_the_second_look_forgives_when_the_message_is_there_again(tracked: Bench) -> None:
    """A worker has it in its hands alone until it has written that down."""
    moved(tracked, "a")
    message = take(tracked, unacked=False)
    assert look(tracked).missing == 1
    tracked.raw.hset("unacked", message["properties"]["delivery_tag"], "…")
    assert look(tracked).missing == 0
    tracked.raw.delete("unacked")

    assert (look(tracked).missing, tracked.queue(QUEUE)) == (1, [])


def test_a_redelivered_message_is_known_by_its_tag(tracked: Bench) -> None:
    moved(tracked, "a")

    def redeliver(message: dict[str, Any]) -> None:
        message["headers"]["redelivered"] = True

    change(tracked, redeliver, QUEUE)
    assert look(tracked).missing == 0


@answers("report", "now")
@pytest.mark.parametrize(
    "state",
    [State.STARTED, State.SUCCEEDED, State.FAILED, State.REVOKED, State.REJECTED, State.RETRIED],
)
def test_a_workers_word_ends_the_watch(tracked: Bench, state: State) -> None:
    moved(tracked, "a", "b")
    run = tracked.journal()[0][2]
    tell(tracked, "a", State.DISPATCHED, run + 1)
    assert watched(tracked) == {"a", "b"}

    tell(tracked, "a", state, run)

    assert (watched(tracked), uses(tracked)) == ({"b"}, {1})
    assert tracked.states()[-1] == (state.value, "a")


def test_what_the_broker_keeps_is_watched_until_it_is_over(tracked: Bench) -> None:
    """``acks_late``: its redelivery after a kill can be lost like the first delivery."""
    moved(tracked, "a")
    run = tracked.journal()[0][2]
    entry_id = EntryId("a", run)
    tracked.store.record([Transition(entry_id, 1, State.STARTED, {}, is_kept=True)])
    assert (watched(tracked), tracked.states()[-1]) == ({"a"}, ("STARTED", "a"))

    take(tracked, unacked=False)
    look(tracked)
    assert len(look(tracked).sent) == 1
    tell(tracked, "a", State.SUCCEEDED, run)
    assert watched(tracked) == set()


def test_what_could_not_be_told_at_its_time_ends_the_watch_and_is_not_journalled(
    tracked: Bench,
) -> None:
    moved(tracked, "a", "b")
    run = tracked.journal()[0][2]
    late = [Transition(EntryId("a", run), 1, State.STARTED, {})]

    tracked.store.record([Transition(EntryId("b", run), 1, State.STARTED, {})], 1, late)

    assert watched(tracked) == set()
    assert tracked.states()[-2:] == [("GAP", "-"), ("STARTED", "b")]


def test_without_an_audit_the_watch_is_the_same(make: Callable[..., Bench]) -> None:
    bench = make(**TRACK, audit="off")
    moved(bench, "a")
    [member] = bench.raw.zrange(bench.keys.watched, 0, -1)

    bench.store.record([Transition(EntryId("a", int(member[2:])), 1, State.STARTED, {})], 1)

    assert watched(bench) == set()
    assert not bench.raw.exists(bench.keys.journal)


def test_a_message_that_is_taken_off_its_queue_is_watched_no_more(tracked: Bench) -> None:
    moved(tracked, "a")
    assert tracked.store.take_off("a").is_taken
    assert watched(tracked) == set()


def test_what_is_in_the_store_again_is_watched_no_more(tracked: Bench) -> None:
    moved(tracked, "a")
    take(tracked, unacked=False)
    run = tracked.journal()[0][2]
    tracked.store.add([addition("a", 10**7, run=run + 1, template=SHAPE)])

    look(tracked)

    assert watched(tracked) == set()


def test_nothing_is_sent_again_of_queues_that_nobody_serves_who_reports(
    make: Callable[..., Bench],
) -> None:
    bench = make(**TRACK)
    moved(bench, "a")
    take(bench, unacked=False)
    bench.store.give_sign("w@host 1", ["another"])

    assert look(bench).spared == 1
    bench.store.give_sign("w@host 1", [QUEUE])
    assert look(bench, spared=[QUEUE]).spared == 1
    assert look(bench).missing == 1
    bench.store.give_sign("w@host 1", ())
    assert len(look(bench).sent) == 1


def test_a_long_queue_is_not_searched_and_nothing_of_it_is_sent_again(
    tracked: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LONGEST", 2)
    moved(tracked, "a", "b", "c")
    assert look(tracked).unsearched == 3
    take(tracked, unacked=False)
    assert look(tracked).missing == 1
    tracked.raw.lpush(QUEUE, "x")
    assert look(tracked).sent == []

    monkeypatch.setattr(watching, "_MOST_BYTES", 10)
    tracked.raw.ltrim(QUEUE, 1, 1)
    assert look(tracked).unsearched == 3


def test_a_queue_that_is_none_is_told_and_nothing_is_lost(tracked: Bench) -> None:
    moved(tracked, "a")
    tracked.raw.delete(QUEUE)
    tracked.raw.set(QUEUE, "x")

    found = look(tracked)

    assert (found.unsearched, "WRONGTYPE" in found.failure) == (1, True)
    assert watched(tracked) == {"a"}
    tracked.raw.delete(QUEUE)


def test_a_queue_in_another_db_is_searched_there_and_the_copy_goes_there(
    make: Callable[..., Bench],
) -> None:
    bench = make(**TRACK)
    bench.store.give_sign("w@host 1", [QUEUE])
    moved(bench, "a", template=shape(database=3))
    other = type(bench.raw)(
        unix_socket_path=bench.raw.connection_pool.connection_kwargs["path"], db=3
    )
    try:
        assert look(bench).missing == 0
        message = json.loads(other.rpop(QUEUE))
        other.hset("unacked", message["properties"]["delivery_tag"], "…")
        assert look(bench).missing == 0
        other.delete("unacked")
        look(bench)
        assert len(look(bench).sent) == 1
        assert other.llen(QUEUE) == 1
        assert not bench.raw.exists(QUEUE)
    finally:
        other.flushdb()
        other.close()


def test_more_than_so_many_go_out_unwatched(make: Callable[..., Bench]) -> None:
    bench = make(**TRACK, guard_most=2)
    moved(bench, "a", "b", "c")

    assert len(watched(bench)) == 2
    assert look(bench).unwatched == 1
    assert look(bench).unwatched == 0


def test_without_the_setting_nothing_is_kept(bench: Bench) -> None:
    moved(bench, "a")
    tell(bench, "a", State.STARTED)
    assert guard_keys(bench) == {}
    assert uses(bench) == {0}


@answers("watch_over", "EPOCH", "TERM")
def test_only_the_leader_watches(tracked: Bench) -> None:
    moved(tracked, "a")
    assert tracked.store.watch_over(term=tracked.term + 1) is None
    values = {
        "epoch": tracked.epoch + 1, "term": tracked.term, "limit": 1, "patience": 1,
        "most_copies": 1, "longest": 1, "most_bytes": 1, "database": 0, "unacked": "u",
        "endings": '[""]', "traceparent": "",
    }  # fmt: skip
    assert tracked.script("watch_over", **values) == b"EPOCH"


# --- marks ---------------------------------------------------------------------------------


@answers("begin_run", "RUN", "WAIT", "DROP")
def test_a_run_is_one_deliverys_alone(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    assert begin(bench) is Claim.RUN
    assert begin(bench) is Claim.RUN, "a repeat after a lost answer"

    # the other may be killed before it begins
    assert begin(bench, "v@host 2", "two") is Claim.WAIT
    assert begin(bench, "w@host 1", "three") is Claim.WAIT
    tell(bench, "a", State.STARTED)
    assert begin(bench, "v@host 2", "two", comes_again=True) is Claim.WAIT
    assert begin(bench, "v@host 2", "two") is Claim.DROP
    tell(bench, "a", State.SUCCEEDED)
    assert begin(bench, "v@host 2", "two", comes_again=True) is Claim.DROP
    assert bench.states()[-3:] == [("DROPPED", "a"), ("SUCCEEDED", "a"), ("DROPPED", "a")]


@answers("begin_run", "TAKEN")
def test_a_run_of_a_dead_worker_is_taken_over(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    begin(bench)
    bench.now += PATIENCE + 1

    # it had not begun, so there is nothing to double
    assert begin(bench, "v@host 2", "two") is Claim.TAKEN
    assert begin(bench, "v@host 2", "two") is Claim.RUN
    tell(bench, "a", State.STARTED)
    bench.now += PATIENCE + 1
    # it had: once more only if the broker, too, never heard the end
    assert begin(bench, "w@host 1", "three") is Claim.DROP
    assert begin(bench, "w@host 1", "three", comes_again=True) is Claim.TAKEN


def test_a_worker_that_ends_is_dead_at_once(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    begin(bench)
    assert begin(bench, "v@host 2", "two") is Claim.WAIT
    bench.store.give_sign("w@host 1", ())
    assert begin(bench, "v@host 2", "two") is Claim.TAKEN


@answers("sign_of_life", "now")
def test_a_claim_is_a_sign_of_life_too(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    assert set(bench.store.reporting_workers()) == {"w@host 1", "v@host 2"}
    bench.now += PATIENCE
    begin(bench)
    bench.now += 1
    assert begin(bench, "v@host 2", "two") is Claim.WAIT


@answers("unclaim", "1 it is free", "0 it was not")
def test_a_run_whose_message_goes_back_to_its_queue_is_nobodys(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    begin(bench)
    tell(bench, "a", State.STARTED)

    assert not bench.store.unclaim(entry(), "two")
    assert bench.store.unclaim(entry(), "one")
    assert not bench.store.unclaim(entry(), "one")

    assert begin(bench, "v@host 2", "two") is Claim.RUN


def test_the_next_run_is_another(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    begin(bench)
    tell(bench, "a", State.RETRIED)
    following = entry(run=NOW + 1)
    answer = bench.store.begin_run(following, token="x", worker="v@host 2", comes_again=False)
    assert answer is Claim.RUN


def test_that_a_run_is_over_is_known_for_so_long_and_then_forgotten(
    make: Callable[..., Bench],
) -> None:
    bench = guarded(make)
    bench.now = NOW // (2 * KEEP) * 2 * KEEP + KEEP - 1  # the last moment of a turn
    begin(bench)
    tell(bench, "a", State.SUCCEEDED)
    assert not bench.raw.exists(bench.keys.marks, bench.keys.mark_looks)

    bench.now += KEEP
    assert begin(bench, "v@host 2", "two") is Claim.DROP
    for key in (bench.keys.done_even, bench.keys.done_odd):
        assert bench.raw.pttl(key) in (-2, *range(1, 2 * KEEP + 1))
    bench.now += KEEP + 1
    assert begin(bench, "v@host 2", "two") is Claim.RUN


@answers("forget_marks", "number of marks forgotten")
def test_marks_of_the_dead_are_forgotten_and_those_of_the_living_kept(
    make: Callable[..., Bench],
) -> None:
    bench = guarded(make)
    begin(bench)
    bench.store.begin_run(entry("b"), token="b", worker="v@host 2", comes_again=False)
    bench.now += KEEP
    bench.store.give_sign("w@host 1", [QUEUE])

    assert bench.store.forget_marks(term=bench.term) == 1
    assert bench.store.forget_marks(term=bench.term) == 0
    assert [one.rpartition("/")[0] for one in bench.raw.hkeys(bench.keys.marks)] == ["a"]
    assert bench.raw.zcard(bench.keys.mark_looks) == 1


@answers("forget_marks", "EPOCH", "TERM")
def test_only_the_leader_forgets_marks(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    assert bench.store.forget_marks(term=bench.term + 1) == 0
    values = {"term": bench.term, "keep_ms": 1, "silent_ms": 1, "limit": 1}
    assert bench.script("forget_marks", epoch=bench.epoch + 1, **values) == b"EPOCH"
    values["term"] += 1
    assert bench.script("forget_marks", epoch=bench.epoch, **values) == b"TERM"


def test_workers_of_which_nothing_is_heard_are_forgotten(make: Callable[..., Bench]) -> None:
    bench = guarded(make)
    bench.now += FORGET_WORKERS_MS + 1
    bench.store.give_sign("u@host 3", ["other"])
    assert bench.raw.zrange(bench.keys.workers, 0, -1) == ["u@host 3"]
    assert bench.raw.hkeys(bench.keys.served) == ["other"]
