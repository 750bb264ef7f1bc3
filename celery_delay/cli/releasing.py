"""``release``: tasks that are kept back, let go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.answers import known_ids, tell
from celery_delay.cli.completion import held_ids
from celery_delay.cli.output import Output
from celery_delay.cli.sweeping import by_filter, sweep, sweep_options
from celery_delay.cli.verb import option, verb
from celery_delay.domain.states import ReleaseOutcome

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["release_command"]

_MEANING: Mapping[ReleaseOutcome, str] = {
    ReleaseOutcome.RELEASED: "it is handed to its queue when it is due; at once if it is overdue",
    ReleaseOutcome.NOT_FOUND: "no such task is kept back",
    ReleaseOutcome.DAMAGED: "its record or template is damaged: schedule it anew, and `cancel` it",
    ReleaseOutcome.CONFLICT: "another task with this id waits already",
}


@verb("release")
@click.argument("task_ids", metavar="[ID...]", nargs=-1, shell_complete=held_ids)
@sweep_options
@option("--reason", help="Goes to the audit.")
def release_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    reason: str | None,
    **given: Any,
) -> int:
    """Let tasks go that are kept back: those that were held, and those that are quarantined.

    A task is HELD because somebody said `hold`.  It is QUARANTINED when its message cannot be
    published, so that it holds up no other: no queue is bound to its exchange, say. `status`
    tells the reasons; mend them first.  Released, a task is back in the schedule with its eta.

    \b
    Examples:
      celery -A proj delay release 5f0c6c2e-…
      celery -A proj delay release --all
      celery -A proj delay release --all --state QUARANTINED --yes
      celery -A proj delay release --task 'till.*' --dry-run

    With a filter instead of ids they are shown and you are asked first.

    The exit code is 0 if all are RELEASED, else 1.
    """
    if by_filter(task_ids, given):
        change = delayed.release_many
        return sweep(delayed, out, change, ReleaseOutcome.RELEASED, given, reason=reason)
    answers = [
        {"task_id": one, "outcome": outcome.value, "meaning": _MEANING[outcome], "error": None}
        for one, outcome in delayed.release(*known_ids(task_ids), reason=reason).items()
    ]
    return tell(out, answers, ReleaseOutcome.RELEASED)
