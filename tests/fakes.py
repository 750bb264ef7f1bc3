"""What unit tests put in the place of clocks and servers."""

from __future__ import annotations

from celery_delay.domain.ports import LeaseRecord
from celery_delay.exceptions import StoreUnavailable

__all__ = ["FakeClock", "FakeLease", "LeaseServer"]


class FakeClock:
    """A :class:`~celery_delay.domain.clock.Clock` that a test moves by hand.

    Arguments:
        rate: seconds that boot and monotonic clock count while one true second passes.
    """

    def __init__(self, wall: float = 1_700_000_000.0, rate: float = 1.0) -> None:
        self._wall = wall
        self._boot = 1_000.0
        self._rate = rate

    def wall(self) -> float:
        return self._wall

    def boot(self) -> float:
        return self._boot

    def monotonic(self) -> float:
        return self._boot

    def sleep(self, seconds: float) -> None:
        self.advance(seconds / self._rate)

    def advance(self, seconds: float) -> None:
        """Let true time pass."""
        self._wall += seconds
        self._boot += seconds * self._rate

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._wall += seconds


class LeaseServer:
    """The lease record, as Redis keeps it."""

    def __init__(self) -> None:
        self.holder = ""
        self.term = 0
        self.seq = 0
        #: raise StoreUnavailable instead of answering
        self.away = False

    def elect(self, holder: str, seen: LeaseRecord | None, may_take: bool) -> LeaseRecord:
        """What ``elect.lua`` does."""
        unchanged = seen is not None and (seen.term, seen.seq) == (self.term, self.seq)
        if self.holder == holder:
            self.seq += 1
        elif not self.holder or (may_take and unchanged):
            self.holder, self.term, self.seq = holder, self.term + 1, self.seq + 1
        return LeaseRecord(self.holder, self.term, self.seq, 0, None, 0)

    def release(self, holder: str, term: int) -> bool:
        """What ``release.lua`` does."""
        if (self.holder, self.term) != (holder, term):
            return False
        self.holder = ""
        return True


class FakeLease:
    """One replica's way to the record."""

    def __init__(self, server: LeaseServer, holder: str) -> None:
        self._server = server
        self._holder = holder

    def elect(self, *, seen: LeaseRecord | None, may_take: bool) -> LeaseRecord:
        if self._server.away:
            raise StoreUnavailable("away")
        return self._server.elect(self._holder, seen, may_take)

    def release(self, term: int) -> bool:
        if self._server.away:
            raise StoreUnavailable("away")
        return self._server.release(self._holder, term)
