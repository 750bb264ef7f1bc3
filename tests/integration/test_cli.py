"""The command line on a real Redis and a real SQLite file: every verb, as table and as JSON."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

import celery_delay
from celery_delay.cli import delay
from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Transition
from celery_delay.domain.states import State
from celery_delay.services.auditor import Auditor
from tests.processes import ProcessHarness
from tests.projects import close, hand_off, make_app

HOUR = 3600

# --- helpers -----------------------------------------------------------------------------


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "audit.sqlite3"


def audited_app(url: str, database: Path, **conf: Any) -> Celery:
    app = make_app(url, delay_database_url=f"sqlite:///{database}", **conf)
    app.task(nothing, shared=False, name="shop.pay")
    app.task(nothing, shared=False, name="shop.remind")
    return app


@pytest.fixture
def app(redis_url: str, database: Path) -> Iterator[Celery]:
    app = audited_app(redis_url, database)
    app.delayed.audit_log.migrate()
    yield app
    close(app)


@pytest.fixture
def plain_app(redis_url: str) -> Iterator[Celery]:
    """A project that keeps no audit."""
    app = make_app(redis_url)
    app.task(nothing, shared=False, name="shop.pay")
    yield app
    close(app)


def run(app: Celery, *arguments: str) -> Any:
    return CliRunner().invoke(delay, list(arguments), obj=SimpleNamespace(app=app, no_color=False))


def told(app: Celery, *arguments: str, exit_code: int = 0) -> Any:
    """The JSON document that a verb gives."""
    answer = run(app, *arguments, "--json")
    assert answer.exit_code == exit_code, answer.output
    return json.loads(answer.stdout)


def pay(app: Celery, *args: Any, **options: Any) -> str:
    options = options if "eta" in options else {"countdown": HOUR, **options}
    return str(app.tasks["shop.pay"].apply_delayed(args, **options).id)


def drain(app: Celery) -> None:
    """Bring the journal to SQL, as the leader's auditor does."""
    parts = app.delayed
    for number, shard in enumerate(parts.shards):
        auditor = Auditor(
            number, shard, parts.audit_log, parts.results, parts.settings, parts.clock
        )
        while auditor.run_once(shard.leader()[1]):
            pass


def client(app: Celery) -> redis.Redis:
    return redis.Redis.from_url(app.conf.broker_url)


class Meanwhile:
    """A clock; while somebody sleeps on it, something happens."""

    def __init__(self, clock: Any, happens: Callable[[], object] = lambda: None) -> None:
        self._clock = clock
        self._happens = happens
        self.slept: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._happens()


def stop_the_leader(app: Celery) -> None:
    """Its last look at the schedule was a minute ago."""
    keys = app.delayed.shard_keys[0]
    with client(app) as connection:
        connection.hset(keys.mark, "progress", app.delayed.now_ms() - 60_000)


# --- list --------------------------------------------------------------------------------


def test_list_tells_what_waits_the_earliest_first(app: Celery) -> None:
    late, early = pay(app, countdown=2 * HOUR), pay(app, countdown=HOUR)

    document = told(app, "list")

    assert [one["task_id"] for one in document["tasks"]] == [early, late]
    assert document["source"] == "store"
    assert document["total"] == 2
    first = document["tasks"][0]
    assert first["state"] == "SCHEDULED"
    assert first["task"] == "shop.pay"
    assert first["queue"] == "celery"
    assert first["eta"].endswith("Z")
    assert first["eta_ms"] - document["now_ms"] == first["due_in_ms"]
    # now_ms may be behind Redis' clock by the way of one answer
    assert 0 < first["due_in_ms"] <= HOUR * 1000 + 1_000


def test_list_as_a_table_has_local_time_and_the_time_left(app: Celery) -> None:
    task_id = pay(app, eta="2090-07-01T12:00:00Z")

    said = run(app, "list").stdout

    [row] = [line for line in said.splitlines() if task_id in line]
    assert "shop.pay" in row
    local = app.delayed.result(task_id).eta.astimezone().isoformat(sep=" ")
    assert local in row
    assert " in " in row
    assert "1 of 1 waiting tasks" in said


def test_list_of_nothing_is_no_error(app: Celery) -> None:
    answer = run(app, "list")
    assert (answer.exit_code, answer.stdout) == (0, "nothing waits\n")
    assert told(app, "list")["tasks"] == []


