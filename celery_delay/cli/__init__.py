"""``celery -A proj delay …``: what waits, what happened, and what is wrong.

Celery imports this module at each of its commands, ``worker`` and ``beat`` included, so it
holds nothing but the group; a verb's module is imported when the verb is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import click
from celery.bin.base import handle_preload_options

from celery_delay.cli.groups import Verbs

__all__ = ["delay"]

#: verb → the module of this package that has it, as a command of the verb's name.
_VERBS: Mapping[str, str] = {
    "add": "adding",
    "list": "listing",
    "count": "listing",
    "show": "story",
    "history": "story",
    "cancel": "acting",
    "reschedule": "steering",
    "update": "updating",
    "run-now": "steering",
    "hold": "steering",
    "release": "releasing",
    "purge": "purging",
    "pause": "pausing",
    "resume": "pausing",
    "status": "status",
    "leader": "status",
    "forecast": "numbers",
    "stats": "numbers",
    "doctor": "doctor",
    "schedule": "schedules",
    "flower": "flower",
    "check": "checking",
    "export": "porting",
    "import": "porting",
    "rotate-keys": "resealing",
    "verify": "verifying",
    "rebuild": "verifying",
    "prune": "pruning",
    "forget": "pruning",
    "migrate": "acting",
}


@click.command(
    cls=Verbs,
    verbs=_VERBS,
    short_help="Look at delayed tasks, change or cancel them, see what is wrong.",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def delay(ctx: click.Context) -> None:
    """Look at delayed tasks, change or cancel them, and see what is wrong.

    \b
    What waits:         celery -A proj delay list
    What happened:      celery -A proj delay history ID
    What is coming:     celery -A proj delay forecast
    What is wrong:      celery -A proj delay status, and in full: doctor
    What repeats:       celery -A proj delay schedule list
    Before a deploy:    celery -A proj delay check
    To another Redis:   celery -A proj delay export FILE, import FILE

    Each verb takes --json: one document, instants as ISO 8601 in UTC and in milliseconds.

    \b
    Exit codes:   0   yes, done, healthy
                  1   no: not found, not cancelled, something needs you
                  2   wrong usage or configuration
                  69  Redis or the audit database cannot be reached
    """
