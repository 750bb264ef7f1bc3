"""What befalls a task in a worker reaches the audit, whichever process tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until

STORED = ["SCHEDULED", "DISPATCHED"]


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_every_end_is_journalled(new_project: Callable[..., Running], pool: str) -> None:
    here = new_project(worker_enable_soft_shutdown_on_idle=False).start(pool=pool)
    tasks, send = here.app.tasks, here.app.delayed.send_task

    expected = {
        # told by the process that ran it
        tasks["add"].apply_delayed((1, 2), countdown=0.1).id: [*STORED, "STARTED", "SUCCEEDED"],
        tasks["fails"].apply_delayed(countdown=0.1).id: [*STORED, "STARTED", "FAILED"],
        tasks["rejects"].apply_delayed(countdown=0.1).id: [*STORED, "STARTED", "REJECTED"],
        tasks["ignores"].apply_delayed(countdown=0.1).id: [*STORED, "STARTED", "SUCCEEDED"],
        # told by the worker's main process
        send("unheard.of", countdown=0.1).id: [*STORED, "REJECTED"],
    }
    if pool == "prefork":  # the others cannot end a task
        slow = tasks["sleeps"].apply_delayed((30,), countdown=0.1)
        expected[slow.id] = [*STORED, "STARTED", "FAILED"]

    for task_id, states in expected.items():
        here.wait_for_history(task_id, [states])


def test_a_task_revoked_on_its_queue_is_told(new_project: Callable[..., Running]) -> None:
    # Given a worker that is busy, and a task that has been handed off behind it
    here = new_project(worker_prefetch_multiplier=4).start(concurrency=1)
    here.app.tasks["sleeps"].apply_async((0.9,))
    wait_until(lambda: here.effects == ["sleeps"], 20)
    result = here.app.tasks["note"].apply_delayed(("never",), countdown=0)
    wait_until(lambda: here.app.delayed.get(result.id) is None, 20)

    # When it is revoked
    result.revoke()

    # Then the worker drops it, and says so
    here.wait_for_history(result.id, [[*STORED, "REVOKED"]])
    assert here.effects == ["sleeps"]


def test_tasks_that_are_not_ours_are_not_journalled(new_project: Callable[..., Running]) -> None:
    here = new_project().start()

    native = here.app.tasks["add"].apply_async((1, 2))
    ours = here.app.tasks["add"].apply_delayed((3, 4), countdown=0.1)

    assert native.get(timeout=20) == 3
    here.wait_for_history(ours.id, [[*STORED, "STARTED", "SUCCEEDED"]])
    assert here.history(native.id) == []
