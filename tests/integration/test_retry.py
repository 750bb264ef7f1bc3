"""Retries, through the store and natively, with a real beat and a real worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_delay.domain.entries import EntryId
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import AlreadyScheduled, JournalFull, OutcomeUnknown, StoreUnavailable
from celery_delay.message.envelope import HEADER
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until
from tests.projects import messages

STORED = ["SCHEDULED", "DISPATCHED", "STARTED"]
NATIVE = ["DISPATCHED", "STARTED"]


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


@pytest.fixture
def running(new_project: Callable[..., Running]) -> Callable[..., Running]:
    """The project with a beat and a worker, up and running."""

    def start(**conf: Any) -> Running:
        return new_project(**conf).start()

    return start


def test_five_retries_through_the_store_while_the_audit_is_behind(
    running: Callable[..., Running], tmp_path: Path
) -> None:
    # Given retries that wait in the store, and an audit database that somebody else holds
    here = running(delay_intercept="retry", delay_intercept_min=0.01)
    lock = sqlite3.connect(tmp_path / "audit.sqlite", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")

    # When a task retries itself five times
    result = here.app.tasks["flaky"].apply_delayed((5,), countdown=0.1)

    # Then that does not wait for the audit
    assert result.get(timeout=20) == 5
    assert here.effects == [f"flaky {n}" for n in range(6)]
    # and once the audit catches up, each run has a history of its own
    lock.execute("ROLLBACK")
    lock.close()
    here.wait_for_history(result.id, [[*STORED, "RETRIED"]] * 5 + [[*STORED, "SUCCEEDED"]])
    row = here.audit.task(result.id)
    assert (row.state, row.run) == ("SUCCEEDED", result.entry_id.run + 5)


def test_native_retries_are_audited_as_well(running: Callable[..., Running]) -> None:
    here = running()

    result = here.app.tasks["flaky"].apply_delayed((3,), countdown=0.1)

    assert result.get(timeout=20) == 3
    here.wait_for_history(
        result.id,
        [[*STORED, "RETRIED"], [*NATIVE, "RETRIED"], [*NATIVE, "RETRIED"], [*NATIVE, "SUCCEEDED"]],
    )


@pytest.mark.parametrize("intercept", ["retry", False])
def test_a_retry_bears_the_labels_of_its_run(
    running: Callable[..., Running], intercept: bool | str
) -> None:
    here = running(delay_intercept=intercept, delay_intercept_min=0.01)
    labels = {"namespace": "acme", "tags": ["one"]}

    result = here.app.tasks["labelled"].apply_delayed((2,), countdown=0.1, **labels)

    assert result.get(timeout=20) == [labels] * 3


def test_short_delays_stay_native(running: Callable[..., Running]) -> None:
    here = running(delay_intercept="retry", delay_intercept_min=0.5)

    short = here.app.tasks["flaky"].apply_delayed((1, 0.2), countdown=0.1)
    long = here.app.tasks["flaky"].apply_delayed((1, 0.6), countdown=0.1)

    assert (short.get(timeout=20), long.get(timeout=20)) == (1, 1)
    here.wait_for_history(short.id, [[*STORED, "RETRIED"], [*NATIVE, "SUCCEEDED"]])
    here.wait_for_history(long.id, [[*STORED, "RETRIED"], [*STORED, "SUCCEEDED"]])


@pytest.mark.parametrize("intercept", [False, "retry"])
def test_autoretry_for(running: Callable[..., Running], intercept: bool | str) -> None:
    here = running(delay_intercept=intercept, delay_intercept_min=0.01)

    result = here.app.tasks["autoretried"].apply_delayed((2,), countdown=0.1)

    assert result.get(timeout=20) == 2
    way = STORED if intercept else NATIVE
    here.wait_for_history(result.id, [[*STORED, "RETRIED"], [*way, "RETRIED"], [*way, "SUCCEEDED"]])


def test_a_retry_of_an_undelayed_task_is_delayed_too(running: Callable[..., Running]) -> None:
    here = running(delay_intercept="retry", delay_intercept_min=0.01)

    result = here.app.tasks["flaky"].apply_async((2, 0.3))

    assert result.get(timeout=20) == 2
    here.wait_for_history(result.id, [[*STORED, "RETRIED"], [*STORED, "SUCCEEDED"]])


def test_a_replaced_task_goes_on_as_the_next_run(running: Callable[..., Running]) -> None:
    here = running(delay_intercept="retry")

    result = here.app.tasks["replacing"].apply_delayed((1,), countdown=0.1)

    assert result.get(timeout=20) == 2
    assert here.effects == ["replacing 1", "add 1 1"]
    here.wait_for_history(result.id, [[*STORED, "RETRIED"], [*NATIVE, "SUCCEEDED"]])


def test_a_store_that_refuses_leaves_the_retry_native(
    new_project: Callable[..., Running], redis_server: EmbeddedRedis
) -> None:
    # Given a store that certainly takes nothing, on a broker that works
    with redis.Redis.from_url(redis_server.tcp_url) as client:
        rights = ["+ping", "+info"]
        client.acl_setuser("store", enabled=True, passwords=["+secret"], commands=rights)
        try:
            here = new_project(
                delay_intercept="retry",
                delay_intercept_min=0.01,
                delay_redis_url=redis_server.tcp_url.replace("//", "//store:secret@"),
            )
            here.procs.worker()
            # When a task retries itself
            result = here.app.tasks["flaky"].apply_async((2, 0.1))
            # Then it does not end there
            assert result.get(timeout=20) == 2
        finally:
            client.acl_deluser("store")
    assert here.effects == ["flaky 0", "flaky 1", "flaky 2"]
    assert here.procs.processes["worker"].output().count("waits in a worker's memory") == 2


@pytest.mark.parametrize(
    ("error", "is_native"),
    [
        (StoreUnavailable("down"), True),
        (JournalFull("full"), True),
        (AlreadyScheduled("mine"), True),
        (OutcomeUnknown(EntryId("mine", 1), "no answer"), False),
    ],
)
def test_only_what_is_certainly_not_stored_goes_native(
    new_project: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    is_native: bool,
) -> None:
    # Given a store that answers a retry with an error
    app = new_project(delay_intercept="retry").app

    def add(_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(app.delayed, "add", add)

    # When it is sent (what raised here would make Celery drop the retry)
    app.tasks["note"].apply_async(("x",), task_id="mine", retries=1, countdown=60)

    # Then it goes to the queue only if it is certain that the store does not have it
    sent = [(one["headers"]["id"], one["headers"]["retries"]) for one in messages(app)]
    assert sent == ([("mine", 1)] if is_native else [])
    event = "retry_went_native" if is_native else "retry_in_doubt"
    assert [record.event for record in caplog.records] == [event]


def test_a_run_that_is_delivered_twice_leaves_one_retry(
    new_project: Callable[..., Running],
) -> None:
    # Given a worker that runs a message whose worker died after it had stored the retry
    app = new_project(delay_intercept="retry", delay_intercept_fallback="store").app
    header = {"task_id": "mine", "run": 7, "eta_ms": 0}

    # When the retry is sent again
    for countdown in (60, 61):
        app.tasks["note"].apply_async(
            ("x",), task_id="mine", retries=1, countdown=countdown, headers={HEADER: header}
        )

    # Then one waits, and none is on the queue
    assert [one.entry_id for one in app.delayed.list()] == [EntryId("mine", 8)]
    assert messages(app) == []


def test_a_worker_killed_during_a_retry(running: Callable[..., Running], tmp_path: Path) -> None:
    # Given a task with acks_late whose second run is under way
    here = running(
        delay_intercept="retry",
        delay_intercept_min=0.01,
        broker_transport_options={
            "visibility_timeout": 2,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    )
    flag = tmp_path / "flag"
    result = here.app.tasks["dies_once"].apply_delayed((str(flag), 1), countdown=0.1)
    wait_until(flag.exists, 20)

    # When its worker is killed, and another one comes
    here.procs.processes["worker"].kill(group=True)
    here.procs.worker("another")

    # Then the message comes again, as the same run, and the rest follows
    assert result.get(timeout=40) == "survived"
    assert here.effects == [f"dies_once {n}" for n in (0, 1, 1, 2)]
    here.wait_for_history(
        result.id,
        [[*STORED, "RETRIED"], [*STORED, "STARTED", "RETRIED"], [*STORED, "SUCCEEDED"]],
    )
