"""Changing entries that wait: another eta, kept back, let go, run at once.

Each change is one script, whose answer is definite: against the hand-off, and against all
other changes of the entry.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Protocol

from celery_delay.calling.chords import chords_in
from celery_delay.domain.callers import caller
from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Due, EntryId
from celery_delay.domain.ports import Change, Steered
from celery_delay.domain.series import UNMETERED, Meter
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import HoldOutcome, ReleaseOutcome, RescheduleOutcome, State
from celery_delay.exceptions import StoreUnavailable
from celery_delay.message.expiry import warn_if_expired
from celery_delay.message.instants import due_of, shift_of
from celery_delay.services.amending import Amending
from celery_delay.store.connection import Around, Links
from celery_delay.store.keys import ShardKeys, shard_of
from celery_delay.store.redis import RedisStore
from celery_delay.worker.results import ResultBackend

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
    #: Where this process counts what it does, and what it does around each command to Redis; a
    #: beat's are set before anything else is made.
    meter: Meter = UNMETERED
    around: Around | None = None

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> tuple[RedisStore, ...]: ...

    @property
    def shard_keys(self) -> tuple[ShardKeys, ...]: ...

    @property
    def results(self) -> ResultBackend: ...

    @property
    def audit_log(self) -> Any: ...

    @property
    def cold_rows(self) -> Any: ...

    @property
    def backed_rows(self) -> Any: ...

    @property
    def backed(self) -> Amending: ...

    #: Whether this process has written entries in its own transactions.
    _has_outbox: bool

    def links(self) -> Links: ...

    def move_differs(self) -> str: ...

    def check(self) -> None: ...

    def keep_chords(self, group_ids: Iterable[str], due_ms: int) -> None: ...

    def moves(self) -> bool: ...

    def queue_lists(self) -> Sequence[tuple[int, str]]: ...

    def let_go(self, unique_key: str, entry_id: EntryId) -> None: ...


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
        for one in task_ids:
            self._shard(one)  # a TypeError for what is no id
        if self.settings.is_backed:
            answers = self._released(task_ids, self._who(reason))
        for shard in self.shards:
            mine = [one for one in task_ids if shard.keys.has(one, self.settings.shards)]
            mine = [one for one in mine if one not in answers]
            for start in range(0, len(mine), _AT_ONCE):
                some = mine[start : start + _AT_ONCE]
                letters = shard.send_again(some, self._who(reason))
                answers |= {one: _RELEASES[code] for one, code in zip(some, letters, strict=True)}
        return {one: answers[one] for one in task_ids}

    def _released(
        self, task_ids: Sequence[str], data: Mapping[str, object]
    ) -> dict[str, ReleaseOutcome]:
        """What became of those of *task_ids* that SQL backs."""
        found: dict[str, ReleaseOutcome] = {}
        for one in task_ids:
            done = self.backed.release(self._shard(one).keys.shard, one, data)
            if done is not None:
                found[one] = ReleaseOutcome.RELEASED if done else ReleaseOutcome.NOT_FOUND
        return found

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
        """When a call is due; see :func:`~celery_delay.message.instants.due_of` for errors."""
        return due_of(
            countdown=countdown,
            eta=eta,
            tz=tz,
            # only an eta is read in it, and Celery's property takes a lock each time
            app_timezone=self.app.timezone if eta is not None else timezone.utc,
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
        steered = self._steered(task_id, change, run, self._who(reason))
        if steered.is_done and (change.due or change.shift_ms is not None):
            warn_if_expired(task_id, steered.expires_ms, steered.eta_ms)
            self._keep_chords_of(task_id)
        if steered.answer == "NOT_FOUND" and self._has_left(task_id, eta_ms):
            return Steered("TOO_LATE")
        return steered

    def _steered(
        self, task_id: str, change: Change, run: int, data: Mapping[str, object]
    ) -> Steered:
        """Make *change*: SQL first, where SQL backs the entry."""
        shard = self._shard(task_id)
        if self.settings.is_backed:
            answer = self.backed.change(shard.keys.shard, task_id, change, data)
            if answer is not None:
                return answer
        steered = shard.steer(task_id, change, run=run, data=data)
        if steered.answer == "NOT_FOUND" and self._has_outbox:
            # this process writes rows that Redis may not have heard of yet
            return self.backed.change(shard.keys.shard, task_id, change, data) or steered
        return steered

    def _has_left(self, task_id: str, eta_ms: int | None) -> bool:
        """Whether a task that the store does not have has been handed off, as far as is known."""
        known = self.results.seen(task_id)
        due = eta_ms is not None and self.now_ms() >= eta_ms
        return known not in _NEVER_RAN or (known is None and due)

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
        return {"by": caller(), "reason": reason} if reason else {"by": caller()}

    def _shard(self, task_id: str) -> RedisStore:
        if not isinstance(task_id, str):
            raise TypeError(f"task_id must be a text, not {task_id!r}; of a result, give its id")
        return self.shards[shard_of(task_id, self.settings.shards)]
