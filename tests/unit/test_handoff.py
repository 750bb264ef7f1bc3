"""The claim path against a store and a broker by hand: what is acked, given back, left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from celery_delay.domain.claims import Claims, Publishing, Told
from celery_delay.domain.entries import Claimed, EntryId
from celery_delay.domain.gates import Opened
from celery_delay.domain.ports import LeaseRecord, StaleEpoch
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.dispatcher import LONGEST_WAIT, RETRY_AFTER, Dispatcher
from celery_delay.services.handoff import (
    ACK_WINDOW,
    CLAIM_SIZE,
    PROBE_EVERY,
    PUBLISH_WITHIN,
    Handoff,
)
from tests.fakes import FakeClock

SETTINGS = Settings()
SENT = (Publishing.CONFIRMED, "")


class FakeStore:
    """A schedule in a list, claims in a dict; notes what it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.due: list[str] = []
        self.claimed: dict[str, str] = {}
        self.acked: list[str] = []
        self.parked: dict[str, str] = {}
        self.blocked: list[str] = []
        self.told: list[str] = []
        self.claims: list[dict[str, Any]] = []
        self.rescues = 0
        self.next_due_ms: int | None = None
        #: exceptions that the next calls of a method raise, by its name
        self.failures: dict[str, list[Exception]] = {}

    @property
    def now_ms(self) -> int:
        return round(self.clock.wall() * 1000)

    def _may_fail(self, name: str) -> None:
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    def claim(self, **asked: Any) -> Claims:
        self.claims.append(asked)
        assert len(self.claims) < 100, "it spins"
        self._may_fail("claim")
        taken, self.due = self.due[: asked["limit"]], self.due[asked["limit"] :]
        self.claimed |= dict.fromkeys(taken, asked["token"])
        found = [Claimed(EntryId(one, 1), 1, self.now_ms, 0, {}) for one in taken]
        return Claims(self.now_ms, self.next_due_ms, found)

    def ack(self, token: str, task_ids: Sequence[str]) -> int:
        self._may_fail("ack")
        mine = [one for one in task_ids if self.claimed.get(one) == token]
        for one in mine:
            del self.claimed[one]
        self.acked += mine
        return len(mine)

    def give_back(self, token: str, returns: Sequence[tuple[str, str, str]]) -> int:
        self._may_fail("give_back")
        for task_id, where, why in returns:
            assert self.claimed.pop(task_id) == token
            if where == "Q":
                self.parked[task_id] = why
            else:
                (self.due if where == "S" else self.blocked).append(task_id)
        return len(returns)

    def rescue(self, *, latest_ms: int = 0) -> int:
        self.rescues += 1
        return 0

    def tell_broker(self, failure: str) -> None:
        self._may_fail("tell_broker")
        self.told.append(failure)