def test_list_takes_limit_and_bounds(app: Celery) -> None:
    soon, later, year = (pay(app, countdown=n * HOUR) for n in (1, 5, 9000))

    def ids(*options: str) -> list[str]:
        return [one["task_id"] for one in told(app, "list", *options)["tasks"]]

    assert ids("--limit", "2") == [soon, later]
    assert ids("--before", "2h") == [soon]
    assert ids("--after", "2h", "--before", "6h") == [later]
    assert ids("--after", "90d") == [year]
    assert told(app, "list", "--limit", "1")["total"] == 3


def test_list_by_name_and_queue_is_answered_from_the_audit(app: Celery) -> None:
    paid = pay(app)
    fast = pay(app, queue="fast", priority=3)
    app.tasks["shop.remind"].apply_delayed(countdown=HOUR)
    hand_off(app)
    drain(app)

    document = told(app, "list", "--task", "shop.pay")
    assert document["source"] == "audit"
    assert document["audit_lag_ms"] == 0
    assert [one["task_id"] for one in document["tasks"]] == [paid, fast]

    [row] = told(app, "list", "--queue", "fast")["tasks"]
    assert (row["task_id"], row["queue"]) == (fast, "fast")
    assert "up to date" in run(app, "list", "--queue", "fast").stdout


def test_list_checks_in_redis_what_the_audit_calls_scheduled(app: Celery) -> None:
    # Given two tasks that the audit knows, one of which has been cancelled since
    gone, there = pay(app), pay(app)
    hand_off(app)
    drain(app)
    app.delayed.cancel(gone)

    document = told(app, "list", "--task", "shop.pay")

    assert [one["task_id"] for one in document["tasks"]] == [there]
    assert document["audit_lag_ms"] >= 0
    assert told(app, "list", "--task", "shop.pay")["total"] is None


def test_list_of_a_past_state_comes_from_the_audit_latest_first(app: Celery) -> None:
    first, second = pay(app, countdown=HOUR), pay(app, countdown=2 * HOUR)
    waiting = pay(app)
    for one in (first, second):
        app.delayed.cancel(one)
    hand_off(app)
    drain(app)

    rows = told(app, "list", "--state", "cancelled")["tasks"]
    assert [(one["task_id"], one["state"]) for one in rows] == [
        (second, "CANCELLED"),
        (first, "CANCELLED"),
    ]
    both = told(app, "list", "--state", "CANCELLED", "--state", "SCHEDULED")["tasks"]
    assert {one["task_id"] for one in both} == {first, second, waiting}
    assert "CANCELLED" in run(app, "list", "--state", "CANCELLED").stdout


def test_list_of_a_past_state_needs_the_audit(plain_app: Celery) -> None:
    answer = run(plain_app, "list", "--state", "FAILED")
    assert answer.exit_code == 2
    assert "delay_database_url is not set" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""


def test_the_audit_is_readable_while_redis_is_away(
    new_redis: Callable[..., Any], database: Path
) -> None:
    server = new_redis()
    app = audited_app(server.broker_url, database)
    app.delayed.audit_log.migrate()
    task_id = pay(app)
    app.delayed.cancel(task_id)
    hand_off(app)
    drain(app)

    server.stop()

    document = told(app, "list", "--state", "CANCELLED")
    assert [one["task_id"] for one in document["tasks"]] == [task_id]
    assert document["audit_lag_ms"] is None
    assert "unknown" in run(app, "list", "--state", "CANCELLED").stdout
    assert len(told(app, "history", task_id)["events"]) == 2
    close(app)


# --- show --------------------------------------------------------------------------------


def test_show_tells_what_is_stored(app: Celery) -> None:
    task_id = pay(app, "order", 17, kwargs={"note": "\x1b[2J"}, expires=2 * HOUR)

    document = told(app, "show", task_id)

    stored = document["stored"]
    assert stored["task"] == "shop.pay"
    assert stored["args"] == "('order', 17)"
    assert stored["kwargs"] == "{'note': '\x1b[2J'}"  # Celery's own text, as it is
    assert stored["headers"]["id"] == task_id
    assert stored["expires_ms"] > document["now_ms"]
    assert document["audit"] is None
    assert document["result"] == {"state": None}
    said = run(app, "show", task_id).stdout
    assert "('order', 17)" in said
    assert "SCHEDULED" in said
    assert "\x1b" not in said


