"""What a caller says of keys: that a task must not wait, or run, twice at once.

A *unique key* belongs to one entry at a time: while it waits, or until its task has started or is
done.  An *idempotency key* belongs to one call: whoever repeats the call gets its result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

__all__ = ["FOLLOW", "LONGEST_KEY", "NOTHING_SAID", "Keys", "Said", "Unique", "take_said"]

#: The longest key, in characters.
LONGEST_KEY = 255
#: How long an idempotency key is remembered, in seconds, if the caller does not say it.
IDEMPOTENCY_FOR = 86_400.0
#: The longest time limit and memory, in seconds.
_LONGEST = 366 * 86_400.0

_POLICIES = ("error", "keep", "replace", "extend")
_SCOPES = ("dispatched", "started", "done")


class Unique(NamedTuple):
    """The unique key of an entry, which is among its labels.

    Attributes:
        key: what no other entry may have meanwhile.
        until: ``dispatched``, ``started`` or ``done``.
        for_ms: how long it may be kept after the hand-off at most; 0 with ``dispatched``.
    """

    key: str
    until: str = "dispatched"
    for_ms: int = 0

    @classmethod
    def read(cls, given: Any) -> Unique | None:
        """What is in the labels, as JSON; ``None`` for nothing, or what is not known."""
        if not isinstance(given, (list, tuple)) or len(given) != 3:
            return None
        key, until, for_ms = given
        if not isinstance(key, str) or until not in _SCOPES or not isinstance(for_ms, (int, float)):
            return None
        return cls(key, until, int(for_ms))


class Keys(NamedTuple):
    """What the store is told of an addition's keys, beside the unique key itself.

    Attributes:
        on: what to do if somebody has the unique key; ``follow``: take it over from the run
            before, or do without.
        idempotency: the idempotency key, if there is one, which counts for *idempotency_ms*.
    """

    on: str = "keep"
    idempotency: str | None = None
    idempotency_ms: int = 0

    def encode(self, op: str, key: str) -> str:
        """As JSON, for the script.

        Arguments:
            op: names the addition, the same in each repeat.
            key: the unique key, or the idempotency key: what an error names.
        """
        said = {"op": op, "key": key, "on": self.on}
        if self.idempotency is None:
            return json.dumps(said)
        more = {"idempotency": self.idempotency, "idempotency_ms": self.idempotency_ms}
        return json.dumps({**said, **more})


#: Of an entry that is sent from inside a run which has the key.
FOLLOW = Keys("follow")


class Said(NamedTuple):
    """The words of a call; ``None`` where it says nothing."""

    unique_key: str | None = None
    on_conflict: str | None = None
    unique_until: str | None = None
    unique_for: float | timedelta | None = None
    idempotency_key: str | None = None
    idempotency_for: float | timedelta | None = None

    def keys(
        self, task: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
    ) -> tuple[Unique | None, Keys | None]:
        """The unique key, if there is one, and what goes with it; ``None`` without any key.

        Arguments:
            task: its ``delay_unique_key`` and the like count where the call says nothing;
                ``None``: there is no task to ask.

        Raises:
            TypeError, ValueError: about the argument, or the task's attribute, they name.
        """
        unique, on_conflict = self._unique(task, args or (), kwargs or {})
        if self.idempotency_key is None:
            if self.idempotency_for is not None:
                raise ValueError("idempotency_for needs idempotency_key")
            return unique, Keys(on_conflict) if unique is not None else None
        _check_key("idempotency_key", self.idempotency_key)
        for_s = IDEMPOTENCY_FOR if self.idempotency_for is None else self.idempotency_for
        for_ms = _milliseconds("idempotency_for", for_s)
        return unique, Keys(on_conflict, self.idempotency_key, for_ms)

    def _unique(
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Unique | None, str]:
        key, template = self.unique_key, getattr(task, "delay_unique_key", None)
        if key is None and template is not None:
            key = _filled(task, template, args, kwargs)
        if key is None:
            for name in ("on_conflict", "unique_until", "unique_for"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs unique_key")
            return None, "keep"
        _check_key("unique_key", key)
        on_conflict = self.on_conflict or getattr(task, "delay_on_conflict", None) or "keep"
        _check_word("on_conflict", on_conflict, _POLICIES)
        until = self.unique_until or getattr(task, "delay_unique_until", None) or "dispatched"
        _check_word("unique_until", until, _SCOPES)
        if until == "dispatched":
            if self.unique_for is not None:
                raise ValueError(
                    "unique_for is the time limit of unique_until='started' or 'done': without"
                    " one of them the key is free when the task is handed to its queue"
                )
            return Unique(key), on_conflict
        limit = self.unique_for
        if limit is None:
            limit = getattr(task, "delay_unique_for", None)
        if limit is None:
            raise ValueError(
                f"unique_until={until!r} needs unique_for=seconds: so long after its hand-off the"
                " key is free in any case, also when a worker dies"
            )
        return Unique(key, until, _milliseconds("unique_for", limit)), on_conflict


NOTHING_SAID = Said()


def take_said(options: dict[str, Any]) -> Said:
    """Take the words about keys out of a call's *options*."""
    if not options:
        return NOTHING_SAID
    said = {name: options.pop(name) for name in Said._fields if name in options}
    return Said(**said) if said else NOTHING_SAID


def _filled(task: Any, template: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    if not isinstance(template, str):
        raise TypeError(f"delay_unique_key of {task.name} must be a text, not {template!r}")
    try:
        return template.format(*args, **kwargs)
    except (LookupError, AttributeError, TypeError, ValueError) as exc:
        raise ValueError(
            f"delay_unique_key={template!r} of {task.name} does not fit this call"
            f" with {len(args)} positional arguments and the keywords"
            f" {', '.join(kwargs) or '(none)'}: {type(exc).__name__}: {exc}"
        ) from exc


def _check_key(name: str, key: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"{name} must be a text, not {key!r}")
    if not key or len(key) > LONGEST_KEY or not key.isprintable():
        raise ValueError(
            f"{name}={key!r} must have 1 to {LONGEST_KEY} characters, and no control characters"
        )


def _check_word(name: str, word: Any, allowed: Sequence[str]) -> None:
    if word not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {word!r}")


def _milliseconds(name: str, given: Any) -> int:
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be seconds or a timedelta, not {given!r}")
    if not 0.001 <= seconds <= _LONGEST:
        raise ValueError(f"{name}={given!r} must be more than 0, and a year at most")
    return round(seconds * 1000)
