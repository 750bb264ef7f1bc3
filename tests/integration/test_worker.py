"""What befalls a task in a worker reaches the audit, whichever process tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.running import Running, projects
from tests.processes import ProcessHarness

STORED = ["SCHEDULED", "DISPATCHED"]


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


def test_tasks_that_are_not_ours_are_not_journalled(new_project: Callable[..., Running]) -> None:
    here = new_project().start()

    native = here.app.tasks["add"].apply_async((1, 2))
    ours = here.app.tasks["add"].apply_delayed((3, 4), countdown=0.1)

    assert native.get(timeout=20) == 3
    here.wait_for_history(ours.id, [[*STORED, "STARTED", "SUCCEEDED"]])
    assert here.history(native.id) == []
