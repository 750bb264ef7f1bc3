"""``schedule``: the group of verbs about periodic schedules; those that look are here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.completion import schedule_names
from celery_delay.cli.groups import Verbs
from celery_delay.cli.output import Output
from celery_delay.cli.times import fields, local, relative
from celery_delay.cli.verb import NO, YES, option, say_error, verb
from celery_delay.domain.clock import to_ms
from celery_delay.exceptions import UnknownSchedule

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.periodic.schedule import Schedule

__all__ = ["list_command", "preview_command", "row", "schedule_command", "show_command"]

#: verb → its module.
_VERBS: Mapping[str, str] = {
    "list": "schedules",
    "show": "schedules",
    "preview": "schedules",
    "add": "schedule_changes",
    "update": "schedule_changes",
    "remove": "schedule_changes",
    "pause": "schedule_steering",
    "resume": "schedule_steering",
    "trigger": "schedule_steering",
    "backfill": "schedule_backfill",
}


@click.command(cls=Verbs, verbs=_VERBS, name="schedule")
def schedule_command() -> None:
    """See periodic schedules, steer them, and add some at run time.

    Those of beat_schedule and add_periodic_task are `static`: code owns them.  They can be paused,
    resumed, triggered and previewed.  Those that are added here are `dynamic`: they stay in Redis,
    and can be changed and removed as well.

    \b
    What there is:      celery -A proj delay schedule list
    When it runs:       celery -A proj delay schedule preview NAME
    One more:           celery -A proj delay schedule add NAME TASK --every 30s
    Not for now:        celery -A proj delay schedule pause NAME
    Once, at once:      celery -A proj delay schedule trigger NAME
    What was missed:    celery -A proj delay schedule backfill NAME --start -1d --dry-run

    Each verb takes --json.  The exit code is 0 for yes and done, 1 for no (there is no such
    schedule, say), 2 for wrong usage, 69 if Redis cannot be reached.
    """


@verb("list")
@option("--paused", is_flag=True, help="Only those that are paused.")
@option("--source", type=click.Choice(["static", "dynamic"]), help="Only these.")
def list_command(delayed: CeleryDelay, out: Output, *, paused: bool, source: str | None) -> int:
    """List periodic schedules by name.

    What code owns is listed as the leading beat has it.

    \b
    Examples:
      celery -A proj delay schedule list
      celery -A proj delay schedule list --paused
      celery -A proj delay schedule list --json | jq -r '.schedules[].name'

    The exit code is 0, also for an empty list.
    """
    now_ms = delayed.now_ms()
    found = [
        one
        for one in delayed.schedules.list()
        if (one.paused or not paused) and source in (None, one.source)
    ]
    rows = [row(one) for one in found]
    if out.as_json:
        out.document({**fields("now", now_ms), "schedules": rows})
        return YES
    if rows:
        out.table(
            ["name", "state", "task", "schedule", "next", "due", "last fired", "source"],
            [
                [
                    one["name"],
                    "active" if one["enabled"] else "paused",
                    one["task"],
                    one["schedule"],
                    local(one["next_ms"]),
                    relative(one["next_ms"], now_ms) if one["enabled"] else "-",
                    local(one["last_fired_ms"]),
                    one["source"],
                ]
                for one in rows
            ],
            styles={"paused": "yellow"},
        )
    out.line(f"schedules: {len(rows)}" if rows else "no schedules", "dim")
    return YES


@verb("show")
@click.argument("name", shell_complete=schedule_names)
def show_command(delayed: CeleryDelay, out: Output, *, name: str) -> int:
    """Show one periodic schedule.

    \b
    Example:
      celery -A proj delay schedule show nightly-report

    The exit code is 1 if there is no such schedule.
    """
    try:
        found = delayed.schedules.get(name)
    except UnknownSchedule as exc:
        say_error(exc)
        return NO
    shown = row(found)
    if out.as_json:
        out.document({"schedule": shown})
        return YES
    paused = f"since {local(shown['paused_ms'])}, by {found.paused_by}" if found.paused else None
    out.facts(
        [
            ("name", found.name),
            ("task", found.task),
            ("schedule", found.schedule),
            ("source", found.source),
            ("version", found.version or None),
            ("paused", paused),
            ("reason", found.reason),
            ("next", local(shown["next_ms"])),
            ("last fired", local(shown["last_fired_ms"])),
            ("args", _call(found.args)),
            ("kwargs", _call(found.kwargs)),
            ("options", _call(found.options)),
            ("misfire", found.misfire),
            ("grace", f"{found.grace:g} s" if found.grace is not None else None),
        ]
    )
    return YES


@verb("preview")
@click.argument("name", shell_complete=schedule_names)
@option("-n", "--number", type=click.IntRange(1, 1_000), default=10, show_default=True,
        help="How many at most.")  # fmt: skip
def preview_command(delayed: CeleryDelay, out: Output, *, name: str, number: int) -> int:
    """Tell when a schedule fires next, in its own time zone.

    They are what will be fired if nobody pauses or changes it, also where the clocks change.

    \b
    Examples:
      celery -A proj delay schedule preview nightly-report
      celery -A proj delay schedule preview nightly-report -n 400

    The exit code is 1 if there is no such schedule, 2 if its times are a class of the project's
    own, which nobody but its code can tell.
    """
    try:
        found = delayed.schedules.preview(name, number)
    except UnknownSchedule as exc:
        say_error(exc)
        return NO
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    zone = str(found[0].tzinfo) if found else None
    if out.as_json:
        instants = [{**fields("at", to_ms(one)), "local": one.isoformat()} for one in found]
        out.document({"name": name, "timezone": zone, "occurrences": instants})
        return YES
    for one in found:
        out.line(_with_weekday(one))
    out.line(f"in {zone}" if found else "it does not run any more", "dim")
    return YES


def row(one: Schedule) -> dict[str, Any]:
    """A schedule in a JSON document."""
    instants = {"paused": one.paused, "last_fired": one.last_fired, "next": one.next}
    document: dict[str, Any] = {
        "name": one.name,
        "task": one.task,
        "schedule": one.schedule,
        "times": dict(one.times) if one.times is not None else None,
        "source": one.source,
        "version": one.version,
        "enabled": one.enabled,
        "paused_by": one.paused_by or None,
        "reason": one.reason or None,
        "args": list(one.args) if one.args is not None else None,
        "kwargs": dict(one.kwargs) if one.kwargs is not None else None,
        "options": dict(one.options) if one.options is not None else None,
        "misfire": one.misfire,
        "grace_s": one.grace,
    }
    for name, instant in instants.items():
        document |= fields(name, None if instant is None else to_ms(instant))
    return document


def _with_weekday(instant: datetime) -> str:
    return f"{instant:%a} {instant.isoformat(sep=' ', timespec='seconds')}"


def _call(part: Any) -> str | None:
    if part is None:
        return "known to its own code only"
    return repr(part) if part else None
