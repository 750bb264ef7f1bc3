"""The periodic service on a store in memory, by a clock that tests move."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from celery_delay.domain.entries import Addition, Due, EntryId
from celery_delay.domain.timetable import UNKNOWN, DueSchedules, Standing, Wanted
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.periodic import LONGEST_WAIT, SHORT_WAIT, Periodic, Plan, occurrence_id

HOUR = 3_600_000


class MemoryStore:
    """What ``sync_schedules.lua`` and ``fire.lua`` do."""

    def __init__(self) -> None:
        self.now = 0
        self.term = 1
        self.away = False
        self.next: dict[str, int] = {}
        self.states: dict[str, tuple[str, int]] = {}  # version, cursor
        self.fired: list[tuple[str, int]] = []
        self.missed: list[tuple[str, int, int]] = []
        self.syncs = 0
        self.revision = 0
        self.paused: set[str] = set()
        self.resumed: dict[str, int] = {}

    def forget(self) -> None:
        """Redis is emptied."""
        self.next.clear()
        self.states.clear()

    def _answers(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    def due_schedules(self) -> DueSchedules:
        self._answers()
        due = sorted((at, name) for name, at in self.next.items() if at <= self.now)
        after = min((at for at in self.next.values() if at > self.now), default=None)
        return DueSchedules(self.now, [(name, at) for at, name in due], after, self.revision)

    def standing(self, name: str) -> Standing:
        self._answers()
        cursor = self.states[name][1] if name in self.states else None
        return Standing(cursor, name in self.paused, self.resumed.get(name, 0))

    def sync_schedules(self, *, term: int, revision: int, schedules: Mapping[str, Wanted]) -> bool:
        self._answers()
        if (term, revision) != (self.term, self.revision):
            return False
        self.syncs += 1
        for name, (version, following, _) in schedules.items():
            if following != UNKNOWN and self.states.get(name, ("",))[0] != version:
                self.states[name] = version, self.now
                self._set(name, following)
        for name in self.states.keys() - schedules.keys():
            del self.states[name]
            self.next.pop(name, None)
        return True

    def fire(
        self,
        *,
        term: int,
        revision: int,
        name: str,
        expected_ms: int,
        cursor_ms: int,
        next_ms: int | None,
        missed: tuple[int, int] | None,
        addition: Addition | None,
    ) -> bool:
        self._answers()
        if (term, revision) != (self.term, self.revision) or self.next.get(name) != expected_ms:
            return False
        self.states[name] = self.states[name][0], cursor_ms
        self._set(name, -1 if next_ms is None else next_ms)
        if missed and missed[0] < missed[1]:
            self.missed.append((name, *missed))
        if addition is not None:
            self.fired.append((name, addition.entry_id.run))
        return True

    def _set(self, name: str, following: int) -> None:
        if following < 0:
            self.next.pop(name, None)
        else:
            self.next[name] = following


class Every:
    """A plan: each multiple of an interval."""

    def __init__(self, interval: int, version: str = "1", last: int | None = None) -> None:
        self.interval = interval
        self.version = version
        self.last = last
        self.fails = False
        self.start_ms: int | None = None
        self.is_polled = False
        self.asked: list[tuple[int, int, int]] = []

    def next_after(self, after_ms: int) -> int | None:
        if self.fails:
            raise TypeError("cannot calculate the next run")
        following = (after_ms // self.interval + 1) * self.interval
        return following if self.last is None or following <= self.last else None

    def description(self) -> str:
        return "{}"

    def firing(self, first_ms: int, now_ms: int, last_ms: int) -> tuple[int | None, int | None]:
        self.asked.append((first_ms, now_ms, last_ms))
        nominal = now_ms // self.interval * self.interval
        return nominal, self.next_after(nominal)


class Polled(Every):
    """A plan of the user's own: it says when to ask, not when it runs."""

    def __init__(self) -> None:
        super().__init__(1_000)
        self.is_polled = True
        self.is_due = False

    def firing(self, first_ms: int, now_ms: int, last_ms: int) -> tuple[int | None, int | None]:
        super().firing(first_ms, now_ms, last_ms)
        return (first_ms if self.is_due else None), now_ms + 1_000


