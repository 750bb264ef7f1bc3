"""What a delayed call returns, and cancelling, with a real beat and real workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_delay import CancelOutcome, DelayedResult, State
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until
from tests.projects import hand_off, messages


@pytest.fixture
def project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Running]:
    [made] = [next(found) for found in [projects(harness, redis_url, tmp_path)]]
    here = made()
    yield here
    here.app.close()


@pytest.fixture
def app(project: Running) -> Any:
    return project.app


def test_it_is_an_async_result(app: Any) -> None:
    result = app.tasks["note"].apply_delayed(("x",), countdown=60)

    assert isinstance(result, AsyncResult)
    assert isinstance(result, DelayedResult)
    assert (result.state, result.ready(), result.result) == ("PENDING", False, None)
    assert result.as_tuple() == ((result.id, None), None)
    assert AsyncResult(result.id, app=app) == result
    assert app.delayed.result(result.id) == result


def test_states_before_any_worker(app: Any) -> None:
    result = app.tasks["note"].apply_delayed(("x",), countdown=0.001)
    known_by_id = app.delayed.result(result.id)

    assert result.delay_state is known_by_id.delay_state is State.SCHEDULED
    assert known_by_id.eta == result.eta

    assert hand_off(app, until=result) == 1
    wait_until(lambda: app.delayed.now_ms() > result.eta.timestamp() * 1000)

    assert result.delay_state is State.DISPATCHED
    assert known_by_id.delay_state is None
    assert known_by_id.eta is None
    assert app.delayed.result("nobody").delay_state is None


# --- cancel -------------------------------------------------------------------------------


def test_cancelled_in_time_it_never_runs(app: Any) -> None:
    result = app.tasks["note"].apply_delayed(("x",), countdown=0)

    assert result.cancel("changed my mind") is CancelOutcome.CANCELLED
    assert hand_off(app) == 0
    assert messages(app) == []
    with pytest.raises(TaskRevokedError, match="changed my mind"):
        result.get(timeout=5)
    assert (result.state, result.delay_state) == ("REVOKED", State.REVOKED)
    # asked again, by whoever: the same answer
    assert result.cancel() is CancelOutcome.CANCELLED
    assert app.delayed.result(result.id).cancel() is CancelOutcome.CANCELLED


def test_handed_off_it_is_too_late(app: Any) -> None:
    result = app.tasks["note"].apply_delayed(("x",), countdown=0)
    hand_off(app)

    for _ in range(2):
        assert result.cancel() is CancelOutcome.TOO_LATE
    assert len(messages(app)) == 1
    assert result.state == "PENDING"


def test_long_after_the_hand_off_it_is_still_too_late(app: Any) -> None:
    # Given a result whose tombstone is gone
    result = app.tasks["note"].apply_delayed(("x",), countdown=0)
    hand_off(app)
    keys = app.delayed.shard_keys[0]
    with app.connection_for_write() as connection:
        connection.channel().client.delete(keys.tombstones_even, keys.tombstones_odd)

    assert result.cancel() is CancelOutcome.TOO_LATE
    assert app.delayed.result(result.id).cancel() is CancelOutcome.NOT_FOUND


@pytest.mark.parametrize(
    ("why", "outcome"),
    [("terminated", CancelOutcome.TOO_LATE), ("revoked", CancelOutcome.CANCELLED)],
)
def test_what_was_stopped_while_it_ran_has_run(app: Any, why: str, outcome: CancelOutcome) -> None:
    # Given the result of a worker that was told to drop a task, before or amid its run
    app.backend.mark_as_revoked("it", why)

    # Then only of one that did not run it is said that it never runs
    assert app.delayed.cancel("it") is outcome
    assert (app.delayed.hold("it").value == "TOO_LATE") is (why == "terminated")


def test_an_unknown_task_is_not_found(app: Any) -> None:
    for _ in range(2):
        assert app.delayed.cancel("nobody") is CancelOutcome.NOT_FOUND


def test_a_cancel_that_finds_nothing_also_refuses_the_add_under_way(app: Any) -> None:
    # Given a cancellation of an id that comes before its add
    app.delayed.cancel("mine", run=app.delayed.now_ms() + 1_000)

    result = app.tasks["note"].apply_delayed(("x",), countdown=0, task_id="mine")

    assert hand_off(app) == 0
    assert result.cancel() is CancelOutcome.CANCELLED
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)


@pytest.mark.parametrize("way", ["revoke()", "AsyncResult", "control", "many"])
def test_revoke_reaches_the_store(app: Any, way: str) -> None:
    result = app.tasks["note"].apply_delayed(("x",), countdown=0)
    other = app.tasks["note"].apply_delayed(("y",), countdown=0)

    if way == "revoke()":
        result.revoke()
    elif way == "AsyncResult":
        AsyncResult(result.id, app=app).revoke()
    elif way == "control":
        app.control.revoke(result.id)
    else:
        app.control.revoke([result.id, "nobody"])

    assert app.delayed.get(result.id) is None
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)
    assert other.delay_state is State.SCHEDULED


def test_a_result_that_is_ignored_is_not_written(app: Any) -> None:
    result = app.tasks["note"].apply_delayed(("x",), countdown=60, ignore_result=True)

    assert result.ignored
    assert result.cancel() is CancelOutcome.CANCELLED
    assert app.backend.get_state(result.id) == "PENDING"


def test_without_a_result_backend(app: Any) -> None:
    app.conf.result_backend = None
    app.__dict__.pop("backend", None)
    app._local.backend = None
    result = app.tasks["note"].apply_delayed(("x",), countdown=60)

    assert result.cancel() is CancelOutcome.CANCELLED
    assert result.cancel() is CancelOutcome.CANCELLED


# --- with processes -----------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_life_from_call_to_result(project: Running, pool: str) -> None:
    project.start(pool=pool)
    tasks = project.app.tasks

    result = tasks["add"].apply_delayed((1, 2), countdown=0.2)
    failed = tasks["fails"].apply_delayed(countdown=0.2)
    command = tasks["note"].apply_delayed(("never",), countdown=600)
    said = project.procs.run("control", "revoke", command.id)

    assert result.get(timeout=20) == 3
    assert result.delay_state is State.SUCCEEDED
    with pytest.raises(KeyError, match="no such thing"):
        failed.get(timeout=20)
    assert failed.delay_state is State.FAILED
    assert result.cancel() is CancelOutcome.TOO_LATE
    assert said.returncode == 0, said
    with pytest.raises(TaskRevokedError):
        command.get(timeout=5)
    assert sorted(project.effects) == ["add 1 2", "fails"]
    stored = ["SCHEDULED", "DISPATCHED", "STARTED"]
    project.wait_for_history(result.id, [[*stored, "SUCCEEDED"]])
    project.wait_for_history(failed.id, [[*stored, "FAILED"]])
    project.wait_for_history(command.id, [["SCHEDULED", "CANCELLED"]])
    [run] = project.audit.runs(result.id)
    assert run.lag_ms >= 0
    assert "no such thing" in project.audit.task(failed.id).error
