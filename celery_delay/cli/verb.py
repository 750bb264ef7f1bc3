"""What all verbs share: the project's ``CeleryDelay``, ``--json``, errors and exit codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, CeleryOption

from celery_delay.cli.output import Output
from celery_delay.exceptions import (
    DelayError,
    InvalidSetting,
    NotInstalled,
    UnsupportedBroker,
)

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = [
    "NO",
    "UNAVAILABLE",
    "USAGE",
    "YES",
    "delayed_of",
    "option",
    "say_error",
    "tasks_load",
    "verb",
]

_Verb = Callable[..., Any]

YES = 0
#: The answer is no: not found, not cancelled, not healthy.
NO = 1
#: Wrong usage or configuration, as click has it.
USAGE = 2
#: Redis or the audit database cannot be used now; ``EX_UNAVAILABLE`` of sysexits.h.
UNAVAILABLE = 69

_CONFIGURATION = (InvalidSetting, NotInstalled, UnsupportedBroker)


def option(*names: str, **settings: Any) -> Callable[[_Verb], _Verb]:
    """``click.option`` as Celery's commands have it."""
    decorate: Callable[[_Verb], _Verb] = click.option(*names, cls=CeleryOption, **settings)
    return decorate


def say_error(error: object) -> None:
    """One line on stderr."""
    click.echo(f"celery delay: {' '.join(str(error).split())}", err=True)


def tasks_load(delayed: CeleryDelay) -> bool:
    """Import the project's tasks as a worker would; False after saying why that fails."""
    from celery_delay.delayed.checking import load_tasks

    try:
        load_tasks(delayed.app)
    except DelayError:
        raise  # the verb's own to tell
    except Exception as exc:
        say_error(f"the tasks cannot be imported: {type(exc).__name__}: {exc}")
        return False
    return True


def verb(name: str) -> Callable[[_Verb], click.Command]:
    """Make a function the verb *name*.

    It is called with the project's ``CeleryDelay``, an :class:`Output` and its options, and
    returns the exit code.  Our errors end it with one line on stderr and nothing on stdout.
    """

    def decorate(function: _Verb) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def run(ctx: click.Context, /, *, as_json: bool, **options: Any) -> None:
            out = Output(as_json=as_json, colours=not getattr(ctx.obj, "no_color", False))
            try:
                code = function(delayed_of(ctx), out, **options)
            except DelayError as exc:
                say_error(exc)
                code = USAGE if isinstance(exc, _CONFIGURATION) else UNAVAILABLE
            ctx.exit(code)

        as_json = option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
        kind: type[click.Command] = CeleryCommand
        return click.command(name, cls=kind)(as_json(run))

    return decorate


def delayed_of(ctx: click.Context) -> CeleryDelay:
    """The ``CeleryDelay`` of the app that ``-A`` names."""
    from celery_delay.calling.calls import require

    app = ctx.obj.app
    try:
        delayed: CeleryDelay = require(app)
    except NotInstalled:
        if ctx.find_root().params.get("app") is None:
            # Celery went on with its default app, which nobody has set up
            raise click.UsageError(
                f"say which app: celery -A proj delay {ctx.command_path.partition('delay ')[2]}",
                ctx,
            ) from None
        raise
    return delayed
