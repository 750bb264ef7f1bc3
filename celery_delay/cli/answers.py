"""What the verbs that act on tasks by their ids share: an answer each, a table, an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.audit import open_audit
from celery_delay.cli.output import Output
from celery_delay.cli.verb import NO, UNAVAILABLE, YES, say_error
from celery_delay.domain.states import State
from celery_delay.exceptions import DelayError, OutcomeUnknown, StoreUnavailable

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["ask", "known_ids", "remembered", "tell", "was_handed_off"]

_STYLES = {
    "TOO_LATE": "red", "NOT_FOUND": "yellow", "QUARANTINED": "red", "DAMAGED": "red",
    "REFUSED": "red",
}  # fmt: skip
_HANDED_OFF = frozenset(one.value for one in State if one.rank >= State.DISPATCHED.rank)
#: So it was when that was drained; a task that does not wait any more has been handed off since.
_WAITED = (State.SCHEDULED.value, State.HELD.value)


def known_ids(task_ids: Iterable[str]) -> list[str]:
    """The ids as given, each once; UsageError for one that is empty."""
    ids = list(dict.fromkeys(task_ids))
    if not all(ids):
        raise click.UsageError("an ID is empty")
    return ids


def ask(
    task_ids: Iterable[str], question: Callable[[str], Enum], meaning: Mapping[Any, str]
) -> list[dict[str, Any]]:
    """The document of each answer; those before and after a failure count all the same."""
    return [_ask(one, question, meaning) for one in task_ids]


def _ask(
    task_id: str, question: Callable[[str], Enum], meaning: Mapping[Any, str]
) -> dict[str, Any]:
    outcome, error = None, None
    try:
        outcome = question(task_id)
        means = meaning[outcome]
    except StoreUnavailable as exc:
        error, means = str(exc), "nothing has changed"
    except OutcomeUnknown as exc:
        error, means = f"no answer from Redis: {exc.reason}", "unknown; ask again"
    return {
        "task_id": task_id,
        "outcome": outcome.value if outcome is not None else None,
        "meaning": means,
        "error": error,
    }


def tell(out: Output, answers: Sequence[Mapping[str, Any]], success: Enum) -> int:
    """Print *answers*; the exit code is 0 if all are *success*, 69 after a failure, else 1."""
    done = sum(one["outcome"] == success.value for one in answers)
    if out.as_json:
        out.document({success.value.lower(): done, "answers": answers})
    else:
        out.table(
            ["task id", "answer", "meaning"],
            [[one["task_id"], one["outcome"], one["meaning"]] for one in answers],
            styles={**_STYLES, success.value: "green"},
        )
    failures = list(dict.fromkeys(one["error"] for one in answers if one["error"]))
    for failure in failures:
        say_error(failure)
    if failures:
        return UNAVAILABLE
    return YES if done == len(answers) else NO


def remembered(delayed: CeleryDelay, task_id: str) -> str | None:
    """The state that the audit knows of a task; ``None`` if there is no audit, or it is away.

    Redis forgets a task with its hand-off, and the result backend hears of it from the worker
    at its end: in between, only the audit can tell TOO_LATE from NOT_FOUND.
    """
    if not delayed.settings.has_database:
        return None
    try:
        known = open_audit(delayed).task(task_id)
    except DelayError:
        return None
    return known.state if known is not None else None


def was_handed_off(state: str | None) -> bool:
    """Whether a task that does not wait has reached its queue, by what the audit remembers."""
    return state in _WAITED or state in _HANDED_OFF
