"""``purge``: everything that waits, cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_delay.cli.filtering import FILTER_OPTIONS
from celery_delay.cli.output import Output
from celery_delay.cli.sweeping import sweep
from celery_delay.cli.verb import option, verb
from celery_delay.domain.states import CancelOutcome

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["purge_command"]

_WARNING = (
    "EVERYTHING THAT WAITS IS CANCELLED, also what is held and quarantined, of all tasks and\n"
    "queues of this project. It cannot be undone: nothing of it will ever run."
)


@verb("purge")
@option("--dry-run", is_flag=True, help="Show what would be cancelled, and do nothing.")
@option("--yes", is_flag=True, help="Do not ask.")
@option("--reason", help="Goes to the audit, and into the exception that get() raises.")
def purge_command(
    delayed: CeleryDelay, out: Output, *, dry_run: bool, yes: bool, reason: str | None
) -> int:
    """Cancel everything that waits: scheduled, held and quarantined, of all tasks and queues.

    Celery's own `celery purge` is another thing: it empties the queues, where delayed tasks come
    to when they are due, and leaves what waits alone.  Schedules stay, and fire again; a part
    of what waits is cancelled by `cancel --task …`.

    You are shown how many there are, and have to type their number.

    \b
    Examples:
      celery -A proj delay purge --dry-run
      celery -A proj delay purge --reason "the staging data was replaced"
      celery -A proj delay purge --yes --json

    The exit code is 0 if all are CANCELLED, 69 if Redis gave no answer in the middle (call it
    again), else 1.
    """
    nothing = dict.fromkeys(FILTER_OPTIONS, None) | {"tags": (), "states": ()}
    given = {**nothing, "limit": None, "dry_run": dry_run, "yes": yes}
    done = CancelOutcome.CANCELLED
    return sweep(delayed, out, delayed.purge, done, given, warning=_WARNING, reason=reason)