def test_show_tells_the_audits_runs_and_the_result(app: Celery) -> None:
    task_id = pay(app)
    app.delayed.cancel(task_id, reason="paid")
    hand_off(app)
    drain(app)

    document = told(app, "show", task_id)

    assert document["stored"] is None
    assert document["audit"]["state"] == "CANCELLED"
    assert document["audit"]["error"] == "paid"
    assert [one["state"] for one in document["audit"]["runs"]] == ["CANCELLED"]
    assert document["result"] == {"state": "REVOKED"}
    said = run(app, "show", task_id).stdout
    assert "CANCELLED" in said
    assert "REVOKED" in said


def test_show_of_an_unknown_task_is_a_no(app: Celery) -> None:
    document = told(app, "show", "nobody", exit_code=1)
    assert (document["stored"], document["audit"]) == (None, None)
    answer = run(app, "show", "nobody")
    assert answer.stdout == ""
    assert "nobody knows the task 'nobody'" in answer.stderr


def test_show_without_a_usable_audit_tells_the_rest_and_why(redis_url: str, database: Path) -> None:
    app = audited_app(redis_url, database)
    task_id = pay(app)

    document = told(app, "show", task_id)
    assert document["stored"]["task"] == "shop.pay"
    assert "do not exist yet" in document["audit_error"]
    assert "do not exist yet" in run(app, "show", task_id).stdout
    assert not database.exists(), "a file made by the reader would belong to the wrong user"
    close(app)


def test_show_works_without_an_audit(plain_app: Celery) -> None:
    task_id = pay(plain_app)
    document = told(plain_app, "show", task_id)
    assert document["stored"] is not None
    assert document["audit_error"] is None


# --- history -----------------------------------------------------------------------------


def test_history_tells_all_runs_in_order(app: Celery) -> None:
    # Given a task that was handed off and asked for another run, which is stored
    task_id = pay(app, countdown=0)
    assert hand_off(app) == 1
    drain(app)
    run_number = told(app, "show", task_id)["audit"]["run"]
    entry = EntryId(task_id, run_number)
    following = entry._replace(run=run_number + 1)
    app.delayed.shards[0].record(  # in one millisecond
        [
            Transition(entry, 1, State.STARTED, {"worker": "w1@shop", "pid": 7}),
            Transition(entry, 1, State.RETRIED, {"reason": "no\nmoney"}),
        ]
    )
    app.delayed.clock.sleep(0.002)
    app.delayed.record([Transition(following, 1, State.DISPATCHED, {"native": True})])
    drain(app)

    document = told(app, "history", task_id)

    events = document["events"]
    assert [(one["state"], one["run"] - run_number) for one in events] == [
        ("SCHEDULED", 0),
        ("DISPATCHED", 0),
        ("STARTED", 0),
        ("RETRIED", 0),
        ("DISPATCHED", 1),
    ]
    assert events[1]["lag_ms"] >= 0
    assert events[2]["worker"] == "w1@shop"
    assert [one["at_ms"] for one in events] == sorted(one["at_ms"] for one in events)
    assert all(one["at"].endswith("Z") for one in events)
    assert document["audit_lag_ms"] == 0
    said = run(app, "history", task_id).stdout
    assert "w1@shop" in said
    assert "reason=no\\nmoney" in said
    assert "transitions: 5" in said


def test_history_tells_how_far_the_audit_lags(app: Celery) -> None:
    # Given a task whose first event is drained and whose second waits in the journal
    task_id = pay(app)
    hand_off(app)
    drain(app)
    app.delayed.cancel(task_id)
    app.delayed.clock.sleep(0.02)

    document = told(app, "history", task_id)
    assert [one["state"] for one in document["events"]] == ["SCHEDULED"]
    assert document["audit_lag_ms"] >= 20
    assert "lags" in run(app, "history", task_id).stdout


def test_history_of_what_is_not_drained_yet_says_that_it_waits(app: Celery) -> None:
    task_id = pay(app)
    answer = run(app, "history", task_id)
    assert answer.exit_code == 1
    assert "but it waits in Redis" in answer.stderr
    assert told(app, "history", "nobody", exit_code=1)["events"] == []


