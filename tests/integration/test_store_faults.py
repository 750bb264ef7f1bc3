"""The store when Redis is full, away, restarted, demoted, locked, or its answers get lost."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from celery_delay.domain.clock import SystemClock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import StaleEpoch, Transition
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store import additions
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore
from tests.faults_proxy import FaultyProxy
from tests.processes import wait_until
from tests.projects import hand_off, make_app
from tests.projects import messages as app_messages
from tests.servers import REDIS, REDIS_62
from tests.shards import PREFIX, addition, lead, shape, shard, to_links

HOUR = 3_600_000
QUEUE = "delay-queue"
#: Much longer than any of these calls may take, and much shorter than for ever.
BOUND = 30.0

BOTH = pytest.mark.parametrize("kind", [REDIS, REDIS_62])


@pytest.fixture
def known_keys() -> tuple[str, ...]:
    return ("*delay*", "celery", "_kombu.*", "celery-task-meta-*")


@contextmanager
def raw(server: EmbeddedRedis, database: int = 0) -> Iterator[redis.Redis]:
    """A client that sees what is in Redis, past the store."""
    with redis.Redis(unix_socket_path=str(server.socket), db=database) as client:
        yield client


@contextmanager
def full(server: EmbeddedRedis) -> Iterator[None]:
    """A Redis that has reached its maxmemory and evicts nothing."""
    with raw(server) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


@pytest.fixture
def proxy(redis_server: EmbeddedRedis) -> Iterator[FaultyProxy]:
    with FaultyProxy(redis_server.port) as proxy:
        yield proxy


def on_queue(server: EmbeddedRedis, queue: str = QUEUE, database: int = 0) -> list[str]:
    """The ids of the messages on a queue."""
    with raw(server, database) as client:
        return [json.loads(text)["id"] for text in client.lrange(queue, 0, -1)]


def nothing() -> None:
    """A task."""


def drain(store: RedisStore) -> int:
    """Hand off all that is due; how many entries."""
    moved = 0
    while (answer := store.move()).handled:
        moved += answer.moved
    return moved


def states(store: RedisStore, task_id: str) -> list[str]:
    """What the journal says of a task."""
    return [
        event.state
        for _, events in store.read_journal("0", 1_000)
        for event in events
        if event.entry_id.task_id == task_id
    ]


# --- a full Redis -------------------------------------------------------------------------


@pytest.mark.redis62
def test_a_full_redis_refuses_an_add_and_stores_nothing(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.url)
    lead(store)
    store.add([addition("before", HOUR)])

    with full(redis_server):
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            store.add([addition("refused"), addition("refused-too")])
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            store.add([addition("refused-new-shape", template=shape(body="another"))])

    assert store.sizes()["pending"] == 1
    assert store.sizes()["templates"] == 1
    assert [states(store, one) for one in ("refused", "refused-too")] == [[], []]
    assert store.add([addition("refused")])[0].code == "A"


@pytest.mark.redis62
@pytest.mark.parametrize("flushed", [False, True], ids=["scripts loaded", "scripts forgotten"])
def test_all_but_an_add_goes_on_while_redis_is_full(
    redis_server: EmbeddedRedis, flushed: bool
) -> None:
    store = shard(redis_server.url, batch_size=20)
    term = lead(store)
    store.add([addition(f"due-{i}") for i in range(50)])
    store.add([addition("later", HOUR)])
    lease = RedisLease(store._links.link(), store.keys, "me")

    with full(redis_server):
        if flushed:
            with raw(redis_server) as client:
                client.script_flush()
        moved = drain(store)
        cancelled = store.cancel("later", data={})
        seen = lease.elect(seen=None, may_take=False)
        store.record([Transition(EntryId("due-1", 1), 1, State.STARTED, {})])
        merged = store.merge_back(term=term)
        begun = store.begin_epoch(term=term, known_epoch=0)
        released = lease.release(term)
    lease.close()

    assert moved == 50
    assert sorted(on_queue(redis_server)) == sorted(f"due-{i}" for i in range(50))
    assert cancelled.outcome is CancelOutcome.CANCELLED
    assert (seen.holder, seen.term) == ("me", term)
    assert "STARTED" in states(store, "due-1")
    assert "DISPATCHED" in states(store, "due-1")
    assert states(store, "later") == ["SCHEDULED", "CANCELLED"]
    assert merged == 0
    assert begun is not None
    assert released


@pytest.mark.redis62
def test_a_full_redis_can_be_given_a_new_epoch_and_leader(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.url)

    with full(redis_server):
        term = lead(store)

    assert store.leader()[:2] == ("me", term)
    assert drain(store) == 0  # the epoch has its name: a move is answered


# --- a queue that is none -----------------------------------------------------------------


@pytest.mark.redis62
def test_entries_of_a_queue_that_is_no_list_stand_aside(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.url)
    term = lead(store)
    broken = shape("delay-broken")
    store.add([addition(f"good-{i}") for i in range(3)])
    store.add([addition(f"stuck-{i}", template=broken) for i in range(3)])
    with raw(redis_server) as client:
        client.set("delay-broken", "no list")

        # the others flow, and those of the broken queue do not stand in their way
        moved = store.move()
        assert (moved.moved, moved.blocked) == (3, 3)
        assert "delay-broken" in moved.failure
        assert sorted(on_queue(redis_server)) == ["good-0", "good-1", "good-2"]
        assert store.move().handled == 0
        assert store.get("stuck-1") is not None

        # still broken: they come back, and stand aside again
        assert store.merge_back(term=term) == 3
        assert (store.move().moved, store.sizes()["blocked"]) == (0, 3)

        # repaired: they go out, once
        client.delete("delay-broken")
        assert store.merge_back(term=term) == 3
        assert drain(store) == 3
    assert sorted(on_queue(redis_server, "delay-broken")) == ["stuck-0", "stuck-1", "stuck-2"]
    assert store.sizes()["blocked"] == store.sizes()["pending"] == 0
    assert states(store, "stuck-1") == ["SCHEDULED", "DISPATCHED"]


# --- answers that are lost or late ---------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop-reply", "reset"])
@pytest.mark.parametrize("times", [1, 3])
def test_an_add_whose_answer_is_lost_is_stored_once(
    redis_server: EmbeddedRedis, proxy: FaultyProxy, fault: str, times: int
) -> None:
    store = shard(proxy.url)
    lead(store)
    store.add([addition("warm-up", HOUR)])

    proxy.fail(fault, times)
    [added] = store.add([addition("task")])

    assert proxy.met == [fault] * times
    assert added.code == ("D" if fault == "drop-reply" else "A")
    assert drain(store) == 1
    assert on_queue(redis_server) == ["task"]
    assert states(store, "task") == ["SCHEDULED", "DISPATCHED"]


@pytest.mark.parametrize("fault", ["drop-reply", "reset"])
def test_a_cancel_whose_answer_is_lost_is_told_what_it_did(
    redis_server: EmbeddedRedis, proxy: FaultyProxy, fault: str
) -> None:
    store = shard(proxy.url)
    lead(store)
    store.add([addition("task", HOUR)])
    store.cancel("warm-up", data={})

    proxy.fail(fault)
    cancelled = store.cancel("task", data={"by": "me"})

    assert proxy.met == [fault]
    assert cancelled.outcome is CancelOutcome.CANCELLED
    assert store.get("task") is None
    assert states(store, "task") == ["SCHEDULED", "CANCELLED"]


def test_a_move_whose_answer_is_lost_moves_each_entry_once(
    redis_server: EmbeddedRedis, proxy: FaultyProxy
) -> None:
    store = shard(proxy.url, batch_size=2)
    lead(store)
    store.move()
    store.add([addition(f"task-{i}") for i in range(6)])

    proxy.fail("drop-reply")
    with pytest.raises(StoreUnavailable):
        store.move()

    assert drain(store) == 4
    assert Counter(on_queue(redis_server)) == {f"task-{i}": 1 for i in range(6)}


def test_a_black_hole_ends_a_call_with_its_outcome_unknown(
    redis_server: EmbeddedRedis, proxy: FaultyProxy
) -> None:
    store = shard(proxy.url, redis_timeout=0.5, add_window=1.0)
    store.add([addition("known", HOUR)])

    proxy.fail("blackhole", 1_000)
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown) as unknown:
        store.add([addition("task", HOUR)])
    with pytest.raises(StoreUnavailable):
        store.get("task")
    assert time.monotonic() - started < BOUND

    # who is told of it can settle it: after this cancel the task never runs
    proxy.fail("ok", 0)
    entry_id = unknown.value.entry_id
    assert entry_id.task_id == "task"
    answer = store.cancel("task", run=entry_id.run, data={})
    assert answer.outcome is CancelOutcome.NOT_FOUND
    assert store.add([addition("task", HOUR, run=entry_id.run)])[0].code == "C"


def test_a_black_hole_at_the_first_word_is_a_store_that_is_away(
    redis_server: EmbeddedRedis, proxy: FaultyProxy
) -> None:
    store = shard(proxy.url, redis_timeout=0.5, add_window=1.0)

    proxy.fail("blackhole", 1_000)
    started = time.monotonic()
    for call in (
        lambda: store.add([addition("task")]),
        lambda: store.cancel("task", data={}),
        store.move,
        store.sizes,
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert time.monotonic() - started < BOUND

    proxy.fail("ok", 0)
    assert store.sizes()["pending"] == 0


@pytest.mark.parametrize("stall", [0.0, 4.1], ids=["within the window", "past the window"])
def test_an_add_that_arrives_after_its_repeat_was_handed_off_changes_nothing(
    redis_server: EmbeddedRedis, proxy: FaultyProxy, stall: float
) -> None:
    # Given an add on its way, whose producer has given it up and repeated it
    store = shard(proxy.url, redis_timeout=0.8, add_window=4.0)
    lead(store)
    store.add([addition("warm-up", HOUR)])
    proxy.fail("delay")
    assert store.add([addition("task")])[0].code == "A"
    assert proxy.met == ["delay"]
    # When the task has gone out, and then the first one arrives
    assert drain(store) == 1
    time.sleep(stall)
    with raw(redis_server) as client:
        before = _calls(client)
        proxy.release()
        wait_until(lambda: _calls(client) > before, what="the add that was held")

    # Then it is not there a second time
    assert store.get("task") is None
    assert drain(store) == 0
    assert on_queue(redis_server) == ["task"]
    assert states(store, "task") == ["SCHEDULED", "DISPATCHED"]


def _calls(client: redis.Redis) -> int:
    """How many scripts the server has run."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


