"""Checks of settings: each takes a setting's full name and its value, and returns the value.

They raise InvalidSetting, whose text names the setting and says what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from celery_delay.exceptions import InvalidSetting

__all__ = [
    "Listen",
    "choice",
    "count",
    "either",
    "engine",
    "hook",
    "listen",
    "names",
    "optional_text",
    "options",
    "origins",
    "redis_url",
    "seconds",
    "text",
    "together",
    "urls",
]


class Listen(NamedTuple):
    """Where to serve: the first of the ports that can be had; port 0 is any that is free."""

    host: str
    ports: range


def seconds(low: float, high: float = math.inf) -> Callable[[str, Any], float]:
    """A number of seconds between two bounds."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidSetting(f"{name} must be a number of seconds, not {value!r}")
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InvalidSetting(f"{name} must be {bound} seconds, not {value!r}")
        return float(value)

    return check


def count(low: int, high: int) -> Callable[[str, Any], int]:
    """A whole number between two bounds."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidSetting(
                f"{name} must be a whole number from {low} to {high}, not {value!r}"
            )
        return value

    return check


def either(off: Any, check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """*off*, or what *check* takes."""

    def checked(name: str, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == off:
            return off
        try:
            return check(name, value)
        except InvalidSetting as exc:
            raise InvalidSetting(f"{exc}; {off:g} switches it off") from None

    return checked


def choice(*allowed: Any) -> Callable[[str, Any], Any]:
    """One of *allowed*, of its very type."""

    def check(name: str, value: Any) -> Any:
        # 0 == False: compare types too, or delay_intercept=0 would pass for False
        if not any(value == one and type(value) is type(one) for one in allowed):
            names = ", ".join(repr(one) for one in allowed)
            raise InvalidSetting(f"{name} must be one of {names}, not {value!r}")
        return value

    return check


def text(name: str, value: Any) -> str:
    """A text that may stand in a Redis key, between braces."""
    if not isinstance(value, str) or not value or any(char in value for char in "{}\r\n\0 "):
        raise InvalidSetting(f"{name} must be a text without spaces and braces, not {value!r}")
    return value


def names(name: str, value: Any) -> tuple[str, ...]:
    """Names of tasks, or patterns of them."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidSetting(f"{name} must be a list of task names, not {value!r}")
    names = tuple(value)
    for one in names:
        if not isinstance(one, str) or not one:
            raise InvalidSetting(f"{name} must be a list of task names; {one!r} is none")
    return names


def urls(name: str, value: Any) -> str | tuple[str, ...] | None:
    """A URL of SQLAlchemy's, several of them, or ``None``."""
    several = isinstance(value, (list, tuple)) and len(value) > 0
    for one in value if several else [value]:
        if (one is not None or several) and (not isinstance(one, str) or ":" not in one):
            raise InvalidSetting(f"{name} must be a URL, a list of URLs or None, not {one!r}")
    return tuple(value) if several else value


def engine(name: str, value: Any) -> Any:
    """What may be, or lead to, an engine of SQLAlchemy's."""
    # SQLAlchemy is not known here: the audit looks closer, when beat starts
    if isinstance(value, str) and "://" in value:
        raise InvalidSetting(f"{name} must be an engine; delay_database_url takes a URL")
    if value == "" or isinstance(value, (bool, int, float, bytes)):
        raise InvalidSetting(
            f"{name} must be an SQLAlchemy engine, a function that returns one, the dotted path"
            f" of either, or None; not {value!r}"
        )
    return value


