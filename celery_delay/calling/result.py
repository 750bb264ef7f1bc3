"""What a delayed call returns: Celery's result, and what only a delayed task has."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, tzinfo
from typing import Any, Protocol

from celery.result import AsyncResult

from celery_delay.domain.answers import History
from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import Added, Due, EntryId, StoredEntry
from celery_delay.domain.ports import Change, Steered
from celery_delay.domain.states import (
    CancelOutcome,
    HoldOutcome,
    ReleaseOutcome,
    RescheduleOutcome,
    State,
    UpdateOutcome,
    seen_by_backend,
)
from celery_delay.message.rebuilding import UNCHANGED, Wanted, wanted

__all__ = ["DelayedResult"]


class Delayer(Protocol):
    """What the composition root offers to a result; it is found as ``app.delayed``."""

    def get(self, task_id: str) -> StoredEntry | None: ...

    def now_ms(self) -> int: ...

    def cancel(
        self,
        task_id: str,
        *,
        run: int = 0,
        eta_ms: int | None = None,
        reason: str | None = None,
        chase: bool = False,
    ) -> CancelOutcome: ...

    def change(self, *, countdown: Any, eta: Any, by: Any, tz: Any) -> Change: ...

    def steer(
        self,
        task_id: str,
        change: Change,
        reason: str | None,
        *,
        run: int = 0,
        eta_ms: int | None = None,
    ) -> Steered: ...

    def release(self, *task_ids: str, reason: str | None = None) -> dict[str, ReleaseOutcome]: ...

    def history(self, task_id: str) -> History: ...
    def replace_message(
        self,
        task_id: str,
        changes: Wanted,
        reason: str | None,
        *,
        run: int = 0,
        eta_ms: int | None = None,
    ) -> UpdateOutcome: ...


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
        if added.is_other:
            _forget(result)
            result.id = added.entry_id.task_id
        result.__class__ = cls
        delayed: DelayedResult = result
        delayed.entry_id = added.entry_id
        delayed._eta_ms = added.due_ms
        return delayed

    @property
    def eta(self) -> datetime | None:
        """When the task is due: an aware UTC datetime.

        It is what this object has last heard: a change by somebody else is not seen.  Made from
        a task id alone, the result asks the store: ``None`` once the task has left it.
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
        entry = self._delayed.get(self.id)
        if entry is not None:
            return entry.state
        seen = seen_by_backend(self.state)
        if seen is None and self._eta_ms is not None and self._delayed.now_ms() >= self._eta_ms:
            return State.DISPATCHED
        return seen

    @property
    def gate(self) -> str | None:
        """What keeps the task back although it is due: ``task:NAME`` while that is paused, say.

        ``None`` for nothing; see :meth:`app.delayed.pauses`.  Its ``delay_state`` is SCHEDULED.
        """
        entry = self._delayed.get(self.id)
        return entry.gate or None if entry is not None else None

    def cancel(self, reason: str | None = None, *, chase: bool = False) -> CancelOutcome:
        """Take the task out of the store before it is handed off.

        Arguments:
            reason: goes to the audit and into the exception that ``get()`` raises.
            chase: if it has left the store, take its message off its queue, where that is a
                short list on the store's Redis and no worker has had it: CANCELLED then.  Else
                have the workers drop it, as ``revoke()`` does, also those that start later
                (with ``delay_worker_revokes``); the answer stays what it was.

        Returns:
            CANCELLED: it never runs, and ``get()`` raises ``TaskRevokedError``.
            TOO_LATE: it has been handed to its queue (``revoke()`` tells the workers too).
            NOT_FOUND: the store has no such task; a late add of it will be refused.

        Raises:
            StoreUnavailable: Redis could not be reached; nothing has changed.
            OutcomeUnknown: no answer came; call again for the final one.
        """
        return self._delayed.cancel(
            self.id, run=self.entry_id.run, eta_ms=self._eta_ms, reason=reason, chase=chase
        )

    def reschedule(
        self,
        *,
        countdown: float | timedelta | None = None,
        eta: datetime | str | None = None,
        by: float | timedelta | None = None,
        tz: str | tzinfo | None = None,
        reason: str | None = None,
    ) -> RescheduleOutcome:
        """Give the task another eta while it waits.  One that is held stays held.

        Arguments:
            countdown: seconds from now, counted by Redis' clock: a number or a timedelta.
            eta: an aware datetime, ISO 8601 text, or a naive datetime, which is read in *tz* or
                as ``delay_naive_eta`` says.
            by: seconds by which the eta moves, or a timedelta; negative: earlier.
            tz: zone of a naive *eta*.
            reason: goes to the audit.

        Returns:
            RESCHEDULED: of several calls, the last accepted one counts.
            TOO_LATE: it has been handed to its queue, or is on its way there.
            NOT_FOUND, QUARANTINED, DAMAGED: see :class:`RescheduleOutcome`; nothing has changed.

        Raises:
            TypeError, ValueError: about the argument they name.
            StoreUnavailable: Redis could not be reached; nothing has changed.
            OutcomeUnknown: no answer came in ``delay_add_window``.  With *countdown* or *eta*
                call again; with *by* look at the eta first, which may have moved.
        """
        change = self._delayed.change(countdown=countdown, eta=eta, by=by, tz=tz)
        return self._steer(change, reason).outcome(RescheduleOutcome.RESCHEDULED)

    def run_now(self, reason: str | None = None) -> RescheduleOutcome:
        """Make the task due at once, also if it is held.  The answers are ``reschedule``'s.

        Raises:
            StoreUnavailable, OutcomeUnknown: as :meth:`cancel`.
        """
        change = Change(Due(0, True), hold=False)
        return self._steer(change, reason).outcome(RescheduleOutcome.RESCHEDULED)

    def hold(self, reason: str | None = None) -> HoldOutcome:
        """Keep the task back until it is released, whatever its eta.

        Its ``expires`` goes on counting: a task that is released after it is EXPIRED.

        Returns:
            HELD: it does not run before :meth:`release` or :meth:`run_now`.
            TOO_LATE: it has been handed to its queue, or is on its way there; it may run.
            NOT_FOUND, QUARANTINED, DAMAGED: see :class:`HoldOutcome`; nothing has changed.

        Raises:
            StoreUnavailable, OutcomeUnknown: as :meth:`cancel`.
        """
        return self._steer(Change(hold=True), reason).outcome(HoldOutcome.HELD)

    def release(self, reason: str | None = None) -> ReleaseOutcome:
        """Let the task go, whether it was held or is quarantined: it is due as it was.

        One that is overdue by then runs at once.

        Raises:
            StoreUnavailable, OutcomeUnknown: as :meth:`cancel`.
        """
        return self._delayed.release(self.id, reason=reason)[self.id]

    def history(self) -> History:
        """What has happened to the task: its runs and transitions, by the audit.

        Raises:
            InvalidSetting: the project keeps no audit.
            AuditUnavailable: its database cannot be asked.
        """
        return self._delayed.history(self.id)

    def update(
        self,
        *,
        args: Any = UNCHANGED,
        kwargs: Any = UNCHANGED,
        queue: Any = UNCHANGED,
        priority: Any = UNCHANGED,
        reason: str | None = None,
        **options: Any,
    ) -> UpdateOutcome:
        """Give the task other arguments or options while it waits.

        The message is built anew by Celery, with its publish signals.  What is not given stays
        as it is, and ``None`` is a value, as for ``apply_async``.  The eta stays; a task that is
        held or quarantined stays so.

        Arguments:
            args, kwargs: take the place of all that it has.  Where the task is registered in
                this process, its signature checks them.
            queue: it is routed anew; so with ``exchange`` and ``routing_key``.
            priority: as for ``apply_async``.
            reason: goes to the audit.
            **options: of ``apply_async``: ``expires`` (seconds count from now), ``time_limit``,
                ``soft_time_limit``, ``link``, ``link_error``, ``headers`` (in the place of all
                custom ones), ``shadow``, ``ignore_result``, ``serializer``, ``compression``, …

        Returns:
            UPDATED: it goes out with its new message.
            TOO_LATE: it has been handed to its queue, or is on its way there; it runs as it was.
            NOT_FOUND, DAMAGED: see :class:`UpdateOutcome`; nothing has changed.

        Raises:
            TypeError, ValueError: about the argument they name, or the stored message cannot be
                read here (``accept_content``); nothing has changed.
            kombu.exceptions.EncodeError: the new message cannot be serialised.
            celery.exceptions.QueueNotFound: the queue is none of ``task_queues``.
            StoreUnavailable: Redis, or the broker on it, could not be reached; nothing has
                changed.
            OutcomeUnknown: no answer came in ``delay_add_window``; it can be called again.
        """
        changes = wanted(args=args, kwargs=kwargs, queue=queue, priority=priority, **options)
        return self._delayed.replace_message(
            self.id, changes, reason, run=self.entry_id.run, eta_ms=self._eta_ms
        )

    def _steer(self, change: Change, reason: str | None) -> Steered:
        steered = self._delayed.steer(
            self.id, change, reason, run=self.entry_id.run, eta_ms=self._eta_ms
        )
        if steered.is_done:
            self._eta_ms = steered.eta_ms
        return steered

    @property
    def _delayed(self) -> Delayer:
        delayed: Delayer = self.app.delayed
        return delayed


def _forget(result: AsyncResult) -> None:
    """Let the backend not wait for the result of a task that is not sent."""
    forget = getattr(result.backend, "remove_pending_result", None)
    if forget is not None:
        with contextlib.suppress(Exception):  # it would merely listen in vain
            forget(result)
