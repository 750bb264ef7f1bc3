"""Counting, what is served of it, and the judgement on a beat's health; without a server."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from celery_delay.domain import series
from celery_delay.domain.claims import Claims, Publishing
from celery_delay.domain.clock import SystemClock
from celery_delay.domain.entries import Claimed, EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.ports import Counts, JournalPosition, LeaseRecord, Moved
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import AuditUnavailable, InvalidSetting, StoreUnavailable
from celery_delay.metrics.exposition import Exposition, render, require
from celery_delay.metrics.figures import FRESH, Figures
from celery_delay.metrics.health import ASLEEP, Health, ShardHealth
from celery_delay.metrics.server import Pages
from celery_delay.metrics.tally import Tally
from celery_delay.services.dispatcher import Dispatcher
from celery_delay.services.elector import Elector
from celery_delay.services.handoff import Handoff
from celery_delay.services.outcomes import Outcomes
from celery_delay.store.measuring import StoreFigures
from tests.fakes import FakeClock, FakeLease, LeaseServer

SETTINGS = Settings(batch_size=10)
KNOWN = StoreFigures(7, {"1m": 1, "5m": 2, "15m": 3}, *[0] * 12, {0: 4}, 10, 20)


def values(tally: Tally, one: series.Series) -> dict[tuple[str, ...], float]:
    return dict(tally.values(one))


def page(tally: Tally, known: StoreFigures | None = KNOWN, accept: str = "") -> str:
    class Known:
        def now(self, patience: float) -> StoreFigures | None:
            return known

    _, body = render(Exposition(tally, Known()), accept)  # type: ignore[arg-type]
    return body.decode()


# --- the setting ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "host", "ports"),
    [
        ("127.0.0.1:9540", "127.0.0.1", [9540]),
        ("localhost:0", "localhost", [0]),
        ("0.0.0.0:9540-9542", "0.0.0.0", [9540, 9541, 9542]),
        ("[::1]:9540", "::1", [9540]),
    ],
)
def test_where_to_serve_is_read(given: str, host: str, ports: list[int]) -> None:
    found = Settings(http=given).http  # type: ignore[arg-type]

    assert found is not None
    assert (found[0], list(found[1])) == (host, ports)


@pytest.mark.parametrize(
    "given",
    [
        "", "9540", 9540, ":9540", "host:", "host:port", "host:70000", "host:9-5", "host:0-5",
        "::1:9540", "http://host:9540", "host:9540/metrics", "a b:1", "host:²", True,
    ],
)  # fmt: skip
def test_where_nothing_can_be_served_is_an_error_that_says_what_to_write(given: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"delay_http must be 'host:port' .* not "):
        Settings(http=given)


def test_without_prometheus_client_it_is_said_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("celery_delay.metrics.exposition.find_spec", lambda name: None)

    require(Settings())
    with pytest.raises(
        InvalidSetting, match=r"delay_http .* pip install 'celery-delay\[metrics\]'"
    ):
        require(Settings(http="127.0.0.1:0"))  # type: ignore[arg-type]
    assert importlib.util.find_spec("prometheus_client"), "the tests have it"


# --- counting ------------------------------------------------------------------------------


def test_names_beyond_the_bound_are_counted_together() -> None:
    tally = Tally(most=2)
    for name in ("a", "b", "c", "d", "a"):
        tally.count(series.FINISHED, 1, (name, "SUCCEEDED"))
        tally.observe(series.RUN, 0.5, (name,))

    assert values(tally, series.FINISHED) == {
        ("a", "SUCCEEDED"): 2, ("b", "SUCCEEDED"): 1, ("other", "other"): 2,
    }  # fmt: skip
    assert {labels: sum(one.counts) for labels, one in tally.buckets(series.RUN)} == {
        ("a",): 2, ("b",): 1, ("other",): 2,
    }  # fmt: skip


def test_a_name_that_is_no_text_breaks_no_page() -> None:
    tally = Tally(most=10)
    tally.count(series.FIRED, 1, ('a"\n\\',))
    tally.count(series.FIRED, 1, ("\ud800" + "x" * 500,))
    tally.count(series.FIRED, 1, ("\ud800" + "x" * 500,))

    found = [
        one
        for family in text_string_to_metric_families(page(tally))
        for one in family.samples
        if one.name == "celery_delay_fired_total"
    ]

    assert [one.value for one in found] == [1, 2]
    assert found[0].labels == {"schedule": 'a"\n\\'}


def test_a_page_has_each_series_in_both_formats_and_zeros_from_the_start() -> None:
    for accept in ("", "application/openmetrics-text; version=1.0.0", "text/plain;version=x.y"):
        text = page(Tally(10), accept=accept)
        for one in series.all_series():
            name = one.name.removesuffix("_total") if "openmetrics" in accept else one.name
            assert f"# HELP {name} " in text
            assert f"# TYPE {name} {one.kind}" in text
    assert "celery_delay_stolen_total 0.0" in text
    assert 'celery_delay_lag_seconds_bucket{le="+Inf"} 0.0' in text
    assert 'celery_delay_due{within="5m"} 2.0' in text


def test_what_the_store_does_not_tell_is_absent() -> None:
    text = page(Tally(10), known=None)

    assert "celery_delay_store_up 0.0" in text
    assert "\ncelery_delay_pending " not in text


def test_buckets_are_those_of_prometheus() -> None:
    tally = Tally(10)
    tally.observe(series.LAG, 0.005)
    tally.gather(series.LAG, [1] * 14, 2.0)

    text = page(tally)

    assert 'celery_delay_lag_seconds_bucket{le="0.005"} 2.0' in text
    assert 'celery_delay_lag_seconds_bucket{le="300.0"} 14.0' in text
    assert 'celery_delay_lag_seconds_bucket{le="+Inf"} 15.0' in text
    assert "celery_delay_lag_seconds_count 15.0" in text
    assert "celery_delay_lag_seconds_sum 2.005" in text


# --- counted where it happens --------------------------------------------------------------


class Store:
    """Answers each call with the next of *answers*."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.answers.pop(0) if name in ("move", "claim") else 0

    def open_gates(self, *, term: int) -> Any:
        from celery_delay.domain.gates import Opened

        return Opened()


