"""``pause`` and ``resume``: keeping due tasks back by what they are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.output import Output
from celery_delay.cli.times import SECONDS, fields, local
from celery_delay.cli.verb import NO, YES, option, verb
from celery_delay.domain.gates import Gate, gate_for

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["gate_document", "pause_command", "resume_command"]

_STYLES = {"paused": "yellow", "full": "yellow", "limited": "yellow", "releasing": "green"}


def _targets(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        option("--all", "everything", is_flag=True, help="All tasks."),
        option("--namespace", help="The tasks of this namespace."),
        option("--queue", help="The tasks for this queue."),
        option("--task", help="The tasks of this registered name."),
    ):
        function = decorate(function)
    return function


def _gate(**given: Any) -> str:
    try:
        return gate_for(**given)
    except ValueError as exc:
        raise click.UsageError(
            f"say what, in one way: --task, --queue, --namespace or --all ({exc})"
        ) from exc


def gate_document(one: Gate) -> dict[str, Any]:
    """A gate in a JSON document."""
    return {
        "gate": one.gate,
        "status": one.status,
        **fields("since", one.since_ms),
        "by": one.by,
        "reason": one.reason,
        "waiting": one.waiting,
    }


@verb("pause")
@_targets
@option("--reason", help="Kept with the pause, for whoever looks.")
def pause_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task: str | None,
    queue: str | None,
    namespace: str | None,
    everything: bool,
    reason: str | None,
) -> int:
    """Hand no more tasks to their queues: of a name, for a queue, of a namespace, or any.

    It holds for all beats at once, and over restarts, until `resume`.  The tasks wait, and can be
    listed, changed and cancelled; an `expires` goes on counting.  Without a target it lists what
    keeps due tasks back now: pauses, rate limits and full queues, and how many wait there.

    \b
    Examples:
      celery -A proj delay pause
      celery -A proj delay pause --task shop.mail --reason "the mail server is down"
      celery -A proj delay pause --queue slow
      celery -A proj delay pause --all

    The exit code is 0, or 69 if Redis cannot be reached.
    """
    given = {"task": task, "queue": queue, "namespace": namespace}
    if everything or any(one is not None for one in given.values()):
        _gate(**given, everything=everything)
        found = [delayed.pause(**given, all=everything, reason=reason)]
    elif reason is not None:
        raise click.UsageError("say what: --task, --queue, --namespace or --all")
    else:
        found = delayed.gates()
    if out.as_json:
        out.document({"gates": [gate_document(one) for one in found]})
    elif found:
        out.table(
            ["gate", "status", "since", "by", "reason", "waiting"],
            [
                [one.gate, one.status, local(one.since_ms), one.by, one.reason, one.waiting]
                for one in found
            ],
            styles=_STYLES,
        )
    else:
        out.line("nothing is paused", "dim")
    return YES


@verb("resume")
@_targets
@option("--over", type=SECONDS, default="0",
        help="Let what waits come back evenly over so many seconds, or 10m, 2h.")  # fmt: skip
def resume_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task: str | None,
    queue: str | None,
    namespace: str | None,
    everything: bool,
    over: timedelta,
) -> int:
    """End a pause; what waits comes back, the earliest eta first.

    Each pause is lifted by itself: --all lifts the one that `pause --all` made.  With --over the
    workers get what has gathered bit by bit; what becomes due meanwhile goes out at once.

    \b
    Examples:
      celery -A proj delay resume --task shop.mail
      celery -A proj delay resume --all --over 10m

    The exit code is 0, 1 if there is no such pause, or 69 if Redis cannot be reached.
    """
    given = {"task": task, "queue": queue, "namespace": namespace}
    gate = _gate(**given, everything=everything)
    try:
        waiting = delayed.resume(**given, all=everything, over=over)
    except ValueError as exc:
        raise click.UsageError(f"--over: {exc}") from exc
    if out.as_json:
        out.document({"gate": gate, "resumed": waiting is not None, "waiting": waiting})
    elif waiting is None:
        out.line(f"{gate} is not paused", "yellow")
    else:
        out.line(f"{gate} is resumed, {waiting} tasks come back", "green")
    return YES if waiting is not None else NO
