"""Gates without servers: names, rates, when the leader looks, what a broker's queues hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from celery.utils.time import rate as celerys_rate

from celery_delay.domain.entries import Claimed, EntryId
from celery_delay.domain.gates import Gate, Opened, gate_for, high_water_of, rates_of, told
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting
from celery_delay.services.opening import LOOK_EVERY, SHORTEST, Opening
from celery_delay.services.rooms import ASK_EVERY, Rooms
from tests.fakes import FakeClock

# --- names and rates ---------------------------------------------------------------------


def test_a_gate_is_named_by_what_it_stops() -> None:
    assert gate_for("shop.mail", None, None, False) == "task:shop.mail"
    assert gate_for(None, "slow", None, False) == "queue:slow"
    assert gate_for(None, None, "acme", False) == "namespace:acme"
    assert gate_for(None, None, None, True) == "all"


@pytest.mark.parametrize("text", ["100/s", "600/m", "10/h", "0.5/s", "7", 7, 2.5, "1/m"])
def test_rates_are_celerys(text: Any) -> None:
    assert rates_of({"task:a": text})["task:a"] == pytest.approx(celerys_rate(text) / 1_000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("100/s", "must be a mapping"),
        ({"shop.mail": "1/s"}, "'shop.mail' must begin with task: or queue:"),
        ({"task:": "1/s"}, "must begin with"),
        ({"task:a": "fast"}, "task:a: 'fast' is no rate"),
        ({"task:a": "1/d"}, "is no rate"),
        ({"task:a": 0}, "is no rate"),
        ({"task:a": -1}, "is no rate"),
        ({"task:a": True}, "is no rate"),
        ({"task:a": None}, "is no rate"),
    ],
)
def test_bad_rates_are_named(given: Any, says: str) -> None:
    with pytest.raises(InvalidSetting, match=f"delay_rate_limits: .*{says}"):
        Settings(rate_limits=given)


@pytest.mark.parametrize("given", [0, -1, True, "10", {"a": 0}, {"a": "x"}, {"": 1}, {1: 1}, 1.5])
def test_bad_high_water_is_named(given: Any) -> None:
    with pytest.raises(InvalidSetting, match="delay_queue_high_water: "):
        Settings(queue_high_water=given)


def test_high_water_is_for_all_queues_or_for_some() -> None:
    assert high_water_of(None) == {}
    assert high_water_of(10) == {"*": 10}
    assert high_water_of({"celery": 5, "*": 7}) == {"celery": 5, "*": 7}


@pytest.mark.parametrize(
    ("gate", "says", "helps"),
    [
        (Gate("task:a", "paused", 1_000, "me", "why", 3), "since 2.0 s by me: why", "--task a"),
        (Gate("all", "paused", 1_000), "all is paused", "resume --all"),
        (Gate("task:a", "releasing"), "coming back", "hurries"),
        (Gate("rate:task:a", "limited"), "limit of task:a", "delay_rate_limits"),
        (Gate("full:q", "full"), "the queue q is as long", "delay_queue_high_water"),
        (Gate("new", "X"), "new is X", "release"),
    ],
)  # fmt: skip
def test_each_kind_of_gate_is_told(gate: Gate, says: str, helps: str) -> None:
    text, remedy = told(gate, 0, 3_000)
    assert says in text
    assert f"{gate.waiting} due tasks of shard 0 wait there" in text
    assert helps in remedy


# --- when the leader looks ---------------------------------------------------------------


class GateStore:
    def __init__(self) -> None:
        self.answers: list[Opened] = []
        self.asked = 0

    def open_gates(self, *, term: int) -> Opened:
        self.asked += 1
        return self.answers.pop(0) if self.answers else Opened()


def test_closed_gates_are_not_looked_at() -> None:
    store, clock = GateStore(), FakeClock()
    opening = Opening(store, clock)
    for _ in range(10):
        assert opening.run_once(3, None) == 0
        clock.sleep(1)
    assert (store.asked, opening.wait()) == (0, math.inf)


def test_it_looks_again_when_more_may_pass() -> None:
    store, clock = GateStore(), FakeClock()
    opening = Opening(store, clock)
    calls: list[int] = []
    opening.on_return = lambda: calls.append(1)
    store.answers = [Opened(5, 0), Opened(0, 20), Opened(0, 60_000), Opened(1, 300), Opened()]

    assert opening.run_once(3, SHORTEST) == 0
    clock.sleep(SHORTEST)
    assert opening.run_once(3, SHORTEST) == 5
    assert opening.wait() == 0
    assert opening.run_once(3, SHORTEST) == 0
    assert opening.wait() == pytest.approx(SHORTEST)
    clock.sleep(opening.wait())
    opening.run_once(3, None)
    assert opening.wait() == LOOK_EVERY
    clock.sleep(opening.wait())
    assert opening.run_once(3, None) == 1
    assert opening.wait() == pytest.approx(0.3)
    clock.sleep(opening.wait())
    opening.run_once(3, None)
    assert opening.wait() == math.inf
    assert len(calls) == 2


# --- what a broker's queues hold -----------------------------------------------------------


class Broker:
    def __init__(self, **lengths: int | None) -> None:
        self.lengths = lengths
        self.asked: list[str] = []

    def length(self, queue: str) -> int | None:
        self.asked.append(queue)
        return self.lengths.get(queue, 0)


def claimed(queue: str, count: int = 1) -> list[Claimed]:
    one = Claimed(EntryId("a", 1), 1, 0, 0, {"queue": queue})
    return [one] * count


def test_without_a_limit_nobody_is_asked() -> None:
    broker = Broker()
    rooms = Rooms({}, broker, FakeClock())
    rooms.took(claimed("a"))
    assert (rooms.known(), broker.asked) == ({}, [])


def test_a_queue_is_asked_for_now_and_then_and_counted_in_between() -> None:
    broker, clock = Broker(a=4), FakeClock()
    rooms = Rooms({"a": 10}, broker, clock)
    assert rooms.known() == {"a": 6}
    rooms.took(claimed("a", 5))
    rooms.took(claimed("b", 5))
    assert rooms.known() == {"a": 1}
    assert broker.asked == ["a"]
    broker.lengths["a"] = 12
    clock.sleep(ASK_EVERY)
    assert rooms.known() == {"a": -2}


def test_a_limit_for_all_learns_which_queues_there_are() -> None:
    broker = Broker(b=3)
    rooms = Rooms({"*": 10, "a": 5}, broker, FakeClock())
    assert rooms.known() == {"a": 5}
    rooms.took(claimed("b"))
    assert rooms.known() == {"a": 5, "b": 7}


def test_a_broker_that_cannot_tell_leaves_what_is_known() -> None:
    broker, clock = Broker(a=4), FakeClock()
    rooms = Rooms({"a": 10}, broker, clock)
    rooms.known()
    broker.lengths["a"] = None
    clock.sleep(ASK_EVERY)
    assert rooms.known() == {"a": 6}
