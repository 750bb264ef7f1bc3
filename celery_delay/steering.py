"""Changing entries that wait: another eta, kept back, let go, run at once.

Each change is one script, whose answer is definite: against the hand-off, and against all
other changes of the entry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, tzinfo
from typing import Any, Protocol

from celery_delay.chords import chords_in
from celery_delay.clock import Clock
from celery_delay.entries import Due
from celery_delay.envelope import warn_if_expired
from celery_delay.exceptions import StoreUnavailable
from celery_delay.instants import due_of, shift_of
from celery_delay.ports import Change, Steered
from celery_delay.results import ResultBackend
from celery_delay.settings import Settings
from celery_delay.states import HoldOutcome, ReleaseOutcome, RescheduleOutcome, State
from celery_delay.store.keys import shard_of
from celery_delay.store.redis import RedisStore

__all__ = ["Parts", "Steering"]

logger = logging.getLogger(__name__)

#: The letters of ``send_again.lua``.
_RELEASES = {
    "S": ReleaseOutcome.RELEASED,
    "N": ReleaseOutcome.NOT_FOUND,
    "D": ReleaseOutcome.DAMAGED,
    "L": ReleaseOutcome.CONFLICT,
}
#: Entries that one release script takes; above this Redis would be busy for too long.
_AT_ONCE = 500
#: What the result backend says of tasks that never reached a queue, or did and never ran.
_NEVER_RAN = (None, State.REVOKED, State.CANCELLED)


class Parts(Protocol):
    """What the composition root has for what works on entries."""

    app: Any
    clock: Clock

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> tuple[RedisStore, ...]: ...

    @property
    def results(self) -> ResultBackend: ...

    def keep_chords(self, group_ids: Iterable[str], due_ms: int) -> None: ...


class Steering(Parts):
    """The part of ``app.delayed`` that changes entries.

    All methods raise StoreUnavailable when Redis cannot be reached (nothing has changed), and
    OutcomeUnknown when it took the request but gave no answer for ``delay_add_window``.  Within
    that time an answer that is lost is asked for again, and the change is made once.
    """

    def reschedule(
        self,
        task_id: str,
        *,
        countdown: float | timedelta | None = None,
        eta: datetime | str | None = None,
        by: float | timedelta | None = None,
        tz: str | tzinfo | None = None,
        reason: str | None = None,
    ) -> RescheduleOutcome:
        """Give a waiting task another eta; see :meth:`DelayedResult.reschedule`."""
        change = self.change(countdown=countdown, eta=eta, by=by, tz=tz)
        return self.steer(task_id, change, reason).outcome(RescheduleOutcome.RESCHEDULED)

    def run_now(self, task_id: str, *, reason: str | None = None) -> RescheduleOutcome:
        """Make a waiting task due at once; see :meth:`DelayedResult.run_now`."""
        change = Change(Due(0, True), hold=False)
        return self.steer(task_id, change, reason).outcome(RescheduleOutcome.RESCHEDULED)

    def hold(self, task_id: str, *, reason: str | None = None) -> HoldOutcome:
        """Keep a waiting task back; see :meth:`DelayedResult.hold`."""
        return self.steer(task_id, Change(hold=True), reason).outcome(HoldOutcome.HELD)

    def release(self, *task_ids: str, reason: str | None = None) -> dict[str, ReleaseOutcome]:
        """Let tasks go that are kept back: back into their schedule, and due as they were.

        That is one way for both: what was held by :meth:`hold`, and what is quarantined because
        it could not be handed off.  What kept a quarantined task from its queue should be mended
        first; ``celery delay status`` says what it was.

        Returns:
            What became of each id.

        Raises:
            StoreUnavailable, OutcomeUnknown: some may have been released; calling again tells.
        """
        answers: dict[str, ReleaseOutcome] = {}
        for shard in self.shards:
            mine = [one for one in task_ids if shard.keys.has(one, self.settings.shards)]
            for start in range(0, len(mine), _AT_ONCE):
                some = mine[start : start + _AT_ONCE]
                letters = shard.send_again(some, self._who(reason))
                answers |= {one: _RELEASES[code] for one, code in zip(some, letters, strict=True)}
        return {one: answers[one] for one in task_ids}

    def quarantined(self) -> dict[str, str]:
        """Task id → why, of the entries that cannot be handed off."""
        return {task_id: why for one in self.shards for task_id, why in one.quarantined().items()}

    def held(self) -> list[str]:
        """The task ids of the entries that are held."""
        return [task_id for one in self.shards for task_id in one.held()]

    def now_ms(self) -> int:
        """The store's clock, in ms."""
        return self.shards[0].now_ms()

    # -- for results --------------------------------------------------------------------

    def change(self, *, countdown: Any, eta: Any, by: Any, tz: Any) -> Change:
        """What a caller of ``reschedule`` asks for.

        Raises:
            TypeError, ValueError: about the argument they name.
        """
        if by is None:
            if countdown is None and eta is None:
                raise TypeError("say when: countdown=seconds, eta=datetime or by=seconds")
            return Change(self.due(countdown, eta, tz))
        if countdown is not None or eta is not None or tz is not None:
            raise ValueError("by moves the eta that the task has: give it alone")
        return Change(shift_ms=shift_of(by))

    def due(self, countdown: Any, eta: Any, tz: Any) -> Due:
        """When a call is due; see :func:`~celery_delay.instants.due_of` for errors."""
        return due_of(
            countdown=countdown,
            eta=eta,
            tz=tz,
            app_timezone=self.app.timezone,
            naive_eta=self.settings.naive_eta,
            now_ms=round(self.clock.wall() * 1000),
        )

    def steer(
        self,
        task_id: str,
        change: Change,
        reason: str | None,
        *,
        run: int = 0,
        eta_ms: int | None = None,
    ) -> Steered:
        """Make *change*.

        Arguments:
            reason: goes to the audit.
            run, eta_ms: what the caller knows of the entry; they make the answer for a task
                that has left the store more exact.
        """
        shard = self._shard(task_id)
        steered = shard.steer(task_id, change, run=run, data=self._who(reason))
        if steered.is_done and (change.due or change.shift_ms is not None):
            warn_if_expired(task_id, steered.expires_ms, steered.eta_ms)
            self._keep_chords_of(task_id)
        if steered.answer == "NOT_FOUND":
            known = self.results.seen(task_id)
            due = eta_ms is not None and self.now_ms() >= eta_ms
            if known not in _NEVER_RAN or (known is None and due):
                return Steered("TOO_LATE")
        return steered

    def _keep_chords_of(self, task_id: str) -> None:
        """Let the counter of a chord live until a part of its header that waits for longer now."""
        try:
            entry = self._shard(task_id).get(task_id)
        except StoreUnavailable as exc:
            logger.warning(
                "the counter of the chord of %s, if it has one, may expire before it is due: %s",
                task_id,
                exc,
                extra={"event": "chord_not_kept", "task_id": task_id},
            )
            return
        if entry is not None:
            self.keep_chords(chords_in(entry.headers, entry.embed), entry.eta_ms)

    def _who(self, reason: str | None) -> Mapping[str, object]:
        return {"by": self.app.oid, "reason": reason} if reason else {"by": self.app.oid}

    def _shard(self, task_id: str) -> RedisStore:
        return self.shards[shard_of(task_id, self.settings.shards)]
