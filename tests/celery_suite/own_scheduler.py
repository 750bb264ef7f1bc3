"""pytest plugin of the leg ``scheduler``: our scheduler in the place of both of Celery's."""

from __future__ import annotations

import pytest
from celery import beat
from verdict import SCHEDULER, explanations, named

from celery_delay.beat import Scheduler


class PersistentScheduler(Scheduler):
    """Ours again: some tests tell the two of Celery's apart by their class."""


def pytest_configure() -> None:
    beat.Scheduler = Scheduler
    beat.PersistentScheduler = beat.Service.scheduler_cls = PersistentScheduler


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot hold for ours; see ``differences.json``."""
    listed = {
        test
        for one in explanations()
        if (one.leg, one.outcome) == (SCHEDULER, "deselected")
        for test in one.tests
    }
    left = [item for item in items if named(item.nodeid, listed)]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)
