"""``reschedule``, ``run-now`` and ``hold``: changes of tasks that wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from celery_delay.cli.answers import ask, known_ids, remembered, tell, was_handed_off
from celery_delay.cli.completion import waiting_ids
from celery_delay.cli.output import Output
from celery_delay.cli.sweeping import by_filter, sweep, sweep_options
from celery_delay.cli.times import DATETIME, SECONDS
from celery_delay.cli.verb import option, verb
from celery_delay.domain.states import HoldOutcome, RescheduleOutcome

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["hold_command", "reschedule_command", "run_now_command"]

_Outcome = TypeVar("_Outcome", RescheduleOutcome, HoldOutcome)

_GONE = "it was handed to its queue: `celery control revoke` tells the workers"
_UNKNOWN = "no such task waits"
_DAMAGED = "its record is damaged or of a newer release: schedule it anew, and `cancel` it"
_RESCHEDULED: Mapping[RescheduleOutcome, str] = {
    RescheduleOutcome.RESCHEDULED: "it has its new eta",
    RescheduleOutcome.TOO_LATE: _GONE,
    RescheduleOutcome.NOT_FOUND: _UNKNOWN,
    RescheduleOutcome.QUARANTINED: "it could not be handed off, and is parked: `release` it first",
    RescheduleOutcome.DAMAGED: _DAMAGED,
}
_RUNS_NOW = {**_RESCHEDULED, RescheduleOutcome.RESCHEDULED: "it is due now"}
_HELD: Mapping[HoldOutcome, str] = {
    HoldOutcome.HELD: "it does not run before `release` or `run-now`",
    HoldOutcome.TOO_LATE: _GONE,
    HoldOutcome.NOT_FOUND: _UNKNOWN,
    HoldOutcome.QUARANTINED: "it could not be handed off, and is kept back already",
    HoldOutcome.DAMAGED: _DAMAGED,
}


@verb("reschedule")
@click.argument("task_ids", metavar="[ID...]", nargs=-1, shell_complete=waiting_ids)
@sweep_options
@option("--countdown", type=SECONDS, help="Due in so many seconds from now, or 30m, 2h, 1d.")
@option("--eta", type=DATETIME, help="Due then.")
@option("--by", type=SECONDS, help="Moves the eta by so many seconds; -10m: earlier.")
@option("--reason", help="Goes to the audit.")
def reschedule_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    countdown: timedelta | None,
    eta: datetime | None,
    by: timedelta | None,
    reason: str | None,
    **given: Any,
) -> int:
    """Give tasks that wait another eta.  One that is held stays held.

    \b
    Each gets one of these answers:
      RESCHEDULED  it has its new eta
      TOO_LATE     it has been handed to its queue, or is on its way there
      NOT_FOUND    no such task waits
      QUARANTINED  it is parked: see `status`, then `release` it
      DAMAGED      it can only be cancelled

    \b
    Examples:
      celery -A proj delay reschedule 5f0c6c2e-… --countdown 30m
      celery -A proj delay reschedule 5f0c6c2e-… --eta 2030-01-31T09:00 --reason "moved"
      celery -A proj delay reschedule 5f0c6c2e-… 91a2b3c4-… --by -3600
      celery -A proj delay reschedule --queue mail --before 1h --by 1h

    With a filter instead of ids they are shown and you are asked first.  Instants without an
    offset are local time, as in the tables.

    The exit code is 0 if all are
    RESCHEDULED, 69 if Redis gave no answer for one of them (ask again, but with --by look at its
    eta first), else 1.
    """
    if sum(one is not None for one in (countdown, eta, by)) != 1:
        raise click.UsageError("say when, in one way: --countdown, --eta or --by")
    when: dict[str, Any] = {"countdown": countdown, "eta": eta, "by": by}

    if by_filter(task_ids, given):
        change, done = delayed.reschedule_many, RescheduleOutcome.RESCHEDULED
        return sweep(delayed, out, change, done, given, **when, reason=reason)

    def question(task_id: str) -> RescheduleOutcome:
        return delayed.reschedule(task_id, **when, reason=reason)

    return _change(delayed, out, task_ids, question, _RESCHEDULED, RescheduleOutcome.RESCHEDULED)


@verb("run-now")
@click.argument("task_ids", metavar="[ID...]", nargs=-1, shell_complete=waiting_ids)
@sweep_options
@option("--reason", help="Goes to the audit.")
def run_now_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    reason: str | None,
    **given: Any,
) -> int:
    """Make tasks due at once, also those that are held.  The answers are those of `reschedule`.

    \b
    Examples:
      celery -A proj delay run-now 5f0c6c2e-…
      celery -A proj delay run-now 5f0c6c2e-… --reason "the customer waits at the phone"
      celery -A proj delay run-now --tag order-42 --dry-run

    With a filter instead of ids they are shown and you are asked first.

    The exit code is 0 if all are RESCHEDULED, 69 if Redis gave no answer for one of them (ask
    again), else 1.
    """

    if by_filter(task_ids, given):
        change, done = delayed.run_many, RescheduleOutcome.RESCHEDULED
        return sweep(delayed, out, change, done, given, reason=reason)

    def question(task_id: str) -> RescheduleOutcome:
        return delayed.run_now(task_id, reason=reason)

    return _change(delayed, out, task_ids, question, _RUNS_NOW, RescheduleOutcome.RESCHEDULED)


@verb("hold")
@click.argument("task_ids", metavar="[ID...]", nargs=-1, shell_complete=waiting_ids)
@sweep_options
@option("--reason", help="Goes to the audit.")
def hold_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    reason: str | None,
    **given: Any,
) -> int:
    """Keep tasks back until they are released, whatever their eta.

    \b
    Each gets one of these answers:
      HELD         it does not run before `release` or `run-now`
      TOO_LATE     it has been handed to its queue, or is on its way there
      NOT_FOUND    no such task waits
      QUARANTINED  it is kept back already, since it could not be handed off
      DAMAGED      it can only be cancelled

    An `expires` goes on counting: a task that is released after it does not run.

    \b
    Examples:
      celery -A proj delay hold 5f0c6c2e-… --reason "the shop is closed for repairs"
      celery -A proj delay hold --task 'till.*'
      celery -A proj delay list --state HELD

    With a filter instead of ids they are shown and you are asked first.

    The exit code is 0 if all are HELD, 69 if Redis gave no answer for one of them (ask again),
    else 1.
    """

    if by_filter(task_ids, given):
        return sweep(delayed, out, delayed.hold_many, HoldOutcome.HELD, given, reason=reason)

    def question(task_id: str) -> HoldOutcome:
        return delayed.hold(task_id, reason=reason)

    return _change(delayed, out, task_ids, question, _HELD, HoldOutcome.HELD)


def _change(
    delayed: CeleryDelay,
    out: Output,
    task_ids: tuple[str, ...],
    question: Callable[[str], _Outcome],
    meaning: Mapping[Any, str],
    success: _Outcome,
) -> int:
    def answer(task_id: str) -> Enum:
        outcome = question(task_id)
        kind = type(outcome)
        if outcome is kind.NOT_FOUND and was_handed_off(remembered(delayed, task_id)):
            return kind.TOO_LATE
        return outcome

    return tell(out, ask(known_ids(task_ids), answer, meaning), success)