class Beat:
    """A leading beat, and what it needs."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.builds: Counter[str] = Counter()
        self.unbuildable: dict[str, Exception | None] = {}
        self.plans: dict[str, Plan | None] = {}
        self.revisions: list[int] = []
        self.service = self.restarted()

    def restarted(self) -> Periodic:
        """The service of another process."""
        return Periodic(self.store, self.build)

    def build(self, name: str, nominal_ms: int) -> Addition | None:
        self.builds[name] += 1
        if name in self.unbuildable:
            failure = self.unbuildable[name]
            if failure is not None:
                raise failure
            return None
        return Addition(
            entry_id=EntryId(f"{name}@{nominal_ms}", nominal_ms),
            **{name: _VALUES.get(name) for name in Addition._fields if name != "entry_id"},
        )

    def plans_of(self, revision: int) -> dict[str, Plan | None]:
        self.revisions.append(revision)
        return self.plans

    def tick(self, term: int = 1) -> float:
        return self.service.run_once(term, self.plans_of)

    def until(self, now_ms: int, term: int = 1) -> list[tuple[str, int]]:
        """Tick as Celery's loop does until an instant; what that fired."""
        before = len(self.store.fired)
        for _ in range(10_000):
            wait = round(self.tick(term) * 1000)
            if self.store.now + wait > now_ms:
                break
            self.store.now += wait
        else:
            raise AssertionError("it spins")
        self.store.now = now_ms
        return self.store.fired[before:]


_VALUES: dict[str, Any] = {"due": Due(0, True)}


@pytest.fixture
def beat() -> Beat:
    return Beat()


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records]  # type: ignore[attr-defined]


# --- occurrences -----------------------------------------------------------------------------


def test_each_occurrence_fires_once(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000), "b": Every(2_500)}
    assert beat.until(5_400) == [
        ("a", 1_000),
        ("a", 2_000),
        ("b", 2_500),
        ("a", 3_000),
        ("a", 4_000),
        ("a", 5_000),
        ("b", 5_000),
    ]


def test_the_wait_leads_to_the_next_occurrence(beat: Beat) -> None:
    beat.plans = {"soon": Every(300), "late": Every(HOUR)}
    assert beat.tick() == 0.3
    beat.store.now = 290
    assert beat.tick() == 0.01
    beat.store.now = 300
    assert beat.tick() == 0.0  # look again: it may be due again
    assert beat.tick() == 0.3


def test_it_looks_at_least_once_a_second(beat: Beat) -> None:
    assert beat.tick() == LONGEST_WAIT
    beat.plans = {"late": Every(HOUR)}
    assert beat.tick() == LONGEST_WAIT


def test_a_schedule_that_ends_fires_no_more(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000, last=2_000)}
    assert beat.until(10_000) == [("a", 1_000), ("a", 2_000)]


def test_of_missed_occurrences_the_latest_fires(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000)}
    beat.until(1_500)
    # When nobody has led for a while
    beat.store.now = 9_700
    # Then one of them runs, and the next on time
    assert beat.until(10_500) == [("a", 9_000), ("a", 10_000)]


def test_the_plan_is_told_when_it_fired_last(beat: Beat) -> None:
    plan = Every(1_000)
    beat.plans = {"a": plan}
    beat.store.now = 500
    beat.until(2_000)
    beat.tick()
    assert plan.asked == [(1_000, 1_000, 500), (2_000, 2_000, 1_000)]


def test_a_polled_schedule_is_asked_and_does_not_fire(beat: Beat) -> None:
    plan = Polled()
    beat.plans = {"own": plan}
    assert beat.until(3_500) == []
    plan.is_due = True
    assert beat.until(4_500) == [("own", 4_000)]
    # its last run is what it is asked with, not the last time it was asked
    assert [last for _, _, last in plan.asked] == [0, 0, 0, 0]


