"""``flower``: Flower, with the *Delayed* tab in it."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand

from celery_delay.cli.verb import USAGE, delayed_of, say_error

__all__ = ["flower_command"]


@click.command("flower", cls=CeleryCommand, context_settings={"ignore_unknown_options": True})
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def flower_command(ctx: click.Context, flower_options: tuple[str, ...]) -> None:
    """Start Flower with a tab for delayed tasks.

    All options are Flower's own, as for `celery -A proj flower`; its flowerconfig.py is read, too.

    \b
    Examples:
      celery -A proj delay flower --port=5555
      celery -A proj delay flower --basic-auth=ann:secret --url-prefix=flower

    Nothing can be changed there where nobody has to log in; delay_flower_actions tells who may.
    The exit code is that of Flower, or 2 if it is not installed.
    """
    delayed_of(ctx)
    try:
        from celery_delay.flower import install

        install()
        from flower.command import flower
    except ImportError as exc:
        say_error(f"Flower cannot be imported ({exc}): pip install 'celery-delay[flower]'")
        ctx.exit(USAGE)
    # under `celery`, as its own command is: it looks there for the options of the app
    with flower.make_context("flower", list(flower_options), parent=ctx.find_root()) as own:
        flower.invoke(own)
