"""The election with a clock moved by hand: who leads, and until when it believes so."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from celery_delay.domain.ports import LeaseRecord
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.elector import Elector
from tests.fakes import FakeClock, FakeLease, LeaseServer

SETTINGS = Settings()
HOUR = 3_600.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server() -> LeaseServer:
    return LeaseServer()


@pytest.fixture
def make(server: LeaseServer, clock: FakeClock) -> Callable[[str], Elector]:
    return lambda name: Elector(FakeLease(server, name), name, SETTINGS, clock)


@pytest.fixture
def leader(make: Callable[[str], Elector]) -> Elector:
    elector = make("leader")
    elector.run_once()
    return elector


@pytest.fixture
def standby(leader: Elector, make: Callable[[str], Elector]) -> Elector:
    elector = make("standby")
    elector.run_once()
    return elector


def pass_time(clock: FakeClock, seconds: float, *electors: Elector) -> None:
    """Let *electors* do their part for *seconds*, a pass every 0.1 s."""
    for _ in range(round(seconds / 0.1)):
        clock.advance(0.1)
        for elector in electors:
            elector.run_once()


# --- taking the lease --------------------------------------------------------------------


def test_free_lease_is_taken_at_once(make: Callable[[str], Elector]) -> None:
    """GIVEN no leader WHEN an elector looks THEN it leads, and renews in time."""
    elector = make("only")
    assert elector.term() is None
    assert elector.run_once() == SETTINGS.lease_renew
    assert elector.term() == 1


def test_standby_waits_a_whole_lease(leader: Elector, standby: Elector, clock: FakeClock) -> None:
    """GIVEN a leader that fell silent WHEN less than a lease has passed THEN nobody takes over."""
    pass_time(clock, SETTINGS.lease - 0.2, standby)
    assert standby.term() is None
    pass_time(clock, 0.3, standby)
    assert standby.term() == 2


def test_renewed_lease_is_not_taken(leader: Elector, standby: Elector, clock: FakeClock) -> None:
    """GIVEN a leader that renews WHEN many leases' time has passed THEN it still leads."""
    pass_time(clock, 10 * SETTINGS.lease, leader, standby)
    assert leader.term() == 1
    assert standby.term() is None


def test_one_renewal_is_enough_to_keep_the_lease(
    leader: Elector, standby: Elector, clock: FakeClock
) -> None:
    """GIVEN a standby that has waited for almost a lease
    WHEN the leader renews once
    THEN the standby waits for a whole lease again.
    """
    pass_time(clock, SETTINGS.lease - 0.2, standby)
    leader.run_once()
    pass_time(clock, SETTINGS.lease - 0.1, standby)
    assert standby.term() is None


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_setting_the_wall_clock_neither_ends_nor_prolongs_a_lease(
    step: float, leader: Elector, standby: Elector, clock: FakeClock
) -> None:
    """GIVEN a leader and a standby
    WHEN somebody sets the wall clock
    THEN the leader leads on, and a standby still takes over after a lease of silence.
    """
    clock.step_wall(step)
    pass_time(clock, 0.3, leader, standby)
    assert leader.term() == 1
    assert standby.term() is None
    pass_time(clock, SETTINGS.lease + 0.1, standby)
    assert standby.term() == 2


# --- the leader's trust in itself --------------------------------------------------------


def test_trust_ends_before_a_standby_can_take_over(leader: Elector, clock: FakeClock) -> None:
    """GIVEN a leader that cannot run WHEN its trust is over THEN it does not lead, unasked."""
    clock.advance(SETTINGS.lease_trust - 0.01)
    assert leader.term() == 1
    clock.advance(0.02)
    assert leader.term() is None


def test_trust_counts_from_the_start_of_the_attempt(server: LeaseServer, clock: FakeClock) -> None:
    """GIVEN an answer that takes its time WHEN it comes THEN trust does not begin with it."""

    class SlowLease(FakeLease):
        def elect(self, *, seen: LeaseRecord | None, may_take: bool) -> LeaseRecord:
            record = super().elect(seen=seen, may_take=may_take)
            clock.advance(0.5)
            return record

    elector = Elector(SlowLease(server, "slow"), "slow", SETTINGS, clock)
    elector.run_once()
    assert elector.term() == 1
    clock.advance(SETTINGS.lease_trust - 0.5)
    assert elector.term() is None


