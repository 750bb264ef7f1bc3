"""Real beats and workers on the project in ``project/``, and what SQL says afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery

from celery_delay.audit.database import Database
from celery_delay.audit.queries import AuditQueries
from celery_delay.domain.states import State
from tests.integration.project.running import build
from tests.processes import CeleryProcess, ProcessHarness, wait_until

__all__ = ["Running", "projects"]

PROJECT = Path(__file__).parent / "project"


class Running:
    """The project, for one test.

    Attributes:
        app: the test's own app, a producer, with the settings of beats and workers.
        effects: what the tasks did, line by line.
        procs: starts its beats and workers.
    """

    def __init__(
        self, harness: Callable[..., ProcessHarness], url: str, folder: Path, **conf: Any
    ) -> None:
        self._effects = folder / "effects"
        self._database = folder / "audit.sqlite"
        conf = {
            "delay_database_url": f"sqlite:///{self._database}",
            "delay_drain_interval": 0.05,
            **conf,
        }
        self.app: Celery = build(url, str(self._effects), **conf)
        settings = {"url": url, "effects": str(self._effects), **conf}
        self.procs = harness("running", path=(PROJECT,), env={"PROJECT": json.dumps(settings)})

    @property
    def effects(self) -> list[str]:
        return self._effects.read_text().splitlines() if self._effects.exists() else []

    def start(self, *, pool: str = "prefork", concurrency: int = 2) -> Running:
        """One beat and one worker, ready to work."""
        beat = self.procs.beat()
        self.procs.worker(pool=pool, concurrency=concurrency)
        return self._led_by(beat)

    def start_beat(self) -> Running:
        """One beat, ready to work."""
        return self._led_by(self.procs.beat())

    def _led_by(self, beat: CeleryProcess) -> Running:
        beat.wait_for_log(r"leads \(term")
        wait_until(lambda: self.audit.schema().state == "current", what="the audit tables")
        return self

    @cached_property
    def audit(self) -> AuditQueries:
        return AuditQueries(Database(f"sqlite:///{self._database}"))

    def close(self) -> None:
        self.audit.database.close()
        self.app.close()

    def history(self, task_id: str) -> list[list[str]]:
        """Per run, the oldest first: the states that SQL knows, in the order of their rank."""
        runs: dict[int, list[Any]] = {}
        for event in self.audit.events(task_id):
            runs.setdefault(event.entry_id.run, []).append(event)
        numbers = sorted(runs)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        return [sorted((one.state for one in runs[run]), key=_rank) for run in numbers]

    def wait_for_history(self, task_id: str, expected: list[list[str]]) -> None:
        """Wait until SQL tells exactly this."""
        try:
            wait_until(lambda: self.history(task_id) == expected, 15)
        except AssertionError:
            told = self.history(task_id)
            assert told == expected, (told, self.audit.task(task_id))


def _rank(state: str) -> int:
    return State(state).rank


def projects(
    harness: Callable[..., ProcessHarness], url: str, folder: Path
) -> Iterator[Callable[..., Running]]:
    """Body of a fixture that makes :class:`Running` projects and closes them."""
    made: list[Running] = []

    def make(**conf: Any) -> Running:
        made.append(Running(harness, url, folder, **conf))
        return made[-1]

    yield make
    for one in made:
        one.close()
