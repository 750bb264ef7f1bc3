"""``celery delay prune`` and ``forget``: what leaves the audit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from celery_delay.cli.completion import waiting_ids
from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.verb import NO, YES, option, say_error, verb
from celery_delay.domain.retention import PRUNABLE
from celery_delay.exceptions import StillAlive

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["forget_command", "prune_command"]


@verb("prune")
@option("--older-than", metavar="AGE", help="Seconds, or 12h, 30d, 8w; else delay_retention.")
@option("--state", "states", multiple=True, type=click.Choice(PRUNABLE, case_sensitive=False),
        help="Only tasks that ended so; may be repeated.")  # fmt: skip
@option("--dry-run", is_flag=True, help="Count, and delete nothing.")
@option("--yes", is_flag=True, help="Do not ask.")
def prune_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    older_than: str | None,
    states: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> int:
    """Delete old tasks from the audit, with their runs and transitions.

    With `delay_retention` the leading beat does this by itself.  A task's age counts from its
    end; that of one that may run yet from its last change or its eta.  What waits is never deleted.
    GAP events are counted as tasks in a state of that name.  It is safe to repeat,
    and to do while beats and workers run: each transaction is short.

    \b
    Examples:
      celery -A proj delay prune --dry-run
      celery -A proj delay prune --older-than 30d --state SUCCEEDED --yes
      celery -A proj delay prune --older-than 52w

    The exit code is 0, also if nothing was old; 1 if you say no; 69 if the database is away (what
    was deleted until then stays deleted).
    """
    if not dry_run and not yes and (out.as_json or not sys.stdin.isatty()):
        raise click.UsageError("there is nobody to ask: say --yes, or --dry-run to see how many")
    try:
        tasks = {}
        if dry_run or not yes:
            tasks = dict(delayed.prune(older_than, states=states, dry_run=True))
        if not dry_run:
            total = sum(tasks.values()) if not yes else None
            if total and not click.confirm(f"Delete {_tasks(total)} for good?", err=True):
                say_error("nothing was deleted")
                return NO
            with progress_bar("pruned", total) as show:
                done = delayed.prune(
                    older_than,
                    states=states,
                    progress=lambda number: show(number, _tasks(number)),
                )
                tasks = dict(done)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if out.as_json:
        out.document({"dry_run": dry_run, "total": sum(tasks.values()), "tasks": tasks})
        return YES
    if tasks:
        out.table(["state", "tasks"], sorted(tasks.items()), right=["tasks"])
    number = _tasks(sum(tasks.values()))
    out.line(f"{number} would be deleted" if dry_run else f"deleted {number} from the audit")
    return YES


@verb("forget")
@click.argument("task_id", metavar="ID", shell_complete=waiting_ids)
@option("--force", is_flag=True,
        help="Also a task that was handed off and of whose end nobody has told.")  # fmt: skip
def forget_command(delayed: CeleryDelay, out: Output, *, task_id: str, force: bool) -> int:
    """Delete all that the audit knows of one task that is over.

    It waits until the journal has been drained up to now, so that no late event writes the task
    down again.  The result in the result backend, logs and backups are not touched.

    \b
    Examples:
      celery -A proj delay forget 5f0c6c2e-…
      celery -A proj delay cancel 5f0c6c2e-… && celery -A proj delay forget 5f0c6c2e-…
      celery -A proj delay forget 5f0c6c2e-… --force

    The exit code is 0 if it was deleted; 1 if the audit has not heard of it, or if it waits or may
    still run; 69 if Redis or the database is away, or no beat drains the journal.
    """
    if not task_id:
        raise click.UsageError("the ID is empty")
    outcome, why = "NOT_FOUND", None
    try:
        if delayed.forget(task_id, force=force):
            outcome = "FORGOTTEN"
    except StillAlive as exc:
        outcome, why = "ALIVE", str(exc)
    if out.as_json:
        out.document({"task_id": task_id, "outcome": outcome, "error": why})
    elif why is not None:
        say_error(why)
    else:
        text = "the audit has not heard of it" if outcome == "NOT_FOUND" else "deleted"
        out.line(f"{task_id}: {text}")
    return YES if outcome == "FORGOTTEN" else NO


def _tasks(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"