def test_history_needs_the_audit_and_its_tables(
    plain_app: Celery, redis_url: str, database: Path
) -> None:
    assert run(plain_app, "history", "x").exit_code == 2
    app = audited_app(redis_url, database)
    answer = run(app, "history", "x")
    assert answer.exit_code == 69
    assert "celery -A proj delay migrate" in answer.stderr
    assert answer.stderr.count("\n") == 1
    close(app)


# --- cancel ------------------------------------------------------------------------------


def test_cancel_gives_three_answers(app: Celery) -> None:
    waiting, handed = pay(app), pay(app, countdown=0)
    assert hand_off(app) == 1
    drain(app)

    document = told(app, "cancel", waiting, handed, "nobody", "--reason", "paid", exit_code=1)

    assert [(one["task_id"], one["outcome"]) for one in document["answers"]] == [
        (waiting, "CANCELLED"),
        (handed, "TOO_LATE"),
        ("nobody", "NOT_FOUND"),
    ]
    assert document["cancelled"] == 1
    assert app.delayed.get(waiting) is None
    drain(app)
    assert told(app, "history", waiting)["events"][-1]["data"]["reason"] == "paid"


def test_cancel_knows_by_the_audit_what_redis_has_forgotten(app: Celery) -> None:
    # Given a task whose hand-off is not drained yet, and one that was cancelled long ago
    assert hand_off(app) == 0
    handed, cancelled = pay(app, countdown=0), pay(app)
    app.delayed.cancel(cancelled)
    drain(app)
    assert hand_off(app) == 1
    with client(app) as connection:
        for keys in app.delayed.shard_keys:
            connection.delete(keys.tombstones_even, keys.tombstones_odd)

    answers = told(app, "cancel", handed, cancelled, exit_code=1)["answers"]

    assert [one["outcome"] for one in answers] == ["TOO_LATE", "CANCELLED"]


def test_cancel_of_all_is_a_yes(app: Celery) -> None:
    first, second = pay(app), pay(app)
    answer = run(app, "cancel", first, second)
    assert answer.exit_code == 0
    assert answer.stdout.count("CANCELLED") == 2
    assert app.delayed.count() == 0


def test_cancel_of_a_missing_task_says_what_that_means(app: Celery) -> None:
    answer = run(app, "cancel", "nobody")
    assert answer.exit_code == 1
    assert "NOT_FOUND" in answer.stdout
    assert "late add" in answer.stdout


def test_cancel_takes_no_empty_id(app: Celery) -> None:
    assert run(app, "cancel", "").exit_code == 2


# --- leader ------------------------------------------------------------------------------


def test_leader_of_an_unled_store_is_a_no(app: Celery) -> None:
    [shard] = told(app, "leader", exit_code=1)["shards"]
    assert (shard["status"], shard["holder"], shard["idle_ms"]) == ("nobody", None, None)
    assert "nobody" in run(app, "leader").stdout


def test_leader_tells_who_leads(app: Celery) -> None:
    hand_off(app)

    document = told(app, "leader")

    [shard] = document["shards"]
    assert document["led"] is True
    assert (shard["status"], shard["holder"], shard["term"]) == ("leading", "test", 1)
    assert shard["epoch"] > 0
    said = run(app, "leader").stdout
    assert "leading" in said
    assert "test" in said


def test_leader_tells_one_that_has_stopped(app: Celery) -> None:
    hand_off(app)
    stop_the_leader(app)
    app.delayed.clock = clock = Meanwhile(app.delayed.clock)

    [shard] = told(app, "leader", exit_code=1)["shards"]

    assert shard["status"] == "gone"
    assert shard["idle_ms"] >= 60_000
    assert clock.slept == [app.delayed.settings.lease]


def test_leader_tells_one_that_renews_but_does_not_work(app: Celery) -> None:
    hand_off(app)
    stop_the_leader(app)
    with client(app) as connection:
        lease = app.delayed.shard_keys[0].lease
        app.delayed.clock = Meanwhile(
            app.delayed.clock, lambda: connection.hincrby(lease, "seq", 1)
        )
        assert told(app, "leader", exit_code=1)["shards"][0]["status"] == "stuck"


def test_leader_waits_for_a_standby_that_takes_over(app: Celery) -> None:
    hand_off(app)
    stop_the_leader(app)
    app.delayed.clock = Meanwhile(app.delayed.clock, lambda: hand_off(app))
    assert told(app, "leader")["led"] is True


