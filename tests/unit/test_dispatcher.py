"""Dispatching against a store by hand: when it moves, waits, and keeps its hands off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_delay.domain.gates import Opened
from celery_delay.domain.ports import LeaseRecord, Moved, StaleEpoch
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.dispatcher import LONGEST_WAIT, ClockGuard, Dispatcher
from tests.fakes import FakeClock

SETTINGS = Settings(batch_size=10)
FULL = {"moved": 10}


class FakeStore:
    """Answers one move after the other; notes what it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        #: how far Redis' clock is ahead of this machine's, in seconds
        self.ahead = 0.0
        self.answers: list[Any] = []
        self.moves: list[dict[str, int]] = []
        self.begun: tuple[int, str] | None = (5, "")
        self.begun_with: list[tuple[int, int]] = []
        self.merged = self.opened = 0
        self.openings: list[Opened] = []

    @property
    def now_ms(self) -> int:
        return round((self.clock.wall() + self.ahead) * 1000)

    def move(self, **asked: int) -> Moved:
        self.moves.append(asked)
        assert len(self.moves) < 100, "it spins"
        if 0 < asked.get("latest_ms", 0) < self.now_ms:
            return Moved(self.now_ms, unmoved=True)
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            raise answer
        return Moved(**{"now_ms": self.now_ms, **answer})

    def begin_epoch(self, *, term: int, known_epoch: int) -> tuple[int, str] | None:
        self.begun_with.append((term, known_epoch))
        return self.begun

    def merge_back(self, *, term: int) -> int:
        self.merged += 1
        return 0

    def open_gates(self, *, term: int) -> Opened:
        self.opened += 1
        return self.openings.pop(0) if self.openings else Opened()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FakeStore:
    return FakeStore(clock)


@pytest.fixture
def dispatcher(store: FakeStore, clock: FakeClock) -> Dispatcher:
    return Dispatcher(store, SETTINGS, clock)


def leads() -> int | None:
    return 3


def steal(dispatcher: Dispatcher, record: LeaseRecord) -> int:
    """A standby's pass, right after it has looked at the lease."""
    now = dispatcher._clock.boot()
    return dispatcher.steal(record, now, now)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.event for one in caplog.records if hasattr(one, "event")]


# --- the leader --------------------------------------------------------------------------