def origins(name: str, value: Any) -> tuple[str, ...]:
    """Origins as a browser sends them: ``https://flower.example.com``."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidSetting(f"{name} must be a list of origins, not {value!r}")
    found = tuple(value)
    for one in found:
        scheme, _, host = one.partition("://") if isinstance(one, str) else ("", "", "")
        if scheme not in ("http", "https") or not host or "/" in host:
            raise InvalidSetting(
                f"{name}: {one!r} is no origin such as https://flower.example.com: a scheme and a"
                " host, a port if it has one, no path"
            )
    return tuple(one.lower() for one in found)


def optional_text(name: str, value: Any) -> str | None:
    """As :func:`text`, or ``None``."""
    return None if value is None else text(name, value)


def redis_url(name: str, value: Any) -> str | None:
    """Where a Redis is, or ``None``."""
    schemes = ("redis://", "rediss://", "unix://", "redis+socket://", "sentinel://")
    if value is not None and (not isinstance(value, str) or not value.startswith(schemes)):
        raise InvalidSetting(
            f"{name} must begin with one of {', '.join(schemes)}, or be None; not {value!r}"
        )
    return value


def hook(name: str, value: Any) -> Any:
    """A function, its dotted path, or ``None``."""
    if value is not None and not callable(value) and not (isinstance(value, str) and value):
        raise InvalidSetting(f"{name} must be a function, its dotted path, or None; not {value!r}")
    return value


def options(name: str, value: Any) -> Mapping[str, Any] | None:
    """A mapping, or ``None``."""
    if value is not None and not isinstance(value, Mapping):
        raise InvalidSetting(f"{name} must be a mapping or None, not a {type(value).__name__}")
    return value


def listen(name: str, value: Any) -> Listen | None:
    """Host and port, or ports, to serve at; or ``None``."""
    if value is None or isinstance(value, Listen):
        return value
    takes = (
        f"{name} must be 'host:port' or 'host:first-last' (127.0.0.1 for this machine alone,"
        f" 0.0.0.0 for all that can reach it, [::1] with brackets; port 0: any), or None;"
        f" not {value!r}"
    )
    if not isinstance(value, str):
        raise InvalidSetting(takes)
    host, colon, ports = value.rpartition(":")
    first, dash, last = ports.partition("-")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    digits = (first, last) if dash else (first,)
    if not host or not colon or (":" in host and not bracketed) or "/" in host or " " in host:
        raise InvalidSetting(takes)
    if not all(one.isascii() and one.isdigit() and int(one) <= 65_535 for one in digits):
        raise InvalidSetting(takes)
    found = range(int(first), int(last if dash else first) + 1)
    if not found or (dash and int(first) == 0):
        raise InvalidSetting(takes)
    return Listen(host, found)


def together(given: Any) -> None:
    """Whether the values of all settings fit each other."""
    _about_sql(given)
    if given.add_window < 2 * given.redis_timeout:
        raise InvalidSetting(
            "delay_add_window must be at least twice delay_redis_timeout"
            f" ({given.add_window:g} < 2 x {given.redis_timeout:g}): otherwise there is no"
            " time left to repeat an add whose answer was lost"
        )
    if given.publish_timeout < 4 * given.redis_timeout:
        raise InvalidSetting(
            "delay_publish_timeout must be at least four times delay_redis_timeout"
            f" ({given.publish_timeout:g} < 4 x {given.redis_timeout:g}): to connect, to store"
            " and to fall back take up to one each"
        )
    if given.guard_keep < given.guard_patience:
        raise InvalidSetting(
            "delay_guard_keep must not be shorter than delay_guard_patience"
            f" ({given.guard_keep:g} < {given.guard_patience:g}): a copy sent because of that"
            " silence must still find the run that is over"
        )
    if given.lease_trust + given.election_timeout >= given.lease:
        raise InvalidSetting(
            "delay_lease_trust + delay_election_timeout must be below delay_lease"
            f" ({given.lease_trust:g} + {given.election_timeout:g} >= {given.lease:g}):"
            " otherwise two beats may lead at once"
        )
    if given.lease_renew * 2 + given.election_timeout > given.lease_trust:
        raise InvalidSetting(
            "2 x delay_lease_renew + delay_election_timeout must not exceed"
            f" delay_lease_trust ({given.lease_renew:g} x 2 + {given.election_timeout:g}"
            f" > {given.lease_trust:g}): otherwise one lost answer ends a leadership"
        )


def _about_sql(given: Any) -> None:
    if given.database_url is not None and given.database_engine is not None:
        raise InvalidSetting(
            "delay_database_url and delay_database_engine are both set: each names the"
            " audit database, so leave one of them out"
        )
    if given.audit == "sync" and not given.has_database:
        raise InvalidSetting(
            'delay_audit = "sync" needs a database that has the tasks before Redis is told:'
            " set delay_database_url or delay_database_engine"
        )
    if (given.hot_window or given.hot_max) and not given.audited:
        name = "delay_hot_window" if given.hot_window else "delay_hot_max"
        raise InvalidSetting(
            f"{name} lets tasks wait in SQL: set delay_database_url or delay_database_engine,"
            ' and delay_audit to "async" or "sync"'
        )
    if given.hot_max and not given.is_backed:
        raise InvalidSetting(
            "delay_hot_max is about tasks that SQL has as well, and without"
            ' delay_audit = "sync" or delay_hot_window there are none: set one of them'
        )
