"""pytest plugin for Celery's own tests: our scheduler in the place of both of Celery's.

Loaded by ``run.py`` into a pytest that runs in the unpacked sdist; nothing of ours is
imported there but the installed package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from celery import beat

from celery_delay.app import CeleryDelay
from celery_delay.beat import Scheduler

DESELECTED = Path(__file__).with_name("deselected.txt")
LEFT = pytest.StashKey[int]()


def deselected() -> set[str]:
    """The tests (``path::class::function``, one parameter set by its ``[id]``) that are listed."""
    lines = map(str.strip, DESELECTED.read_text().splitlines())
    return {line for line in lines if line and not line.startswith("#")}


class PersistentScheduler(Scheduler):
    """Ours again: some tests tell the two of Celery's apart by their class."""


def pytest_configure() -> None:
    beat.Scheduler = Scheduler
    beat.PersistentScheduler = beat.Service.scheduler_cls = PersistentScheduler


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    files = {item.nodeid.split("::")[0] for item in items}
    listed = {name for name in deselected() if name.split("::")[0] in files}
    kept, left, used = [], [], set()
    for item in items:
        name = item.nodeid.split("[")[0]
        names = {name, item.nodeid} & listed
        used |= names
        (left if names else kept).append(item)
    if listed - used:
        raise pytest.UsageError(f"deselected.txt names no test: {sorted(listed - used)}")
    items[:] = kept
    config.hook.pytest_deselected(items=left)
    config.stash[LEFT] = len(left)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    path = os.environ.get("SUITE_COUNTS")
    if path:
        counts = {name: len(found) for name, found in terminalreporter.stats.items() if name}
        Path(path).write_text(json.dumps({**counts, "deselected": config.stash[LEFT]}))


@pytest.fixture(autouse=True)
def _any_broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit tests' broker is kombu's memory transport, which we refuse; none of them ticks."""
    if "t/unit/" in request.node.nodeid:
        monkeypatch.setattr(CeleryDelay, "check", lambda self: None)