def test_an_occurrence_has_the_same_id_whoever_fires_it() -> None:
    one = occurrence_id("celery-delay:", "nightly", "v1", 1_000)
    assert one == occurrence_id("celery-delay:", "nightly", "v1", 1_000)
    others = {
        occurrence_id("other:", "nightly", "v1", 1_000),
        occurrence_id("celery-delay:", "hourly", "v1", 1_000),
        occurrence_id("celery-delay:", "nightly", "v2", 1_000),
        occurrence_id("celery-delay:", "nightly", "v1", 2_000),
    }
    assert one not in others
    assert len(others) == 4


# --- changes ---------------------------------------------------------------------------------


def test_a_restart_is_no_event(beat: Beat) -> None:
    # Given a schedule whose interval is longer than any process lives
    beat.plans = {"a": Every(HOUR)}
    fired = []
    for minute in range(0, 200, 20):
        beat.service = beat.restarted()
        fired += beat.until(minute * 60_000 + 60_000)
    assert fired == [("a", HOUR), ("a", 2 * HOUR), ("a", 3 * HOUR)]


def test_another_definition_starts_anew(beat: Beat) -> None:
    beat.plans = {"a": Every(HOUR)}
    beat.until(1_000)
    beat.plans = {"a": Every(2_000, version="2")}
    assert beat.until(4_500) == [("a", 2_000), ("a", 4_000)]


def test_a_schedule_that_was_removed_fires_no_more(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000), "b": Every(1_000)}
    beat.until(1_500)
    del beat.plans["a"]
    assert beat.until(2_500) == [("b", 2_000)]
    assert beat.store.states.keys() == {"b"}


def test_a_schedule_that_was_added_fires(beat: Beat) -> None:
    beat.plans = {"a": Every(HOUR)}
    beat.until(1_500)
    beat.plans["new"] = Every(1_000)
    assert beat.until(3_500) == [("new", 2_000), ("new", 3_000)]


# --- pauses, and what others change --------------------------------------------------------


def test_what_falls_into_a_pause_is_passed_over(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000), "b": Every(1_000)}
    beat.until(1_500)
    beat.store.paused.add("a")
    beat.builds.clear()
    assert beat.until(4_500) == [("b", 2_000), ("b", 3_000), ("b", 4_000)]
    assert beat.builds["a"] == 0  # a message that nobody gets is not made either
    assert [one for one in beat.store.missed if one[0] == "a"] == [
        ("a", 2_000, 3_000), ("a", 3_000, 4_000), ("a", 4_000, 5_000),
    ]  # fmt: skip
    beat.store.paused.clear()
    beat.store.resumed["a"] = 4_500
    assert ("a", 5_000) in beat.until(5_500)


def test_what_fell_into_a_pause_is_not_made_up_for_when_nobody_led(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000)}
    beat.until(1_500)
    # Given a pause from 1.5 s to 4.5 s, and no beat until 4.9 s
    beat.store.resumed["a"] = 4_500
    beat.store.now = 4_900
    assert beat.until(5_500) == [("a", 5_000)]


def test_a_polled_schedule_that_was_paused_starts_from_there(beat: Beat) -> None:
    plan = Polled()
    plan.is_due = True
    beat.plans = {"own": plan}
    beat.store.paused.add("own")
    beat.until(3_500)
    assert beat.store.missed == []  # its instants are not known beforehand
    assert [last for _, _, last in plan.asked] == [0, 1_000, 2_000]


def test_a_change_between_looking_and_firing_is_heeded(beat: Beat) -> None:
    # Given a schedule that is due, and somebody who pauses it while its message is made
    beat.plans = {"a": Every(1_000)}
    beat.until(500)
    beat.store.now = 1_000
    build = beat.build

    def meanwhile(name: str, nominal_ms: int) -> Addition | None:
        beat.store.revision += 1
        beat.store.paused.add("a")
        return build(name, nominal_ms)

    beat.service = Periodic(beat.store, meanwhile)
    assert beat.tick() == 0.1
    # Then it has not fired, and the schedules are read again before the next
    assert beat.until(2_500) == []
    assert beat.revisions[-1] == 1