class FakePublisher:
    """A broker that takes everything but what ``outcomes`` says, by task id."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.outcomes: dict[str, tuple[Publishing, str]] = {}
        self.failure = ""
        self.sent: list[str] = []
        self.probes = 0
        self.closed = False
        #: called before each message
        self.before: Callable[[str], None] = lambda task_id: None
        self.batches = 0
        self.windows: list[int] = []

    def connect(self) -> str:
        return self.failure

    def publish(
        self, batch: Sequence[Claimed], may_send: Callable[[], bool], window: int
    ) -> Iterator[list[Told]]:
        self.windows.append(window)
        self.batches += 1
        told: list[Told] = []
        broken = ""
        for one in batch:
            if len(told) == window:
                # the word of the older half has come
                yield told[: window // 2]
                del told[: window // 2]
            self.before(one.entry_id.task_id)
            broken = broken or next((why for _, how, why in told if how is Publishing.UNKNOWN), "")
            if broken or not may_send():
                told.append((one, Publishing.AWAY, broken))
                continue
            self.sent.append(one.entry_id.task_id)
            told.append((one, *self.outcomes.get(one.entry_id.task_id, SENT)))
        yield told

    def probe(self) -> str:
        self.probes += 1
        return self.failure

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FakeStore:
    return FakeStore(clock)


@pytest.fixture
def broker(clock: FakeClock) -> FakePublisher:
    return FakePublisher(clock)


@pytest.fixture
def handoff(store: FakeStore, broker: FakePublisher, clock: FakeClock) -> Handoff:
    return Handoff(store, broker, SETTINGS, clock)


def leads() -> int | None:
    return 3


def ids(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


def test_what_is_due_is_published_acked_and_waited_for(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(250)
    store.next_due_ms = store.now_ms + 400

    wait = handoff.run_once(leads)

    assert broker.sent == store.acked == ids(250)
    assert store.claimed == {}
    assert max(broker.windows) == ACK_WINDOW
    assert {one["limit"] for one in store.claims} == {CLAIM_SIZE}
    assert len({one["token"] for one in store.claims}) == len(store.claims)
    assert wait == pytest.approx(0.4)


def test_nothing_due_is_looked_at_again_in_a_second(handoff: Handoff) -> None:
    assert handoff.run_once(leads) == LONGEST_WAIT


def test_what_is_due_and_held_back_does_not_spin(handoff: Handoff, store: FakeStore) -> None:
    store.next_due_ms = store.now_ms - 5

    assert handoff.run_once(leads) == RETRY_AFTER


def test_who_does_not_lead_claims_nothing(handoff: Handoff, store: FakeStore) -> None:
    store.due = ids(1)

    assert handoff.run_once(lambda: None) == LONGEST_WAIT
    assert store.claims == []


def test_a_refused_message_is_quarantined_and_holds_up_nobody(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(5)
    broker.outcomes = {"t1": (Publishing.REFUSED, "no queue is bound")}

    handoff.run_once(leads)

    assert store.parked == {"t1": "no queue is bound"}
    assert store.acked == ["t0", "t2", "t3", "t4"]


def test_a_declined_message_is_set_aside(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(3)
    broker.outcomes = {"t1": (Publishing.DECLINED, "the queue is full")}

    handoff.run_once(leads)

    assert store.blocked == ["t1"]
    assert store.acked == ["t0", "t2"]


def test_an_unknown_outcome_stays_claimed_and_opens_the_circuit(
    handoff: Handoff, store: FakeStore, broker: FakePublisher, clock: FakeClock
) -> None:
    store.due = ids(50)
    broker.outcomes = {"t21": (Publishing.UNKNOWN, "no confirm")}

    wait = handoff.run_once(leads)

    assert wait == PROBE_EVERY
    assert list(store.claimed) == ["t21"], "only its claim's end may bring it back"
    assert store.acked == ids(21)
    assert store.due == [f"t{number}" for number in range(22, 50)], "nothing was sent of these"
    assert store.told == ["no confirm"]


def test_an_open_circuit_claims_nothing_until_a_probe_succeeds(
    handoff: Handoff, store: FakeStore, broker: FakePublisher, clock: FakeClock
) -> None:
    store.due = ids(2)
    broker.failure = "refused"
    handoff.run_once(leads)
    assert store.due == ids(2)
    asked = len(store.claims)

    assert 0 < handoff.run_once(leads) <= PROBE_EVERY
    assert broker.probes == 0
    clock.advance(PROBE_EVERY + 0.01)
    assert handoff.run_once(leads) == PROBE_EVERY
    assert (broker.probes, len(store.claims)) == (1, asked)

    broker.failure = ""
    clock.advance(PROBE_EVERY + 0.01)
    handoff.run_once(leads)

    assert store.acked == ids(2)
    assert store.told == ["refused", ""]


def test_nothing_is_published_when_the_claim_is_old(
    handoff: Handoff, store: FakeStore, broker: FakePublisher, clock: FakeClock
) -> None:
    store.due = ids(4)

    def pause(task_id: str) -> None:
        if task_id == "t2" and broker.batches == 1:
            clock.advance(PUBLISH_WITHIN)  # SIGSTOP, or a slow broker

    broker.before = pause
    handoff.run_once(leads)

    assert broker.sent[:2] == ["t0", "t1"]
    # t2 and t3 came back to the schedule, and were claimed anew
    assert store.acked == ids(4)
    assert broker.sent == ids(4)


def test_a_lost_ack_is_made_up_for_before_anything_else(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(3)
    store.failures["ack"] = [StoreUnavailable("away"), StoreUnavailable("away")]

    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            handoff.run_once(leads)
    asked = len(store.claims)
    handoff.run_once(leads)

    assert asked == 1, "no new claim before the old one is acked"
    assert store.acked == ids(3)
    assert broker.sent == ids(3)


def test_without_a_store_nothing_more_is_sent_and_what_was_confirmed_is_acked_later(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(50)
    store.failures["ack"] = [StoreUnavailable("away")]

    with pytest.raises(StoreUnavailable):
        handoff.run_once(leads)

    # the older half of the window could not be acked: the younger one was under way
    assert broker.sent == ids(ACK_WINDOW)
    assert store.acked == []

    handoff.run_once(leads)

    assert store.acked == ids(ACK_WINDOW)
    assert set(store.claimed) == set(ids(50)) - set(ids(ACK_WINDOW)), "their claim will end"


def test_an_ending_process_returns_what_it_has_not_sent(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(60)

    def end(task_id: str) -> None:
        handoff.stopping = task_id == "t30" or handoff.stopping

    broker.before = end
    handoff.run_once(lambda: None if handoff.stopping and store.claims else 3)

    assert store.acked == ids(30)
    assert set(store.due) == set(ids(60)) - set(ids(30))
    assert store.claimed == {}


def test_a_full_redis_that_takes_no_word_of_the_broker_stops_nothing(
    handoff: Handoff, store: FakeStore
) -> None:
    store.due = ids(3)
    store.failures["tell_broker"] = [StoreUnavailable("OOM")]

    handoff.run_once(leads)
    handoff.run_once(leads)

    assert store.acked == ids(3)
    assert store.told == [""], "it is made up for"


def test_closing_acks_and_drops_the_connection(
    handoff: Handoff, store: FakeStore, broker: FakePublisher
) -> None:
    store.due = ids(1)
    store.failures["ack"] = [StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable):
        handoff.run_once(leads)

    handoff.close()

    assert store.acked == ["t0"]
    assert broker.closed


def test_dead_claims_are_looked_for_once_a_second(
    handoff: Handoff, store: FakeStore, clock: FakeClock
) -> None:
    for _ in range(5):
        handoff.run_once(leads)
        clock.advance(0.3)

    assert store.rescues == 2


def test_a_history_without_a_name_is_the_dispatchers_to_name(
    handoff: Handoff, store: FakeStore
) -> None:
    store.failures["claim"] = [StaleEpoch()]

    assert handoff.run_once(leads) == RETRY_AFTER


def test_both_schedules_are_served_where_no_move_is_possible(
    handoff: Handoff, store: FakeStore
) -> None:
    handoff.sources = ("outbound", "schedule")

    handoff.run_once(leads)

    assert [one["source"] for one in store.claims] == ["outbound", "schedule"]


# --- a standby -----------------------------------------------------------------------------


def record(clock: FakeClock, *, due: float | None, progress: float) -> LeaseRecord:
    """The lease as a standby sees it; *due* and *progress* are seconds ago."""
    now = round(clock.wall() * 1000)
    head = None if due is None else now - round(due * 1000)
    return LeaseRecord("other", 1, 1, now, None, 0, head, now - round(progress * 1000))


@pytest.mark.parametrize(
    ("due", "progress", "stolen"),
    [(None, 9.0, 0), (0.1, 9.0, 0), (9.0, 0.1, 0), (9.0, 9.0, 3)],
    ids=["nothing waits", "not overdue", "the leader is at work", "left lying"],
)
def test_a_standby_publishes_only_what_the_leader_leaves_lying(
    handoff: Handoff,
    store: FakeStore,
    clock: FakeClock,
    due: float | None,
    progress: float,
    stolen: int,
) -> None:
    store.due = ids(3)
    now = clock.boot()

    assert handoff.steal(record(clock, due=due, progress=progress), now, now) == stolen
    assert len(store.acked) == stolen
    assert all(one["steal_ms"] == 250 for one in store.claims)


def test_a_standby_whose_broker_fails_does_not_speak_for_the_leader(
    handoff: Handoff, store: FakeStore, broker: FakePublisher, clock: FakeClock
) -> None:
    store.due = ids(3)
    broker.failure = "refused"

    assert handoff.steal(record(clock, due=9.0, progress=9.0), clock.boot(), clock.boot()) == 0
    assert store.told == []
    assert store.due == ids(3)


def test_a_leader_tells_of_the_broker_anew_when_another_has_led_between(
    handoff: Handoff, store: FakeStore, clock: FakeClock
) -> None:
    handoff.run_once(leads)
    handoff.steal(record(clock, due=None, progress=9.0), clock.boot(), clock.boot())

    handoff.run_once(leads)

    assert store.told == ["", ""]


def test_a_standby_whose_broker_is_back_says_so_by_itself(
    handoff: Handoff,
    store: FakeStore,
    broker: FakePublisher,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    store.due = ids(3)
    broker.failure = "refused"
    handoff.steal(record(clock, due=9.0, progress=9.0), clock.boot(), clock.boot())
    broker.failure = ""
    clock.advance(PROBE_EVERY + 0.01)

    handoff.steal(record(clock, due=None, progress=9.0), clock.boot(), clock.boot())

    told = [getattr(one, "event", "") for one in caplog.records]
    assert told == ["broker_failing", "broker_recovered"]
    assert store.told == []


# --- the dispatcher beside it ---------------------------------------------------------------


class TendedStore:
    """What the dispatcher asks for where no move is possible."""

    def open_gates(self, *, term: int) -> Opened:
        return Opened()

    def __init__(self) -> None:
        self.named = False
        self.merged = 0

    def has_epoch(self) -> bool:
        return self.named

    def begin_epoch(self, *, term: int, known_epoch: int) -> tuple[int, str] | None:
        self.named = True
        return 7, ""

    def merge_back(self, *, term: int) -> int:
        self.merged += 1
        return 0

    def move(self, **asked: int) -> Any:
        raise AssertionError("no move reaches the queues")


def test_without_a_move_the_dispatcher_names_the_history_and_merges_back(
    clock: FakeClock,
) -> None:
    store = TendedStore()
    dispatcher = Dispatcher(store, SETTINGS, clock)  # type: ignore[arg-type]
    dispatcher.moves = False

    dispatcher.run_once(leads)
    clock.advance(1.1)
    dispatcher.run_once(leads)

    assert store.named
    assert store.merged == 2
    now = clock.boot()
    assert dispatcher.steal(record(clock, due=9.0, progress=9.0), now, now) == 0
