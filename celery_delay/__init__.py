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
    from celery_delay.entries import EntryId
    from celery_delay.exceptions import DelayError
    from celery_delay.result import DelayedResult
    from celery_delay.states import (
        CancelOutcome,
        HoldOutcome,
        ReleaseOutcome,
        RescheduleOutcome,
        State,
    )

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
    "install",
]

_HOMES = {
    "CancelOutcome": "states",
    "CeleryDelay": "app",
    "DelayError": "exceptions",
    "DelayedResult": "result",
    "EntryId": "entries",
    "HoldOutcome": "states",
    "ReleaseOutcome": "states",
    "RescheduleOutcome": "states",
    "Scheduler": "beat",
    "State": "states",
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
