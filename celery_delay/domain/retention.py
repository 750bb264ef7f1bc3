"""How long the audit keeps the story of a task that is over, by the state that it ended in.

GAP events, which are no task's, have an age of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from celery_delay.domain.states import State
from celery_delay.exceptions import InvalidSetting

__all__ = ["ALIVE", "EVERY", "GAP", "PRUNABLE", "Retention", "age_of", "ages", "retention_of"]

#: State → seconds; :data:`EVERY` stands for all that are not named.
Retention = Mapping[str, float]

EVERY = "*"
#: State of the event that tells of events that the journal could not take or keep; no task's.
GAP = "GAP"
#: A task in one of these waits in the store: its rows are never deleted.
ALIVE = frozenset({State.SCHEDULED.value, State.HELD.value, State.QUARANTINED.value})
#: States whose rows may be deleted.  Some are no end, but nobody may ever tell one: a worker
#: without our package, or one that was killed.
PRUNABLE = (*(one.value for one in State if one.value not in ALIVE), GAP)

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SHORTEST = 60.0


def age_of(value: Any) -> float:
    """Seconds of a number of seconds, or of a text such as ``30d``.

    Raises:
        ValueError: it is neither, or less than a minute.
    """
    seconds = -1.0
    if isinstance(value, str) and (found := _AGE.fullmatch(value.strip())):
        seconds = float(found[1]) * _UNITS[found[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    if not _SHORTEST <= seconds < 1e11:
        raise ValueError(
            f"{value!r} must be a number of seconds, or a text such as '12h', '30d' or '8w',"
            " of a minute at least"
        )
    return seconds


def retention_of(name: str, value: Any) -> Retention | None:
    """The setting *value*, checked.

    Raises:
        InvalidSetting: it is no mapping of states to ages.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidSetting(
            f"{name} must be None or a mapping such as"
            f" {{'SUCCEEDED': '30d', '*': '365d'}}, not {value!r}"
        )
    kept: dict[str, float] = {}
    for state, age in value.items():
        if state in ALIVE:
            raise InvalidSetting(f"{name}: tasks that are {state} wait, and are never deleted")
        if state != EVERY and state not in PRUNABLE:
            raise InvalidSetting(
                f"{name}: {state!r} is none of {', '.join(PRUNABLE)} and '{EVERY}'"
            )
        try:
            kept[str(getattr(state, "value", state))] = age_of(age)
        except ValueError as exc:
            raise InvalidSetting(f"{name}[{state!r}]: {exc}") from None
    return kept


def ages(retention: Retention) -> dict[str, float]:
    """The age at which tasks in each state are deleted, in seconds; others are kept."""
    every = retention.get(EVERY)
    found = {state: retention.get(state, every) for state in PRUNABLE}
    return {state: age for state, age in found.items() if age is not None}
