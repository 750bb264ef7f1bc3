"""The lease on a real Redis: who may take it, when, and what a crash or a flush leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.keys import ShardKeys
from celery_delay.store.lease import RedisLease
from tests.shards import PREFIX, FaultyLinks, to_links

pytestmark = pytest.mark.redis62
KEYS = ShardKeys(PREFIX, 0)


@pytest.fixture
def links(redis_server: EmbeddedRedis) -> FaultyLinks:
    return FaultyLinks(to_links(redis_server.url))


@pytest.fixture
def raw(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def pair(links: FaultyLinks) -> Iterator[tuple[RedisLease, RedisLease]]:
    leases = RedisLease(links.link(), KEYS, "one"), RedisLease(links.link(), KEYS, "two")
    yield leases
    for lease in leases:
        lease.close()


Pair = tuple[RedisLease, RedisLease]


def test_a_free_lease_is_taken_by_the_first_who_asks(pair: Pair) -> None:
    one, two = pair

    first = one.elect(seen=None, may_take=False)
    second = two.elect(seen=None, may_take=False)

    assert (first.holder, first.term, first.seq) == ("one", 1, 1)
    assert (second.holder, second.term, second.seq) == ("one", 1, 1)
    assert second.head_due_ms is None
    assert second.now_ms >= first.now_ms > 1_600_000_000_000


def test_each_renewal_shows(pair: Pair) -> None:
    one, two = pair
    term = one.elect(seen=None, may_take=False).term

    renewals = [one.elect(seen=None, may_take=False) for _ in range(3)]

    assert [one.seq for one in renewals] == [2, 3, 4]
    assert {one.term for one in renewals} == {term}
    assert two.elect(seen=None, may_take=False).seq == 4


def test_an_unchanged_lease_is_taken_over_with_a_higher_term(pair: Pair) -> None:
    one, two = pair
    one.elect(seen=None, may_take=False)
    seen = two.elect(seen=None, may_take=False)

    taken = two.elect(seen=seen, may_take=True)

    assert (taken.holder, taken.term) == ("two", 2)
    assert one.elect(seen=None, may_take=False).holder == "two"
    assert not one.release(1)


def test_a_lease_that_was_renewed_meanwhile_is_not_taken(pair: Pair) -> None:
    one, two = pair
    one.elect(seen=None, may_take=False)
    seen = two.elect(seen=None, may_take=False)
    one.elect(seen=None, may_take=False)

    assert two.elect(seen=seen, may_take=True).holder == "one"


def test_nobody_takes_what_it_has_not_seen(pair: Pair) -> None:
    one, two = pair
    one.elect(seen=None, may_take=False)

    assert two.elect(seen=None, may_take=True).holder == "one"


def test_of_two_standbys_one_takes_over(pair: Pair, links: FaultyLinks) -> None:
    one, two = pair
    three = RedisLease(links.link(), KEYS, "three")
    one.elect(seen=None, may_take=False)
    seen = two.elect(seen=None, may_take=False)

    answers = [standby.elect(seen=seen, may_take=True).holder for standby in (two, three)]

    assert answers == ["two", "two"]
    three.close()


def test_a_release_wakes_one_standby_and_lets_it_lead_at_once(pair: Pair, raw: redis.Redis) -> None:
    one, two = pair
    term = one.elect(seen=None, may_take=False).term
    two.elect(seen=None, may_take=False)

    assert one.release(term)
    assert not one.release(term)

    assert raw.lrange(KEYS.handover, 0, -1) == ["1"]
    assert two.elect(seen=None, may_take=False)[:2] == ("two", term + 1)


def test_tokens_do_not_pile_up(pair: Pair, raw: redis.Redis) -> None:
    one, _ = pair
    for _ in range(3):
        assert one.release(one.elect(seen=None, may_take=False).term)

    assert raw.llen(KEYS.handover) == 1


def test_only_the_holder_of_that_term_releases(pair: Pair) -> None:
    one, two = pair
    term = one.elect(seen=None, may_take=False).term

    assert not two.release(term)
    assert not one.release(term + 1)

    assert two.elect(seen=None, may_take=False).holder == "one"


def test_a_lost_answer_is_a_failed_attempt_and_its_repeat_renews(
    pair: Pair, links: FaultyLinks
) -> None:
    one, _ = pair
    links.plan = ["answer"]

    with pytest.raises(StoreUnavailable):
        one.elect(seen=None, may_take=False)

    # Then the lease it took without knowing is renewed, in the same term
    again = one.elect(seen=None, may_take=False)
    assert (again.holder, again.term, again.seq) == ("one", 1, 2)


def test_no_term_is_seen_twice_though_all_data_was_lost(pair: Pair, raw: redis.Redis) -> None:
    # Given a leader of term 5 that still trusts itself, and a standby that has seen it
    _, two = pair
    raw.hset(KEYS.lease, mapping={"holder": "one", "term": "5", "seq": "70"})
    seen = two.elect(seen=None, may_take=False)

    raw.flushall()

    assert two.elect(seen=seen, may_take=False)[:2] == ("two", 6)


def test_the_record_has_no_time_to_live(pair: Pair, raw: redis.Redis) -> None:
    pair[0].elect(seen=None, may_take=False)

    assert raw.ttl(KEYS.lease) == -1


def test_what_stands_in_the_leases_place_is_no_crash(pair: Pair, raw: redis.Redis) -> None:
    raw.set(KEYS.lease, "not a hash")

    with pytest.raises(StoreUnavailable):
        pair[0].elect(seen=None, may_take=False)

    raw.delete(KEYS.lease)
    assert pair[0].elect(seen=None, may_take=False).holder == "one"
