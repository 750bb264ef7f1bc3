"""The store when Redis is emptied, restarted or loading; who shares it, and who does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import JournalPosition, StaleEpoch, Transition
from celery_delay.domain.states import State
from celery_delay.domain.timetable import Wanted
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore
from tests.faults_proxy import FaultyProxy
from tests.processes import wait_until
from tests.shards import addition, lead, shard

HOUR = 3_600_000


@pytest.fixture
def raw(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


# --- another history -------------------------------------------------------------------------


@pytest.mark.redis62
def test_a_redis_that_was_emptied_gets_a_new_name_before_anything_moves(
    redis_server: EmbeddedRedis, raw: redis.Redis
) -> None:
    # Given a leader's link that knows the history, and Redis emptied without a restart
    store = shard(redis_server.url)
    lead(store)
    store.move()
    _, _, before = store.leader()
    raw.flushall()

    # When something is added before the leader looks
    assert store.add([addition("a")])[0].code == "A"

    # Then it is not moved until the history has its name
    with pytest.raises(StaleEpoch):
        store.move()
    lead(store)
    _, _, after = store.leader()
    assert after > before
    assert store.move().moved == 1


@pytest.mark.redis62
def test_a_link_that_has_slept_through_a_flush_serves_the_leader(
    redis_server: EmbeddedRedis, raw: redis.Redis
) -> None:
    # Given a link, as that of the thread that fires, which never asks for a move
    store = shard(redis_server.url)
    term = lead(store)
    schedules = {"tick": Wanted("v1", 5)}
    assert store.sync_schedules(term=term, revision=0, schedules=schedules)
    raw.flushall()
    other = shard(redis_server.url)
    term = lead(other)

    assert store.sync_schedules(term=term, revision=0, schedules=schedules)
    assert store.fire(
        term=term, revision=0, name="tick", expected_ms=5, cursor_ms=5, next_ms=None, missed=None,
        addition=addition("o1", run=5),
    )  # fmt: skip
    assert other.move().moved == 1


@pytest.mark.redis62
def test_a_standby_names_no_history_and_trims_no_journal(
    redis_server: EmbeddedRedis, raw: redis.Redis
) -> None:
    store = shard(redis_server.url)
    term = lead(store, "leader")
    store.add([addition("a", HOUR)])
    raw.hset(store.keys.mark, "run_id", "another server's")
    _, _, epoch = store.leader()

    for other_term in (term - 1, term + 1):
        assert store.begin_epoch(term=other_term, known_epoch=0) is None
        position = JournalPosition(0, epoch, "9999999999999-0")
        assert store.trim_journal(position, term=other_term) == 0
        assert store.merge_back(term=other_term) == 0

    assert store.sizes()["journal"] == 1
    assert raw.hget(store.keys.mark, "run_id") == "another server's"


def test_each_restart_is_a_new_history_and_the_journal_tells_which(
    new_redis: Callable[..., EmbeddedRedis],
) -> None:
    server = new_redis("redis", "--appendfsync", "always")
    store = shard(server.url)
    lead(store)
    store.add([addition("first", HOUR)])
    _, _, before = store.leader()

    server.kill()
    server.start()
    lead(store)
    store.add([addition("second", HOUR)])

    _, _, after = store.leader()
    assert after > before
    epochs = [event.epoch for _, events in store.read_journal("0", 9) for event in events]
    assert epochs == [before, after]


# --- away ----------------------------------------------------------------------------------


def test_a_redis_that_loads_its_data_is_away_and_then_back(
    new_redis: Callable[..., EmbeddedRedis], redis_server: EmbeddedRedis
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        modern = int(client.info("server")["redis_version"].split(".")[0]) >= 7
    slowly = ["--key-load-delay", "700", "--loading-process-events-interval-bytes", "1024"]
    server = new_redis("redis", *slowly, *(["--enable-debug-command", "yes"] if modern else []))
    store = shard(server.url)
    lead(store)
    store.add([addition("a", HOUR)])
    with redis.Redis.from_url(server.url) as client:
        client.mset({f"test-delay-{n}": "x" * 100 for n in range(3_000)})

    # When the server reads its data anew, for more than two seconds
    reload = threading.Thread(target=_reload, args=(server.url,))
    reload.start()
    wait_until(lambda: _is_loading(store), what="the server to load")
    with pytest.raises(StoreUnavailable, match="loading"):
        store.add([addition("b", HOUR)])
    with pytest.raises(StoreUnavailable, match="loading"):
        store.cancel("a", data={})
    reload.join()

    # Then nothing has changed, and it is served again
    assert store.get("a") is not None
    assert store.get("b") is None
    assert store.add([addition("b", HOUR)])[0].code == "A"


def _reload(url: str) -> None:
    with redis.Redis.from_url(url, socket_timeout=30) as client:
        client.execute_command("DEBUG", "RELOAD")


def _is_loading(store: RedisStore) -> bool:
    try:
        store.sizes()
    except StoreUnavailable as error:
        return "loading" in str(error)
    return False


def test_a_cancel_whose_answer_was_lost_is_unknown_though_redis_goes_away(
    redis_server: EmbeddedRedis,
) -> None:
    with FaultyProxy(redis_server.port) as proxy:
        store = shard(proxy.url, redis_timeout=0.25, add_window=0.5)
        lead(store)
        store.add([addition("a", HOUR)])
        store.cancel("other", data={})

        # When the first attempt has its effect, and no later one gets through
        proxy.fail("drop-reply", 1_000)
        with pytest.raises(OutcomeUnknown):
            store.cancel("a", data={})

    assert shard(redis_server.url).get("a") is None


def test_a_transition_whose_answer_is_lost_is_journalled_at_most_once(
    redis_server: EmbeddedRedis,
) -> None:
    with FaultyProxy(redis_server.port) as proxy:
        store = shard(proxy.url)
        started = Transition(EntryId("a", 1), 1, State.STARTED, {})
        store.record([started])

        proxy.fail("drop-reply")
        with pytest.raises(StoreUnavailable):
            store.record([started])
        store.record([started])

    assert shard(redis_server.url).sizes()["journal"] == 3


@pytest.mark.redis62
@pytest.mark.parametrize("key", ["schedule", "entries", "journal", "mark", "templates"])
def test_a_key_of_ours_that_somebody_took_is_told_in_our_words(
    redis_server: EmbeddedRedis, raw: redis.Redis, key: str
) -> None:
    store = shard(redis_server.url)
    lead(store)
    name = getattr(store.keys, key)
    raw.delete(name)
    raw.set(name, "not ours")

    with pytest.raises((OutcomeUnknown, StoreUnavailable)):
        store.add([addition("a")])
    if key in ("schedule", "mark"):
        with pytest.raises(StoreUnavailable):
            store.move()
    if key in ("schedule", "entries"):
        with pytest.raises(StoreUnavailable):
            store.missing([EntryId("a", 1)]) if key == "entries" else store.sizes()


# --- shared, and apart ------------------------------------------------------------------------


@pytest.mark.redis62
def test_two_projects_on_one_redis_do_not_meet(redis_server: EmbeddedRedis) -> None:
    mine, yours = (shard(redis_server.url, prefix=f"{who}-delay:") for who in ("mine", "yours"))
    term = lead(mine)
    mine.add([addition("same-id")])
    yours.add([addition("same-id", HOUR)])

    assert mine.move().moved == 1
    assert yours.get("same-id") is not None
    assert lead(yours, "somebody else") == 1
    lease = RedisLease(mine._links.link(), mine.keys, "me")
    assert lease.elect(seen=None, may_take=False)[:2] == ("me", term)
    lease.close()


def test_threads_share_one_store(redis_server: EmbeddedRedis) -> None:
    store = shard(redis_server.url)
    lead(store)
    store.add([addition("warm-up", HOUR)])
    failures: list[BaseException] = []
    together = threading.Barrier(4)

    def work(who: int) -> None:
        try:
            together.wait(10)
            for number in range(50):
                task_id = f"{who}-{number}"
                [added] = store.add([addition(task_id, HOUR)])
                assert added.entry_id.task_id == task_id
                store._offset_ms = None  # as after a call that came too late
                found = store.get(task_id)
                assert found is not None
                assert found.entry_id == added.entry_id
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert store.sizes()["pending"] == 201
    assert len(store._links._idle) <= 5
    store.close()
