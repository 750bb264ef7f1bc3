"""``release``: tasks that are kept back, let go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from celery_delay.cli.answers import known_ids, tell
from celery_delay.cli.output import Output
from celery_delay.cli.verb import option, verb
from celery_delay.states import ReleaseOutcome, State

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["release_command"]

_HELD, _QUARANTINED = State.HELD.value, State.QUARANTINED.value
_MEANING: Mapping[ReleaseOutcome, str] = {
    ReleaseOutcome.RELEASED: "it is handed to its queue when it is due; at once if it is overdue",
    ReleaseOutcome.NOT_FOUND: "no such task is kept back",
    ReleaseOutcome.DAMAGED: "its record or template is damaged: schedule it anew, and `cancel` it",
    ReleaseOutcome.CONFLICT: "another task with this id waits already",
}


@verb("release")
@click.argument("task_ids", metavar="ID...", nargs=-1)
@option("--all", "everything", is_flag=True, help="All tasks that are kept back.")
@option("--state", type=click.Choice([_HELD, _QUARANTINED], case_sensitive=False),
        help="With --all: only those in this state.")  # fmt: skip
@option("--reason", help="Goes to the audit.")
def release_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    everything: bool,
    state: str | None,
    reason: str | None,
) -> int:
    """Let tasks go that are kept back: those that were held, and those that are quarantined.

    A task is HELD because somebody said `hold`.  It is QUARANTINED when its message cannot be
    published, so that it holds up no other: no queue is bound to its exchange, say. `status`
    tells the reasons; mend them first.  Released, a task is back in the schedule with its eta.

    \b
    Examples:
      celery -A proj delay release 5f0c6c2e-…
      celery -A proj delay release --all
      celery -A proj delay release --all --state QUARANTINED

    The exit code is 0 if all are RELEASED, else 1.
    """
    if bool(task_ids) == everything:
        raise click.UsageError("name task ids, or give --all")
    if state is not None and not everything:
        raise click.UsageError("--state narrows --all: with task ids leave it out")
    wanted = known_ids(task_ids)
    if everything and state != _QUARANTINED:
        wanted += delayed.held()
    if everything and state != _HELD:
        wanted += [one for one in delayed.quarantined() if one not in wanted]
    answers = [
        {"task_id": one, "outcome": outcome.value, "meaning": _MEANING[outcome], "error": None}
        for one, outcome in delayed.release(*wanted, reason=reason).items()
    ]
    return tell(out, answers, ReleaseOutcome.RELEASED)