def test_a_dispatcher_counts_what_a_move_tells() -> None:
    tally, clock = Tally(10), FakeClock()
    counts = Counts(700, [0] * 6 + [3] + [0] * 7, [("pay", "q", 2), ("mail", "q", 1)])
    moved = Moved(1, None, moved=3, expired=2, quarantined=1, counts=counts)
    late = LeaseRecord("you", 1, 1, 9_000, 1_000, 1_000)

    Dispatcher(Store(moved), SETTINGS, clock, tally).run_once(lambda: 3)  # type: ignore[arg-type]
    Dispatcher(Store(moved), SETTINGS, clock, tally).steal(late, 0.0, 0.0)  # type: ignore[arg-type]

    assert values(tally, series.DISPATCHED) == {("pay", "q"): 4, ("mail", "q"): 2}
    assert next(one for _, one in tally.buckets(series.LAG)).counts[6] == 6
    assert next(one for _, one in tally.buckets(series.LAG)).total == 1.4
    assert values(tally, series.EXPIRED) == {(): 4}
    assert values(tally, series.QUARANTINED) == {(): 2}
    assert values(tally, series.STOLEN) == {(): 3}


def test_a_hand_off_counts_what_the_broker_says() -> None:
    tally, clock = Tally(10), FakeClock()
    envelope = {
        "headers": {"task": "pay"},
        "properties": {"delivery_info": {"exchange": "", "routing_key": "key"}},
    }
    now_ms = round(clock.wall() * 1000)
    taken = [Claimed(EntryId(one, 1), 1, now_ms - 2_000, 0, envelope) for one in "abc"]
    outcomes = [(Publishing.CONFIRMED, ""), (Publishing.REFUSED, "no"), (Publishing.UNKNOWN, "")]

    class Broker:
        def connect(self) -> str:
            return ""

        def publish(self, *_: Any) -> Any:
            yield [(one, *outcome) for one, outcome in zip(taken, outcomes, strict=True)]

    handoff = Handoff(
        Store(Claims(now_ms, None, taken, expired=1), Claims(now_ms)),  # type: ignore[arg-type]
        Broker(),  # type: ignore[arg-type]
        SETTINGS,
        clock,
        meter=tally,
    )
    handoff.run_once(lambda: 3)

    assert values(tally, series.DISPATCHED) == {("pay", "key"): 1}
    assert next(one for _, one in tally.buckets(series.LAG)).total == pytest.approx(2.0)
    assert values(tally, series.BROKER_ERRORS) == {("refused",): 1, ("unknown",): 1}
    assert values(tally, series.QUARANTINED) == {(): 1}
    assert values(tally, series.EXPIRED) == {(): 1}


def test_an_election_is_counted_once() -> None:
    tally = Tally(10)
    elector = Elector(FakeLease(LeaseServer(), "me"), "me", Settings(), FakeClock(), 5, tally)

    assert values(tally, series.ELECTIONS) == {("5",): 0}
    elector.run_once()
    elector.run_once()

    assert values(tally, series.ELECTIONS) == {("5",): 1}


class Runs:
    def __init__(self, known: Mapping[EntryId, tuple[str, int | None]]) -> None:
        self.known: Any = known

    def runs(self, entry_ids: Sequence[EntryId]) -> Mapping[EntryId, tuple[str, int | None]]:
        if isinstance(self.known, Exception):
            raise self.known
        return {one: self.known[one] for one in entry_ids if one in self.known}


def event(number: int, state: str, task_id: str, **data: object) -> Event:
    return Event(0, 1, f"{number}-0", 0, state, EntryId(task_id, 1), 1, number, None, data)


