"""Which entries are meant: what ``list``, ``count`` and the changes of many have in common."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.labels import Labels
from celery_delay.domain.states import State

__all__ = ["FILTERS", "LAST_MS", "STORED", "WAITING", "Filter", "filter_of"]

#: What a caller may say, in the order in which it is documented.
FILTERS = (
    "task", "queue", "namespace", "tag", "unique_key", "state",
    "after", "before", "after_ms", "before_ms",
)  # fmt: skip
#: eta of the latest entry there can be, in ms.
LAST_MS = 253_402_300_800_000
#: The states of entries that wait for their time or for a word.
WAITING = frozenset({State.SCHEDULED, State.HELD})
#: Those of all entries that Redis has.
STORED = WAITING | {State.QUARANTINED}

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Filter:
    """What entries must have in common; what is not said is no condition.

    Attributes:
        task: registered name of the task, or a shell pattern of it: ``"shop.*"``.
        queue: name of its queue, without prefix and priority.
        namespace: its namespace.
        tags: it has all of these.
        unique_key: the unique key that it has.
        states: it is in one of these.
        after_ms, before_ms: bounds of its eta, both included.
    """

    task: str | None = None
    queue: str | None = None
    namespace: str | None = None
    tags: tuple[str, ...] = ()
    unique_key: str | None = None
    states: frozenset[State] = WAITING
    after_ms: int = 0
    before_ms: int = LAST_MS

    @property
    def says_nothing(self) -> bool:
        """Whether every entry that waits is meant."""
        return self == Filter()

    def only(self, *states: State) -> Filter:
        """The same, for entries in one of *states*."""
        return replace(self, states=frozenset(states))

    @property
    def needs_record(self) -> bool:
        """Whether state and eta, which Redis has an index of, do not answer it."""
        return bool(
            self.task is not None
            or self.queue is not None
            or self.namespace is not None
            or self.tags
            or self.unique_key is not None
        )

    @property
    def has_pattern(self) -> bool:
        """Whether ``task`` is a pattern, not a name."""
        return self.task is not None and _PATTERN.search(self.task) is not None

    def fits_task(self, name: str) -> bool:
        """Whether a task of that name is meant."""
        if self.task is None or name == self.task:
            return True
        return self.has_pattern and fnmatchcase(name, self.task)

    def fits(self, task: str, queue: str, labels: Labels) -> bool:
        """Whether an entry with these is meant, its state and eta apart."""
        return (
            self.fits_task(task)
            and self.queue in (None, queue)
            and self.namespace in (None, labels.namespace)
            and self.unique_key in (None, labels.unique and labels.unique.key)
            and all(one in labels.tags for one in self.tags)
        )

    def takes(self, entry: StoredEntry) -> bool:
        """Whether *entry* is meant."""
        return (
            entry.state in self.states
            and self.after_ms <= entry.eta_ms <= self.before_ms
            and self.fits(entry.task, entry.queue_name, entry.labels)
        )


def filter_of(given: Mapping[str, Any]) -> Filter:
    """The filter that a caller's arguments make; ``after`` and ``before`` are in ms by now.

    Raises:
        TypeError, ValueError: about the argument they name.
    """
    for name in given:
        if name not in FILTERS:
            near = difflib.get_close_matches(name, FILTERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FILTERS)}"
            raise TypeError(f"there is no filter {name!r}: {hint}")
    texts: dict[str, Any] = {
        name: _text(name, given[name])
        for name in ("task", "queue", "namespace", "unique_key")
        if given.get(name) is not None
    }
    bounds: dict[str, Any] = {
        name: _bound(name, given[name])
        for name in ("after_ms", "before_ms")
        if given.get(name) is not None
    }
    return Filter(**texts, **bounds, tags=_tags(given.get("tag")), states=_states(given))


def _text(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {value!r}")
    if not value:
        raise ValueError(f"{name} is empty: leave it out for any")
    return value


def _several(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a text or a list of texts, not {value!r}")
    return list(value)


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(dict.fromkeys(_text("tag", one) for one in _several("tag", value)))


def _states(given: Mapping[str, Any]) -> frozenset[State]:
    value = given.get("state")
    if value is None:
        return WAITING
    found = set()
    for one in _several("state", value):
        try:
            found.add(State(one))
        except ValueError:
            known = ", ".join(sorted(state.value for state in State))
            raise ValueError(f"state={one!r} is none of {known}") from None
    if not found:
        raise ValueError("state is an empty list: leave it out for all that wait")
    return frozenset(found)


def _bound(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number of milliseconds, not {value!r}")
    return max(0, min(value, LAST_MS))
