"""``schedule add``, ``update`` and ``remove``: schedules that live in Redis."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.completion import schedule_names, task_names
from celery_delay.cli.jsons import LIST, OBJECT
from celery_delay.cli.output import Output
from celery_delay.cli.schedules import row
from celery_delay.cli.times import DATETIME, SECONDS
from celery_delay.cli.verb import NO, USAGE, YES, option, say_error, tasks_load, verb
from celery_delay.exceptions import ScheduleExists, StaticSchedule, UnknownSchedule

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.periodic.schedule import Schedule

__all__ = ["add_command", "remove_command", "update_command"]

_Function = Callable[..., Any]

_NO = (ScheduleExists, StaticSchedule, UnknownSchedule)


def _described(function: _Function) -> _Function:
    """The options that say what a schedule is."""
    for one in reversed(
        (
            option("--every", type=SECONDS, help="Every so many seconds, or 30m, 2h, 1d."),
            option("--cron", help="Five fields: minute, hour, day of the month, month, weekday."),
            option("--tz", help="Zone of --cron; without it the project's timezone."),
            option("--solar", nargs=3, type=str, metavar="EVENT LAT LON",
                   help="At each sunset, say: sunset 52.5 13.4"),
            option("--at", type=DATETIME, help="Once, then."),
            option("--args", "args", type=LIST, help="The arguments: '[42, \"x\"]'."),
            option("--kwargs", "kwargs", type=OBJECT,
                   help="The keyword arguments: '{\"order\": 42}'."),
            option("--queue", help="Instead of the queue that the routes give."),
            option("--priority", type=int, help="Of its messages."),
            option("--expires", type=SECONDS, help="How long after its occurrence a task may run."),
            option("--options", "more", type=OBJECT,
                   help="More options of apply_async, as JSON."),
            option("--misfire", type=click.Choice(["fire_once", "fire_all", "skip"]),
                   help="What becomes of occurrences that no beat fired in time."),
            option("--grace", type=SECONDS, help="How late an occurrence may be and still run."),
        )
    ):  # fmt: skip
        function = one(function)
    return function


@verb("add")
@click.argument("name")
@click.argument("task", shell_complete=task_names)
@_described
@option("--replace", is_flag=True, help="One of that name that there is becomes just this.")
@option("--by-name", is_flag=True, help="Also tasks that are not registered here.")
def add_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    name: str,
    task: str,
    replace: bool,
    by_name: bool,
    **given: Any,
) -> int:
    """Add a periodic schedule.  All beats have it within a second, and it stays in Redis.

    \b
    Examples:
      celery -A proj delay schedule add nightly shop.report --cron "30 2 * * *" --tz Europe/Berlin
      celery -A proj delay schedule add poll shop.poll --every 30s --args '[7]' --expires 60
      celery -A proj delay schedule add launch shop.launch --at 2030-01-31T09:00

    With --misfire fire_once (the default) the latest occurrence that was missed runs, with fire_all
    each, with skip none; --grace bounds how late they may be.

    The exit code is 1 if there is one of that name, or if the task is not registered here; 2 for
    wrong usage.
    """
    words = _words(given)
    if "schedule" not in words:
        raise click.UsageError("say when: --every, --cron, --solar or --at")
    if not by_name:
        if not tasks_load(delayed):
            return USAGE
        if task not in delayed.app.tasks:
            say_error(f"no task {task!r} is registered here: see its name, or say --by-name")
            return NO
    schedules = delayed.schedules
    put = schedules.upsert if replace else schedules.add
    return _tell(out, lambda: put(name, task, **words))


@verb("update")
@click.argument("name", shell_complete=schedule_names)
@option("--task", shell_complete=task_names, help="Another task.")
@_described
def update_command(
    delayed: CeleryDelay, out: Output, *, name: str, task: str | None, **given: Any
) -> int:
    """Change parts of a schedule that was added at run time; the rest stays.

    With other times it starts anew, from now; with other arguments it keeps its phase.

    \b
    Examples:
      celery -A proj delay schedule update nightly --cron "0 3 * * *"
      celery -A proj delay schedule update nightly --args '[8]'
      celery -A proj delay schedule update nightly --options '{"queue": null}'

    The exit code is 1 if there is no such schedule, or if code owns it; 2 for wrong usage.
    """
    words = _words(given)
    if task is not None:
        words["task"] = task
    if not words:
        raise click.UsageError("say what is to be changed")
    return _tell(out, lambda: delayed.schedules.update(name, **words))


@verb("remove")
@click.argument("name", shell_complete=schedule_names)
@option("--yes", is_flag=True, help="Do not ask.")
def remove_command(delayed: CeleryDelay, out: Output, *, name: str, yes: bool) -> int:
    """Remove a schedule that was added at run time.  What it has fired before runs.

    \b
    Example:
      celery -A proj delay schedule remove nightly --yes

    The exit code is 1 if there is no such schedule, if code owns it, or if you say no.
    """
    try:
        found = delayed.schedules.get(name)
        if not yes and not click.confirm(
            f"Remove {name} ({found.task}, {found.schedule})?", err=True
        ):
            return NO
        delayed.schedules.remove(name)
    except _NO as exc:
        say_error(exc)
        return NO
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    if out.as_json:
        out.document({"name": name, "removed": True})
    else:
        out.line(f"{name} is removed", "green")
    return YES


def _words(given: dict[str, Any]) -> dict[str, Any]:
    """The options as ``Schedules.add`` takes them; those that were not given are left out."""
    every: timedelta | None = given.pop("every")
    cron, solar = given.pop("cron"), given.pop("solar")
    at: datetime | None = given.pop("at")
    expires: timedelta | None = given.pop("expires")
    more = given.pop("more") or {}
    kinds = [one for one in (every, cron, _solar(solar), at) if one]
    if len(kinds) > 1:
        raise click.UsageError("say when, in one way: --every, --cron, --solar or --at")
    words = {name: value for name, value in given.items() if value is not None}
    if kinds:
        words["schedule"] = kinds[0]
    if expires is not None:
        words["expires"] = expires.total_seconds()
    if twice := more.keys() & words.keys():
        raise click.UsageError(f"{', '.join(sorted(twice))}: not in --options as well")
    return {**words, **more}


def _solar(given: tuple[str, str, str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    event, *place = given
    try:
        lat, lon = map(float, place)
    except ValueError:
        raise click.UsageError("--solar takes an event and two numbers of degrees") from None
    return {"kind": "solar", "event": event, "lat": lat, "lon": lon}


def _tell(out: Output, change: Callable[[], Schedule]) -> int:
    try:
        found = change()
    except _NO as exc:
        say_error(exc)
        return NO
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from None
    if out.as_json:
        out.document({"schedule": row(found)})
    else:
        out.line(f"{found.name}: {found.task}, {found.schedule}, version {found.version}", "green")
    return YES
