"""Changes of all entries that a filter means, one after the other.

Each entry is a step of its own with an answer of its own, as if it had been named.  What is
meant is read from the store, exactly and as of now, in pages, in the order of the eta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_delay.delayed.operations import Operations
from celery_delay.delayed.searching import Searching
from celery_delay.domain.entries import Due, StoredEntry
from celery_delay.domain.filters import FILTERS, STORED, WAITING, Filter
from celery_delay.domain.ports import Change, Steered
from celery_delay.domain.states import (
    CancelOutcome,
    HoldOutcome,
    ReleaseOutcome,
    RescheduleOutcome,
    State,
)
from celery_delay.exceptions import DelayError

__all__ = ["SAMPLE", "ManyOutcome", "Sweeping"]

#: Entries of a dry run that are shown, and ids that are remembered of those not changed.
SAMPLE, MOST_FAILED = 20, 1_000
_Progress = Callable[[int], object]
_Answer = CancelOutcome | HoldOutcome | ReleaseOutcome | RescheduleOutcome


@dataclass
class ManyOutcome:
    """What became of the entries that were meant.

    Attributes:
        looked_at: how many there were.
        done: how many are as asked.
        outcomes: answer → how many got it, as the method for one of them answers; empty for a
            dry run.
        failed: answer → ids of those that got it and are not as asked, 1 000 in all at most.
        dry_run: whether nothing was to be changed; ``looked_at`` would have been tried.
        sample: for a dry run, the first 20 entries.
    """

    looked_at: int = 0
    done: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    dry_run: bool = False
    sample: list[StoredEntry] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether all are as asked."""
        return not self.dry_run and self.done == self.looked_at

    def take(self, task_id: str, outcome: _Answer) -> None:
        """Count one answer."""
        self.looked_at += 1
        self.outcomes[outcome.value] = self.outcomes.get(outcome.value, 0) + 1
        if outcome:
            self.done += 1
        elif sum(map(len, self.failed.values())) < MOST_FAILED:
            self.failed.setdefault(outcome.value, []).append(task_id)


@dataclass(frozen=True)
class _Target:
    """One entry that is meant.  ``entry`` decodes it, or answers ``None``."""

    task_id: str
    run: int
    eta_ms: int
    entry: Callable[[], StoredEntry | None]