# --- status ------------------------------------------------------------------------------


def codes(document: Any, level: str = "problem") -> list[str]:
    return [one["code"] for one in document["findings"] if one["level"] == level]


def test_status_of_a_healthy_system(app: Celery) -> None:
    pay(app)
    hand_off(app)
    drain(app)

    document = told(app, "status")

    assert document["healthy"] is True
    assert codes(document) == []
    [shard] = document["shards"]
    assert (shard["pending"], shard["overdue"], shard["blocked"], shard["quarantined"]) == (
        1, 0, 0, 0,
    )  # fmt: skip
    assert (shard["holder"], shard["term"], shard["status"]) == ("test", 1, "leading")
    assert (shard["journal"], shard["drain_lag_ms"], shard["templates"]) == (0, 0, 1)
    assert shard["next_due_ms"] > document["now_ms"]
    assert document["audit"]["state"] == "current"
    assert document["redis"]["version"].count(".") == 2


def test_status_with_nobody_leading_says_what_to_do(app: Celery) -> None:
    pay(app)
    assert codes(told(app, "status", exit_code=1)) == ["no_leader"]
    said = run(app, "status").stdout
    assert "problem: nobody leads shard 0" in said
    assert "-> no beat runs" in said
    assert "celery -A proj beat" in said


def test_status_counts_what_is_overdue(app: Celery) -> None:
    hand_off(app)
    stop_the_leader(app)
    pay(app, eta="2020-01-01T00:00:00Z")
    app.delayed.clock = Meanwhile(app.delayed.clock)

    document = told(app, "status", exit_code=1)

    assert document["shards"][0]["overdue"] == 1
    assert codes(document) == ["leader_gone", "overdue"]


def test_status_tells_why_tasks_are_set_aside(app: Celery) -> None:
    with client(app) as connection:
        pay(app, countdown=0)
        connection.set("celery", "not a queue")
        with pytest.raises(AssertionError, match="not a list"):
            hand_off(app)
        # the next leader's pass would merge it back: it is looked at in between
        document = told(app, "status", exit_code=1)
        assert document["shards"][0]["blocked_reasons"] == {"the key celery is not a list": 1}
        assert "blocked" in codes(document)
        connection.delete("celery")


def test_status_tells_why_tasks_are_quarantined(app: Celery) -> None:
    task_id = pay(app, countdown=0)
    keys = app.delayed.shard_keys[0]
    with client(app) as connection:
        connection.hset(keys.entries, task_id, connection.hget(keys.entries, task_id) + b"!")
    hand_off(app)

    document = told(app, "status", exit_code=1)

    assert document["shards"][0]["quarantined"] == 1
    assert document["shards"][0]["quarantined_reasons"] == {"the record is damaged": [task_id]}
    assert codes(document) == ["quarantined"]
    assert task_id in run(app, "status").stdout


def test_status_tells_a_schema_that_is_missing(redis_url: str, database: Path) -> None:
    app = audited_app(redis_url, database)
    hand_off(app)
    document = told(app, "status", exit_code=1)
    assert codes(document) == ["schema_missing"]
    assert "delay migrate" in document["findings"][0]["remedy"]
    close(app)


def test_status_tells_a_database_of_another_redis(app: Celery) -> None:
    hand_off(app)
    with client(app) as connection:
        connection.hset(app.delayed.shard_keys[0].mark, "audit_id", "another")
    assert codes(told(app, "status", exit_code=1)) == ["foreign_database"]


def test_status_tells_an_audit_that_cannot_be_used(app: Celery, database: Path) -> None:
    hand_off(app)
    app.delayed.audit_log.close()
    for one in database.parent.glob("audit.sqlite3*"):
        one.unlink()
    database.write_bytes(b"this is no database, however long one reads in it" * 100)
    document = told(app, "status", exit_code=1)
    assert codes(document) == ["audit_unavailable"]
    assert document["audit"]["state"] == "unavailable"


def test_status_works_without_an_audit(plain_app: Celery) -> None:
    hand_off(plain_app)
    document = told(plain_app, "status")
    assert document["audit"]["state"] == "off"


def test_status_of_several_shards_tells_each(redis_url: str) -> None:
    app = make_app(redis_url, delay_shards=3)
    hand_off(app)
    assert [one["shard"] for one in told(app, "status")["shards"]] == [0, 1, 2]
    assert told(app, "leader")["led"] is True
    close(app)