class _Stalls(SystemClock):
    """A producer that freezes instead of pausing before a repeat."""

    def sleep(self, seconds: float) -> None:
        time.sleep(1.0)


def test_a_producer_that_stalls_past_its_window_is_refused(
    redis_server: EmbeddedRedis, proxy: FaultyProxy
) -> None:
    # Given an add that was stored, but whose answer was lost, and a producer that freezes
    store = shard(proxy.url, add_window=0.5, redis_timeout=0.25, clock=_Stalls())
    lead(store)
    store.add([addition("warm-up", HOUR)])
    proxy.fail("drop-reply")

    # When it wakes up after its window and repeats the call
    with pytest.raises(OutcomeUnknown) as unknown:
        store.add([addition("task")])

    # Then the repeat is refused: the task is there once, and the caller knows its entry id
    assert unknown.value.entry_id.task_id == "task"
    assert drain(store) == 1
    assert on_queue(redis_server) == ["task"]


def test_a_producer_that_stalls_before_its_first_attempt_draws_anew(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shard(redis_server.url, add_window=0.5, redis_timeout=0.25)
    lead(store)
    attempts = []
    send = store._try

    def stall_once(attempt: Any, *rest: Any) -> Any:
        if not attempts:
            time.sleep(0.8)
        attempts.append(attempt.deadline_ms)
        return send(attempt, *rest)

    monkeypatch.setattr(store, "_try", stall_once)
    [added] = store.add([addition("task")])

    assert len(set(attempts)) == 2
    assert added.code == "A"
    assert drain(store) == 1
    assert on_queue(redis_server) == ["task"]


# --- a Redis that forgets, restarts, is demoted --------------------------------------------


@pytest.mark.redis62
def test_forgotten_scripts_are_loaded_again(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.url)
    term = lead(store)
    lease = RedisLease(store._links.link(), store.keys, "me")
    with raw(redis_server) as client:
        for call in (
            lambda: store.add([addition("due"), addition("later", HOUR)]),
            store.move,
            lambda: store.cancel("later", data={}),
            lambda: store.merge_back(term=term),
            lambda: store.begin_epoch(term=term, known_epoch=0),
            lambda: lease.elect(seen=None, may_take=False),
            lambda: lease.release(term),
        ):
            client.script_flush()
            call()
    lease.close()

    assert on_queue(redis_server) == ["due"]
    assert store.sizes()["pending"] == 0


@BOTH
def test_redis_restarted_while_the_links_are_idle(
    new_redis: Callable[..., EmbeddedRedis], kind: str
) -> None:
    server = new_redis(kind, "--appendfsync", "always")
    store = shard(server.tcp_url)
    lead(store)
    store.add([addition("before")])

    server.kill()
    server.start()

    # the next call is answered at once, on what was kept: nothing is moved in a history
    # that has no name
    with pytest.raises(StaleEpoch):
        store.move()
    assert on_queue(server) == []
    assert store.get("before") is not None
    assert store.add([addition("after")])[0].code == "A"
    lead(store)
    assert drain(store) == 2
    assert sorted(on_queue(server)) == ["after", "before"]


def test_a_redis_that_is_down_is_said_to_be(new_redis: Callable[..., EmbeddedRedis]) -> None:
    server = new_redis(REDIS)
    store = shard(server.tcp_url)
    lead(store)
    store.add([addition("task", HOUR)])

    server.kill()

    for call in (lambda: store.add([addition("x")]), store.move, store.sizes):
        with pytest.raises(StoreUnavailable):
            call()
    with pytest.raises(StoreUnavailable):
        store.cancel("task", data={})


@BOTH
def test_a_primary_that_became_a_replica_refuses_loudly(
    new_redis: Callable[..., EmbeddedRedis], kind: str
) -> None:
    server = new_redis(kind)
    store = shard(server.tcp_url)
    term = lead(store)
    store.add([addition("due"), addition("later", HOUR)])
    lease = RedisLease(store._links.link(), store.keys, "me")

    with raw(server) as client:
        client.replicaof("127.0.0.1", "1")  # nobody is there: the data stay
        for call in (
            store.move,
            lambda: store.move(steal_ms=250),
            lambda: store.add([addition("new")]),
            lambda: store.cancel("later", data={}),
            lambda: store.merge_back(term=term),
            lambda: store.begin_epoch(term=term, known_epoch=0),
            lambda: lease.elect(seen=None, may_take=False),
        ):
            with pytest.raises(StoreUnavailable):
                call()
        assert store.count(after_ms=0, before_ms=10**15) == 2  # it can be read

        client.replicaof("NO", "ONE")
    lease.close()
    assert drain(store) == 1
    assert on_queue(server) == ["due"]


@BOTH
def test_a_replica_is_never_taken_for_a_store_with_nothing_due(
    new_redis: Callable[..., EmbeddedRedis], kind: str
) -> None:
    primary, replica = new_redis(kind), new_redis(kind, "--repl-diskless-load", "disabled")
    first = shard(primary.tcp_url)
    lead(first)
    with raw(replica) as client:
        client.replicaof("127.0.0.1", str(primary.port))
        wait_until(
            lambda: client.info("replication")["master_link_status"] == "up", what="the replica"
        )
        first.add([addition("due")])
        store = shard(replica.tcp_url)
        wait_until(lambda: store.sizes()["pending"] == 1, what="the entry on the replica")

        with pytest.raises((StaleEpoch, StoreUnavailable)):
            store.move()
        with pytest.raises(StoreUnavailable):
            lead(store)
        with pytest.raises(StoreUnavailable):
            store.add([addition("new")])
    assert drain(first) == 1


# --- how to get in, and where to --------------------------------------------------------------


@BOTH
def test_a_password(new_redis: Callable[..., EmbeddedRedis], kind: str) -> None:
    server = new_redis(kind, "--requirepass", "secret")
    url = server.tcp_url.replace("redis://", "redis://:{}@")

    store = shard(url.format("secret"))
    lead(store)
    store.add([addition("task")])
    assert drain(store) == 1

    for wrong in (url.format("guessed"), server.tcp_url):
        with pytest.raises(StoreUnavailable):
            shard(wrong).add([addition("task")])


@pytest.mark.redis62
def test_an_acl_user_with_its_own_keys_only(redis_server: EmbeddedRedis) -> None:
    with raw(redis_server) as client:
        client.acl_setuser(
            "delay-user",
            enabled=True,
            passwords=["+secret"],
            keys=[f"{{{PREFIX}*", QUEUE],
            categories=["+@all", "-@admin"],
            reset=True,
        )
        try:
            url = redis_server.tcp_url.replace("redis://", "redis://delay-user:secret@")
            store = shard(url)
            lead(store)
            store.add([addition("mine"), addition("foreign", template=shape("delay-foreign"))])

            # what it may not touch stands aside, and the rest flows
            moved = store.move()
            assert (moved.moved, moved.blocked) == (1, 1)
            assert "delay-foreign" in moved.failure
            assert on_queue(redis_server) == ["mine"]
            with pytest.raises(StoreUnavailable):
                shard(url, prefix="other-delay:").add([addition("task")])
        finally:
            client.acl_deluser("delay-user")


@pytest.mark.redis62
def test_a_unix_socket_and_a_port_lead_to_the_same_store(redis_server: EmbeddedRedis) -> None:
    by_socket, by_port = shard(redis_server.url), shard(redis_server.tcp_url)
    by_kombu = shard(redis_server.broker_url)
    lead(by_socket)

    by_socket.add([addition("one")])
    by_port.add([addition("two")])
    by_kombu.add([addition("three")])

    assert drain(by_kombu) == 3
    assert sorted(on_queue(redis_server)) == ["one", "three", "two"]


@pytest.mark.redis62
def test_another_db_than_the_queue_s(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.tcp_url.removesuffix("/0") + "/1")
    lead(store)
    queues = {0: shape(QUEUE), 1: shape(QUEUE, 1), 2: shape(QUEUE, 2), 99: shape(QUEUE, 99)}
    store.add([addition(f"to-{db}", template=one) for db, one in queues.items()])

    moved = store.move()

    # a DB that is not there holds only its own entries up
    assert (moved.moved, moved.blocked) == (3, 1)
    assert "99" in moved.failure
    assert [on_queue(redis_server, QUEUE, db) for db in (0, 1, 2)] == [["to-0"], ["to-1"], ["to-2"]]
    # and the script has put everything of its own, and the link stays, where the store is
    assert store.get("to-99") is not None
    with raw(redis_server) as client:
        assert client.keys("*") == [QUEUE.encode()]


# --- large, many, odd -------------------------------------------------------------------------


@pytest.mark.redis62
def test_a_thousand_entries_in_one_add(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.url, batch_size=300)
    lead(store)
    ids = [f"task-{i}" for i in range(additions.ADD_LIMIT)]

    added = store.add([addition(one) for one in ids])

    assert {one.code for one in added} == {"A"}
    assert store.sizes()["templates"] == 1
    assert drain(store) == len(ids)
    assert Counter(on_queue(redis_server)) == dict.fromkeys(ids, 1)


@pytest.mark.redis62
def test_more_shapes_than_templates_are_kept(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additions, "TEMPLATE_CAP", 3)
    store = shard(redis_server.url)
    lead(store)
    shapes = [shape(body=f"shape {i}", expires_ms=0) for i in range(6)]

    for i, one in enumerate(shapes):
        assert store.add([addition(f"task-{i}", template=one)])[0].code == "A"
    # those beyond the cap live inside their records, and can be read and moved like the others
    assert store.sizes()["templates"] == 3
    assert store.get("task-5").envelope["body"] == "shape 5"
    assert drain(store) == 6
    with raw(redis_server) as client:
        bodies = {(m["id"], m["body"]) for m in map(json.loads, client.lrange(QUEUE, 0, -1))}
    assert bodies == {(f"task-{i}", f"shape {i}") for i in range(6)}

    # and templates that nothing needs any more make room
    store.add([addition("new", template=shape(body="new"))])
    with raw(redis_server) as client:
        assert client.hlen(store.keys.templates) == 1
    assert drain(store) == 1


@pytest.mark.redis62
def test_a_large_payload(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.tcp_url)
    lead(store)
    large = "é" + "x" * 200_000

    store.add([addition(f"task-{i}", values=(json.dumps(f"{i}{large}"),)) for i in range(60)])

    assert drain(store) == 60
    with raw(redis_server) as client:
        found = {m["id"]: m["value"] for m in map(json.loads, client.lrange(QUEUE, 0, -1))}
    assert found == {f"task-{i}": f"{i}{large}" for i in range(60)}


@pytest.mark.redis62
def test_the_year_9999(redis_server: EmbeddedRedis) -> None:
    last = 253_402_300_799_999
    store = shard(redis_server.url)
    lead(store)

    store.add([addition("last", at_ms=last)])

    assert store.get("last").eta_ms == last
    assert store.move().next_due_ms == last
    assert shard(redis_server.url, now=lambda: last - 1).move().moved == 0
    assert shard(redis_server.url, now=lambda: last).move().moved == 1
    with raw(redis_server) as client:
        assert json.loads(client.lindex(QUEUE, 0))["eta"] == last


@pytest.mark.redis62
@pytest.mark.parametrize(
    "task_id", ['say "hello"', "back\\slash", "Grüße, 世界 🎈", "{curly}:[1]%s%d/$&", "c/x/1", "-"]
)
def test_odd_task_ids(redis_server: EmbeddedRedis, task_id: str) -> None:
    app = make_app(redis_server.broker_url)
    task = app.task(nothing, name="project.odd", shared=False)
    try:
        # once by the full way, once by the template that it has left
        first = task.apply_delayed(task_id="first" + task_id, countdown=60)
        result = task.apply_delayed(task_id=task_id, countdown=60)
        gone = task.apply_delayed(task_id="gone" + task_id, countdown=60)
        assert app.delayed.get(task_id).entry_id.task_id == task_id
        assert gone.cancel() is CancelOutcome.CANCELLED

        assert hand_off(app, until=result) == 2

        ids = {m["headers"]["id"] for m in app_messages(app)}
        assert ids == {first.id, result.id} == {"first" + task_id, task_id}
        assert app.delayed.get(task_id) is None
    finally:
        app.close()


# --- shared -----------------------------------------------------------------------------------


def test_a_forked_child_does_not_speak_on_its_parents_connection(
    redis_server: EmbeddedRedis,
) -> None:
    links = to_links(redis_server.url)

    def speak() -> int:
        link = links.take()
        try:
            return int(link.call("CLIENT", "ID"))
        finally:
            links.give(link)

    mine = speak()
    read, write = os.pipe()
    child = os.fork()
    if not child:  # what pytest has set up is not the child's to take down
        try:
            os.write(write, str(speak()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert int(answer.read()) != mine
    assert speak() == mine
    links.close()


def test_threads_and_a_forked_child_share_one_manager(redis_server: EmbeddedRedis) -> None:
    app = make_app(redis_server.broker_url)
    task = app.task(nothing, name="project.shared", shared=False)
    failures: list[BaseException] = []

    def schedule(who: str) -> None:
        try:
            for i in range(100):
                result = task.apply_delayed(task_id=f"{who}-{i}", countdown=3_600)
                # an answer that belongs to somebody else would name another task
                assert app.delayed.get(result.id).entry_id.task_id == f"{who}-{i}"
                if i % 2:
                    assert result.cancel() is CancelOutcome.CANCELLED
        except BaseException as error:
            failures.append(error)

    try:
        schedule("parent")  # leaves an idle link, which the child inherits
        child = os.fork()
        if not child:
            schedule("child")
            os._exit(len(failures))
        threads = [threading.Thread(target=schedule, args=(f"thread-{n}",)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _, status = os.waitpid(child, 0)

        assert failures == []
        assert os.waitstatus_to_exitcode(status) == 0
        found = {one.entry_id.task_id for one in app.delayed.list(limit=1_000)}
        names = ("parent", "child", "thread-0", "thread-1")
        assert found == {f"{who}-{i}" for who in names for i in range(0, 100, 2)}
    finally:
        app.close()
