"""Delayed tasks for Celery that survive, can be seen and can be cancelled.

``CeleryDelay(app)`` is the one line that a project adds; see the README.  Names are
resolved on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay, install
    from celery_delay.beat import Scheduler
    from celery_delay.calling.result import DelayedResult
    from celery_delay.domain.entries import EntryId
    from celery_delay.domain.states import (
        CancelOutcome,
        HoldOutcome,
        ReleaseOutcome,
        RescheduleOutcome,
        State,
        UpdateOutcome,
    )
    from celery_delay.exceptions import DelayError

__version__ = "0.1.0"

__all__ = [
    "CancelOutcome",
    "CeleryDelay",
    "DelayError",
    "DelayedResult",
    "EntryId",
    "HoldOutcome",
    "ReleaseOutcome",
    "RescheduleOutcome",
    "Scheduler",
    "State",
    "UpdateOutcome",
    "install",
]

_HOMES = {
    "CancelOutcome": "domain.states",
    "CeleryDelay": "app",
    "DelayError": "exceptions",
    "DelayedResult": "calling.result",
    "EntryId": "domain.entries",
    "HoldOutcome": "domain.states",
    "ReleaseOutcome": "domain.states",
    "RescheduleOutcome": "domain.states",
    "Scheduler": "beat",
    "State": "domain.states",
    "UpdateOutcome": "domain.states",
    "install": "app",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
