"""``python -m celery_delay -A proj``: a beat, without the ``celery`` command around it.

That command imports all of its subcommands, the terminal library of its shell, and each plugin
that is installed, Flower's web server among them; a beat then keeps these 10 MB for life.  This
one has the options of ``celery beat`` that a service under a supervisor needs.  It does the same
in every other way: it is Celery's own ``app.Beat`` that runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.app.utils import find_app

from celery_delay.exceptions import DelayError

__all__ = ["main"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")


@click.command(help="Start a beat that hands due tasks to their queues.")
@click.option("-A", "--app", "name", required=True, help="The Celery app, as for celery -A.")
@click.option("-S", "--scheduler", default="celery_delay.Scheduler", show_default=True)
@click.option(
    "-l",
    "--loglevel",
    default="WARNING",
    show_default=True,
    type=click.Choice(_LEVELS, case_sensitive=False),
)
@click.option("-f", "--logfile", type=click.Path(dir_okay=False), help="Instead of stderr.")
@click.option("--pidfile", type=click.Path(dir_okay=False), help="None, if it is not given.")
@click.option("--max-interval", type=float, help="Longest wait between two looks, in seconds.")
@click.option(
    "--workdir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Go there first.",
)
@click.option("-q", "--quiet", is_flag=True, help="No banner.")
@click.option("-C", "--no-color", is_flag=True, default=None)
def main(name: str, workdir: Path | None, **options: Any) -> None:
    """Run until SIGTERM or SIGINT, and hand the lease over then; exit code 0.

    A crash leaves what a crash of ``celery beat`` leaves: a lease, which runs out.
    """
    if workdir is not None:
        os.chdir(workdir)
        sys.path.insert(0, os.getcwd())
    beat = _app(name).Beat(**options)
    try:
        beat.run()
    except DelayError as exc:
        raise click.ClickException(str(exc)) from exc


def _app(name: str) -> Celery:
    """The app of that name.  What fails inside the project's own modules is not caught."""
    module, _, attribute = name.partition(":")
    try:
        found = find_app(name)
    except ModuleNotFoundError as exc:
        if exc.name == name and attribute:
            raise click.UsageError(f"-A {name}: the module {module} has no {attribute}") from exc
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise
        raise click.UsageError(f"-A {name}: there is no module {exc.name} here") from exc
    except AttributeError as exc:
        raise click.UsageError(f"-A {name}: no Celery app is in there ({exc})") from exc
    if not isinstance(found, Celery):
        raise click.UsageError(f"-A {name}: that is no Celery app, but {found!r}")
    return found


if __name__ == "__main__":
    main(prog_name="python -m celery_delay")