@pytest.mark.redis62
def test_status_and_list_on_every_redis(redis_url: str) -> None:
    app = make_app(redis_url)
    app.task(nothing, shared=False, name="shop.pay")
    task_id = pay(app)
    assert told(app, "list")["tasks"][0]["task_id"] == task_id
    hand_off(app)
    assert told(app, "status")["healthy"] is True
    close(app)


# --- Redis away --------------------------------------------------------------------------


def test_without_redis_verbs_end_with_69_and_one_line(new_redis: Callable[..., Any]) -> None:
    server = new_redis()
    app = make_app(server.broker_url)
    server.stop()
    for arguments in (("list",), ("show", "x"), ("status",), ("leader",)):
        answer = run(app, *arguments)
        assert answer.exit_code == 69, arguments
        assert answer.stdout == ""
        assert answer.stderr.count("\n") == 1
        assert "cannot connect" in answer.stderr
    answer = run(app, "cancel", "x", "y", "--json")
    assert answer.exit_code == 69
    assert [one["outcome"] for one in json.loads(answer.stdout)["answers"]] == [None, None]
    close(app)


# --- migrate -----------------------------------------------------------------------------


def test_migrate_makes_the_tables_once(redis_url: str, database: Path) -> None:
    app = audited_app(redis_url, database)

    assert told(app, "migrate", "--check", exit_code=1)["state"] == "missing"
    assert not database.exists()
    done = told(app, "migrate")
    assert (done["state_before"], done["state"], done["changed"]) == ("missing", "current", True)
    again = told(app, "migrate")
    assert (again["changed"], again["uuid"]) == (False, done["uuid"])
    assert told(app, "migrate", "--check")["state"] == "current"
    assert "current" in run(app, "migrate", "--check").stdout
    close(app)


def test_migrate_leaves_tables_of_a_newer_release_alone(app: Celery, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE celery_delay_version SET version_num = 'from-the-future'")
    connection.close()
    answer = run(app, "migrate")
    assert answer.exit_code == 69
    assert "newer release" in answer.stderr


def test_migrate_adopts_the_database_for_this_redis(app: Celery) -> None:
    # Given a Redis whose audit went to another database
    hand_off(app)
    with client(app) as connection:
        connection.hset(app.delayed.shard_keys[0].mark, "audit_id", "its-own")

    foreign = told(app, "migrate", exit_code=1)
    assert (foreign["foreign"], foreign["store_uuid"]) == (True, "its-own")
    assert "migrate --adopt" in run(app, "migrate", "--check").stdout

    adopted = told(app, "migrate", "--adopt")

    assert (adopted["adopted"], adopted["uuid"], adopted["foreign"]) == (True, "its-own", False)
    assert codes(told(app, "status")) == []
    pay(app)
    drain(app)
    assert len(told(app, "list", "--task", "shop.pay")["tasks"]) == 1


def test_migrate_needs_a_database(plain_app: Celery) -> None:
    assert run(plain_app, "migrate").exit_code == 2
    assert run(plain_app, "migrate", "--check", "--adopt").exit_code == 2


def test_migrate_works_while_redis_is_away(new_redis: Callable[..., Any], database: Path) -> None:
    server = new_redis()
    app = audited_app(server.broker_url, database)
    server.stop()
    document = told(app, "migrate")
    assert document["state"] == "current"
    assert "cannot connect" in document["store_error"]
    assert run(app, "migrate", "--adopt").exit_code == 69
    close(app)


# --- as people call it -------------------------------------------------------------------

PROJECT = """
from celery import Celery
from celery_delay import CeleryDelay
app = Celery("shop", broker={url!r}, backend={url!r})
app.conf.delay_database_url = {database!r}
CeleryDelay(app)
bare = Celery("bare", broker={url!r})
wrong = Celery("wrong", broker={url!r})
wrong.conf.delay_leese = 1
CeleryDelay(wrong)

@app.task
def note(what):
    return what
"""


@pytest.fixture
def project(
    redis_url: str, database: Path, tmp_path: Path, harness: Callable[..., ProcessHarness]
) -> ProcessHarness:
    """``celery -A shop``, with the plugin that the distribution declares."""
    home = tmp_path / "project"
    home.mkdir()
    url = f"sqlite:///{database}"
    (home / "shop.py").write_text(PROJECT.format(url=redis_url, database=url))
    if not entry_points(group="celery.commands", name="delay"):
        # a work tree that nobody has installed: what setup.cfg declares
        declared = Path(celery_delay.__file__).parents[1].joinpath("setup.cfg").read_text()
        points = declared.split("[options.entry_points]\n")[1].split("\n\n")[0]
        text = "".join(
            line.strip() + "\n" if line.startswith(" ") else f"[{line.strip(' =')}]\n"
            for line in points.splitlines()
        )
        metadata = home / "celery_delay-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Name: celery-delay\nVersion: 0\n")
        (metadata / "entry_points.txt").write_text(text)
    return harness("shop:app", path=(home, Path(celery_delay.__file__).parents[1]))


