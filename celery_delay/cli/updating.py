"""``update``: other arguments or options for tasks that wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import click
from celery.exceptions import QueueNotFound
from kombu.exceptions import KombuError

from celery_delay.cli.answers import ask, known_ids, remembered, tell, was_handed_off
from celery_delay.cli.completion import waiting_ids
from celery_delay.cli.jsons import LIST, OBJECT
from celery_delay.cli.output import Output
from celery_delay.cli.times import DATETIME, SECONDS
from celery_delay.cli.verb import USAGE, option, tasks_load, verb
from celery_delay.domain.states import UpdateOutcome
from celery_delay.exceptions import DelayError

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["update_command"]


class _Refusal(Enum):
    """The answer where the new message cannot be made."""

    REFUSED = "REFUSED"


_MEANING: Mapping[Enum, str] = {
    UpdateOutcome.UPDATED: "it goes out with its new message",
    UpdateOutcome.TOO_LATE: "it was handed to its queue, and runs as it was",
    UpdateOutcome.NOT_FOUND: "no such task waits",
    UpdateOutcome.DAMAGED: (
        "its record is damaged or of a newer release: schedule it anew, and `cancel` it"
    ),
}


class _Expiry(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A span from now, an instant, or ``never``."""

    name = "expiry"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float | datetime | None]:
        text = str(value).strip()
        if text == "never":
            return (None,)
        try:
            return (SECONDS.convert(text, None, None).total_seconds(),)
        except click.BadParameter:
            pass
        try:
            return (DATETIME.convert(text, None, None),)
        except click.BadParameter:
            self.fail(
                f"{value!r} is no number of seconds, no span such as 30m or 2h, no instant such"
                " as 2030-01-31T09:00 (local time), and not `never`",
                param,
                ctx,
            )


@verb("update")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True, shell_complete=waiting_ids)
@option("--args", "args", type=LIST, help="In the place of all its arguments: '[42, \"x\"]'.")
@option("--kwargs", "kwargs", type=OBJECT,
        help="In the place of all its keyword arguments: '{\"order\": 42}'.")  # fmt: skip
@option("--queue", help="Where it goes.")
@option("--priority", type=click.IntRange(0, 255), help="As the broker understands it.")
@option("--expires", type=_Expiry(),
        help="When it is too late to run it: seconds from now, 2h, an instant; never.")  # fmt: skip
@option("--reason", help="Goes to the audit.")
def update_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    queue: str | None,
    priority: int | None,
    expires: tuple[Any] | None,
    reason: str | None,
) -> int:
    """Give tasks that wait other arguments or options.  What is not given stays as it is.

    The message is built anew by Celery.  The eta stays; a task that is held or quarantined
    stays so: a message that no broker took because of its queue is mended like this, and then
    released.

    \b
    Each gets one of these answers:
      UPDATED    it goes out with its new message
      TOO_LATE   it has been handed to its queue, or is on its way there, as it was
      NOT_FOUND  no such task waits
      DAMAGED    it can only be cancelled
      REFUSED    the new message cannot be made; the meaning says why

    \b
    Examples:
      celery -A proj delay update 5f0c6c2e-… --queue slow --reason "fast is down"
      celery -A proj delay update 5f0c6c2e-… --args '[42]' --kwargs '{"again": true}'
      celery -A proj delay update 5f0c6c2e-… 91a2b3c4-… --priority 9 --expires never

    The exit code is 0 if all are UPDATED, 69 if Redis gave no answer for one of them (ask
    again), else 1.
    """
    given = {"args": args, "kwargs": kwargs, "queue": queue, "priority": priority}
    changes: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
    if expires is not None:
        [changes["expires"]] = expires
    if not changes:
        raise click.UsageError(
            "say what to change: --args, --kwargs, --queue, --priority or --expires"
        )
    if (args is not None or kwargs is not None) and not tasks_load(delayed):
        return USAGE
    meaning = dict(_MEANING)

    def answer(task_id: str) -> Enum:
        try:
            outcome = delayed.update(task_id, **changes, reason=reason)
        except DelayError:
            raise
        except (TypeError, ValueError, QueueNotFound, KombuError) as exc:
            meaning[_Refusal.REFUSED] = f"nothing has changed: {exc}"
            return _Refusal.REFUSED
        if outcome is UpdateOutcome.NOT_FOUND and was_handed_off(remembered(delayed, task_id)):
            return UpdateOutcome.TOO_LATE
        return outcome

    return tell(out, ask(known_ids(task_ids), answer, meaning), UpdateOutcome.UPDATED)
