"""``release``: quarantined entries, sent again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from celery_delay.cli.output import Output
from celery_delay.cli.verb import NO, YES, option, verb
from celery_delay.states import ReleaseOutcome

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
@click.argument("task_ids", metavar="ID...", nargs=-1)
@option("--all", "everything", is_flag=True, help="All tasks that are kept back.")
def release_command(
    delayed: CeleryDelay, out: Output, *, task_ids: tuple[str, ...], everything: bool
) -> int:
    """Send tasks again that could not be handed off.

    A task is kept back (QUARANTINED) when its message cannot be published, so that it holds up
    no other: no queue is bound to its exchange, say. `status` tells the reasons. Mend them, then
    release: the task is back in the schedule with its old eta.

    \b
    Examples:
      celery -A proj delay release 5f0c6c2e-…
      celery -A proj delay release --all

    The exit code is 0 if all are RELEASED, else 1.
    """
    if bool(task_ids) == everything:
        raise click.UsageError("name task ids, or give --all")
    wanted = list(delayed.quarantined()) if everything else list(dict.fromkeys(task_ids))
    answers = delayed.release(*wanted)
    released = sum(map(bool, answers.values()))
    if out.as_json:
        told = [
            {"task_id": one, "outcome": outcome.value, "meaning": _MEANING[outcome]}
            for one, outcome in answers.items()
        ]
        out.document({"released": released, "answers": told})
    else:
        out.table(
            ["task id", "answer", "meaning"],
            [[one, outcome.value, _MEANING[outcome]] for one, outcome in answers.items()],
            styles={"RELEASED": "green", "NOT_FOUND": "yellow", "DAMAGED": "red"},
        )
    return YES if released == len(answers) else NO
