"""The ``delay_*`` settings: one frozen object, checked once, documented here.

The text above each field is its documentation; the reference page is generated from
it.  Durations are seconds.  In Django with ``namespace="CELERY"`` a setting is spelled
``CELERY_DELAY_…``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from celery_delay.exceptions import InvalidSetting

__all__ = ["INTERCEPT", "PREFIX", "Settings"]

PREFIX = "delay_"

#: What ``delay_intercept`` may be, as a setting and as a task's attribute.
INTERCEPT: tuple[bool | str, ...] = (False, "retry", True)


def _seconds(low: float, high: float = math.inf) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidSetting(f"{name} must be a number of seconds, not {value!r}")
        if not low <= value <= high:
            bound = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InvalidSetting(f"{name} must be {bound} seconds, not {value!r}")
        return float(value)

    return check


def _count(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidSetting(
                f"{name} must be a whole number from {low} to {high}, not {value!r}"
            )
        return value

    return check


def _choice(*allowed: Any) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        # 0 == False: compare types too, or delay_intercept=0 would pass for False
        if not any(value == one and type(value) is type(one) for one in allowed):
            names = ", ".join(repr(one) for one in allowed)
            raise InvalidSetting(f"{name} must be one of {names}, not {value!r}")
        return value

    return check


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or any(char in value for char in "{}\r\n\0 "):
        raise InvalidSetting(f"{name} must be a text without spaces and braces, not {value!r}")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidSetting(f"{name} must be a list of task names, not {value!r}")
    names = tuple(value)
    for one in names:
        if not isinstance(one, str) or not one:
            raise InvalidSetting(f"{name} must be a list of task names; {one!r} is none")
    return names


def _url(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or ":" not in value):
        raise InvalidSetting(f"{name} must be a URL or None, not {value!r}")
    return value


def _engine(name: str, value: Any) -> Any:
    # SQLAlchemy is not known here: the audit looks closer, when beat starts
    if isinstance(value, str) and "://" in value:
        raise InvalidSetting(f"{name} must be an engine; {PREFIX}database_url takes a URL")
    if value == "" or isinstance(value, (bool, int, float, bytes)):
        raise InvalidSetting(
            f"{name} must be an SQLAlchemy engine, a function that returns one, the dotted path"
            f" of either, or None; not {value!r}"
        )
    return value


def _optional_text(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _redis_url(name: str, value: Any) -> str | None:
    schemes = ("redis://", "rediss://", "unix://", "redis+socket://", "sentinel://")
    if value is not None and (not isinstance(value, str) or not value.startswith(schemes)):
        raise InvalidSetting(
            f"{name} must begin with one of {', '.join(schemes)}, or be None; not {value!r}"
        )
    return value


def _options(name: str, value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        raise InvalidSetting(f"{name} must be a mapping or None, not a {type(value).__name__}")
    return value


def _setting(default: Any, check: Callable[[str, Any], Any], doc: str) -> Any:
    return field(default=default, metadata={"check": check, "doc": " ".join(doc.split())})


@dataclass(frozen=True)
class Settings:
    """All settings of celery-delay, without their ``delay_`` prefix."""

    redis_url: str | None = _setting(
        None,
        _redis_url,
        """Where delayed tasks wait: ``redis://``, ``rediss://``, ``unix://``,
        ``redis+socket://``, or ``sentinel://host:26379;sentinel://host:26379/0``.  ``None``
        takes the broker's own Redis.  It must be the same Redis *server* as the broker's; the
        DB number may differ.""",
    )
    redis_options: Mapping[str, Any] | None = _setting(
        None,
        _options,
        """What the way into :setting:`delay_redis_url` needs beside the URL: ``master_name``,
        ``sentinel_kwargs`` and ``min_other_sentinels`` as in ``broker_transport_options``;
        ``ssl_…`` as in ``broker_use_ssl``; ``credential_provider`` (an object, a class, or its
        dotted path); ``username``, ``password``, ``client_name``.""",
    )
    key_prefix: str = _setting(
        "celery-delay:",
        _text,
        """Put before every Redis key of celery-delay, after the broker's
        ``global_keyprefix``.  Two projects that share a Redis need two prefixes.""",
    )
    shards: int = _setting(
        1,
        _count(1, 1024),
        """Into how many independent parts the store is split; all keys of one part share
        a hash tag.  Change it only when the store is empty.""",
    )
    database_url: str | None = _setting(
        None,
        _url,
        """SQLAlchemy URL of the audit tables: PostgreSQL, MySQL, MariaDB or SQLite.
        ``None`` keeps no audit (as ``delay_audit = "off"``).  Without a driver in it, the one
        that is installed is taken.  The path of an SQLite file must be absolute: beat,
        workers and the command line may run in different folders.""",
    )
    database_engine: object | None = _setting(
        None,
        _engine,
        """Instead of the URL: an SQLAlchemy engine, a function that returns one, or the dotted
        path of either (``"shop.db:engine"``).  Its driver, arguments and listeners are
        used, its connections are not.  An asynchronous engine is refused.  Where the app is
        pickled, as on macOS and Windows, give a path or a function of a module.""",
    )
    database_schema: str | None = _setting(
        None,
        _optional_text,
        """The schema of the audit tables in PostgreSQL; in MySQL and MariaDB the database.
        ``None`` is the connection's own.  ``migrate`` makes it if it is missing.""",
    )
    database_timeout: float = _setting(
        5.0,
        _seconds(0.5, 3600.0),
        """How long the audit database may take to connect and for one statement; for a lock,
        half of it.  Longer, and the drain is given up and tried again; no task waits for
        that.  ``migrate`` takes the time it needs.""",
    )
    audit: str = _setting(
        "async",
        _choice("async", "off"),
        """``async``: every transition goes to a journal in Redis, in the same step as the
        transition, and the leader drains it to SQL.  ``off``: no journal.""",
    )
    journal_max: int = _setting(
        1_000_000,
        _count(1_000, 1_000_000_000),
        """How many undrained events the journal of a shard may hold.""",
    )
    journal_full: str = _setting(
        "gap",
        _choice("gap", "refuse"),
        """What happens when the journal is full: ``gap`` counts the events that are left
        out and records their number, ``refuse`` raises
        :exc:`~celery_delay.exceptions.JournalFull` at the call that schedules.""",
    )
    naive_eta: str = _setting(
        "app",
        _choice("app", "utc", "reject"),
        """How an ``eta`` without a time zone is read: in the app's ``timezone``, as UTC, or
        not at all (``ValueError``).""",
    )
    intercept: bool | str = _setting(
        False,
        _choice(*INTERCEPT),
        """Which of Celery's own delays wait in the store instead of in a worker's memory.
        ``"retry"``: those of ``self.retry`` and ``autoretry_for``.  ``True``: every message
        that has an eta, whatever made it.  A task's attribute of the same name
        (``@app.task(delay_intercept=…)`` or ``task_annotations``) goes before the setting.""",
    )
    intercept_min: float = _setting(
        1.0,
        _seconds(0.0),
        """Shorter delays than this stay native: a worker holds them more cheaply.""",
    )
    intercept_exclude: tuple[str, ...] = _setting(
        (),
        _names,
        """Names of tasks whose own delays always stay native, whatever else is set;
        patterns such as ``"reports.*"`` too (as :mod:`fnmatch`, upper and lower case
        differ).""",
    )
    intercept_fallback: str = _setting(
        "native",
        _choice("native", "store"),
        """What becomes of an intercepted call while no beat leads (``delay_leader_grace``), or
        while the store cannot be reached.  ``native``: it is delayed by Celery as it would be
        without celery-delay, if it is shorter than half the broker's visibility time-out;
        a longer one is stored, or raises when it cannot be.  ``store``: it is always stored,
        or raises.  A retry that cannot be stored is always native.  In each case a warning
        is logged.""",
    )
    publish_timeout: float = _setting(
        5.0,
        _seconds(0.2, 600.0),
        """When a call that schedules ends at the latest: with its task stored, sent
        natively, or with an exception.  Connecting to Redis and to the broker, the repeats
        of ``delay_add_window`` and the native way back are all within it.""",
    )
    add_window: float = _setting(
        3.0,
        _seconds(0.5, 60.0),
        """How long a schedule call may be repeated after a lost answer.  Redis refuses the
        add later than this, so that a stalled producer cannot add a task twice.""",
    )
    redis_timeout: float = _setting(
        0.5,
        _seconds(0.05, 30.0),
        """Time-out of connecting to Redis and of one command.""",
    )
    leader_grace: float = _setting(
        30.0,
        _seconds(1.0, 86_400.0),
        """When no beat has led for so long, a call that schedules takes it that none runs: it
        warns, and an intercepted one does as ``delay_intercept_fallback`` says.  It must outlast
        a restart of your beats.""",
    )
    handoff: str = _setting(
        "auto",
        _choice("auto", "claim"),
        """How due tasks reach their queues.  ``auto``: in one step inside Redis where store and
        queues are on one Redis server, else published by the leader with the broker's
        confirmation.  ``claim``: always published.""",
    )
    confirm_timeout: float = _setting(
        1.0,
        _seconds(0.1, 30.0),
        """How long the leader waits for the broker's connection, and for its confirmation of one
        message.  A message without confirmation is published again.""",
    )
    batch_size: int = _setting(
        300,
        _count(1, 1_000),
        """How many due entries one script call moves at most.  Other clients of the Redis
        wait for a call to end.""",
    )
    lease: float = _setting(
        1.0,
        _seconds(0.2, 60.0),
        """A standby takes over when the leader's lease did not change for so long.""",
    )
    lease_renew: float = _setting(
        0.25,
        _seconds(0.02, 30.0),
        """How often the leader renews its lease.""",
    )
    lease_trust: float = _setting(
        0.7,
        _seconds(0.1, 60.0),
        """For how long after the start of a successful renewal the leader believes itself.""",
    )
    election_timeout: float = _setting(
        0.2,
        _seconds(0.02, 30.0),
        """Time-out of one election command, on a connection of its own.""",
    )
    backstop: float = _setting(
        0.25,
        _seconds(0.05, 60.0),
        """A standby moves entries that are overdue by more than this while the leader makes
        no progress.""",
    )
    drain_interval: float = _setting(
        0.5,
        _seconds(0.01, 60.0),
        """The longest the leader waits between two drains of the journal to SQL.""",
    )
    drain_batch: int = _setting(
        1_000,
        _count(1, 10_000),
        """How many journal entries one SQL transaction takes at most.""",
    )
    remote_control: bool = _setting(
        True,
        _choice(True, False),
        """Whether each beat answers ``celery inspect`` and carries out ``celery control revoke``
        for stored tasks, as ``delay-PID@HOST``.""",
    )
    max_payload: int = _setting(
        1_048_576,
        _count(1_024, 512_000_000),
        """The largest message, in bytes of its body as it is sent, that may be delayed.""",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = one.metadata["check"](PREFIX + one.name, getattr(self, one.name))
            object.__setattr__(self, one.name, value)
        if self.database_url is not None and self.database_engine is not None:
            raise InvalidSetting(
                "delay_database_url and delay_database_engine are both set: each names the"
                " audit database, so leave one of them out"
            )
        if self.add_window < 2 * self.redis_timeout:
            raise InvalidSetting(
                "delay_add_window must be at least twice delay_redis_timeout"
                f" ({self.add_window:g} < 2 x {self.redis_timeout:g}): otherwise there is no"
                " time left to repeat an add whose answer was lost"
            )
        if self.publish_timeout < 4 * self.redis_timeout:
            raise InvalidSetting(
                "delay_publish_timeout must be at least four times delay_redis_timeout"
                f" ({self.publish_timeout:g} < 4 x {self.redis_timeout:g}): to connect, to store"
                " and to fall back take up to one each"
            )
        if self.lease_trust + self.election_timeout >= self.lease:
            raise InvalidSetting(
                "delay_lease_trust + delay_election_timeout must be below delay_lease"
                f" ({self.lease_trust:g} + {self.election_timeout:g} >= {self.lease:g}):"
                " otherwise two beats may lead at once"
            )
        if self.lease_renew * 2 + self.election_timeout > self.lease_trust:
            raise InvalidSetting(
                "2 x delay_lease_renew + delay_election_timeout must not exceed"
                f" delay_lease_trust ({self.lease_renew:g} x 2 + {self.election_timeout:g}"
                f" > {self.lease_trust:g}): otherwise one lost answer ends a leadership"
            )

    @property
    def has_database(self) -> bool:
        """Whether there is an audit database, written to or not."""
        return self.database_url is not None or self.database_engine is not None

    @property
    def audited(self) -> bool:
        """Whether transitions are journalled."""
        return self.audit != "off" and self.has_database

    @property
    def window_ms(self) -> int:
        """:attr:`add_window` in milliseconds."""
        return round(self.add_window * 1000)

    @classmethod
    def names(cls) -> Iterator[str]:
        """The name of each setting, with its prefix."""
        return (PREFIX + one.name for one in fields(cls))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Read the ``delay_*`` keys of *values*; all other keys are somebody else's.

        Raises:
            InvalidSetting: a ``delay_*`` name that does not exist (with the nearest one
                that does), or a value that the setting does not take.
        """
        known = set(cls.names())
        given: dict[str, Any] = {}
        for name, value in values.items():
            if not isinstance(name, str) or not name.startswith(PREFIX):
                continue
            if name not in known:
                # without the prefix, which would make any two of them alike
                bare = [one.name for one in fields(cls)]
                near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
                hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
                raise InvalidSetting(f"there is no setting {name}{hint}")
            given[name.removeprefix(PREFIX)] = value
        return cls(**given)
