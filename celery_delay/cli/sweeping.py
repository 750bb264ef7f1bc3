"""What the verbs share that change all tasks a filter means: show them, ask, do it, tell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.filtering import filter_options, filters_of, meant, said
from celery_delay.cli.listing import row_table, stored_row
from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.verb import NO, UNAVAILABLE, YES, option, say_error
from celery_delay.exceptions import DelayError

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.delayed.sweeping import ManyOutcome

__all__ = ["by_filter", "sweep", "sweep_options"]

_Verb = Callable[..., Any]
_OPTIONS = ("everything", "limit", "dry_run", "yes")
#: Tasks that are shown before the question, and ids of each answer after it.
_SHOWN = 10


def sweep_options(function: _Verb) -> _Verb:
    """Give a verb that takes ids the options to name tasks by a filter instead."""
    for one in reversed(
        [
            filter_options,
            option("--all", "everything", is_flag=True, help="All tasks that there are."),
            option("--limit", type=click.IntRange(1), help="So many at most, the first ones due."),
            option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
            option("--yes", is_flag=True, help="Do not ask."),
        ]
    ):
        function = one(function)
    return function


def by_filter(task_ids: tuple[str, ...], given: Mapping[str, Any]) -> bool:
    """Whether tasks are named by a filter, not by ids; UsageError for both and for neither."""
    filtered = given["everything"] or said(given)
    if bool(task_ids) == filtered:
        raise click.UsageError("name task ids, or say which by a filter such as --task, or --all")
    if task_ids and any(given[name] not in (None, False) for name in _OPTIONS):
        raise click.UsageError("--limit, --dry-run and --yes go with a filter, not with ids")
    return bool(filtered)


def sweep(
    delayed: CeleryDelay,
    out: Output,
    change: Callable[..., ManyOutcome],
    success: Enum,
    given: Mapping[str, Any],
    *,
    warning: str = "",
    **more: Any,
) -> int:
    """Change all tasks that the options mean, after a question.

    Arguments:
        change: the method of ``app.delayed``.
        success: the answer that counts as done.
        warning: what is said before the question, which is a harder one then.
        more: what else *change* is given.

    Raises:
        click.UsageError: nobody can be asked, or the filter cannot be meant.
    """
    dry_run, yes = given["dry_run"], given["yes"]
    if not dry_run and not yes and (out.as_json or not _can_ask()):
        raise click.UsageError("there is nobody to ask: say --yes, or --dry-run to see which")
    filters = {**filters_of(delayed, given), "limit": given["limit"], **more}
    filters["everything"] = not said(given)
    total = None
    try:
        with meant():
            plan = change(**filters, dry_run=True) if dry_run or not yes else None
        if plan is not None:
            if dry_run:
                return _tell(delayed, out, plan, success, None, YES)
            total = plan.looked_at
            _show(delayed, out, plan)
            if not total:
                plan.dry_run = False
                return _tell(delayed, out, plan, success, None, YES)
            if not _agreed(f"{_question(success)} {_tasks(total)}", total, warning):
                say_error("nothing was changed")
                return NO
        with meant(), progress_bar(success.value.lower(), total) as show:
            done = change(**filters, progress=lambda number: show(number, _tasks(number)))
    except (DelayError, KeyboardInterrupt) as exc:
        if (so_far := getattr(exc, "so_far", None)) is None:
            raise
        interrupted = isinstance(exc, KeyboardInterrupt)
        error = "interrupted" if interrupted else str(exc)
        return _tell(delayed, out, so_far, success, error, NO if interrupted else UNAVAILABLE)
    return _tell(delayed, out, done, success, None, YES if done else NO)


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _agreed(question: str, total: int, warning: str) -> bool:
    if not warning:
        return click.confirm(f"{question}?", err=True)
    click.secho(f"\n{warning}\n", fg="red", bold=True, err=True)
    typed = click.prompt(f"{question}: type their number to go on", default="", err=True,
                         show_default=False)  # fmt: skip
    return bool(typed.strip() == str(total))


def _question(success: Enum) -> str:
    verbs = {"CANCELLED": "Cancel", "HELD": "Hold", "RELEASED": "Release"}
    return verbs.get(success.value, "Change the eta of")


def _tasks(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"


def _show(delayed: CeleryDelay, out: Output, plan: ManyOutcome) -> None:
    some = plan.sample[:_SHOWN]
    if some:
        now_ms = delayed.now_ms()
        row_table(out, [stored_row(one, now_ms) for one in some], now_ms)
    if plan.looked_at > len(some):
        out.line(f"and {plan.looked_at - len(some)} more", "dim")


def _tell(
    delayed: CeleryDelay,
    out: Output,
    outcome: ManyOutcome,
    success: Enum,
    error: str | None,
    code: int,
) -> int:
    if out.as_json:
        now_ms = delayed.now_ms() if outcome.sample else None
        out.document(
            {
                success.value.lower(): outcome.done,
                "looked_at": outcome.looked_at,
                "outcomes": outcome.outcomes,
                "failed": outcome.failed,
                "dry_run": outcome.dry_run,
                "sample": [stored_row(one, now_ms) for one in outcome.sample],
                "error": error,
            }
        )
    elif outcome.dry_run:
        _show(delayed, out, outcome)
        out.line(f"{_tasks(outcome.looked_at)} would be tried")
    else:
        out.line(f"{outcome.done} of {_tasks(outcome.looked_at)}: {success.value}")
        for answer, task_ids in outcome.failed.items():
            out.line(f"{answer}: {outcome.outcomes[answer]}", "yellow")
            for one in task_ids[:_SHOWN]:
                out.line(f"  {one}")
            if outcome.outcomes[answer] > _SHOWN:
                out.line(f"  and {outcome.outcomes[answer] - _SHOWN} more", "dim")
    if error is not None:
        say_error(error)
    return code
