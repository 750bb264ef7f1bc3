"""Celery's signals, as it sends them in the corners that a real worker seldom gets to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Reject, TimeLimitExceeded

from celery_delay.domain.ports import Transition
from celery_delay.domain.settings import Settings
from celery_delay.message.envelope import HEADER
from celery_delay.worker.signals import WorkerSignals
from tests.fakes import FakeClock

OURS = {HEADER: {"task_id": "mine", "run": 7}, "id": "mine"}


def corner() -> None:
    """A task."""


class Delayed:
    """An app's manager, whose journal is a list."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.settings = Settings()
        self.shards = ()
        self.told: list[tuple[int, str]] = []

    def record(
        self, transitions: Sequence[Transition], missing: int = 0, late: Sequence[Transition] = ()
    ) -> None:
        self.told += [(one.entry_id.run, one.state.value) for one in transitions]


class Request:
    """What Celery's main process makes of a message."""

    id = "mine"
    request_dict = OURS


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("corners", set_as_current=False)
    app.conf.task_always_eager = True
    yield app
    app.close()


@pytest.fixture
def delayed() -> Delayed:
    return Delayed()


@pytest.fixture
def receivers(app: Celery, delayed: Delayed) -> WorkerSignals:
    return WorkerSignals(app, delayed)


@pytest.fixture
def task(app: Celery) -> Any:
    return app.task(corner, shared=False)


def fail(receivers: WorkerSignals, task: Any, exception: Exception, **request: Any) -> None:
    """``task_failure``, with *request* on the task's stack as Celery does in some places."""
    if request:
        task.request_stack.push(Context(request))
    try:
        receivers.on_failure(sender=task, task_id="mine", exception=exception)
    finally:
        if request:
            task.request_stack.pop()


def test_a_hard_time_limit_that_is_signalled_twice_is_told_once(
    receivers: WorkerSignals, delayed: Delayed, task: Any
) -> None:
    request = Request()
    receivers.on_received(request=request)

    fail(receivers, task, TimeLimitExceeded(1))
    fail(receivers, task, TimeLimitExceeded(1), **OURS)

    assert delayed.told == [(7, "FAILED")]


def test_a_time_limit_whose_message_goes_back_is_no_end(
    receivers: WorkerSignals, delayed: Delayed, task: Any
) -> None:
    task.acks_late, task.acks_on_timeout = True, False
    request = Request()
    receivers.on_received(request=request)

    fail(receivers, task, TimeLimitExceeded(1))

    assert delayed.told == []


def test_a_rejection_is_no_failure(receivers: WorkerSignals, delayed: Delayed, task: Any) -> None:
    request = Request()
    receivers.on_received(request=request)

    fail(receivers, task, Reject("no", requeue=False))

    assert delayed.told == []


def test_an_internal_error_that_celery_tells_twice_is_told_once(
    receivers: WorkerSignals, delayed: Delayed, task: Any
) -> None:
    # in a child of a prefork pool, which never receives a message itself
    for _ in range(2):
        receivers.on_internal_error(task, "mine", request=OURS, exception=OSError("backend"))
        fail(receivers, task, OSError("backend"))

    assert delayed.told == [(7, "FAILED")]


def test_a_retry_whose_result_cannot_be_stored_still_has_its_next_run_told(
    receivers: WorkerSignals, delayed: Delayed, task: Any
) -> None:
    receivers.went_native("mine", 8)

    receivers.on_internal_error(task, "mine", request=OURS, exception=OSError("backend"))

    assert delayed.told == [(7, "FAILED"), (8, "DISPATCHED")]


@pytest.mark.parametrize(("acks_late", "told"), [(True, []), (False, [(7, "REVOKED")])])
def test_a_run_that_the_end_of_its_worker_cuts_short(
    receivers: WorkerSignals,
    delayed: Delayed,
    task: Any,
    acks_late: bool,
    told: list[tuple[int, str]],
) -> None:
    task.acks_late = acks_late

    # Celery calls it a retry, and gives no reason; with acks_late the message comes again
    receivers.on_retry(sender=task, request=Context(OURS))

    assert delayed.told == told


def test_what_another_app_of_the_process_runs_is_its_own_business(
    receivers: WorkerSignals, delayed: Delayed
) -> None:
    other = Celery("other", set_as_current=False)
    task = other.task(corner, shared=False)
    try:
        fail(receivers, task, KeyError("x"), **OURS)
    finally:
        other.close()

    assert delayed.told == []


def test_a_forked_child_knows_nothing_of_what_its_parent_received(
    receivers: WorkerSignals, delayed: Delayed, task: Any
) -> None:
    # Given a process that receives, and so tells each failure of what it received once
    request = Request()
    receivers.on_received(request=request)
    fail(receivers, task, KeyError("x"), **OURS)
    fail(receivers, task, KeyError("x"), **OURS)
    assert delayed.told == [(7, "FAILED")]

    # When it forks a child, which receives nothing
    receivers.on_process_init()

    # Then the child tells what it runs
    fail(receivers, task, KeyError("x"), **OURS)
    assert delayed.told == [(7, "FAILED")] * 2
