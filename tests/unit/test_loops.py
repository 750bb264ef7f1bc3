"""Loops: a failure is a state, logged when it begins and when it ends; nothing ends a thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.loops import LONGEST_PAUSE, SHORTEST_PAUSE, Bell, Loop
from tests.fakes import FakeClock

AWAY = StoreUnavailable("away")


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    yield bell
    bell.close()


class Script:
    """A step and a way to wait that do, pass after pass, what a test has written down.

    The loop runs in the test's own thread, and is told to stop when the script is at its end.
    """

    def __init__(
        self, *steps: Exception | float, waits: list[Exception | None] | None = None
    ) -> None:
        self._steps = list(steps)
        self._waits = waits or []
        self.waited: list[float] = []
        self.paused: list[float] = []
        self.last_calls = 0
        self.loop = Loop("the-loop", self._step, FakeClock(), wait=self._wait, last=self._last)
        self.loop.bell.wait = self.paused.append  # type: ignore[method-assign]

    def run(self) -> Script:
        self.loop.run()
        self.loop.bell.close()
        return self

    def _step(self) -> float:
        return self._next(self._steps, 1.0)

    def _wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        if self._waits:
            failure = self._waits.pop(0)
            if failure is not None:
                raise failure

    def _last(self) -> None:
        self.last_calls += 1

    def _next(self, script: list[Any], default: float) -> float:
        following = script.pop(0) if script else default
        if not script:
            self.loop.stop()
        if isinstance(following, Exception):
            raise following
        return float(following)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level("INFO")
    return lambda: [one.event for one in caplog.records if hasattr(one, "event")]


# --- a loop ------------------------------------------------------------------------------


def test_waits_as_long_as_the_step_says() -> None:
    """GIVEN a step THEN the loop waits what it returns, and goes on at once for nothing."""
    assert Script(0.5, 0.0, 0.25, 1.0).run().waited == [0.5, 0.25]


def test_ends_with_its_last_act() -> None:
    """GIVEN a loop WHEN it is told to stop THEN its last act runs, once."""
    assert Script(0.5, 0.5).run().last_calls == 1


def test_a_failure_is_logged_when_it_begins_and_when_it_ends(
    events: Callable[[], list[str]],
) -> None:
    """GIVEN a store that is away for many passes THEN that is two lines in the log."""
    Script(*[AWAY] * 20, 1.0, 1.0).run()
    assert events() == ["loop_failing", "loop_recovered"]


def test_pauses_grow_and_are_not_in_step(events: Callable[[], list[str]]) -> None:
    """GIVEN failures THEN pauses double up to the longest, each shortened at random by half."""
    paused = Script(*[AWAY] * 12, 1.0).run().paused
    for number, pause in enumerate(paused):
        full = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2**number)
        assert full / 2 <= pause <= full
    assert len({round(one / LONGEST_PAUSE, 6) for one in paused[-6:]}) > 1


def test_pauses_start_anew_after_a_success(events: Callable[[], list[str]]) -> None:
    """GIVEN a failure after a success THEN its pause is short again."""
    paused = Script(*[AWAY] * 9, 0.0, AWAY, 1.0).run().paused
    assert paused[-1] <= SHORTEST_PAUSE


def test_a_crash_is_counted_and_ends_nothing(events: Callable[[], list[str]]) -> None:
    """GIVEN a bug in the step THEN it is logged and counted, and the loop goes on."""
    script = Script(ValueError("a bug"), ValueError("a bug"), 0.5, 1.0).run()
    assert script.loop.crashes == 2
    assert events() == ["loop_crashed", "loop_crashed", "loop_recovered"]
    assert script.waited == [0.5]


def test_a_failing_last_act_ends_the_thread_all_the_same(events: Callable[[], list[str]]) -> None:
    """GIVEN a store that is away at the end THEN the loop ends."""
    script = Script(1.0)

    def last() -> None:
        raise AWAY

    script.loop._last = last
    script.run()
    assert events() == ["loop_failing"]


def test_a_way_to_wait_that_fails_is_one_failure(events: Callable[[], list[str]]) -> None:
    """GIVEN a waiting connection that cannot be made, while the step works
    WHEN passes go by, and at last it can be made
    THEN that is one failure with growing pauses and one recovery, not one of each per pass.
    """
    script = Script(*[1.0] * 9, waits=[AWAY] * 6).run()
    assert events() == ["loop_failing", "loop_recovered"]
    assert len(script.waited) == 8, "it is tried again each time"
    assert script.paused[4] > script.paused[0]
    assert max(script.paused) <= 1.0, "never longer than the step allows"


def test_a_crash_in_the_wait_ends_nothing(events: Callable[[], list[str]]) -> None:
    """GIVEN a bug in the way to wait THEN it is counted, and the loop goes on."""
    script = Script(0.5, 0.5, 0.5, 1.0, waits=[ValueError("a bug")]).run()
    assert script.loop.crashes == 1
    assert len(script.waited) == 3
    assert events() == ["loop_crashed", "loop_recovered"]


# --- stopping from outside ---------------------------------------------------------------


def test_stop_wakes_a_waiting_loop() -> None:
    """GIVEN a loop that waits for long WHEN it is told to stop THEN it ends at once."""
    waits = threading.Event()

    def step() -> float:
        waits.set()
        return 600.0

    loop = Loop("waiting", step, FakeClock())
    loop.start()
    waits.wait(10)
    loop.stop()
    loop.join(10)
    assert not loop.is_alive()
    loop.bell.close()


def test_a_signal_handler_may_stop_a_loop_on_top_of_anything() -> None:
    """GIVEN a main thread that is inside `stop()` and `ring()` as often as not
    WHEN a signal handler calls `stop()` on top of it
    THEN nothing deadlocks: there is no lock.
    """
    loop = Loop("signalled", lambda: 600.0, FakeClock())
    calls = 0

    def handler(*_: object) -> None:
        nonlocal calls
        calls += 1
        loop.stop()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        while calls < 50:
            loop.stop()
            loop.bell.ring()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    loop.start()
    loop.join(10)
    assert not loop.is_alive()
    loop.bell.close()


# --- the bell ----------------------------------------------------------------------------


def test_a_ring_before_the_wait_is_not_lost(bell: Bell) -> None:
    """GIVEN a ring while nobody waits WHEN somebody does THEN the wait is over at once."""
    bell.ring()
    bell.wait(600.0)


def test_many_rings_are_one(bell: Bell) -> None:
    """GIVEN more rings than a pipe holds THEN none blocks, and one wait takes them all."""
    for _ in range(100_000):
        bell.ring()
    bell.wait(600.0)
    bell.wait(0.0)
    bell.hush()
