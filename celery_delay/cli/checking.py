"""``check``: what waits, against the code that is about to go live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.times import fields, local
from celery_delay.cli.verb import NO, USAGE, YES, option, tasks_load, verb

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.delayed.checking import EntryCheck

__all__ = ["check_command"]


@verb("check")
@option("--ignore", multiple=True, metavar="PATTERN",
        help="Task names of other projects, such as 'billing.*'; may be repeated.")  # fmt: skip
@option("--hold/--no-hold", "hold", default=None,
        help="Hold tasks of unknown names; by default as delay_on_unknown says.")  # fmt: skip
@option("--limit", type=click.IntRange(1), default=20, show_default=True,
        help="Ids shown for each task and reason; --json has them all.")  # fmt: skip
def check_command(
    delayed: CeleryDelay, out: Output, *, ignore: tuple[str, ...], hold: bool | None, limit: int
) -> int:
    """Judge what waits by this code, before it is deployed.

    Run it where the new code is, against the store of the running system.  Each pending task
    (scheduled, held, quarantined) must have a name that is registered here, and arguments that
    the task takes.  The tasks are loaded as a worker loads them.  Redis is read in small pages.
    Nothing is changed, unless tasks of unknown names are to be held (--hold, or
    delay_on_unknown = "hold"): they wait then until you release them.

    Bodies are read as JSON only, never unpickled; the others are counted as not looked at, as are
    tasks with typing = False.  What follows a task (chain, link, chord) is not judged.

    \b
    Examples:
      celery -A proj delay check
      celery -A proj delay check --ignore 'billing.*' --ignore 'reports.*'
      celery -A proj delay check --json | jq -r '.misfits[].task_ids[]' |
          xargs celery -A proj delay hold --reason "needs the old release"

    The exit code is 0 if all fit, 1 if some do not, 2 if the tasks cannot be imported, 69
    if Redis cannot be reached.
    """
    if not tasks_load(delayed):
        return USAGE
    total = delayed.pending()
    with progress_bar("reading", total) as show:
        found = delayed.check_entries(
            ignore=ignore, hold=hold, progress=lambda seen: show(seen, f"{seen} of {total}")
        )
    if out.as_json:
        out.document(_document(found))
    else:
        _print(out, found, limit)
    return NO if found.misfits else YES


def _document(found: EntryCheck) -> dict[str, Any]:
    return {
        "total": found.total,
        "fitting": found.fitting,
        "misfitting": found.misfitting,
        "ignored": found.ignored,
        "not_looked_at": found.not_looked_at,
        "misfits": [
            {
                "task": one.task,
                "reason": one.reason,
                "count": len(one.task_ids),
                **fields("first_eta", one.first_eta_ms),
                "task_ids": one.task_ids,
            }
            for one in found.misfits
        ],
        "held": found.held,
    }


def _print(out: Output, found: EntryCheck, limit: int) -> None:
    for one in found.misfits:
        out.line(f"{one.task}: {one.reason}", "bold red")
        number = len(one.task_ids)
        out.line(f"  {number} waiting, the first due {local(one.first_eta_ms)}")
        for task_id in one.task_ids[:limit]:
            out.line(f"    {task_id}")
        if number > limit:
            out.line(f"    and {number - limit} more", "dim")
    for why, number in found.not_looked_at.items():
        out.line(f"not looked at: {number}, {why}", "yellow")
    if found.held:
        out.line(f"held: {len(found.held)} of unknown names; `release` lets them go", "yellow")
    ignored = f", {found.ignored} ignored" if found.ignored else ""
    out.line(
        f"{found.total} waiting tasks: {found.fitting} fit, {found.misfitting} do not{ignored}",
        "red" if found.misfits else "green",
    )
