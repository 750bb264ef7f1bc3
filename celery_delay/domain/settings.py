"""The ``delay_*`` settings: one frozen object, checked once, documented here.

The text above each field is its documentation; the reference page is generated from
it.  Durations are seconds.  In Django with ``namespace="CELERY"`` a setting is spelled
``CELERY_DELAY_…``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from celery_delay.domain import checks
from celery_delay.domain.derived import Derived
from celery_delay.domain.gates import check_high_water, check_rates
from celery_delay.domain.retention import retention_of
from celery_delay.domain.sealing import keys_of
from celery_delay.exceptions import InvalidSetting

__all__ = ["INTERCEPT", "PREFIX", "Settings"]

PREFIX = "delay_"

#: What ``delay_intercept`` may be, as a setting and as a task's attribute.
INTERCEPT: tuple[bool | str, ...] = (False, "retry", True)


def _setting(
    default: Any, check: Callable[[str, Any], Any], doc: str, *, secret: bool = False
) -> Any:
    told = {"check": check, "doc": " ".join(doc.split())}
    return field(default=default, repr=not secret, metadata=told)


@dataclass(frozen=True)
class Settings(Derived):
    """All settings of celery-delay, without their ``delay_`` prefix."""

    redis_url: str | None = _setting(
        None,
        checks.redis_url,
        """Where delayed tasks wait: ``redis://``, ``rediss://``, ``unix://``,
        ``redis+socket://``, or ``sentinel://host:26379;sentinel://host:26379/0``.  ``None``
        takes the broker's own Redis.  It must be the same Redis *server* as the broker's; the
        DB number may differ.""",
    )
    redis_options: Mapping[str, Any] | None = _setting(
        None,
        checks.options,
        """What the way into :setting:`delay_redis_url` needs beside the URL: ``master_name``,
        ``sentinel_kwargs`` and ``min_other_sentinels`` as in ``broker_transport_options``;
        ``ssl_…`` as in ``broker_use_ssl``; ``credential_provider`` (an object, a class, or its
        dotted path); ``username``, ``password``, ``client_name``.""",
    )
    key_prefix: str = _setting(
        "celery-delay:",
        checks.text,
        """Put before every Redis key of celery-delay, after the broker's
        ``global_keyprefix``.  Two projects that share a Redis need two prefixes.""",
    )
    shards: int = _setting(
        1,
        checks.count(1, 1024),
        """Into how many independent parts the store is split; all keys of one part share
        a hash tag.  Change it only when the store is empty.""",
    )
    database_url: str | tuple[str, ...] | None = _setting(
        None,
        checks.urls,
        """SQLAlchemy URL of the audit tables: PostgreSQL, MySQL, MariaDB or SQLite.
        ``None`` keeps no audit (as ``delay_audit = "off"``).  Without a driver in it, the one
        that is installed is taken.  The path of an SQLite file must be absolute: beat,
        workers and the command line may run in different folders.  Several URLs, in a list, are
        a primary and its standbys: whichever takes writes is used; see
        :doc:`/howto/database-failover`.""",
    )
    database_engine: object | None = _setting(
        None,
        checks.engine,
        """Instead of the URL: an SQLAlchemy engine, a function that returns one, or the dotted
        path of either (``"shop.db:engine"``).  Its driver, arguments and listeners are
        used, its connections are not.  An asynchronous engine is refused.  Where the app is
        pickled, as on macOS and Windows, give a path or a function of a module.""",
    )
    database_schema: str | None = _setting(
        None,
        checks.optional_text,
        """The schema of the audit tables in PostgreSQL; in MySQL and MariaDB the database.
        ``None`` is the connection's own.  ``migrate`` makes it if it is missing.""",
    )
    database_timeout: float = _setting(
        5.0,
        checks.seconds(0.5, 3600.0),
        """How long the audit database may take to connect and for one statement; for a lock,
        half of it.  Longer, and the drain is given up and tried again; no task waits for
        that.  ``migrate`` takes the time it needs.""",
    )
    audit: str = _setting(
        "async",
        checks.choice("async", "sync", "off"),
        """``async``: every transition goes to a journal in Redis, in the same step as the
        transition, and the leader drains it to SQL.  ``sync``: SQL has each delayed task before
        Redis is told, so that nothing is lost with Redis; a call fails while SQL is away.
        ``off``: no journal.  See :doc:`/howto/sync`.""",
    )
    hot_window: float = _setting(
        0.0,
        checks.either(0.0, checks.seconds(2.0)),
        """How long before it is due a task comes to Redis, in seconds; those that are due later
        wait in SQL.  0: all wait in Redis.  A call that is to wait in SQL fails while SQL is away.
        See :doc:`/howto/cold`.""",
    )
    hot_max: int = _setting(
        0,
        checks.either(0, checks.count(1_000, 1_000_000_000)),
        """How many tasks may wait in Redis; beyond it the latest of those that SQL has as well
        go to SQL until a minute before they are due.  0: any number.""",
    )
    audit_args: str = _setting(
        "redacted",
        checks.choice("redacted", "repr", "off"),
        """What of a task's arguments goes into the journal and to SQL.  ``redacted``: Celery's
        text, with the values under names like ``password``, ``token`` or ``card`` left out.
        ``repr``: Celery's text as it is.  ``off``: nothing.  See :doc:`/howto/sensitive`.""",
    )
    audit_redact: object | None = _setting(
        None,
        checks.hook,
        """A function, or its dotted path, that is asked what the audit may show of a call:
        ``redact(task_name, args, kwargs)`` returns both, changed or as text (``None``:
        nothing).  Called by whoever schedules; if it fails, nothing is shown.""",
    )
    retention: Mapping[str, float] | None = _setting(
        None,
        retention_of,
        """How long the audit keeps tasks that are over, by state: ``{"SUCCEEDED": "30d", "FAILED":
        "90d", "*": "365d"}``, or seconds.  Tasks in states that are not named are kept, as are all
        with ``None``.  See :doc:`/howto/retention`.""",
    )
    payload_keys: tuple[str | Callable[[], object], ...] = _setting(
        (),
        keys_of,
        """The keys that encrypt payloads outside Redis, newest first: Fernet keys,
        ``"env:NAME"``, ``"file:/path"`` (a key per line), ``"call:module:function"`` or
        functions.  The first one seals, all open.  Without a key nothing is encrypted.  Needs
        ``celery-delay[encryption]``.  See :doc:`/howto/sensitive`.""",
        secret=True,
    )
    journal_max: int = _setting(
        1_000_000,
        checks.count(1_000, 1_000_000_000),
        """How many undrained events the journal of a shard may hold.""",
    )
    journal_full: str = _setting(
        "gap",
        checks.choice("gap", "refuse"),
        """What happens when the journal is full: ``gap`` counts the events that are left
        out and records their number, ``refuse`` raises
        :exc:`~celery_delay.exceptions.JournalFull` at the call that schedules.""",
    )
    naive_eta: str = _setting(
        "app",
        checks.choice("app", "utc", "reject"),
        """How an ``eta`` without a time zone is read: in the app's ``timezone``, as UTC, or
        not at all (``ValueError``).""",
    )
    intercept: bool | str = _setting(
        False,
        checks.choice(*INTERCEPT),
        """Which of Celery's own delays wait in the store instead of in a worker's memory.
        ``"retry"``: those of ``self.retry`` and ``autoretry_for``.  ``True``: every message
        that has an eta, whatever made it.  A task's attribute of the same name
        (``@app.task(delay_intercept=…)`` or ``task_annotations``) goes before the setting.""",
    )
    intercept_min: float = _setting(
        1.0,
        checks.seconds(0.0),
        """Shorter delays than this stay native: a worker holds them more cheaply.""",
    )
    intercept_exclude: tuple[str, ...] = _setting(
        (),
        checks.names,
        """Names of tasks whose own delays always stay native, whatever else is set;
        patterns such as ``"reports.*"`` too (as :mod:`fnmatch`, case matters).""",
    )
    intercept_fallback: str = _setting(
        "native",
        checks.choice("native", "store"),
        """What becomes of an intercepted call while no beat leads (``delay_leader_grace``), or
        while the store cannot be reached.  ``native``: it is delayed by Celery as it would be
        without celery-delay, if it is shorter than half the broker's visibility time-out;
        a longer one is stored, or raises when it cannot be.  ``store``: it is always stored,
        or raises.  A retry that cannot be stored is always native.  Each case is warned of.""",
    )
    publish_timeout: float = _setting(
        5.0,
        checks.seconds(0.2, 600.0),
        """When a call that schedules ends at the latest: with its task stored, sent
        natively, or with an exception.  Connecting to Redis and to the broker, the repeats
        of ``delay_add_window`` and the native way back are all within it.""",
    )
    add_window: float = _setting(
        3.0,
        checks.seconds(0.5, 60.0),
        """How long a schedule call may be repeated after a lost answer.  Redis refuses the
        add later than this, so that a stalled producer cannot add a task twice.""",
    )
    redis_timeout: float = _setting(
        0.5,
        checks.seconds(0.05, 30.0),
        """Time-out of connecting to Redis and of one command.""",
    )
    on_unknown: str = _setting(
        "leave",
        checks.choice("leave", "hold"),
        """What becomes of a delayed task whose name no task has.  ``leave``: it goes its way, and
        the worker that gets it drops it, as Celery's workers do.  ``hold``: ``celery delay
        check`` holds it, and a worker that gets it puts it back into the store, held, until
        somebody releases or cancels it.""",
    )
    leader_grace: float = _setting(
        30.0,
        checks.seconds(1.0, 86_400.0),
        """When no beat has led for so long, a call that schedules warns, and an intercepted one
        does as ``delay_intercept_fallback`` says.  It must outlast a restart of your beats.""",
    )
    handoff: str = _setting(
        "auto",
        checks.choice("auto", "claim"),
        """How due tasks reach their queues.  ``auto``: in one step inside Redis where store and
        queues are on one Redis server, else published by the leader with the broker's
        confirmation.  ``claim``: always published.""",
    )
    confirm_timeout: float = _setting(
        1.0,
        checks.seconds(0.1, 30.0),
        """How long the leader waits for the broker's connection, and for its confirmation of one
        message.  A message without confirmation is published again.""",
    )
    batch_size: int = _setting(
        300,
        checks.count(1, 1_000),
        """How many due entries one script call moves at most; Redis' others wait for its end.""",
    )
    lease: float = _setting(
        1.0,
        checks.seconds(0.2, 60.0),
        """A standby takes over when the leader's lease did not change for so long.""",
    )
    lease_renew: float = _setting(
        0.25,
        checks.seconds(0.02, 30.0),
        """How often the leader renews its lease.""",
    )
    lease_trust: float = _setting(
        0.7,
        checks.seconds(0.1, 60.0),
        """For how long after the start of a successful renewal the leader believes itself.""",
    )
    election_timeout: float = _setting(
        0.2,
        checks.seconds(0.02, 30.0),
        """Time-out of one election command, on a connection of its own.""",
    )
    backstop: float = _setting(
        0.25,
        checks.seconds(0.05, 60.0),
        """A standby moves what is overdue by more than this while the leader does not.""",
    )
    drain_interval: float = _setting(
        0.5,
        checks.seconds(0.01, 60.0),
        """The longest the leader waits between two drains of the journal to SQL.""",
    )
    drain_batch: int = _setting(
        1_000,
        checks.count(1, 10_000),
        """How many events of the journal one SQL transaction takes.  Those that were journalled
        together, up to a thousand, stay together: with the last of them it takes more.""",
    )
    remote_control: bool = _setting(
        True,
        checks.choice(True, False),
        """Whether each beat answers ``celery inspect`` and carries out ``celery control revoke``
        for stored tasks, as ``delay-PID@HOST``.""",
    )
    http: tuple[str, range] | None = _setting(
        None,
        checks.listen,
        """Where each beat serves ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz``: a host
        and a port, as in ``"127.0.0.1:9540"``; port 0 is any that is free, and the log says which.
        ``"127.0.0.1:9540-9549"`` takes the first that is free, for several beats on one machine.
        It has no login: serve it where only those come who may see it.  Needs
        ``celery-delay[metrics]``.  See :doc:`/howto/monitor`.""",
    )
    http_labels: int = _setting(
        100,
        checks.count(1, 10_000),
        """How many names (of tasks, of tasks with their queue, of schedules) each series under
        ``/metrics`` tells apart; those that come later are counted together as ``other``.""",
    )
    worker_revokes: bool = _setting(
        False,
        checks.choice(True, False),
        """Whether a worker asks the store, for each delayed task that it receives, if it was
        revoked meanwhile.  So a revoke, or a cancel with ``chase``, that came too late for the
        store outlives the memory of workers: for seven days.  One read of Redis per delayed
        task; if Redis does not answer, the task runs.  Set it for those who revoke, too.""",
    )
    guard: str = _setting(
        "off",
        checks.choice("off", "track", "guard"),
        """What mends the tasks that Celery loses and doubles when a worker is killed.  ``track``:
        what was handed off and that no worker begins is sent again.  ``guard``: workers also
        drop copies of a run that has begun elsewhere or is over.  Set it for workers first, then
        for beats.  See :doc:`/howto/guard`.""",
    )
    guard_patience: float = _setting(
        30.0,
        checks.seconds(1.0, 86_400.0),
        """For how long a message must be found nowhere to be sent again, twice in a row; and
        after how long without a sign of life a worker counts as dead.""",
    )
    guard_keep: float = _setting(
        3_600.0,
        checks.seconds(10.0, 604_800.0),
        """For how long at least the guard knows that a run is over, and drops copies of it.  It
        must outlast the broker's ``visibility_timeout``.""",
    )
    guard_most: int = _setting(
        100_000,
        checks.count(1, 10_000_000),
        """How many handed-off tasks of a shard are watched at once; more go out unwatched.""",
    )
    rate_limits: Mapping[str, str | int | float] | None = _setting(
        None,
        check_rates,
        """How many tasks all beats hand off at most, by ``task:NAME`` or ``queue:NAME``, such as
        ``{"task:shop.mail": "100/s", "queue:slow": "600/m"}``; those beyond it wait.""",
    )
    queue_high_water: int | Mapping[str, int] | None = _setting(
        None,
        check_high_water,
        """How many messages a queue may hold for more to be handed to it: a number for every
        queue, or ``{"celery": 10_000}``.  Due tasks wait in Redis while it holds as many.""",
    )
    flower_actions: str = _setting(
        "login",
        checks.choice("login", "open", "off"),
        """Who may change something in Flower's *Delayed* tab.  ``login``: whoever Flower lets in
        by ``--basic-auth`` or ``--auth``; without either, nobody.  ``open``: anybody who reaches
        it.  ``off``: nobody.  Flower's ``--read-only`` goes before it.""",
    )
    flower_origins: tuple[str, ...] = _setting(
        (),
        checks.origins,
        """From where a browser may change something in that tab, such as
        ``("https://flower.example.com",)``; needed behind a proxy that passes another ``Host``.
        Empty: from the host that Flower is asked at.""",
    )
    max_payload: int = _setting(
        1_048_576,
        checks.count(1_024, 512_000_000),
        """The largest message, in bytes of its body as it is sent, that may be delayed.""",
    )

    log_format: str = _setting(
        "human",
        checks.choice("human", "ecs"),
        """How log lines are written.  ``human``: as Celery writes them.  ``ecs``: as JSON in the
        Elastic Common Schema, all lines of a beat and ours of a worker; needs the extra ``ecs``.
        See :doc:`/howto/logs`.""",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = one.metadata["check"](PREFIX + one.name, getattr(self, one.name))
            object.__setattr__(self, one.name, value)
        checks.together(self)

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
