"""``schedule backfill``: occurrences of the past, fired after all."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from celery.beat import SchedulingError

from celery_delay.cli.completion import schedule_names
from celery_delay.cli.output import Output
from celery_delay.cli.times import INSTANT, fields, local
from celery_delay.cli.verb import NO, YES, option, say_error, verb
from celery_delay.domain.clock import from_ms, to_ms
from celery_delay.domain.entries import Due
from celery_delay.exceptions import UnknownSchedule

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.periodic.backfill import Backfill

__all__ = ["backfill_command"]


@verb("backfill")
@click.argument("name", shell_complete=schedule_names)
@option("--start", type=INSTANT, required=True, help="From then on, or so long ago: -2h.")
@option("--end", type=INSTANT, help="Up to before then; without it up to now.")
@option("--force", is_flag=True, help="Also those that were fired, with new task ids.")
@option("--dry-run", is_flag=True, help="Tell what would be fired, and fire nothing.")
@option("--yes", is_flag=True, help="Do not ask.")
def backfill_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    name: str,
    start: Due,
    end: Due | None,
    force: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Fire the occurrences in a span of the past that were not fired.

    Those that nobody fired, because no beat ran or the schedule was paused, are due at once, with
    the task ids that they would have had.  Those that were fired are refused, but with --force.  At
    most 1000 at a time.

    \b
    Examples:
      celery -A proj delay schedule backfill nightly --start -3d --dry-run
      celery -A proj delay schedule backfill nightly --start 2030-01-28 --end 2030-01-31 --yes

    The exit code is 0 if there was nothing to refuse, 1 if some were refused, if there is no such
    schedule, or if you say no; 2 for a span that cannot be.
    """
    now_ms = delayed.now_ms()
    span = (_instant(start, now_ms), _instant(end, now_ms) if end else from_ms(now_ms))
    schedules = delayed.schedules
    try:
        found = schedules.backfill(name, *span, force=force, dry_run=True)
        if not dry_run:
            question = f"Fire {len(found.fired)} occurrences of {name}?"
            if found.fired and not yes and not click.confirm(question, err=True):
                return NO
            found = schedules.backfill(name, *span, force=force)
    except UnknownSchedule as exc:
        say_error(exc)
        return NO
    except SchedulingError as exc:
        say_error(f"{exc}: {exc.__cause__ or exc.__context__}")
        return NO
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from None
    _tell(out, name, found, dry_run)
    return NO if found.refused else YES


def _tell(out: Output, name: str, found: Backfill, dry_run: bool) -> None:
    rows: list[dict[str, Any]] = [
        *({"instant": one, "task_id": task_id or None} for one, task_id in found.fired.items()),
        *({"instant": one, "task_id": None} for one in [*found.refused, *found.left]),
    ]
    outcomes = ["FIRED"] * len(found.fired)
    outcomes += ["REFUSED"] * len(found.refused) + ["LEFT"] * len(found.left)
    told = [
        {**fields("at", to_ms(one["instant"])), "outcome": outcome, "task_id": one["task_id"]}
        for one, outcome in sorted(
            zip(rows, outcomes, strict=True), key=lambda pair: pair[0]["instant"]
        )
    ]
    if out.as_json:
        out.document({"name": name, "dry_run": dry_run, "fired": len(found.fired),
                      "refused": len(found.refused), "occurrences": told})  # fmt: skip
        return
    if told:
        out.table(
            ["occurrence", "answer", "task id"],
            [[local(one["at_ms"]), one["outcome"], one["task_id"]] for one in told],
            styles={"FIRED": "green", "REFUSED": "yellow"},
        )
    would = "would be fired" if dry_run else "fired"
    out.line(f"{len(found.fired)} {would}, {len(found.refused)} were fired before", "dim")


def _instant(due: Due, now_ms: int) -> datetime:
    return from_ms(due.ms + (now_ms if due.is_delay else 0))
