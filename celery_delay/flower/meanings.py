"""What the answers mean, for people in front of a browser."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from celery_delay.domain.states import (
    CancelOutcome,
    HoldOutcome,
    ReleaseOutcome,
    RescheduleOutcome,
)

__all__ = ["CANCELLED", "HELD", "RELEASED", "RESCHEDULED", "RESENT", "RUNS_NOW"]

_GONE = "it has been handed to its queue, and may run"
_UNKNOWN = "no such task waits"
_DAMAGED = "its record is damaged, or of a newer release: it can only be cancelled"
_PARKED = "it could not be handed off, and is parked: send it again instead"

CANCELLED: Mapping[Enum, str] = {
    CancelOutcome.CANCELLED: "it never runs",
    CancelOutcome.TOO_LATE: f"{_GONE}: Flower's Revoke tells the workers",
    CancelOutcome.NOT_FOUND: f"{_UNKNOWN}; a late add of it will be refused",
}
RESCHEDULED: Mapping[Enum, str] = {
    RescheduleOutcome.RESCHEDULED: "it has its new eta",
    RescheduleOutcome.TOO_LATE: _GONE,
    RescheduleOutcome.NOT_FOUND: _UNKNOWN,
    RescheduleOutcome.QUARANTINED: _PARKED,
    RescheduleOutcome.DAMAGED: _DAMAGED,
}
RUNS_NOW: Mapping[Enum, str] = {**RESCHEDULED, RescheduleOutcome.RESCHEDULED: "it is due now"}
HELD: Mapping[Enum, str] = {
    HoldOutcome.HELD: "it does not run before it is released, or run now",
    HoldOutcome.TOO_LATE: _GONE,
    HoldOutcome.NOT_FOUND: _UNKNOWN,
    HoldOutcome.QUARANTINED: "it could not be handed off, and is kept back already",
    HoldOutcome.DAMAGED: _DAMAGED,
}
RELEASED: Mapping[Enum, str] = {
    ReleaseOutcome.RELEASED: "it goes to its queue when it is due; at once if it is overdue",
    ReleaseOutcome.NOT_FOUND: "no such task is kept back",
    ReleaseOutcome.DAMAGED: _DAMAGED,
    ReleaseOutcome.CONFLICT: "another task with this id waits already",
}
RESENT: Mapping[Enum, str] = {
    **RELEASED,
    ReleaseOutcome.NOT_FOUND: "no such task is parked; of one that is over, no message is kept",
}
