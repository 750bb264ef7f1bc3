"""What is stored of a periodic schedule: its times and its call.

Of one that was added at run time this is all there is, and a beat that has never seen the task
fires it by that.  Of one that code owns it is what other processes may know.  So it is JSON, and
what JSON cannot hold is not there.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from celery_delay.periodic import times

__all__ = ["LONGEST", "MISFIRES", "OPTIONS", "Definition", "check_name", "checked", "described"]

#: What ``apply_async`` takes that is JSON and has a meaning for each occurrence anew.
OPTIONS = frozenset(
    "compression countdown delivery_mode exchange expires headers ignore_result priority queue"
    " routing_key serializer shadow soft_time_limit time_limit".split()
)
#: Of occurrences that nobody fired in time: the latest runs; each runs; none does.
MISFIRES = ("fire_once", "fire_all", "skip")
#: The longest definition, in characters of JSON: beats read them all.
LONGEST = 65_536
_LONGEST_NAME = 255
_NUMBERS = ("countdown", "expires", "priority", "soft_time_limit", "time_limit", "delivery_mode")


@dataclass(frozen=True)
class Definition:
    """A schedule's times and call.

    Attributes:
        times: see :mod:`celery_delay.periodic.times`; ``None``: those of a class of the user's own.
        text: the times for people.
        args, kwargs, options: of the call; ``None`` of code's that are no JSON.
        misfire: what becomes of occurrences that nobody fired in time: one of :data:`MISFIRES`.
        grace: how late, in seconds, one may be and still run; ``None``: see ``misfire``.
    """

    task: str
    times: Mapping[str, Any] | None
    text: str
    args: Sequence[Any] | None = ()
    kwargs: Mapping[str, Any] | None = field(default_factory=dict)
    options: Mapping[str, Any] | None = field(default_factory=dict)
    misfire: str = "fire_once"
    grace: float | None = None

    def timing(self) -> str:
        """The times as stored; the same text for the same times."""
        return _compact(self.times)

    def call(self) -> str:
        """All the rest, as stored."""
        rest = {
            "task": self.task,
            "text": self.text,
            "args": self.args,
            "kwargs": self.kwargs,
            "options": self.options,
            "misfire": self.misfire,
            "grace": self.grace,
        }
        return _compact(rest)

    @classmethod
    def read(cls, timing: str, call: str) -> Definition:
        """The reverse of :meth:`timing` and :meth:`call`.

        Raises:
            ValueError: it is of another release, or damaged.
        """
        try:
            read, rest = json.loads(timing), json.loads(call)
            return cls(times=read, **rest)
        except (TypeError, ValueError) as exc:
            raise ValueError(f"cannot be read: {exc}") from None


def check_name(name: Any) -> str:
    """*name*, if a schedule can have it.

    Raises:
        TypeError, ValueError: it cannot.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text, not {name!r}")
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(
            f"name={name!r}: a schedule's name is 1 to {_LONGEST_NAME} printable characters"
        )
    return name


def checked(
    task: Any,
    plan_times: Mapping[str, Any],
    args: Any,
    kwargs: Any,
    options: Mapping[str, Any],
    misfire: Any = "fire_once",
    grace: Any = None,
) -> Definition:
    """What a caller gives, as it is stored.

    Raises:
        TypeError, ValueError: about the argument they name.
    """
    name = getattr(task, "name", task)
    if not isinstance(name, str) or not name or not name.isprintable():
        raise TypeError(f"task must be a task or a task's name, not {task!r}")
    if isinstance(args, (str, bytes)) or not isinstance(args or (), Sequence):
        raise TypeError(f"args must be a list, not {args!r}")
    if not isinstance(kwargs or {}, Mapping):
        raise TypeError(f"kwargs must be a mapping, not {kwargs!r}")
    for unknown in options.keys() - OPTIONS:
        near = difflib.get_close_matches(unknown, OPTIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f": it takes {', '.join(sorted(OPTIONS))}"
        raise TypeError(f"a schedule has no option {unknown!r}{hint}")
    for number in _NUMBERS:
        value = options.get(number)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise TypeError(
                f"{number} must be a number, not {value!r}: each occurrence has its own"
            )
    if misfire not in MISFIRES:
        raise ValueError(f"misfire={misfire!r} must be one of {', '.join(MISFIRES)}")
    made = Definition(
        name,
        plan_times,
        times.text_of(plan_times),
        _json("args", list(args or ())),
        _json("kwargs", dict(kwargs or {})),
        _json("options", {key: one for key, one in options.items() if one is not None}),
        misfire,
        _grace(grace),
    )
    size = len(made.timing()) + len(made.call())
    if size > LONGEST:
        raise ValueError(
            f"the schedule has {size} characters of JSON, at most {LONGEST} may be kept"
        )
    return made


def described(task: str, plan: Any, args: Any, kwargs: Any, options: Any) -> Definition:
    """What others may know of a schedule that code owns."""
    plan_times = times.described(plan)
    text = times.text_of(plan_times) if plan_times else type(plan).__name__
    parts = []
    for given in (list(args or ()), dict(kwargs or {}), dict(options or {})):
        try:
            parts.append(_json("it", given))
        except (TypeError, ValueError):
            parts.append(None)
    if len(_compact(parts)) > LONGEST:
        parts = [None, None, None]
    return Definition(task, plan_times, text, *parts)


def _grace(given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, timedelta):
        given = given.total_seconds()
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"grace must be a number of seconds or a timedelta, not {given!r}")
    if not 0 <= given < 10**10:
        raise ValueError(f"grace={given!r} must be 0 or more")
    return float(given)


def _json(name: str, value: Any) -> Any:
    """*value* as it comes back from JSON; nothing is changed silently but tuples to lists."""
    for key in _keys(value):
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {key!r}: JSON's keys are text")
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as exc:
        raise TypeError(f"{name} must be JSON: {exc}") from None


def _keys(value: Any, depth: int = 0) -> Iterator[Any]:
    if depth > 100:
        return
    if isinstance(value, Mapping):
        yield from value
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for one in value:
        yield from _keys(one, depth + 1)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
