"""Log lines in the Elastic Common Schema, as a real beat and a real worker write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.integration.running import Running, projects
from tests.processes import CeleryProcess, ProcessHarness, wait_until

ELASTIC = Path(__file__).parents[2] / "example_project/deploy/elastic"
SECRET = "hunter-2-of-the-arguments"


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


def documents(process: CeleryProcess) -> list[dict[str, Any]]:
    """The lines that are JSON; all else is what Celery prints before it logs."""
    lines = process.output().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_what_beat_and_worker_say_as_json(new_project: Callable[..., Running]) -> None:
    here = new_project(
        delay_log_format="ecs",
        delay_on_unknown="hold",
        beat_schedule={"often": {"task": "note", "schedule": 0.5, "args": (SECRET,)}},
    )
    beat = here.procs.beat(loglevel="debug")
    worker = here.procs.worker(concurrency=1)
    beat.wait_for_log(r'"leader_elected"')

    ours = here.app.tasks["note"].apply_delayed((SECRET,), countdown=0.1)
    unknown = here.app.delayed.send_task("nobody.knows", (SECRET,), countdown=0.1)
    wait_until(lambda: f"note {SECRET}" in here.effects, 20)
    beat.wait_for_log(r'"schedule_fired"')
    worker.wait_for_log(r'"unknown_held"')
    beat.stop()

    schema = json.loads((ELASTIC / "log-line.schema.json").read_text())
    told = [*documents(beat), *documents(worker)]
    for one in told:
        jsonschema.validate(one, schema)
    actions = {one["event"].get("action"): one for one in told}
    assert {"leader_elected", "entries_moved", "schedule_fired", "leader_resigned"} <= set(actions)
    # each line of beat, Celery's own too; of the worker only ours
    after = beat.output()[beat.output().index("{") :]
    assert all(line.startswith("{") for line in after.splitlines())
    assert {one["log"]["logger"].split(".")[0] for one in documents(beat)} >= {"celery"}
    assert {one["log"]["logger"].split(".")[0] for one in documents(worker)} == {"celery_delay"}
    assert f"Task note[{ours.id}] received" in worker.output()
    # the id of the task, wherever a line is about one
    assert actions["unknown_held"]["celery_delay"]["task_id"] == unknown.id
    assert len(actions["schedule_fired"]["celery_delay"]["task_id"]) == 36
    # and never what it was called with
    assert SECRET not in json.dumps(told)


def test_a_beat_without_the_library_says_what_to_install(
    new_project: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding/sitecustomize.py").write_text(
        "import sys\nsys.modules['ecs_logging'] = None\n"
    )
    here = new_project(delay_log_format="ecs")
    here.procs.env["PYTHONPATH"] += f":{tmp_path / 'hiding'}"

    beat = here.procs.beat()
    worker = here.procs.worker(concurrency=1)
    beat.wait(20)

    assert beat.returncode != 0
    assert 'pip install "celery-delay[ecs]"' in beat.output()
    worker.wait_for_log(r"log lines are written as ever: delay_log_format")