class Sweeping(Operations, Searching):
    """The part of ``app.delayed`` that changes many entries.

    All its methods take the filters of :class:`~celery_delay.delayed.searching.Searching`, and
    answer with a :class:`ManyOutcome`.  Their other arguments:

    ``everything``
        without any filter nothing is done, but for ``everything=True``.
    ``dry_run``
        change nothing; tell how many, and show some.
    ``limit``
        so many entries at most, the earliest due first.
    ``reason``
        goes to the audit.
    ``progress``
        called after each entry with how many were looked at so far.

    Entries that are added meanwhile are found too if their eta is behind the present position.
    To get all of them, stop who adds them first, or call again until nothing is looked at.
    An entry is changed once, wherever the change or somebody else moves it meanwhile; for
    ``reschedule_many`` and ``run_many`` memory grows by some 100 bytes with each.

    Every method may raise TypeError or ValueError about an argument before anything is
    changed; StoreUnavailable or OutcomeUnknown in the middle, with the attribute ``so_far``, a
    ManyOutcome: what is counted there is done, and a repeat goes on with the others.  So it is
    after a crash.
    """

    def cancel_many(self, **arguments: Any) -> ManyOutcome:
        """Cancel entries that wait, as :meth:`cancel` does; also QUARANTINED ones by ``state``."""
        return self._cancel_many(arguments, WAITING, STORED)

    def purge(self, **arguments: Any) -> ManyOutcome:
        """Cancel everything that waits, HELD and QUARANTINED entries too.

        What has been handed to its queue stays there: that is Celery's own ``purge``.

        Arguments:
            arguments: ``dry_run``, ``reason`` and ``progress`` as above; no filters.
        """
        if filters := [one for one in FILTERS if arguments.get(one) is not None]:
            raise TypeError(
                f"purge takes no filter, and {filters[0]} was given: cancel_many cancels what one"
                ' means, with state=["SCHEDULED", "HELD", "QUARANTINED"] also what is parked'
            )
        return self._cancel_many({**arguments, "everything": True}, STORED, STORED)

    def reschedule_many(
        self,
        *,
        countdown: Any = None,
        eta: Any = None,
        by: Any = None,
        tz: Any = None,
        **arguments: Any,
    ) -> ManyOutcome:
        """Give entries another eta, as :meth:`reschedule` does.

        Arguments:
            countdown, eta, by, tz: as for one entry; ``by`` moves each from where it is.
        """
        change = self.change(countdown=countdown, eta=eta, by=by, tz=tz)
        return self._steer_many(change, _rescheduled, arguments, WAITING)

    def run_many(self, **arguments: Any) -> ManyOutcome:
        """Make entries due at once, as :meth:`run_now` does; also those that are held."""
        change = Change(Due(0, True), hold=False)
        return self._steer_many(change, _rescheduled, arguments, WAITING)

    def hold_many(self, **arguments: Any) -> ManyOutcome:
        """Keep entries back that are SCHEDULED, as :meth:`hold` does."""
        states = frozenset({State.SCHEDULED})
        return self._steer_many(Change(hold=True), _held, arguments, states)

    def release_many(self, **arguments: Any) -> ManyOutcome:
        """Let entries go that are HELD or QUARANTINED, as :meth:`release` does."""
        kept = frozenset({State.HELD, State.QUARANTINED})
        reason = arguments.pop("reason", None)

        def release(one: _Target) -> ReleaseOutcome:
            return self.release(one.task_id, reason=reason)[one.task_id]

        return self._sweep(release, arguments, kept, allowed=kept)

    # -- how ------------------------------------------------------------------------------

    def _cancel_many(
        self,
        arguments: dict[str, Any],
        states: frozenset[State],
        allowed: frozenset[State] | set[State],
    ) -> ManyOutcome:
        reason = arguments.pop("reason", None)

        def cancel(one: _Target) -> CancelOutcome:
            return self.cancel(one.task_id, run=one.run, eta_ms=one.eta_ms, reason=reason)

        return self._sweep(cancel, arguments, states, allowed=allowed)

    def _steer_many(
        self,
        change: Change,
        told: Callable[[Steered], _Answer],
        arguments: dict[str, Any],
        states: frozenset[State],
    ) -> ManyOutcome:
        reason = arguments.pop("reason", None)

        def steer(one: _Target) -> _Answer:
            found = {"run": one.run, "eta_ms": one.eta_ms}
            return told(self.steer(one.task_id, change, reason, **found))

        moves = change.due is not None or change.shift_ms is not None
        return self._sweep(steer, arguments, states, allowed=WAITING, moves=moves)

    def _sweep(
        self,
        act: Callable[[_Target], _Answer],
        arguments: dict[str, Any],
        states: frozenset[State],
        *,
        allowed: frozenset[State] | set[State],
        moves: bool = False,
    ) -> ManyOutcome:
        dry_run, limit, progress, wanted = self._checked(arguments, states, allowed)
        outcome = ManyOutcome(dry_run=dry_run)
        seen: set[str] = set()
        try:
            for one in self._targets(wanted):
                if outcome.looked_at == limit:
                    break
                if one.task_id in seen:
                    continue
                if dry_run:
                    outcome.looked_at += 1
                    if len(outcome.sample) < SAMPLE and (entry := one.entry()) is not None:
                        outcome.sample.append(entry)
                else:
                    outcome.take(one.task_id, act(one))
                    if moves:
                        # else a change that puts them behind the position would go on for ever
                        seen.add(one.task_id)
                if progress is not None:
                    progress(outcome.looked_at)
        except BaseException as exc:
            exc.so_far = outcome  # type: ignore[attr-defined]
            if isinstance(exc, DelayError) and hasattr(exc, "add_note"):  # Python 3.11
                exc.add_note(f"{outcome.done} entries were changed before")
            raise
        return outcome

    def _checked(
        self,
        arguments: Mapping[str, Any],
        states: frozenset[State],
        allowed: frozenset[State] | set[State],
    ) -> tuple[bool, int | None, _Progress | None, Filter]:
        given = dict(arguments)
        dry_run, limit = bool(given.pop("dry_run", False)), given.pop("limit", None)
        progress, everything = given.pop("progress", None), bool(given.pop("everything", False))
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise TypeError(f"limit must be a whole number, not {limit!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} must be 1 or more; leave it out for no limit")
        said = any(one is not None for one in given.values())
        wanted = self.wanted(given)
        if said == everything:
            raise ValueError(
                "everything=True goes with no filter: leave one of them out"
                if said
                else "say which entries by a filter, or everything=True"
            )
        if given.get("state") is None:
            wanted = wanted.only(*states)
        if wrong := wanted.states - allowed:
            told = ", ".join(sorted(one.value for one in wrong))
            raise ValueError(f"state: no entry that is {told} can be changed like this")
        return dry_run, limit, progress, wanted

    def _targets(self, wanted: Filter) -> Iterator[_Target]:
        for one in self.found(wanted):
            yield _Target(one.task_id, one.run, one.position.eta_ms, one.entry)


def _rescheduled(steered: Steered) -> RescheduleOutcome:
    return steered.outcome(RescheduleOutcome.RESCHEDULED)


def _held(steered: Steered) -> HoldOutcome:
    return steered.outcome(HoldOutcome.HELD)