def test_a_change_between_looking_and_writing_down_is_heeded(beat: Beat) -> None:
    class Removed(Every):
        def next_after(self, after_ms: int) -> int | None:
            beat.store.revision = 1
            return super().next_after(after_ms)

    beat.plans = {"gone": Removed(1_000)}
    assert beat.tick() == SHORT_WAIT
    assert beat.store.states == {}


def test_one_that_cannot_be_read_is_left_and_the_others_go_on(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000), "b": Every(1_000)}
    beat.until(1_500)
    beat.plans["a"] = None
    beat.store.revision += 1
    assert beat.until(3_500) == [("b", 2_000), ("b", 3_000)]
    # until it can be read again: it has kept its place
    beat.plans["a"] = Every(1_000)
    beat.store.revision += 1
    assert ("a", 3_000) in beat.until(3_600)


def test_one_that_was_added_counts_from_when_it_was(beat: Beat) -> None:
    class Phase(Every):
        def next_after(self, after_ms: int) -> int | None:
            return after_ms + self.interval

    beat.store.now = 10_000
    plan = Phase(1_000)
    plan.start_ms = 9_700
    beat.plans = {"a": plan}
    beat.tick()
    assert beat.store.next == {"a": 10_700}


def test_what_was_missed_is_told(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000)}
    beat.until(1_500)
    beat.store.now = 9_700
    beat.until(9_800)
    assert beat.store.missed == [("a", 2_000, 9_000)]


# --- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at start", "later"])
def test_one_that_cannot_be_calculated_does_not_stop_the_others(
    beat: Beat, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    broken = Every(1_000)
    beat.plans = {"a": Every(1_000), "broken": broken, "c": Every(1_000)}
    if when == "later":
        beat.until(1_500)
    broken.fails = True
    # When ten minutes pass
    beat.until(600_500)
    # Then the others have fired, it was tried again now and then, and it was said once
    counts = Counter(name for name, _ in beat.store.fired)
    assert counts == {"a": 600, "c": 600, **({"broken": 1} if when == "later" else {})}
    assert events(caplog).count("schedule_failed") == 1
    # And when it can be calculated again, it runs
    broken.fails = False
    caplog.set_level(logging.INFO)
    assert [one for one in beat.until(700_500) if one[0] == "broken"]
    assert events(caplog).count("schedule_recovered") == 1


def test_one_whose_message_cannot_be_made_is_skipped(beat: Beat) -> None:
    # Given an entry whose arguments cannot be evaluated; Celery has logged it
    beat.plans = {"a": Every(1_000), "broken": Every(1_000)}
    beat.unbuildable = {"broken": None}
    assert beat.until(2_500) == [("a", 1_000), ("a", 2_000)]
    # Then it is not made up for
    beat.unbuildable = {}
    assert beat.until(3_500) == [("a", 3_000), ("broken", 3_000)]


def test_one_whose_message_needs_what_is_away_stays_due(
    beat: Beat, caplog: pytest.LogCaptureFixture
) -> None:
    beat.plans = {"a": Every(1_000), "held": Every(4_000)}
    beat.unbuildable = {"held": StoreUnavailable("the broker is away")}
    # Then the others go on, it is said once, and nothing spins
    assert beat.until(20_500) == [("a", second * 1_000) for second in range(1, 21)]
    assert events(caplog).count("schedule_held") == 1
    assert beat.builds["held"] < 10  # with growing pauses
    # And when it is back, the latest of those that were missed runs
    caplog.set_level(logging.INFO)
    beat.unbuildable = {}
    held = [one for one in beat.until(40_500) if one[0] == "held"]
    assert held[0] in (("held", 20_000), ("held", 24_000), ("held", 28_000))
    assert held[-1] == ("held", 40_000)
    assert events(caplog).count("schedule_released") == 1


def test_what_is_not_fired_while_the_store_is_away_stays_due(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000)}
    beat.until(500)
    beat.store.away = True
    beat.store.now = 1_200
    with pytest.raises(StoreUnavailable):
        beat.tick()
    beat.store.away = False
    assert beat.until(1_300) == [("a", 1_000)]


