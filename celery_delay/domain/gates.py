"""Gates: what keeps due entries back that are not held one by one.

A gate's name says whom it stops: ``all``, ``task:NAME``, ``queue:NAME``, ``namespace:NAME`` are
paused and resumed by people; ``rate:task:NAME``, ``rate:queue:NAME`` and ``full:QUEUE`` follow
from settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from celery_delay.domain.spans import span
from celery_delay.exceptions import InvalidSetting

__all__ = [
    "EVERYTHING",
    "MOST_GATES",
    "Gate",
    "GateStore",
    "Limits",
    "Opened",
    "check_high_water",
    "check_rates",
    "gate_for",
    "high_water_of",
    "rates_of",
    "told",
]

#: The gate of all tasks.
EVERYTHING = "all"
#: No shard keeps more gates: each hand-off looks at them all.
MOST_GATES = 1_000
#: The longest name of a gate, in characters.
_LONGEST = 300
#: How much of a second's rate may pass at once.
_AT_ONCE = 0.1
_UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000}
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/([smh]))?")
_KINDS = {"P": "paused", "R": "releasing", "L": "limited", "F": "full"}


class Gate(NamedTuple):
    """A gate as it stands.

    Attributes:
        gate: its name.
        status: ``paused``; ``releasing``: it is open, and what has gathered is on its way;
            ``limited``, ``full``: tasks wait for a rate limit, or for room in a queue.
        since_ms: when it was paused, by Redis' clock; ``None`` for a limit.
        by: who paused it, as the audit names callers.
        reason: what the caller said.
        waiting: how many due tasks wait there.
    """

    gate: str
    status: str
    since_ms: int | None = None
    by: str = ""
    reason: str | None = None
    waiting: int = 0

    @classmethod
    def read(cls, gate: str, value: str, waiting: int) -> Gate:
        """What a shard keeps of a gate."""
        facts: Mapping[str, Any] = json.loads(value[1:] or "{}")
        since = facts.get("since")
        return cls(
            gate,
            _KINDS.get(value[:1], value[:1]),
            int(since) if since is not None else None,
            str(facts.get("by") or ""),
            facts.get("reason"),
            waiting,
        )


class Opened(NamedTuple):
    """What was let pass at the gates, and in how many ms more may; ``None``: nothing is to come."""

    returned: int = 0
    wait_ms: int | None = None


class GateStore(Protocol):
    """What letting pass needs of a shard; StoreUnavailable as in ``ports.py``."""

    def open_gates(self, *, term: int) -> Opened:
        """Return entries to their schedule whose gate lets them pass now; at most a batch."""
        ...


def gate_for(task: Any, queue: Any, namespace: Any, everything: bool) -> str:
    """The gate that a caller means.

    Raises:
        TypeError, ValueError: not exactly one was named, or not by a text that can be a name.
    """
    named = {"task": task, "queue": queue, "namespace": namespace}
    given = {kind: name for kind, name in named.items() if name is not None}
    if len(given) + bool(everything) != 1:
        raise ValueError("name one of task, queue and namespace, or say all=True")
    if everything:
        return EVERYTHING
    [(kind, name)] = given.items()
    if not isinstance(name, str):
        raise TypeError(f"{kind} must be a name, not {name!r}")
    if not name or len(name) > _LONGEST or not name.isprintable():
        raise ValueError(
            f"{kind}: {name!r} must have 1 to {_LONGEST} characters, and no control characters"
        )
    return f"{kind}:{name}"


def told(one: Gate, shard: int, now_ms: int) -> tuple[str, str]:
    """What people are told of a gate of *shard*, and what they can do."""
    kind, _, name = one.gate.partition(":")
    option = f"--{kind} {name}".rstrip()
    since = f" since {span(now_ms - one.since_ms)}" if one.since_ms is not None else ""
    reason = f": {one.reason}" if one.reason else ""
    texts = {
        "paused": (
            f"{one.gate} is paused{since} by {one.by or 'somebody'}{reason}",
            f"end it: `resume {option}`, with `--over 10m` to spread what waits",
        ),
        "releasing": (
            f"{one.gate} is resumed, and what had gathered is coming back",
            f"it goes on by itself; `resume {option}` once more hurries it",
        ),
        "limited": (
            f"tasks wait for the limit of {name}",
            "they go out at the rate that delay_rate_limits allows",
        ),
        "full": (
            f"the queue {name} is as long as it may be",
            "tasks go out as its workers take messages: delay_queue_high_water",
        ),
    }
    text, remedy = texts.get(one.status, (f"{one.gate} is {one.status}", "update this release"))
    return f"{text}; {one.waiting} due tasks of shard {shard} wait there", remedy


def _rate_of(value: Any) -> float:
    """Tasks per millisecond of a rate in Celery's syntax: ``"100/s"``, ``"600/m"``, ``"10/h"``,
    or a number for so many a second.

    Raises:
        ValueError: it is none, or zero.
    """
    text = str(value).strip() if not isinstance(value, bool) else ""
    found = _RATE.fullmatch(text)
    rate = float(found[1]) / _UNITS[found[2] or "s"] if found else 0.0
    if rate <= 0:
        raise ValueError(f'{value!r} is no rate such as "100/s", "600/m" or "10/h"')
    return rate


def rates_of(given: Any) -> dict[str, float]:
    """Rates per millisecond, by ``task:NAME`` or ``queue:NAME``, out of what a setting says.

    Raises:
        ValueError: what is wrong, and where.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f'must be a mapping such as {{"task:shop.mail": "100/s"}}, not {given!r}')
    rates = {}
    for name, rate in given.items():
        kind, _, rest = str(name).partition(":")
        if kind not in ("task", "queue") or not rest:
            raise ValueError(f"{name!r} must begin with task: or queue:, and name one")
        try:
            rates[str(name)] = _rate_of(rate)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from exc
    return rates


