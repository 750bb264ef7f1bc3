"""``schedule pause``, ``resume`` and ``trigger``: schedules kept back, let go, and run at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from celery.beat import SchedulingError

from celery_delay.cli.completion import schedule_names
from celery_delay.cli.output import Output
from celery_delay.cli.verb import NO, UNAVAILABLE, YES, option, say_error, verb
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable, UnknownSchedule

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["pause_command", "resume_command", "trigger_command"]

_NOT_FOUND = "there is no schedule of this name"


@verb("pause")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=schedule_names)
@option("--reason", help="Kept with it, and shown.")
def pause_command(
    delayed: CeleryDelay, out: Output, *, names: tuple[str, ...], reason: str | None
) -> int:
    """Fire no further occurrence of schedules until they are resumed.

    A pause outlives restarts and deployments.  What falls into it is passed over, not made up for.
    What was fired before runs.

    \b
    Examples:
      celery -A proj delay schedule pause nightly-report --reason "the warehouse is being moved"
      celery -A proj delay schedule list --paused

    The exit code is 0 if all are PAUSED, also those that were before; 69 if Redis gave no answer
    for one of them (ask again), else 1.
    """

    def pause(name: str) -> str:
        done = delayed.schedules.pause(name, reason=reason)
        return "it fires nothing until `resume`" if done else "it was paused already"

    return _each(out, names, pause, "PAUSED")


@verb("resume")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=schedule_names)
def resume_command(delayed: CeleryDelay, out: Output, *, names: tuple[str, ...]) -> int:
    """Let schedules go on that were paused, with the first occurrence from now on.

    \b
    Example:
      celery -A proj delay schedule resume nightly-report

    The exit code is 0 if all are RESUMED, also those that were not paused; 69 if Redis gave no
    answer for one of them (ask again), else 1.
    """

    def resume(name: str) -> str:
        done = delayed.schedules.resume(name)
        return "its next occurrence is fired" if done else "it was not paused"

    return _each(out, names, resume, "RESUMED")


@verb("trigger")
@click.argument("name", shell_complete=schedule_names)
def trigger_command(delayed: CeleryDelay, out: Output, *, name: str) -> int:
    """Run the task of a schedule once, now; also while it is paused.

    The task has an id of its own, and the schedule goes on as if nothing had been.

    \b
    Examples:
      celery -A proj delay schedule trigger nightly-report
      celery -A proj delay history $(celery -A proj delay schedule trigger nightly-report --json |
          jq -r .task_id)

    The exit code is 1 if there is no such schedule or its message cannot be made.
    """
    try:
        result = delayed.schedules.trigger(name)
    except (UnknownSchedule, ValueError) as exc:
        say_error(exc)
        return NO
    except SchedulingError as exc:
        say_error(f"{exc}: {exc.__cause__ or exc.__context__}")
        return NO
    if out.as_json:
        out.document({"name": name, "task_id": result.id})
    else:
        out.line(result.id)
    return YES


def _each(out: Output, names: Sequence[str], change: Callable[[str], str], done: str) -> int:
    """Make a change of each; print the answers."""
    answers = [_answer(name, change, done) for name in dict.fromkeys(names)]
    succeeded = sum(one["outcome"] == done for one in answers)
    if out.as_json:
        out.document({done.lower(): succeeded, "answers": answers})
    else:
        out.table(
            ["name", "answer", "meaning"],
            [[one["name"], one["outcome"], one["meaning"]] for one in answers],
            styles={done: "green", "NOT_FOUND": "yellow"},
        )
    failures = list(dict.fromkeys(one["error"] for one in answers if one["error"]))
    for failure in failures:
        say_error(failure)
    if failures:
        return UNAVAILABLE
    return YES if succeeded == len(answers) else NO


def _answer(name: str, change: Callable[[str], str], done: str) -> Mapping[str, Any]:
    outcome, error = None, None
    try:
        meaning = change(name)
        outcome = done
    except UnknownSchedule:
        outcome, meaning = "NOT_FOUND", _NOT_FOUND
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    except StoreUnavailable as exc:
        error, meaning = str(exc), "nothing has changed"
    except OutcomeUnknown as exc:
        error, meaning = f"no answer from Redis: {exc.reason}", "unknown; ask again"
    return {"name": name, "outcome": outcome, "meaning": meaning, "error": error}