def celery(project: ProcessHarness, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        cwd=project.folder, env=project.env, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip


def test_the_plugin_runs_beside_a_real_beat_and_worker(
    project: ProcessHarness, wait_until: Callable[..., Any]
) -> None:
    # Given a project whose beat leads
    listed = celery(project, "--help")
    assert " delay " in listed.stdout
    beat = project.beat()
    beat.wait_for_log("leads")
    project.worker(pool="solo", concurrency=1)

    def is_healthy() -> Any:
        answer = project.run("delay", "status", "--json")
        return answer.returncode == 0 and json.loads(answer.stdout)

    document = wait_until(is_healthy, 20)
    assert document["shards"][0]["holder"].split(":")[1] == str(beat.pid)

    # When a task is delayed and runs
    script = "import shop; print(shop.note.apply_delayed(('x',), countdown=0.1).id)"
    made = subprocess.run(
        [sys.executable, "-c", script], env=project.env, cwd=project.folder,
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    task_id = made.stdout.strip()

    # Then its history is told as it was
    def is_told() -> Any:
        answer = project.run("delay", "history", task_id, "--json")
        events = json.loads(answer.stdout)["events"]
        return answer.returncode == 0 and len(events) == 4 and events

    events = wait_until(is_told, 20)
    assert [one["state"] for one in events] == ["SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED"]
    assert events[2]["worker"] == "worker@test"
    assert project.run("delay", "leader").returncode == 0
    assert project.run("delay", "cancel", task_id).returncode == 1
    beat.stop()
    answer = project.run("delay", "leader")
    assert answer.returncode == 1
    assert "nobody" in answer.stdout


def test_errors_of_use_end_with_2_and_one_clear_line(project: ProcessHarness) -> None:
    no_app = celery(project, "delay", "list")
    assert no_app.returncode == 2
    assert "say which app: celery -A proj delay list" in no_app.stderr

    not_installed = celery(project, "-A", "shop:bare", "delay", "list")
    assert not_installed.returncode == 2
    assert "call CeleryDelay(app)" in not_installed.stderr

    misspelt = celery(project, "-A", "shop:wrong", "delay", "list")
    assert misspelt.returncode == 2
    assert "delay_leese; did you mean delay_lease?" in misspelt.stderr

    for answer in (no_app, not_installed, misspelt):
        assert "Traceback" not in answer.stderr
        assert answer.stdout == ""


def test_colours_are_for_terminals_only(project: ProcessHarness) -> None:
    assert "\x1b" not in project.run("delay", "leader").stdout

    def on_a_terminal(*options: str) -> bytes:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "celery", *options, "-A", "shop:app", "delay", "leader"]
        env = {**project.env, "TERM": "xterm-256color"}
        env.pop("NO_COLOR", None)
        process = subprocess.Popen(
            command, cwd=project.folder, env=env, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        said = b""
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not some:
                break
            said += some
        os.close(ours)
        assert process.wait(30) == 1
        return said

    assert b"\x1b[31mnobody" in on_a_terminal()
    assert b"\x1b[31m" not in on_a_terminal("--no-color")


def test_celery_pays_nothing_for_the_plugin(project: ProcessHarness) -> None:
    script = (
        "import celery.bin.base, click, sys; before = set(sys.modules); import celery_delay.cli;"
        "print(*sorted(set(sys.modules) - before))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], env=project.env, cwd=project.folder,
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    ours = ["celery_delay", "celery_delay.cli", "celery_delay.cli.groups"]
    assert answer.stdout.split() == ours
