"""``celery -A proj delay …``: what waits, what happened, and what is wrong.

Celery imports this module at each of its commands, ``worker`` and ``beat`` included, so it
holds nothing but the group; a verb's module is imported when the verb is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click
from celery.bin.base import handle_preload_options

__all__ = ["delay"]

#: verb → the module of this package that has it, as a command of the verb's name.
_VERBS: Mapping[str, str] = {
    "add": "adding",
    "list": "listing",
    "show": "story",
    "history": "story",
    "cancel": "acting",
    "reschedule": "steering",
    "run-now": "steering",
    "hold": "steering",
    "release": "releasing",
    "status": "status",
    "leader": "status",
    "check": "checking",
    "migrate": "acting",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = import_module(f"{__name__}.{_VERBS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command


@click.command(
    cls=_Verbs, short_help="Look at delayed tasks, change or cancel them, see what is wrong."
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def delay(ctx: click.Context) -> None:
    """Look at delayed tasks, change or cancel them, and see what is wrong.

    \b
    What waits:         celery -A proj delay list
    What happened:      celery -A proj delay history ID
    What is wrong:      celery -A proj delay status
    Before a deploy:    celery -A proj delay check

    Each verb takes --json: one document, instants as ISO 8601 in UTC and in milliseconds.

    \b
    Exit codes:   0   yes, done, healthy
                  1   no: not found, not cancelled, something needs you
                  2   wrong usage or configuration
                  69  Redis or the audit database cannot be reached
    """