def test_outcomes_are_counted_by_task_and_an_event_that_is_read_again_once() -> None:
    tally = Tally(10)
    known = {EntryId("a", 1): ("pay", 1_000), EntryId("b", 1): ("mail", None)}
    outcomes = Outcomes(Runs(known), tally)
    events = [
        event(900, "STARTED", "a"),
        event(1_500, "FAILED", "a", error="TimeLimitExceeded(1)"),
        event(1_600, "RETRIED", "b"),
        event(1_700, "SUCCEEDED", "unknown"),
    ]

    outcomes.drained(JournalPosition(0, 1, "950-3"), events)

    assert values(tally, series.DRAINED) == {("FAILED",): 1, ("RETRIED",): 1, ("SUCCEEDED",): 1}
    assert values(tally, series.FINISHED) == {
        ("pay", "FAILED"): 1, ("mail", "RETRIED"): 1, ("", "SUCCEEDED"): 1,
    }  # fmt: skip
    assert [(who, one.total) for who, one in tally.buckets(series.RUN)] == [(("pay",), 0.5)]
    assert values(tally, series.PAST_LIMIT) == {("pay",): 1}


def test_a_database_that_is_away_then_costs_the_outcomes_and_nothing_else() -> None:
    tally, runs = Tally(10), Runs({})
    runs.known = AuditUnavailable("away")

    Outcomes(runs, tally).drained(JournalPosition(0, 1, "0"), [event(1, "FAILED", "a")])

    assert values(tally, series.DRAINED) == {("FAILED",): 1}
    assert values(tally, series.FINISHED) == {}


# --- the store's figures -------------------------------------------------------------------


def test_however_often_the_figures_are_asked_for_the_store_is_asked_now_and_then() -> None:
    clock, looks = FakeClock(), []

    def look() -> StoreFigures:
        looks.append(1)
        return KNOWN

    figures = Figures(look, clock)
    figures.loop.start()
    try:
        threads = [threading.Thread(target=figures.now) for _ in range(5)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert figures.now() == KNOWN
        assert len(looks) == 1
        clock.advance(FRESH + 1)
        assert figures.now() == KNOWN
        assert len(looks) == 2
    finally:
        figures.loop.stop()
        figures.loop.join(5)


def test_a_store_that_does_not_answer_keeps_nobody_waiting() -> None:
    clock, answers = SystemClock(), threading.Event()

    def look() -> StoreFigures:
        answers.wait(20)
        raise StoreUnavailable("away")

    figures = Figures(look, clock)
    figures.loop.start()
    begun = clock.monotonic()
    try:
        assert figures.now(0.05) is None
        assert clock.monotonic() - begun < 10
    finally:
        answers.set()
        figures.loop.stop()
        figures.loop.join(5)


# --- alive, ready --------------------------------------------------------------------------


def health(clock: FakeClock, *shards: ShardHealth, ticked: float = 0.0) -> Health:
    return Health(lambda: shards, lambda: ticked or clock.boot(), clock)


def test_a_beat_is_alive_and_ready_while_its_election_works() -> None:
    clock = FakeClock()
    fine = ShardHealth(0, clock.boot(), clock.boot() - 1, "", [])

    assert health(clock, fine).ailments() == []
    assert health(clock, fine).obstacles() == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"answered_at": None}, "has not answered yet"),
        ({"answered_at": 900.0}, "does not answer for 100 s"),
        ({"barred": "the database is another's"}, "cannot be led: the database is another's"),
    ],
)
def test_a_beat_that_could_not_lead_is_alive_and_says_why_it_is_not_ready(
    change: dict[str, Any], text: str
) -> None:
    clock = FakeClock()
    found = health(clock, ShardHealth(1, clock.boot(), clock.boot(), "", [])._replace(**change))

    assert found.ailments() == []
    assert text in "".join(found.obstacles())


def test_a_beat_whose_threads_end_or_stand_still_is_not_alive() -> None:
    clock = FakeClock()
    long_ago = clock.boot() - ASLEEP - 1
    ended = ShardHealth(0, clock.boot(), clock.boot(), "", ["dispatcher-0"])
    stuck = ShardHealth(0, long_ago, clock.boot(), "", [])
    fine = ShardHealth(0, clock.boot(), clock.boot(), "", [])

    assert "dispatcher-0 has ended" in health(clock, ended).ailments()[0]
    assert "elector of shard 0 is stuck" in health(clock, stuck).ailments()[0]
    assert "loop is stuck" in health(clock, fine, ticked=long_ago).ailments()[0]
    assert health(clock, ended).obstacles() != []


def test_a_page_is_made_once_in_a_while_and_health_each_time() -> None:
    clock, made, wrong = FakeClock(), [], ["a", "b"]

    def metrics(accept: str) -> tuple[str, bytes]:
        made.append(accept)
        return "text/x", b"x"

    pages = Pages(metrics, lambda: wrong, list, clock)

    assert [pages.of("/metrics", "x").body for _ in range(3)] == [b"x"] * 3
    assert made == ["x"]
    clock.advance(2)
    pages.of("/metrics", "x")
    assert made == ["x", "x"]
    assert pages.of("/healthz", "")[::2] == (503, b"a\nb\n")
    wrong.clear()
    assert pages.of("/healthz", "").status == 200
    assert pages.of("/", "").status == 404
