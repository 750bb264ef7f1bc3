"""Which tasks a verb is about: the options that are the filters of ``app.delayed``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.completion import task_names, words
from celery_delay.cli.times import INSTANT
from celery_delay.cli.verb import option
from celery_delay.domain.entries import Due
from celery_delay.domain.states import State
from celery_delay.exceptions import DelayError

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["FILTER_OPTIONS", "filter_options", "filters_of", "meant", "said"]

_Verb = Callable[..., Any]

#: The names that a verb gets them by.
FILTER_OPTIONS = ("task", "queue", "namespace", "tags", "unique_key", "states", "after", "before")


def filter_options(function: _Verb) -> _Verb:
    """Give a verb the options of a filter."""
    states = click.Choice([one.value for one in State], case_sensitive=False)
    for one in reversed(
        [
            option("--task", shell_complete=task_names,
                   help="Only of this registered name, or of a pattern: 'shop.*'."),
            option("--queue", help="Only for this queue."),
            option("--namespace", help="Only of this namespace."),
            option("--tag", "tags", multiple=True, help="Only with this tag; repeated: with all."),
            option("--unique-key", help="Only the one that has this key."),
            option("--state", "states", multiple=True, type=states,
                   shell_complete=words(states.choices),
                   help="Only in this state; may be repeated."),
            option("--after", type=INSTANT, help="Only with an eta from then on."),
            option("--before", type=INSTANT, help="Only with an eta up to then."),
        ]
    ):  # fmt: skip
        function = one(function)
    return function


@contextmanager
def meant() -> Iterator[None]:
    """Errors in this context that are about arguments are wrong usage."""
    try:
        yield
    except DelayError:
        raise  # some of them are ValueErrors as well
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from None


def said(given: Mapping[str, Any]) -> bool:
    """Whether any of the options of a filter was given."""
    return any(given[name] not in (None, ()) for name in FILTER_OPTIONS)


def filters_of(
    delayed: CeleryDelay, given: Mapping[str, Any], now_ms: int | None = None
) -> dict[str, Any]:
    """The filters of ``app.delayed`` that the options make.

    Arguments:
        now_ms: the store's clock, from which spans count; ``None``: it is asked if need be.
    """
    found: dict[str, Any] = {
        "task": given["task"],
        "queue": given["queue"],
        "namespace": given["namespace"],
        "unique_key": given["unique_key"],
        "tag": list(given["tags"]) or None,
        "state": list(dict.fromkeys(one.upper() for one in given["states"])) or None,
    }
    for name in ("after", "before"):
        due: Due | None = given[name]
        if due is not None and due.is_delay and now_ms is None:
            now_ms = delayed.now_ms()
        if due is not None:
            found[f"{name}_ms"] = due.ms + (now_ms or 0 if due.is_delay else 0)
    return {name: value for name, value in found.items() if value is not None}