def high_water_of(given: Any) -> dict[str, int]:
    """Most messages by queue, ``*`` for each that is not named, out of what a setting says.

    Raises:
        ValueError: what is wrong, and where.
    """
    if given is None:
        return {}
    most = given if isinstance(given, Mapping) else {"*": given}
    for name, limit in most.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"{name!r} is no queue's name")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"{name}: {limit!r} must be a whole number from 1 on")
    return dict(most)


def check_rates(name: str, value: Any) -> Any:
    """*value* of the setting *name*, if :func:`rates_of` can read it; else InvalidSetting."""
    return _checked(name, value, rates_of)


def check_high_water(name: str, value: Any) -> Any:
    """*value* of the setting *name*, if :func:`high_water_of` can read it; else InvalidSetting."""
    return _checked(name, value, high_water_of)


def _checked(name: str, value: Any, read: Callable[[Any], object]) -> Any:
    try:
        read(value)
    except ValueError as exc:
        raise InvalidSetting(f"{name}: {exc}") from exc
    return value


@dataclass(frozen=True)
class Limits:
    """What the settings allow a shard to hand off, as the scripts take it.

    Attributes:
        rates: ``task:NAME`` or ``queue:NAME`` → tasks per millisecond, in all shards.
        most: queue, or ``*`` for each that is not named → how many messages it may hold.
        shards: the rates are for so many, which have about as many tasks each.
        steps: what may stand behind a queue's key to name the lists of its priorities.
    """

    rates: Mapping[str, float]
    most: Mapping[str, int]
    shards: int = 1
    steps: tuple[str, ...] = ("",)

    def encode(self, rooms: Mapping[str, int] | None = None) -> str:
        """As JSON; "" for no limits.  *rooms*: queue → how many messages it has room for."""
        if not self.rates and not self.most:
            return ""
        shares = {name: rate / self.shards for name, rate in self.rates.items()}
        rates = {name: (rate, max(1.0, rate * 1_000 * _AT_ONCE)) for name, rate in shares.items()}
        said = {"rates": rates, "most": self.most, "steps": self.steps, "rooms": rooms or {}}
        return json.dumps(said)
