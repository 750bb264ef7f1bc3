"""Rate limits and full queues on a real Redis, 7 and 6.2: how many pass, who passes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_delay.domain.entries import PUBLISHED
from celery_delay.domain.gates import Limits, Opened
from tests.contract.bench import NOW, Bench
from tests.contract.test_gates import MAIL, PAY, add, ids, open_gates, pause, traces
from tests.contract.test_steering import places
from tests.shards import shape

pytestmark = pytest.mark.redis62

RATE = {"rate_limits": {"task:shop.mail": "100/s"}, "batch_size": 50}
ORDERS = shape("orders", PUBLISHED, task="shop.mail")
Make = Callable[..., Bench]


def mails(bench: Bench, count: int, **options: Any) -> list[str]:
    names = [f"m{number:04}" for number in range(count)]
    add(bench, *names, template=MAIL, **options)
    return names


def step(bench: Bench, ms: int = 50) -> int:
    """What a leader does after so many ms; how many went."""
    bench.now += ms
    open_gates(bench)
    return bench.store.move().moved


# --- rates -------------------------------------------------------------------------------


def test_a_rate_is_kept_and_used_up(make: Make) -> None:
    """GIVEN 300 due tasks of a rate of 100 a second WHEN the leader looks every 50 ms
    THEN they take three seconds, no second has more than 110, and they go by their eta."""
    bench = make(**RATE)
    names = mails(bench, 300)
    bench.store.move()
    went = [len(ids(bench))]
    while sum(went) < 300:
        went.append(step(bench))
        assert len(went) < 100

    assert ids(bench) == names
    assert 55 <= len(went) <= 62, "about three seconds, but for the first tenth"
    for first in range(len(went) - 20):
        assert sum(went[first : first + 20]) <= 110
    open_gates(bench)
    assert traces(bench) == set()


def test_others_pass_by(make: Make) -> None:
    bench = make(**RATE)
    mails(bench, 200)
    add(bench, "p1", "p2", template=PAY, delay_ms=5)
    bench.now += 10
    moved = [bench.store.move() for _ in range(4)]
    assert sum(one.moved for one in moved) == 12
    assert ids(bench)[-2:] == ["p1", "p2"]
    assert moved[-1].openable


def test_what_is_new_does_not_overtake_what_waits(make: Make) -> None:
    bench = make(**RATE)
    names = mails(bench, 30)
    bench.store.move()
    bench.now += 50
    add(bench, "new", template=MAIL)
    assert bench.store.move().moved == 0
    add(bench, "old", template=MAIL, at_ms=NOW - 60_000)
    assert bench.store.move().moved == 1

    while step(bench):
        pass

    assert ids(bench) == [*names[:10], "old", *names[10:], "new"]


def test_a_slow_rate_waits_for_its_next_task(make: Make) -> None:
    bench = make(rate_limits={"queue:delay-queue": "6/m"})
    mails(bench, 3)
    assert bench.store.move().moved == 1
    assert open_gates(bench) == Opened(0, 10_000)
    assert step(bench, 9_000) == 0
    assert step(bench, 1_000) == 1
    bench.now -= 60_000  # the clock steps back: later, never more
    assert step(bench, 0) == 0
    assert step(bench, 69_000) == 0
    assert step(bench, 1_500) == 1


def test_a_clock_that_steps_back_stops_no_rate(make: Make) -> None:
    bench = make(rate_limits={"queue:delay-queue": "6/m"})
    mails(bench, 2)
    assert bench.store.move().moved == 1
    bench.now -= 60_000
    add(bench, "old", template=MAIL, at_ms=bench.now - 1)
    assert bench.store.move().moved == 0
    assert step(bench, 10_000) == 1


def test_two_limits_hold_both(make: Make) -> None:
    bench = make(rate_limits={"task:shop.mail": "1000/s", "queue:delay-queue": "10/s"})
    mails(bench, 5)
    add(bench, "p", template=PAY)
    assert bench.store.move().moved == 1
    assert [one.gate for one in bench.store.gates()] == ["rate:queue:delay-queue"]


def test_shards_share_a_rate() -> None:
    whole, half = (Limits({"task:a": 1.0}, {}, shards) for shards in (1, 2))
    assert '"task:a": [1.0, 100.0]' in whole.encode()
    assert '"task:a": [0.5, 50.0]' in half.encode()
    assert Limits({}, {}).encode() == ""


def test_a_limit_that_is_gone_lets_all_back(make: Make) -> None:
    bench = make(**RATE)
    mails(bench, 40)
    bench.store.move()
    bench.store.limits = Limits({}, {})
    assert open_gates(bench).returned == 30
    assert bench.store.move().moved == 30


def test_a_pause_goes_before_a_limit(make: Make) -> None:
    bench = make(**RATE)
    mails(bench, 40)
    pause(bench)
    bench.store.move()
    assert [(one.gate, one.waiting) for one in bench.store.gates()] == [("task:shop.mail", 40)]
    bench.store.resume("task:shop.mail", 0)
    assert step(bench) == 10
    assert bench.store.gates()[0].gate == "rate:task:shop.mail"


def test_a_claim_keeps_to_the_rate_of_the_same_bucket(make: Make) -> None:
    bench = make(**RATE)
    add(bench, *"abcdefgh", template=ORDERS)
    mails(bench, 8)
    assert len(bench.store.claim(token="mine", limit=50, ttl_ms=3_000).taken) == 8
    assert bench.store.move().moved == 2


# --- full queues -------------------------------------------------------------------------


def test_dispatch_waits_while_a_queue_is_long(make: Make) -> None:
    bench = make(queue_high_water={"delay-queue": 5})
    names = mails(bench, 12)
    other = shape("delay-slow", task="shop.mail")
    add(bench, "free", template=other)

    assert bench.store.move().moved == 6
    assert ids(bench) == names[:5]
    assert [(one.gate, one.waiting) for one in bench.store.gates()] == [("full:delay-queue", 7)]
    for _ in range(4):
        assert step(bench) == 0

    bench.raw.rpop("delay-queue", 3)  # workers
    went = sum(step(bench) for _ in range(8))
    assert went == 3
    bench.raw.delete("delay-queue")
    assert sum(step(bench) for _ in range(8)) == 4
    open_gates(bench)
    assert traces(bench) == set()


def test_a_number_is_for_every_queue_and_all_its_priorities(make: Make) -> None:
    bench = make(queue_high_water=3)
    bench.raw.lpush("delay-queue\x06\x166", *range(2))
    urgent = shape("delay-queue\x06\x163", queue_name="delay-queue")
    add(bench, "a", "b", template=urgent)
    add(bench, "c", template=MAIL)

    assert bench.store.move().moved == 1
    assert bench.raw.llen("delay-queue\x06\x163") == 1
    bench.raw.delete("delay-queue\x06\x163", "delay-queue\x06\x166")


def test_a_claim_minds_the_room_that_it_is_told(make: Make) -> None:
    bench = make(queue_high_water={"orders": 100})
    add(bench, *"abcdef", template=ORDERS)

    claims = bench.store.claim(token="mine", limit=50, ttl_ms=3_000, rooms={"orders": 2})

    assert (len(claims.taken), claims.gated) == (2, 4)
    bench.now += 150
    assert open_gates(bench).returned == 1, "one goes and looks"
    again = bench.store.claim(token="other", limit=50, ttl_ms=3_000, rooms={"orders": 9})
    assert len(again.taken) == 1
    bench.now += 50
    assert open_gates(bench).returned == 3
    assert set(places(bench, "f")) == {"outbound"}
