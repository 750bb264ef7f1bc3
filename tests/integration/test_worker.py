"""What befalls a task in a worker reaches the audit, whichever process tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until

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


def test_a_worker_that_has_found_the_store_leaves_its_children_no_connection(
    new_project: Callable[..., Running], redis_server: EmbeddedRedis
) -> None:
    here = new_project()
    with redis.Redis.from_url(redis_server.url) as client:
        before = {one["id"] for one in client.client_list()}

        here.app.delayed._signals.on_worker_init()

        assert "shards" in here.app.delayed.__dict__
        wait_until(lambda: {one["id"] for one in client.client_list()} <= before, 5)