def test_paused_leader_wakes_up_as_nobody(
    leader: Elector, standby: Elector, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """GIVEN a leader that was paused while a standby took over
    WHEN it goes on
    THEN it does not lead, not even before it has looked, and says so once when it has.
    """
    pass_time(clock, SETTINGS.lease + 0.1, standby)
    assert standby.term() == 2
    assert leader.term() is None

    for _ in range(3):
        leader.run_once()

    assert leader.term() is None
    lost = [one for one in caplog.records if getattr(one, "event", "") == "leader_lost"]
    assert len(lost) == 1


def test_one_lost_answer_does_not_end_a_leadership(
    leader: Elector, server: LeaseServer, clock: FakeClock
) -> None:
    """GIVEN a leader WHEN one renewal fails and the next succeeds THEN its term goes on."""
    clock.advance(SETTINGS.lease_renew)
    server.away = True
    with pytest.raises(StoreUnavailable):
        leader.run_once()
    assert leader.term() == 1
    server.away = False
    clock.advance(SETTINGS.lease_renew)
    leader.run_once()
    assert leader.term() == 1


def test_leader_steps_down_when_the_store_stays_away(
    leader: Elector, server: LeaseServer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """GIVEN a leader WHEN the store is away for longer than its trust THEN it leads no more."""
    server.away = True
    for _ in range(5):
        clock.advance(0.25)
        with pytest.raises(StoreUnavailable):
            leader.run_once()
    assert leader.term() is None
    lost = [one for one in caplog.records if getattr(one, "event", "") == "leader_lost"]
    assert len(lost) == 1


def test_absence_of_the_store_is_not_the_leaders_silence(
    leader: Elector, standby: Elector, server: LeaseServer, clock: FakeClock
) -> None:
    """GIVEN a store that was away for longer than a lease
    WHEN it is back and the standby is the first to see it
    THEN the standby gives the leader a lease's time to come back.
    """
    server.away = True
    clock.advance(2 * SETTINGS.lease)
    with pytest.raises(StoreUnavailable):
        standby.run_once()
    server.away = False
    standby.run_once()
    assert standby.term() is None
    leader.run_once()
    assert leader.term() == 1


def test_standby_takes_over_although_looks_fail_now_and_then(
    leader: Elector, standby: Elector, server: LeaseServer, clock: FakeClock
) -> None:
    """GIVEN a leader that is gone, and a network that loses every third answer
    WHEN a few leases have passed
    THEN the standby leads: what it has watched is not forgotten with each failure.
    """
    for number in range(30):
        clock.advance(0.125)
        server.away = number % 3 == 0
        if server.away:
            with pytest.raises(StoreUnavailable):
                standby.run_once()
        else:
            standby.run_once()
    assert standby.term() == 2


# --- handing over ------------------------------------------------------------------------


def test_lease_that_was_given_back_is_taken_at_the_next_look(
    leader: Elector, standby: Elector
) -> None:
    """GIVEN a leader that resigns WHEN a standby looks THEN it leads in a new term."""
    leader.resign()
    assert leader.term() is None
    standby.run_once()
    assert standby.term() == 2


def test_resigning_without_a_lease_asks_nobody(standby: Elector, server: LeaseServer) -> None:
    """GIVEN a standby WHEN it resigns, the store being away THEN nothing happens."""
    server.away = True
    standby.resign()
    assert server.holder == "leader"


def test_resigning_late_does_not_take_the_lease_from_the_next_leader(
    leader: Elector, standby: Elector, server: LeaseServer, clock: FakeClock
) -> None:
    """GIVEN a leader that was paused while a standby took over
    WHEN it resigns before it has looked
    THEN the standby still holds the lease.
    """
    pass_time(clock, SETTINGS.lease + 0.1, standby)
    leader.resign()
    assert server.holder == "standby"


def test_resigning_while_the_store_is_away_ends_the_leadership_all_the_same(
    leader: Elector, server: LeaseServer
) -> None:
    """GIVEN a leader WHEN it cannot give the lease back THEN it says so, and leads no more."""
    server.away = True
    with pytest.raises(StoreUnavailable):
        leader.resign()
    assert leader.term() is None


def test_standbys_look_twice_as_often_and_not_in_step(standby: Elector) -> None:
    """GIVEN a standby WHEN it looks THEN its pauses differ, within a tenth."""
    waits = {standby.run_once() for _ in range(50)}
    half = SETTINGS.lease_renew / 2
    assert len(waits) > 10
    assert all(0.9 * half <= wait <= 1.1 * half for wait in waits)


# --- never two ---------------------------------------------------------------------------


class World:
    """True time, in which replicas act with delays, pauses and clocks of different rates.

    Each replica is a thread, of which one runs at a time: whoever waits gives the turn to the
    one that has to wait for the shortest time.  So a run depends on its seed alone.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = LeaseServer()
        self.now = 0.0
        self.over = False
        self.failure: BaseException | None = None
        self.terms_seen: set[int] = set()
        self._turn = threading.Semaphore(0)
        self.replicas = [Replica(self, number) for number in range(3)]

    def run(self, seconds: float) -> None:
        """Let time pass, and those act whose time comes; then let each thread end."""
        for one in self.replicas:
            one.start()
        while alive := [one for one in self.replicas if one.is_alive()]:
            self.over = self.over or self.now >= seconds or self.failure is not None
            following = min(alive, key=lambda one: one.at)
            self._go_to(following.at)
            following.turn.release()
            self._turn.acquire()
            if following.ended:
                following.join()
        if self.failure is not None:
            raise self.failure

    def wait(self, replica: Replica, seconds: float) -> None:
        """Called by a replica: let others act meanwhile."""
        replica.at = self.now + seconds
        self.give_turn()
        replica.turn.acquire()

    def give_turn(self) -> None:
        self._turn.release()

    def check(self) -> None:
        """At this instant at most one leads."""
        leading = [one.elector.term() for one in self.replicas]
        terms = [term for term in leading if term is not None]
        assert len(terms) <= 1, f"at {self.now:.3f}: {leading}"
        self.terms_seen.update(terms)

    def _go_to(self, instant: float) -> None:
        for one in self.replicas:
            one.clock.advance(instant - self.now)
        self.now = instant


class Replica(threading.Thread):
    """One elector, which acts now and then; also its lease."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(name=f"replica {number}", daemon=True)
        self.world = world
        # the fastest and the slowest differ by a fifth at most
        self.clock = FakeClock(rate=world.random.choice((1.0, 1.1, 1.2)))
        self.elector = Elector(self, self.name, SETTINGS, self.clock)
        self.at = world.random.uniform(0.0, 0.5)
        self.turn = threading.Semaphore(0)
        self.ended = False

    def run(self) -> None:
        self.turn.acquire()
        try:
            while not self.world.over:
                self._act()
        except BaseException as exc:
            self.world.failure = exc
        self.ended = True
        self.world.give_turn()

    def _act(self) -> None:
        try:
            if self.world.random.random() < 0.01:
                self.elector.resign()
                wait = 0.5
            else:
                wait = self.elector.run_once()
        except StoreUnavailable:
            wait = 0.05
        self.world.check()
        if self.world.random.random() < 0.1:
            wait += self.world.random.uniform(0.5, 3.0)
        self.world.wait(self, wait)

    def elect(self, *, seen: LeaseRecord | None, may_take: bool) -> LeaseRecord:
        """An answer that comes too late is a failure that had its effect all the same."""
        begun = self.clock.boot()
        self._on_the_way()
        record = self.world.server.elect(self.name, seen, may_take)
        self._on_the_way()
        if self.clock.boot() - begun > SETTINGS.election_timeout:
            raise StoreUnavailable("no answer in time")
        return record

    def release(self, term: int) -> bool:
        self._on_the_way()
        return self.world.server.release(self.name, term)

    def _on_the_way(self) -> None:
        # mostly quick; at times just in time, at times lost
        longest = self.world.random.choices((0.005, 0.19, 1.5), (70, 25, 5))[0]
        self.world.wait(self, self.world.random.uniform(0.0, longest))


@pytest.mark.parametrize("seed", range(60))
def test_two_never_lead_at_one_instant(seed: int) -> None:
    """GIVEN three replicas with delays, lost answers, pauses, and clocks that differ by a fifth
    WHEN they contend for two minutes
    THEN at no instant do two of them lead, and leadership did change hands.
    """
    world = World(seed)
    world.run(120.0)
    assert len(world.terms_seen) > 2
