"""What Docker nodes and process nodes have in common: a beat node, the app, the effects."""

from __future__ import annotations

from typing import Any

from celery import Celery
from pytest_celery import CeleryTestNode, CeleryTestSetup, CeleryWorkerContainer

from celery_delay import CeleryDelay

__all__ = ["CeleryBeatContainer", "CeleryTestBeat", "DelaySetup", "effects"]


class CeleryBeatContainer(CeleryWorkerContainer):
    """As a worker's container, with another command."""

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        """``celery beat`` with our scheduler."""
        # not a relative file: the nodes share their folder
        files = ["--schedule=/tmp/smoke-beat.schedule", "--pidfile="]
        return [
            "celery",
            "-A",
            "app",
            "beat",
            "-S",
            "celery_delay.Scheduler",
            "-l",
            cls.log_level(),
            *files,
            *args,
        ]

    @property
    def ready_prompt(self) -> str:
        """Beat's first line."""
        return "beat: Starting..."


class CeleryTestBeat(CeleryTestNode):
    """A beat."""


class DelaySetup(CeleryTestSetup):
    """pytest-celery's setup, for an app with celery-delay."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        """Configure the app of the test and, through it, those of the nodes."""
        app.conf.update(delay_intercept="retry", task_acks_late=True, task_track_started=True)
        CeleryDelay(app)


def effects(worker: CeleryTestNode) -> list[str]:
    """The lines that tasks have left on *worker*."""
    code, output = worker.container.exec_run("python -m tests.smoke.tasks")
    assert code == 0, output
    return list(output.decode().splitlines())
