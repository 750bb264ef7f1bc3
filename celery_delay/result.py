"""What a delayed call returns: Celery's result, and what only a delayed task has."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from celery.result import AsyncResult, EagerResult

from celery_delay.clock import from_ms
from celery_delay.entries import EntryId, StoredEntry
from celery_delay.ports import Added
from celery_delay.states import CancelOutcome, State, seen_by_backend

__all__ = ["DelayedResult", "EagerDelayedResult"]


class Delayer(Protocol):
    """What the composition root offers to a result; it is found as ``app.delayed``."""

    def get(self, task_id: str) -> StoredEntry | None: ...

    def now_ms(self) -> int: ...

    def cancel(
        self, task_id: str, *, run: int = 0, eta_ms: int | None = None, reason: str | None = None
    ) -> CancelOutcome: ...


class DelayedResult(AsyncResult):
    """An ``AsyncResult`` that also knows when, and can still prevent it.

    Attributes:
        entry_id: identity of the stored entry; run 0 when the result was made from a task id
            alone.
    """

    entry_id: EntryId

    def __init__(
        self,
        id: str,
        *args: Any,
        entry_id: EntryId | None = None,
        eta_ms: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(id, *args, **kwargs)
        self.entry_id = entry_id or EntryId(id, 0)
        self._eta_ms = eta_ms

    @classmethod
    def of(cls, result: AsyncResult, added: Added) -> DelayedResult:
        """Make *result* a delayed one, whose entry was stored as *added*; the same object.

        A group, and whoever waits for the result, hold on to the object that Celery made.
        """
        result.__class__ = cls
        delayed: DelayedResult = result
        delayed.entry_id = added.entry_id
        delayed._eta_ms = added.due_ms
        return delayed

    @property
    def eta(self) -> datetime | None:
        """When the task is due: an aware UTC datetime.

        Made from a task id alone, the result asks the store: ``None`` once the task has left it.
        """
        if self._eta_ms is None:
            entry = self._delayed.get(self.id)
            return from_ms(entry.eta_ms) if entry else None
        return from_ms(self._eta_ms)

    @property
    def delay_state(self) -> State | None:
        """Where the task stands, from the store and the result backend.

        ``None``: neither knows the task.  The audit (``celery delay show``) knows more.
        """
        if self._delayed.get(self.id) is not None:
            return State.SCHEDULED
        seen = seen_by_backend(self.state)
        if seen is None and self._eta_ms is not None and self._delayed.now_ms() >= self._eta_ms:
            return State.DISPATCHED
        return seen

    def cancel(self, reason: str | None = None) -> CancelOutcome:
        """Take the task out of the store before it is handed off.

        Returns:
            CANCELLED: it never runs, and ``get()`` raises ``TaskRevokedError``.
            TOO_LATE: it has been handed to its queue (``revoke()`` tells the workers too).
            NOT_FOUND: the store has no such task; a late add of it will be refused.

        Raises:
            StoreUnavailable: Redis could not be reached; nothing has changed.
            OutcomeUnknown: no answer came; call again for the final one.
        """
        return self._delayed.cancel(
            self.id, run=self.entry_id.run, eta_ms=self._eta_ms, reason=reason
        )

    @property
    def _delayed(self) -> Delayer:
        delayed: Delayer = self.app.delayed
        return delayed


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

    def cancel(self, reason: str | None = None) -> CancelOutcome:
        """Always TOO_LATE."""
        return CancelOutcome.TOO_LATE
