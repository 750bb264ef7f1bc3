"""Periodic tasks: each occurrence becomes one ordinary entry, due now.

The next occurrence of every schedule stands in Redis.  Firing is one script that advances
the schedule's cursor *and* adds the entry, so an occurrence can neither be lost nor doubled
between the two, whoever leads; all the rest (dispatch, audit) is that of any entry.

Occurrences that were missed while nobody led are run once, the latest of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import NAMESPACE_URL, uuid5

from celery_delay.entries import Addition
from celery_delay.exceptions import DelayError
from celery_delay.ports import PeriodicStore

__all__ = ["Periodic", "Plan", "occurrence_id"]

logger = logging.getLogger(__name__)

#: The longest wait between two looks, in seconds.
LONGEST_WAIT = 1.0


class Plan(Protocol):
    """When a schedule fires."""

    @property
    def version(self) -> str:
        """Changes when the schedule's times do; it then starts anew."""
        ...

    def next_after(self, after_ms: int) -> int | None:
        """The first occurrence after an instant."""
        ...

    def latest(self, first_ms: int, now_ms: int) -> int:
        """The last occurrence of those from the first to now."""
        ...


def occurrence_id(prefix: str, name: str, version: str, nominal_ms: int) -> str:
    """The task id of one occurrence: the same whichever replica fires it."""
    return str(uuid5(NAMESPACE_URL, f"celery-delay:{prefix}:{name}:{version}:{nominal_ms}"))


class Periodic:
    """Fires the schedules of one store; called by one thread, on the leader.

    Arguments:
        build: makes the entry of (schedule name, nominal instant in ms); ``None`` if the
            message cannot be made, in which case that occurrence is skipped.
    """

    def __init__(
        self, store: PeriodicStore, build: Callable[[str, int], Addition | None]
    ) -> None:
        self._store = store
        self._build = build
        self._synced: tuple[int, dict[str, str]] | None = None

    def run_once(self, term: int, plans: Mapping[str, Plan]) -> float:
        """Fire what is due.

        Returns:
            Seconds until the next occurrence, at most :data:`LONGEST_WAIT`.

        Raises:
            StoreUnavailable: an occurrence that was not fired will be.
        """
        versions = {name: plan.version for name, plan in plans.items()}
        if self._synced != (term, versions):
            self._sync(term, plans, versions)
        if not plans:
            return LONGEST_WAIT
        now_ms, due, next_ms = self._store.due_schedules()
        for name, first_ms in due:
            plan = plans.get(name)
            if plan is not None:
                self._fire(term, name, plan, first_ms, now_ms)
        if due:
            return 0.0  # look again: what follows may be due already
        if next_ms is None:
            return LONGEST_WAIT
        return min(LONGEST_WAIT, max(0.0, (next_ms - now_ms) / 1000))

    def _sync(self, term: int, plans: Mapping[str, Plan], versions: dict[str, str]) -> None:
        now_ms, _, _ = self._store.due_schedules()
        schedules = {}
        for name, plan in plans.items():
            try:
                following = plan.next_after(now_ms)
            except Exception:
                # one schedule that cannot be calculated must not stop the others
                logger.error(
                    "cannot calculate the next run of %r; it will not run",
                    name,
                    exc_info=True,
                    extra={"event": "schedule_failed", "schedule": name},
                )
                continue
            schedules[name] = (plan.version, -1 if following is None else following)
        if self._store.sync_schedules(term=term, schedules=schedules):
            self._synced = (term, versions)

    def _fire(self, term: int, name: str, plan: Plan, first_ms: int, now_ms: int) -> None:
        try:
            nominal_ms = plan.latest(first_ms, now_ms)
            next_ms = plan.next_after(nominal_ms)
            addition = self._build(name, nominal_ms)
        except DelayError:
            raise  # the store or broker is away: the occurrence stays due
        except Exception:
            logger.error(
                "cannot fire %r; trying again with its next occurrence",
                name,
                exc_info=True,
                extra={"event": "schedule_failed", "schedule": name},
            )
            nominal_ms, next_ms, addition = first_ms, now_ms + 60_000, None
        fired = self._store.fire(
            term=term,
            name=name,
            expected_ms=first_ms,
            cursor_ms=nominal_ms,
            next_ms=next_ms,
            addition=addition,
        )
        if fired and addition is not None:
            logger.info(
                "fired %s (%s)",
                name,
                addition.entry_id.task_id,
                extra={
                    "event": "schedule_fired",
                    "schedule": name,
                    "task_id": addition.entry_id.task_id,
                    "late_ms": now_ms - nominal_ms,
                },
            )
