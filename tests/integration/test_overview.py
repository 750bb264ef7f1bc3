"""``forecast``, ``stats``, ``leader``, ``health`` and ``history`` on a real Redis and SQLite."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from celery_delay import EntryId
from celery_delay.cli import delay
from celery_delay.domain.ports import Transition
from celery_delay.domain.states import State
from celery_delay.exceptions import InvalidSetting, StoreUnavailable
from celery_delay.services.auditor import Auditor
from tests.projects import close, hand_off, make_app

HOUR = 3_600
#: 2030-01-31T09:30:00Z, long after any clock that runs here.
LATER = 1_896_082_200_000


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


def made(url: str, **conf: Any) -> Celery:
    app = make_app(url, **conf)
    app.task(nothing, name="ledger.pay", shared=False)
    return app


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    """A project with an audit and three shards."""
    app = made(redis_url, delay_database_url=f"sqlite:///{tmp_path}/audit.db", delay_shards=3)
    app.delayed.audit_log.migrate()
    yield app
    close(app)


@pytest.fixture
def plain_app(redis_url: str) -> Iterator[Celery]:
    """A project that keeps no audit."""
    app = made(redis_url)
    yield app
    close(app)


def pay(app: Celery, **options: Any) -> str:
    return str(app.tasks["ledger.pay"].apply_delayed((), **options).id)


def drain(app: Celery) -> None:
    parts = app.delayed
    for number, shard in enumerate(parts.shards):
        auditor = Auditor(
            number, shard, parts.audit_log, parts.results, parts.settings, parts.clock
        )
        while auditor.run_once(shard.leader()[1]):
            pass


def run(app: Celery, *arguments: str) -> Any:
    return CliRunner().invoke(delay, list(arguments), obj=SimpleNamespace(app=app, no_color=False))


def told(app: Celery, *arguments: str, exit_code: int = 0) -> Any:
    answer = run(app, *arguments, "--json")
    assert answer.exit_code == exit_code, answer.output
    return json.loads(answer.stdout)


# --- forecast ----------------------------------------------------------------------------


def test_forecast_counts_each_entry_where_it_is_due(app: Celery) -> None:
    # Given entries at known distances from now, some of them kept back
    delayed = app.delayed
    now = delayed.forecast("hour", 1)
    first_end, hour = now.periods[0].end_ms, HOUR * 1000
    etas = [now.now_ms - 5_000, first_end, first_end + hour - 1, first_end + hour, LATER]
    for eta_ms in etas:
        pay(app, eta=_iso(eta_ms))
    held = pay(app, countdown=HOUR)
    delayed.hold(held)

    found = delayed.forecast("hour", 3)

    assert found.overdue == 1
    # the end of a period belongs to the next one
    assert [one.entries for one in found.periods] == [0, 2, 1]
    assert [one.start_ms for one in found.periods][1:] == [first_end, first_end + hour]
    assert (found.later, found.held, found.blocked) == (1, 1, 0)
    assert found.total == 5


def test_what_waits_at_gates_is_told_apart(app: Celery) -> None:
    app.delayed.pause(task="ledger.pay")
    pay(app, countdown=0)
    hand_off(app)

    forecast, stats = app.delayed.forecast(), app.delayed.stats()

    assert (forecast.gated, forecast.total) == (1, 0)
    assert (stats.gated, stats.scheduled, stats.entries) == (1, 0, 1)


def test_forecast_begins_days_where_the_zone_does(plain_app: Celery) -> None:
    [utc] = plain_app.delayed.forecast("day", 1).periods
    [kolkata] = plain_app.delayed.forecast("day", 1, tz="Asia/Kolkata").periods

    assert utc.end_ms % 86_400_000 == 0
    assert (kolkata.end_ms + 19_800_000) % 86_400_000 == 0


def test_forecast_counts_what_is_published_too(plain_app: Celery, redis_url: str) -> None:
    app = made(redis_url, delay_handoff="claim")
    pay(app, countdown=10)

    found = app.delayed.forecast("day", 2)

    assert found.total == 1
    close(app)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"by": "week"}, ValueError, "by="),
        ({"periods": 0}, ValueError, "periods="),
        ({"periods": 1_441}, ValueError, "periods="),
        ({"periods": 1.5}, TypeError, "periods"),
        ({"tz": "Mars/Base"}, ValueError, "tz="),
    ],
)
def test_forecast_names_a_wrong_argument(
    plain_app: Celery, arguments: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        plain_app.delayed.forecast(**arguments)


def test_forecast_only_counts(plain_app: Celery, redis_url: str) -> None:
    # Given many entries, of which Redis has no more than their place in the schedule
    with redis.Redis.from_url(redis_url) as client:
        names = {f"t{i}": LATER + i for i in range(50_000)}
        client.zadd(plain_app.delayed.shard_keys[0].schedule, names)
        client.config_resetstat()

        found = plain_app.delayed.forecast("minute", 60)

        assert found.later == 50_000
        used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
        walks = {"zrange", "zrangebyscore", "zscan", "hgetall", "hmget", "hscan", "keys", "scan"}
        assert "zcount" in used
        assert used & walks == set()


def test_forecast_on_the_command_line(app: Celery) -> None:
    pay(app, countdown=0.001 + 24 * HOUR)
    pay(app, countdown=25 * HOUR)

    document = told(app, "forecast", "--by", "day", "--periods", "2")
    assert sum(one["entries"] for one in document["periods"]) + document["later"] == 2
    assert (document["by"], document["total"], len(document["periods"])) == ("day", 2, 2)

    said = run(app, "forecast", "--periods", "3").stdout.splitlines()
    assert [line.split("  ")[0] for line in (said[0], said[4])] == ["overdue", "later"]
    assert said[4].split() == ["later", "2"]
    assert said[5] == "2 tasks wait for their eta"
    assert run(app, "forecast", "--by", "week").exit_code == 2


def _iso(ms: int) -> str:
    from celery_delay.domain.clock import from_ms

    return from_ms(ms).isoformat()


# --- stats -------------------------------------------------------------------------------


def test_stats_counts_by_state(app: Celery) -> None:
    hand_off(app)
    early = pay(app, countdown=HOUR)
    for _ in range(4):
        pay(app, countdown=2 * HOUR)
    app.delayed.hold(pay(app, countdown=HOUR))

    found = app.delayed.stats()

    assert (found.scheduled, found.held, found.blocked, found.quarantined) == (5, 1, 0, 0)
    assert (found.claimed, found.overdue, found.entries) == (0, 0, 6)
    assert found.next_due_ms == app.delayed.get(early).eta_ms
    assert found.journal >= 6
    assert found.memory > 6 * 100
    assert 100 < found.entry_bytes == round(found.memory / 6)
    assert (found.past.reached, found.past.lag) == ({}, None)


def test_stats_tells_the_last_hour_from_the_audit(app: Celery) -> None:
    hand_off(app)
    for _ in range(3):
        pay(app, countdown=0)
    app.delayed.cancel(pay(app, countdown=HOUR))
    assert hand_off(app) == 3
    drain(app)

    past = app.delayed.stats().past

    assert past.reached == {"SCHEDULED": 4, "DISPATCHED": 3, "CANCELLED": 1}
    assert past.lag.handoffs == 3
    assert 0 <= past.lag.p50 <= past.lag.p95 <= past.lag.p99 <= past.lag.max < 60_000


def test_stats_without_an_audit_or_with_a_broken_one_tells_the_rest(
    plain_app: Celery, redis_url: str, tmp_path: Path
) -> None:
    pay(plain_app, countdown=HOUR)
    found = plain_app.delayed.stats()
    assert (found.scheduled, found.past, found.past_error) == (1, None, "")

    broken = made(redis_url, delay_database_url=f"sqlite:///{tmp_path}/none.db")
    found = broken.delayed.stats()
    assert (found.scheduled, found.past) == (1, None)
    assert "do not exist yet" in found.past_error
    assert "do not exist yet" in run(broken, "stats").stdout
    close(broken)


def test_stats_does_without_the_right_to_ask_for_memory(
    new_redis: Callable[..., Any],
) -> None:
    server = new_redis()
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-memory")
    app = made(server.broker_url)
    pay(app, countdown=HOUR)

    found = app.delayed.stats()

    assert (found.scheduled, found.memory, found.entry_bytes) == (1, None, None)
    assert told(app, "stats")["memory"] is None
    assert "may not be asked" in run(app, "stats").stdout
    close(app)


def test_stats_on_the_command_line(app: Celery) -> None:
    hand_off(app)
    pay(app, countdown=0)
    hand_off(app)
    drain(app)
    pay(app, countdown=HOUR)

    document = told(app, "stats")
    assert (document["entries"], document["scheduled"]) == (1, 1)
    assert document["past"]["reached"] == {"SCHEDULED": 1, "DISPATCHED": 1}
    assert document["past"]["lag"]["handoffs"] == 1
    said = run(app, "stats").stdout
    assert "DISPATCHED" in said
    assert "p95" in said


# --- leader and health -------------------------------------------------------------------


def test_leader_tells_who_leads_since_when(app: Celery) -> None:
    before = app.delayed.shards[0].time_ms()
    hand_off(app)

    led = app.delayed.leader()

    assert [one.shard for one in led] == [0, 1, 2]
    assert {(one.status, one.holder, one.term) for one in led} == {("leading", "test", 1)}
    assert all(before <= one.since_ms <= one.progress_ms for one in led)
    assert told(app, "leader")["shards"][0]["since_ms"] == led[0].since_ms


def test_leader_of_nobody_has_no_beginning(plain_app: Celery) -> None:
    [one] = plain_app.delayed.leader()
    assert (one.status, one.holder, one.since_ms, one.idle_ms) == ("nobody", None, None, None)


def test_health_is_ok_or_says_what_to_do(plain_app: Celery) -> None:
    ill = plain_app.delayed.health()
    assert ill.ok is False
    assert next((one.level, one.code) for one in ill.findings) == ("problem", "no_leader")
    assert "celery -A proj beat" in ill.findings[0].remedy

    hand_off(plain_app)
    well = plain_app.delayed.health()
    assert well.ok is True
    assert {one.level for one in well.findings} <= {"note"}


def test_health_says_that_redis_is_away_instead_of_raising(new_redis: Callable[..., Any]) -> None:
    server = new_redis()
    app = made(server.broker_url)
    server.stop()

    ill = app.delayed.health()

    assert ill.ok is False
    [one] = ill.findings
    assert one.code == "store_unavailable"
    assert "cannot connect" in one.text
    for question in (app.delayed.stats, app.delayed.forecast, app.delayed.leader):
        with pytest.raises(StoreUnavailable):
            question()
    close(app)


# --- history -----------------------------------------------------------------------------


def test_history_has_all_runs_and_transitions(app: Celery) -> None:
    hand_off(app)
    result = app.tasks["ledger.pay"].apply_delayed((), countdown=0)
    hand_off(app)
    drain(app)
    [run_row] = app.delayed.history(result.id).runs
    following = EntryId(result.id, run_row.run + 1)
    app.delayed.clock.sleep(0.002)
    app.delayed.record([Transition(following, 1, State.DISPATCHED, {"native": True})])
    drain(app)

    found = result.history()

    assert found == app.delayed.history(result.id)
    assert found.task_id == result.id
    assert [one.state for one in found.events] == ["SCHEDULED", "DISPATCHED", "DISPATCHED"]
    assert [one.run - run_row.run for one in found.runs] == [0, 1]
    assert found.runs[0].lag_ms >= 0
    assert found.audit_lag_ms == 0


def test_history_of_an_unknown_task_is_empty(app: Celery) -> None:
    found = app.delayed.history("nobody")
    assert (list(found.runs), list(found.events)) == ([], [])


def test_history_without_an_audit_says_which_setting(plain_app: Celery) -> None:
    result = plain_app.tasks["ledger.pay"].apply_delayed((), countdown=HOUR)
    with pytest.raises(InvalidSetting, match="delay_database_url is not set"):
        result.history()


def test_history_of_a_task_that_ran_at_once_is_empty(redis_url: str) -> None:
    app = made(redis_url, task_always_eager=True)
    result = app.tasks["ledger.pay"].apply_delayed((), countdown=HOUR)
    assert list(result.history().events) == []
    close(app)


def test_history_is_known_while_redis_is_away(
    new_redis: Callable[..., Any], tmp_path: Path
) -> None:
    server = new_redis()
    app = made(server.broker_url, delay_database_url=f"sqlite:///{tmp_path}/audit.db")
    app.delayed.audit_log.migrate()
    task_id = pay(app, countdown=HOUR)
    hand_off(app)
    drain(app)
    server.stop()

    found = app.delayed.history(task_id)

    assert [one.state for one in found.events] == ["SCHEDULED"]
    assert found.audit_lag_ms is None
    close(app)


def test_nobody_pays_for_sqlalchemy_before_the_audit_is_asked(redis_url: str) -> None:
    script = f"""
import sys
from celery import Celery
from celery_delay import CeleryDelay
app = Celery("shop", broker={redis_url!r})
app.conf.delay_database_url = "sqlite:////nowhere/audit.db"
delayed = CeleryDelay(app)
delayed.forecast(), delayed.leader()
print("sqlalchemy" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert ran.stdout.strip() == "False"