def test_goes_on_until_a_batch_is_not_full(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN more due entries than a batch takes WHEN it runs THEN it moves until all are gone."""
    store.answers = [FULL, FULL, {"moved": 3}]
    assert dispatcher.run_once(leads) == LONGEST_WAIT
    assert len(store.moves) == 3


def test_waits_for_the_next_entry(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN an entry that is due soon WHEN nothing else is THEN it waits for exactly that."""
    store.answers = [{"next_due_ms": store.now_ms + 120}]
    assert dispatcher.run_once(leads) == pytest.approx(0.12)
    store.answers = [{"next_due_ms": store.now_ms + 60_000}]
    assert dispatcher.run_once(leads) == LONGEST_WAIT


def test_asks_before_each_batch_whether_it_leads(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN a backlog WHEN the trust of the leader ends between two batches THEN it stops."""
    store.answers = [FULL, FULL, FULL]
    terms: list[int | None] = [3, 3, None]
    dispatcher.run_once(lambda: terms.pop(0))
    assert len(store.moves) == 2


def test_leader_names_a_new_history_and_goes_on(
    dispatcher: Dispatcher, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """GIVEN a Redis that was emptied WHEN the leader meets it THEN it names it in its term."""
    store.answers = [StaleEpoch(), {"moved": 1}]
    dispatcher.run_once(leads)
    assert store.begun_with == [(3, 0)]
    assert len(store.moves) == 2
    store.answers = [StaleEpoch(), {}]
    dispatcher.run_once(leads)
    assert store.begun_with[1] == (3, 5), "the highest known epoch is told"


def test_does_not_spin_when_the_history_is_not_its_to_name(
    dispatcher: Dispatcher, store: FakeStore
) -> None:
    """GIVEN an emptied Redis that has forgotten the lease too
    WHEN the leader still trusts itself
    THEN it waits for the election, instead of asking as fast as it can.
    """
    store.answers = [StaleEpoch()] * 200
    store.begun = None
    assert dispatcher.run_once(leads) > 0
    assert len(store.moves) == 1


def test_does_not_spin_when_what_is_due_cannot_be_moved(
    dispatcher: Dispatcher, store: FakeStore
) -> None:
    """GIVEN due entries that stay where they are WHEN it runs THEN it pauses before it retries."""
    store.answers = [{"next_due_ms": store.now_ms - 500, "failure": "OOM"}]
    assert 0.05 <= dispatcher.run_once(leads) <= LONGEST_WAIT


def test_looks_again_at_once_after_a_short_batch(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN a batch that ended early WHEN more is due THEN the next pass comes at once."""
    store.answers = [{"moved": 2, "next_due_ms": store.now_ms - 5}]
    assert dispatcher.run_once(leads) == 0.0


def test_blocked_entries_are_merged_back_once_a_second(
    dispatcher: Dispatcher, store: FakeStore, clock: FakeClock
) -> None:
    """GIVEN passes in quick succession WHEN a second passes THEN one of them merges back."""
    for _ in range(20):
        dispatcher.run_once(leads)
        clock.advance(0.1)
    assert store.merged == 2


def test_a_failure_is_logged_when_it_changes(
    dispatcher: Dispatcher, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """GIVEN a queue that takes nothing WHEN it stays so THEN that is one line in the log."""
    store.answers = [{"failure": "the key celery is not a list"}] * 3
    for _ in range(3):
        dispatcher.run_once(leads)
    assert events(caplog).count("entries_blocked") == 1


# --- a standby ---------------------------------------------------------------------------


def seen(store: FakeStore, *, overdue_ms: int | None, silent_ms: int) -> LeaseRecord:
    now = store.now_ms
    head = None if overdue_ms is None else now - overdue_ms
    return LeaseRecord("other", 3, 7, now, head, now - silent_ms)


@pytest.mark.parametrize(
    ("overdue_ms", "silent_ms", "steals"),
    [
        (None, 9_000, False),  # nothing waits
        (-500, 9_000, False),  # nothing is due
        (250, 9_000, False),  # due, but the leader has still time
        (251, 250, False),  # overdue, but the leader makes progress: a backlog
        (251, 251, True),
    ],
)
def test_standby_steals_only_what_the_leader_leaves_lying(
    overdue_ms: int | None, silent_ms: int, steals: bool, dispatcher: Dispatcher, store: FakeStore
) -> None:
    """GIVEN how long the head is overdue, and for how long the leader was silent
    THEN the store is asked or not, and always with the backstop as the bound.
    """
    store.answers = [{"moved": 2}]
    stolen = steal(dispatcher, seen(store, overdue_ms=overdue_ms, silent_ms=silent_ms))
    assert stolen == (2 if steals else 0)
    assert [one["steal_ms"] for one in store.moves] == ([250] if steals else [])


def test_standby_steals_a_whole_backlog(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN a dead leader and a backlog WHEN a standby steals THEN it goes on to the end."""
    store.answers = [FULL, FULL, {"moved": 1}]
    assert steal(dispatcher, seen(store, overdue_ms=900, silent_ms=900)) == 21


def test_standby_never_names_a_history(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN a Redis without a mark WHEN a standby meets it THEN it leaves it to the leader."""
    store.answers = [StaleEpoch()]
    assert steal(dispatcher, seen(store, overdue_ms=900, silent_ms=900)) == 0
    assert store.begun_with == []
    assert store.merged == 0


def test_store_away_is_for_the_loop(dispatcher: Dispatcher, store: FakeStore) -> None:
    """GIVEN a store that is away WHEN it is asked THEN the exception passes through."""
    store.answers = [StoreUnavailable("away")] * 2
    with pytest.raises(StoreUnavailable):
        dispatcher.run_once(leads)
    with pytest.raises(StoreUnavailable):
        steal(dispatcher, seen(store, overdue_ms=900, silent_ms=900))


# --- Redis' clock ------------------------------------------------------------------------


@pytest.fixture
def guard(clock: FakeClock) -> ClockGuard:
    return ClockGuard(clock)


@pytest.fixture
def saw(guard: ClockGuard, clock: FakeClock) -> Callable[[float], None]:
    """The guard sees Redis' clock, so many seconds ahead of this machine's."""
    return lambda ahead: guard.saw(round((clock.wall() + ahead) * 1000), clock.boot(), clock.boot())


def test_steady_clock_holds_nothing(
    guard: ClockGuard, saw: Callable[[float], None], clock: FakeClock
) -> None:
    """GIVEN a Redis whose clock is an hour ahead, as ever THEN nothing is held back."""
    for _ in range(10):
        saw(3_600.0)
        clock.advance(1.0)
    assert guard.hold_ms == 0


def test_jump_forward_holds_what_it_made_due_for_a_while(
    guard: ClockGuard, saw: Callable[[float], None], clock: FakeClock
) -> None:
    """GIVEN a jump by an hour that this machine's clock does not confirm
    WHEN it is seen
    THEN entries wait by an hour longer, until the patience is over.
    """
    saw(0.0)
    clock.advance(1.0)
    saw(3_600.0)
    assert guard.hold_ms == pytest.approx(3_600_000, abs=5)
    clock.advance(ClockGuard.PATIENCE - 1)
    saw(3_600.0)
    assert guard.hold_ms > 0
    clock.advance(2.0)
    assert guard.hold_ms == 0


def test_jump_that_this_machine_confirms_is_believed(
    guard: ClockGuard, saw: Callable[[float], None], clock: FakeClock
) -> None:
    """GIVEN a Redis that was an hour behind WHEN its clock is put right THEN nothing is held."""
    saw(-3_600.0)
    clock.advance(1.0)
    saw(0.0)
    assert guard.hold_ms == 0


def test_jump_backward_ends_a_hold(
    guard: ClockGuard,
    saw: Callable[[float], None],
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """GIVEN a hold WHEN the clock is put back THEN it ends, and both jumps were reported."""
    saw(0.0)
    saw(3_600.0)
    clock.advance(1.0)
    saw(0.0)
    assert guard.hold_ms == 0
    assert events(caplog) == ["clock_stepped"] * 2


def test_small_differences_are_no_jump(
    guard: ClockGuard, saw: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    """GIVEN answers that take their time THEN that is no jump."""
    for ahead in (0.0, 1.5, 0.0, 1.9):
        saw(ahead)
    assert guard.hold_ms == 0
    assert events(caplog) == []


def test_answer_that_took_long_says_nothing_of_the_clock(
    guard: ClockGuard, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """GIVEN a process that was paused between Redis' answer and its own look at the clock
    WHEN it goes on, and the next answer comes in time
    THEN it takes neither for a jump, though this machine's wall clock is wrong.
    """

    def saw(pause: float) -> None:
        asked, store = clock.boot(), clock.wall() + 500
        clock.advance(pause)
        guard.saw(round(store * 1000), asked, clock.boot())

    for pause in (0.0, 5.0, 0.0):
        saw(pause)
    assert guard.hold_ms == 0
    assert events(caplog) == []


@pytest.mark.parametrize("role", ["leader", "standby"])
def test_jump_is_noticed_before_anything_is_moved(
    role: str, dispatcher: Dispatcher, store: FakeStore, clock: FakeClock
) -> None:
    """GIVEN a replica that knows Redis' clock
    WHEN the clock jumps
    THEN its first move after that already holds back what the jump made due.
    """
    moved: list[int] = []

    def look() -> None:
        before = len(store.moves)
        if role == "leader":
            dispatcher.run_once(leads)
        else:
            steal(dispatcher, seen(store, overdue_ms=900, silent_ms=900))
        moved.extend(
            one["hold_ms"]
            for one in store.moves[before:]
            if not 0 < one["latest_ms"] < store.now_ms
        )

    look()
    clock.advance(1.0)
    store.ahead = 3_600.0
    look()
    assert moved == [0, pytest.approx(3_600_000, abs=5)]


def test_does_not_spin_while_entries_are_held(
    dispatcher: Dispatcher, store: FakeStore, clock: FakeClock
) -> None:
    """GIVEN entries that only a jump made due WHEN they are held THEN passes are not wasted."""
    dispatcher.run_once(leads)
    store.ahead = 3_600.0
    clock.advance(1.0)
    dispatcher.run_once(leads)
    store.answers = [{"next_due_ms": store.now_ms - 1_000}]
    assert 0.05 <= dispatcher.run_once(leads) <= LONGEST_WAIT
    assert store.moves[-1]["hold_ms"] > 3_500_000
