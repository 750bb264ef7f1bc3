"""Delayed calls as lines of JSON: read in chunks, each with its line number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from kombu.exceptions import EncodeError

from celery_delay.domain.uniqueness import NOTHING_SAID, Said
from celery_delay.exceptions import DelayError

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from celery_delay.app import CeleryDelay
    from celery_delay.domain.entries import Addition

__all__ = ["Call", "Default", "Line", "LineError", "build", "chunks", "parse"]

_FIELDS = ("task", "args", "kwargs", "countdown", "eta", "task_id", "queue", *Said._fields)
#: field → its type, and how the refusal calls it.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "task": (str, "a text"),
    "args": (list, "a list"),
    "kwargs": (dict, "an object"),
    "countdown": ((int, float), "a number of seconds"),
    "eta": (str, "a text in ISO 8601"),
    "task_id": (str, "a text"),
    "queue": (str, "a text"),
    "unique_key": (str, "a text"),
    "on_conflict": (str, "a text"),
    "unique_until": (str, "a text"),
    "unique_for": ((int, float), "a number of seconds"),
    "idempotency_key": (str, "a text"),
    "idempotency_for": ((int, float), "a number of seconds"),
}


class LineError(ValueError):
    """What is wrong with one call; the text is for whoever wrote it."""


class Default(NamedTuple):
    """When calls are due that do not say it themselves; at most one is given."""

    countdown: timedelta | None = None
    eta: datetime | None = None


class Call(NamedTuple):
    """One delayed call in words."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    countdown: float | timedelta | None
    eta: str | datetime | None
    task_id: str | None
    queue: str | None
    said: Said = NOTHING_SAID


class Line(NamedTuple):
    """A line that is not blank; ``end`` is the number of bytes up to its end."""

    number: int
    text: bytes
    end: int


def chunks(stream: IO[bytes], size: int, skip: int) -> Iterator[list[Line]]:
    """The lines of *stream* after the first *skip*, so many at a time; blank ones are left out."""

    def lines() -> Iterator[Line]:
        end = 0
        for number, text in enumerate(stream, 1):
            end += len(text)
            if number > skip and text.strip():
                yield Line(number, text, end)

    source = lines()
    while some := list(islice(source, size)):
        yield some


def parse(text: bytes, default: Default) -> Call:
    """The call that a line describes.

    Raises:
        LineError: it is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise LineError(f"no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise LineError("not a JSON object")
    if unknown := [one for one in found if one not in _FIELDS]:
        raise LineError(f"unknown field {unknown[0]!r}; there are {', '.join(_FIELDS)}")
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        kind, words = _TYPES[name]
        if not isinstance(value, kind):
            raise LineError(f"{name} must be {words}, not {value!r}")
    if not given.get("task"):
        raise LineError("task is missing: the registered name")
    if "countdown" in given and "eta" in given:
        raise LineError("countdown and eta were both given: give one of them")
    if "countdown" not in given and "eta" not in given:
        given |= {name: value for name, value in default._asdict().items() if value is not None}
    if "countdown" not in given and "eta" not in given:
        raise LineError("say when: countdown (seconds) or eta (ISO 8601)")
    return Call(
        given["task"],
        given.get("args", []),
        given.get("kwargs", {}),
        given.get("countdown"),
        given.get("eta"),
        given.get("task_id"),
        given.get("queue"),
        Said(*(given.get(name) for name in Said._fields)),
    )


def build(delayed: CeleryDelay, call: Call, *, by_name: bool) -> Addition:
    """The entry of *call*, checked and built but not stored.

    Arguments:
        by_name: whether tasks that are not registered here are sent all the same.

    Raises:
        LineError: about the call.
        DelayError: about the project.
    """
    from celery_delay.calling.bulk import addition_by_name, addition_of
    from celery_delay.calling.calls import DelayedCall, placed
    from celery_delay.message.delays import Delay

    app = delayed.app
    options = {"queue": call.queue} if call.queue is not None else {}
    task = app.tasks.get(call.task)
    if task is None and not by_name:
        raise LineError(
            f"no task {call.task!r} is registered; --by-name adds it for another project"
        )
    try:
        delay = Delay(delayed.due(call.countdown, call.eta, None)).with_keys(
            call.said, task, call.args, call.kwargs
        )
        task_id = placed(app, delay, call.task_id)
        one = DelayedCall(call.args, call.kwargs, task_id=task_id)
        if task is None:
            return addition_by_name(app, call.task, one, delay, options)
        return addition_of(task, one, delay, options)
    except DelayError:
        raise
    except (TypeError, ValueError, LookupError, EncodeError) as exc:
        raise LineError(str(exc) or type(exc).__name__) from exc
