"""Delayed tasks that a worker does not know, with real beats and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_delay.domain.states import State
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


def late_to_know(here: Running, **options: Any) -> Any:
    """Delay a task that this process alone knows; returns its result, once it is held."""
    result = here.app.delayed.send_task(
        "tomorrows", ("käse",), {"x": [1]}, countdown=0.2, **options
    )
    wait_until(lambda: here.app.delayed.held() == [result.id], 20, "the task to be held")
    return result


@pytest.mark.parametrize(("serializer", "compression"), [("json", None), ("pickle", "gzip")])
def test_an_unknown_task_waits_for_the_deploy_that_brings_it(
    new_project: Callable[..., Running], serializer: str, compression: str | None
) -> None:
    content = {"accept_content": ["json", "pickle"], "task_remote_tracebacks": False}
    here = new_project(delay_on_unknown="hold", **content).start()
    known = here.app.tasks["note"].apply_delayed(("before",), countdown=0.1)
    known.get(timeout=20)

    result = late_to_know(
        here, serializer=serializer, compression=compression, priority=3, namespace="acme"
    )

    entry = here.app.delayed.get(result.id)
    assert entry.state is State.HELD
    assert entry.eta_ms == result._eta_ms
    assert entry.entry_id.run == result.entry_id.run + 1
    assert entry.labels.namespace == "acme"
    assert entry.envelope["properties"]["priority"] == 3
    assert entry.headers["argsrepr"] == "('käse',)"
    assert entry.headers.get("compression") == (compression and "application/x-gzip")
    assert result.state == "PENDING", "nobody who waits was told a failure"

    # and when a worker knows it, a release lets it run
    here.procs.processes["worker"].stop()
    here.procs.worker("new", env={"PROJECT_IS_NEW": "1"})
    here.app.delayed.release(result.id)
    assert result.get(timeout=20) == [["käse"], {"x": [1]}]
    here.wait_for_history(
        result.id,
        [
            ["SCHEDULED", "DISPATCHED", "REJECTED"],
            ["SCHEDULED", "SCHEDULED", "HELD", "DISPATCHED", "STARTED", "SUCCEEDED"],
        ],
    )


def test_by_default_celery_drops_it(new_project: Callable[..., Running]) -> None:
    here = new_project().start()

    result = here.app.delayed.send_task("tomorrows", countdown=0.2)

    with pytest.raises(Exception, match="tomorrows"):
        result.get(timeout=20)
    assert here.app.delayed.count() == 0
    here.wait_for_history(result.id, [["SCHEDULED", "DISPATCHED", "REJECTED"]])


def test_what_celery_sent_itself_is_celerys(new_project: Callable[..., Running]) -> None:
    here = new_project(delay_on_unknown="hold").start()

    with pytest.raises(Exception, match="tomorrows"):
        here.app.send_task("tomorrows").get(timeout=20)
    assert here.app.delayed.count() == 0
