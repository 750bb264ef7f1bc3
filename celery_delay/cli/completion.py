"""What a shell offers when somebody presses the tab key: ids that wait, tasks, states.

click asks these functions with the words so far; Celery has not loaded the app by then.  A
completion that cannot be had is none: nothing is printed, and nobody waits for long.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["held_ids", "schedule_names", "task_names", "waiting_ids", "words"]

#: How many ids are looked through.
_LOOKED_AT = 200

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
_Offers = Iterable[tuple[str, str]]


def words(names: Iterable[str]) -> _Complete:
    """These words, in capitals or small letters as they were begun."""
    known = list(names)

    def complete(_: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        change = str.lower if incomplete.islower() else str
        return [CompletionItem(change(one)) for one in known if change(one).startswith(incomplete)]

    return complete


def waiting_ids(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of tasks that wait, the earliest due ones."""
    return _offered(ctx, incomplete, lambda delayed: _entries(delayed, None))


def held_ids(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of tasks that are held."""
    return _offered(ctx, incomplete, lambda delayed: _entries(delayed, "HELD"))


def task_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the project's tasks."""
    return _offered(ctx, incomplete, _tasks)


def schedule_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of periodic tasks."""
    return _offered(ctx, incomplete, _schedules)


def _schedules(delayed: CeleryDelay) -> Iterator[tuple[str, str]]:
    for one in delayed.schedules.list():
        yield one.name, one.task


def _entries(delayed: CeleryDelay, state: str | None) -> Iterator[tuple[str, str]]:
    filters = {"state": state} if state else {}
    for one in delayed.list(limit=_LOOKED_AT, **filters):
        yield one.entry_id.task_id, one.task


def _tasks(delayed: CeleryDelay) -> Iterator[tuple[str, str]]:
    from celery_delay.delayed.checking import load_tasks

    load_tasks(delayed.app)
    for name in sorted(delayed.app.tasks):
        if not name.startswith("celery."):
            yield name, ""


def _offered(
    ctx: click.Context, incomplete: str, offers: Callable[[CeleryDelay], _Offers]
) -> list[CompletionItem]:
    given: set[str] = set()
    for value in ctx.params.values():
        given.update(value if isinstance(value, tuple) else ())
    try:
        with _silence():
            delayed = _project(ctx)
            return [
                CompletionItem(value, help=about or None)
                for value, about in (offers(delayed) if delayed is not None else ())
                if value.startswith(incomplete) and value not in given
            ]
    except (Exception, SystemExit):
        return []


def _project(ctx: click.Context) -> CeleryDelay | None:
    """The ``CeleryDelay`` of the app that the words so far, or ``CELERY_APP``, name."""
    from celery.app.utils import find_app

    app = ctx.find_root().params.get("app")
    if isinstance(app, str):
        app = find_app(app)
    delayed: CeleryDelay | None = getattr(app, "delayed", None)
    return delayed


@contextmanager
def _silence() -> Iterator[None]:
    """What a project prints when it is imported is no completion."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