def test_a_store_that_goes_away_between_two_entries(beat: Beat) -> None:
    # Given two that are due, and a store that fires one of them
    beat.plans = {"a": Every(1_000), "b": Every(1_000)}
    beat.until(500)
    beat.store.now = 1_000
    fire = beat.store.fire

    def once(**arguments: Any) -> bool:
        done = fire(**arguments)
        beat.store.away = True
        return done

    beat.store.fire = once  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        beat.tick()
    # Then the other is fired afterwards, and neither twice
    beat.store.away, beat.store.fire = False, fire  # type: ignore[method-assign]
    assert beat.until(1_500) == [("b", 1_000)]
    assert beat.store.fired == [("a", 1_000), ("b", 1_000)]


def test_an_answer_that_is_lost_fires_nothing_twice(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000)}
    beat.until(500)
    beat.store.now = 1_000
    fire = beat.store.fire

    def lost(**arguments: Any) -> bool:
        fire(**arguments)
        raise StoreUnavailable("the answer was lost")

    beat.store.fire = lost  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        beat.tick()
    beat.store.fire = fire  # type: ignore[method-assign]
    beat.until(1_500)
    assert beat.store.fired == [("a", 1_000)]


# --- leadership ------------------------------------------------------------------------------


def test_a_term_that_is_over_fires_nothing(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000)}
    beat.until(500)
    beat.store.now = 1_000
    beat.store.term = 2
    assert beat.tick(term=1) == SHORT_WAIT
    assert beat.store.fired == []


def test_a_term_that_ends_between_two_entries(beat: Beat) -> None:
    # Given two that are due, and another leader that comes when one has been fired
    beat.plans = {"a": Every(1_000), "b": Every(1_000)}
    beat.until(500)
    beat.store.now = 1_000
    build: Callable[[str, int], Addition | None] = beat.build

    def slow(name: str, nominal_ms: int) -> Addition | None:
        if name == "b":
            beat.store.term = 2
        return build(name, nominal_ms)

    beat.service = Periodic(beat.store, slow)
    beat.tick(term=1)
    assert beat.store.fired == [("a", 1_000)]
    # Then the other leader fires what is left, and only that
    beat.service = beat.restarted()
    assert beat.until(1_500, term=2) == [("b", 1_000)]


def test_a_leader_that_was_frozen_cannot_fire_again(beat: Beat) -> None:
    # Given a leader that has looked, and another one that has fired meanwhile
    beat.plans = {"a": Every(1_000)}
    beat.until(500)
    beat.store.now = 1_000
    other = beat.restarted()
    build = beat.build

    def frozen(name: str, nominal_ms: int) -> Addition | None:
        beat.service = Periodic(beat.store, build)
        other.run_once(1, beat.plans_of)
        return build(name, nominal_ms)

    Periodic(beat.store, frozen).run_once(1, beat.plans_of)
    assert beat.store.fired == [("a", 1_000)]


@pytest.mark.parametrize("term", [1, 2])
def test_a_redis_that_was_emptied_gets_its_schedules_again(beat: Beat, term: int) -> None:
    # Given a history that has ended; the lease of the next may bear the same term
    beat.plans = {"a": Every(1_000)}
    beat.until(1_500)
    beat.store.forget()
    beat.store.term = term
    assert beat.until(3_500, term) == [("a", 2_000), ("a", 3_000)]


def test_a_redis_that_has_lost_some_gets_them_again(beat: Beat) -> None:
    beat.plans = {"a": Every(1_000), "lost": Every(1_000)}
    beat.until(1_500)
    del beat.store.states["lost"], beat.store.next["lost"]
    fired = beat.until(62_500)
    assert [one for one in fired if one[0] == "lost"]


def test_nothing_is_written_as_long_as_nothing_changes(beat: Beat) -> None:
    beat.plans = {"a": Every(HOUR)}
    beat.until(25_000)
    assert beat.store.syncs == 1
