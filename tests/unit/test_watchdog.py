"""The watchdog over a store that says what it is told to, with a clock that is set."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.domain.settings import Settings
from celery_delay.domain.watches import Look
from celery_delay.services.watchdog import (
    BETWEEN_BATCHES,
    FORGET_EVERY,
    LONGEST_WAIT,
    Watchdog,
)
from tests.fakes import FakeClock

NOW = 1_700_000_000_000


class Store:
    def __init__(self) -> None:
        self.looks: list[Look | None] = []
        self.spared: list[set[str]] = []
        self.traceparents: list[str] = []
        self.forgotten = 0

    def watch_over(
        self, *, term: int, spared: Collection[str] = (), traceparent: str = ""
    ) -> Look | None:
        self.spared.append(set(spared))
        self.traceparents.append(traceparent)
        return self.looks.pop(0) if self.looks else Look(NOW)

    def forget_marks(self, *, term: int) -> int:
        self.forgotten += 1
        return 0


class Fleet:
    def __init__(self) -> None:
        self.asked = 0
        self.found: Mapping[str, Sequence[str]] = {}

    def strangers(self) -> Mapping[str, Sequence[str]]:
        self.asked += 1
        return self.found


class Bench:
    def __init__(self, guard: str = "track") -> None:
        self.store, self.fleet, self.clock = Store(), Fleet(), FakeClock()
        settings = Settings(guard=guard, guard_patience=10.0)
        self.dog = Watchdog(3, self.store, self.fleet, settings, self.clock)

    def run(self, *looks: Look | None) -> list[float]:
        self.store.looks += looks
        return [self.dog.run_once(1) for _ in looks]


def test_it_waits_for_the_next_look() -> None:
    bench = Bench()
    assert bench.run(
        None, Look(NOW), Look(NOW, NOW + 400), Look(NOW, NOW + 90_000), Look(NOW, NOW - 5)
    ) == [LONGEST_WAIT, LONGEST_WAIT, 0.4, LONGEST_WAIT, BETWEEN_BATCHES]
    assert bench.run(Look(NOW, NOW + 900, looked=200)) == [BETWEEN_BATCHES]


def test_workers_are_asked_before_anything_is_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.fleet.found = {"mixed": ["stranger@host"]}
    bench.run(Look(NOW), Look(NOW, looked=1))
    assert bench.fleet.asked == 0

    bench.run(Look(NOW, missing=1), Look(NOW, missing=1))
    assert bench.fleet.asked == 1
    assert bench.store.spared[-1] == {"mixed"}
    assert "mixed: stranger@host" in caplog.text

    # Their answer counts for no longer than the time between two looks at one entry
    bench.clock.advance(10.0)
    bench.fleet.found = {}
    bench.run(Look(NOW, missing=1), Look(NOW))
    assert bench.fleet.asked == 2
    assert bench.store.spared[-1] == set()


def test_it_tells_what_it_sends_and_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    bench = Bench()
    found = Look(NOW, sent=[EntryId("a", 1)], given_up=[EntryId("b", 2)], unwatched=7)
    bench.run(found, Look(NOW, failure="no list"), Look(NOW, failure="no list"))

    told = [(one.event, getattr(one, "task_id", None)) for one in caplog.records]  # type: ignore[attr-defined]
    assert told == [
        ("sent_again", "a"),
        ("watch_given_up", "b"),
        ("watch_full", None),
        ("watch_failing", None),
    ]


class Tracing:
    """Begins the same span each time, and keeps how each one ended."""

    traceparent = "00-1-2-01"

    def __init__(self) -> None:
        self.ended: list[tuple[int, int]] = []

    def begin(self) -> Tracing:
        return self

    def end(self, count: int, lag_ms: int) -> None:
        self.ended.append((count, lag_ms))


def test_each_look_is_a_span_that_says_how_many_were_sent() -> None:
    bench, tracing = Bench(), Tracing()
    bench.run(Look(NOW))
    bench.dog.tracing = tracing
    bench.run(Look(NOW, sent=[EntryId("a", 1), EntryId("b", 1)], max_lag_ms=61_000), Look(NOW))
    bench.run(None)

    assert bench.store.traceparents == ["", *3 * [tracing.traceparent]]
    assert tracing.ended == [(2, 61_000), (0, 0)]


@pytest.mark.parametrize(("guard", "times"), [("track", 0), ("guard", 2)])
def test_marks_are_forgotten_now_and_then(guard: str, times: int) -> None:
    bench = Bench(guard)
    bench.run(Look(NOW), Look(NOW))
    bench.clock.advance(FORGET_EVERY)
    bench.run(Look(NOW), Look(NOW))
    assert bench.store.forgotten == times
