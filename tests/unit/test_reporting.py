"""What a worker's process cannot journal costs little time, and is counted, once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Transition
from celery_delay.domain.states import State
from celery_delay.exceptions import StoreUnavailable
from celery_delay.worker.reporting import Reporter
from tests.fakes import FakeClock

ONE = [Transition(EntryId("a", 1), 1, State.STARTED, {})]
TWO = [*ONE, Transition(EntryId("a", 2), 1, State.DISPATCHED, {})]


class Journal:
    """A store that takes its time, and may refuse."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.takes = 0.0
        self.failure: BaseException | None = None
        self.calls: list[tuple[int, int]] = []

    def record(
        self, transitions: Sequence[Transition], missing: int = 0, late: Sequence[Transition] = ()
    ) -> None:
        self.calls.append((len(transitions), missing))
        self.clock.advance(self.takes)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def journal() -> Journal:
    return Journal()


def test_what_was_missing_is_told_once_with_the_next_transition(journal: Journal) -> None:
    reporter = Reporter(journal)
    journal.failure = StoreUnavailable("away")
    reporter.tell(ONE)
    reporter.tell(TWO)

    journal.failure = None
    reporter.tell(ONE)
    reporter.tell(ONE)

    assert journal.calls == [(1, 0), (2, 1), (1, 3), (1, 0)]


def test_a_third_of_the_time_is_waited_at_most(journal: Journal) -> None:
    # Given a store that does not answer, and time-outs of half a second
    reporter = Reporter(journal)
    journal.failure, journal.takes = StoreUnavailable("time-out"), 0.5

    # When a thousand tasks end in ten seconds
    begun, waited = journal.clock.monotonic(), 0.0
    for _ in range(1_000):
        before = journal.clock.monotonic()
        reporter.tell(ONE)
        waited += journal.clock.monotonic() - before
        journal.clock.advance(0.01)

    # Then most of them have not waited at all
    assert waited <= (journal.clock.monotonic() - begun) / 3 + 0.5
    # and all are counted, the ones that were not even tried too
    journal.failure = None
    journal.clock.advance(2)
    reporter.tell(ONE)
    assert journal.calls[-1] == (1, 1_000)


def test_a_refused_connection_is_tried_again_at_once(journal: Journal) -> None:
    reporter = Reporter(journal)
    journal.failure = StoreUnavailable("refused")
    reporter.tell(ONE)
    journal.failure = None

    reporter.tell(ONE)

    assert journal.calls == [(1, 0), (1, 1)]


def test_an_outage_is_said_when_it_begins_and_when_it_ends(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reporter = Reporter(journal)
    for failure in (None, StoreUnavailable("away"), StoreUnavailable("away"), None, None):
        journal.failure = failure
        reporter.tell(ONE)

    told = [(one.event, getattr(one, "missing", None)) for one in caplog.records]  # type: ignore[attr-defined]
    assert told == [("journal_lost", None), ("journal_resumed", 2)]


def test_the_end_of_the_process_tells_what_is_missing(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = Reporter(journal)
    journal.failure = StoreUnavailable("away")
    reporter.tell(ONE)
    journal.failure = None

    reporter.close()
    reporter.close()

    assert journal.calls == [(1, 0), (0, 1)]
    # and if that cannot be told either, the log has it
    journal.failure = StoreUnavailable("away")
    reporter.tell(TWO)
    reporter.close()
    assert caplog.records[-1].event == "gap_lost"  # type: ignore[attr-defined]
    assert caplog.records[-1].missing == 2  # type: ignore[attr-defined]


def test_a_time_limit_that_strikes_in_the_middle_goes_through_and_is_counted(
    journal: Journal,
) -> None:
    reporter = Reporter(journal)
    journal.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        reporter.tell(ONE)

    journal.failure = None
    reporter.tell(ONE)

    assert journal.calls == [(1, 0), (1, 1)]
