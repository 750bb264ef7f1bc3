"""The result of a delayed call with ``task_always_eager``: the task has run already."""

from __future__ import annotations

from typing import Any

from celery.result import EagerResult

from celery_delay.domain.answers import History
from celery_delay.domain.states import (
    CancelOutcome,
    HoldOutcome,
    ReleaseOutcome,
    RescheduleOutcome,
    State,
    UpdateOutcome,
    seen_by_backend,
)

__all__ = ["EagerDelayedResult"]


class EagerDelayedResult(EagerResult):
    """With ``task_always_eager`` a delayed task has run before the call returns."""

    eta = None

    @classmethod
    def of(cls, result: EagerResult) -> EagerDelayedResult:
        """The delayed form of *result*."""
        made: EagerDelayedResult = cls.__new__(cls)
        made.__dict__.update(result.__dict__)
        return made

    @property
    def delay_state(self) -> State | None:
        """SUCCEEDED, FAILED, …: never anything before that."""
        return seen_by_backend(self.state)

    def cancel(self, reason: str | None = None, *, chase: bool = False) -> CancelOutcome:
        """Always TOO_LATE."""
        return CancelOutcome.TOO_LATE

    def reschedule(self, *, reason: str | None = None, **when: Any) -> RescheduleOutcome:
        """Always TOO_LATE."""
        return RescheduleOutcome.TOO_LATE

    def run_now(self, reason: str | None = None) -> RescheduleOutcome:
        """Always TOO_LATE."""
        return RescheduleOutcome.TOO_LATE

    def hold(self, reason: str | None = None) -> HoldOutcome:
        """Always TOO_LATE."""
        return HoldOutcome.TOO_LATE

    def release(self, reason: str | None = None) -> ReleaseOutcome:
        """Always NOT_FOUND: it is not kept back."""
        return ReleaseOutcome.NOT_FOUND

    def history(self) -> History:
        """Always empty: it was never stored."""
        return History(self.id, [], [], None)

    def update(self, *, reason: str | None = None, **changes: Any) -> UpdateOutcome:
        """Always TOO_LATE."""
        return UpdateOutcome.TOO_LATE
