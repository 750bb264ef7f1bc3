"""How long the database may keep us waiting.

Four things can keep a thread waiting, and each has its own remedy:

* **connecting**: the driver's own time-out;
* **a lock that somebody else holds**, and **a statement that takes too long**: the server
  ends them, since it was told how long it may take.  PostgreSQL is told in each
  transaction, for that transaction only: a connection pooler between us and the server
  may give our session to somebody else.  MySQL and MariaDB are told once per connection;
* **a server that says nothing at all** (frozen, or behind a network that swallows
  packets) ends nothing.  Only PyMySQL can wait with a time-out, so a :class:`Fuse` shuts
  the socket down from our side, whatever the driver.

The server is also told to end a transaction that *we* leave open: a beat that is frozen in
one would hold the lock on the journal's place against its successor.
"""

from __future__ import annotations

import math
import os
import socket
import threading
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError

from celery_delay.domain.clock import SystemClock
from celery_delay.exceptions import AuditUnavailable

__all__ = ["FUSE_THREAD", "Fuse", "Limits", "connect_args", "impose"]

#: How long a pooled connection may take to show that it is alive, in seconds.
PING_TIMEOUT = 2.0
#: How much longer than the server we wait: its own message says more than a cut line.
GRACE = 1.0

#: Name of the threads that wait for silence.
FUSE_THREAD = "delay-audit-fuse"

_clock = SystemClock()
_FUSE, _NEW = "celery_delay.fuse", "celery_delay.new"


class Limits(NamedTuple):
    """Seconds: for a connection, for one statement, for one lock."""

    connect: float
    statement: float
    lock: float

    @classmethod
    def of(cls, timeout: float) -> Limits:
        """Those of the auditor.  Half for a lock, so that one retry fits in."""
        return cls(timeout, timeout, timeout / 2)

    @classmethod
    def of_migration(cls, timeout: float) -> Limits:
        """Those of ``migrate``, which may rewrite a large table while beats write to it."""
        return cls(timeout, max(timeout, 3600.0), max(timeout, 30.0))

    @property
    def silence(self) -> float:
        """After how long a server that should have answered is given up."""
        # MySQL counts in whole seconds, so that a statement there has two at least
        return max(self.statement, 2.0) + GRACE


def connect_args(url: URL, limits: Limits) -> dict[str, Any]:
    """What the driver of a URL is told when it connects; what the URL itself says stands."""
    driver, seconds = url.get_driver_name(), math.ceil(limits.connect)
    arguments: dict[str, Any] = {}
    if driver in ("psycopg", "psycopg2"):
        # a peer that has vanished without a word: noticed by the kernel too
        arguments = {"connect_timeout": seconds, "tcp_user_timeout": int(limits.silence * 1000)}
    elif driver in ("pymysql", "mysqldb"):
        silence = math.ceil(limits.silence)  # also for the greeting, while it connects
        arguments = {"connect_timeout": seconds, "read_timeout": silence, "write_timeout": silence}
    return {name: value for name, value in arguments.items() if name not in url.query}


def impose(engine: Engine, limits: Limits) -> None:
    """Let *engine*'s connections keep to *limits*."""
    backend = engine.dialect.name
    if backend == "sqlite":
        busy = f"PRAGMA busy_timeout={limits.lock * 1000:.0f}"
        # before anything that reads the file
        event.listen(engine, "connect", lambda raw, _: _run(raw, busy), insert=True)
        return
    if backend == "postgresql":
        ours = _postgresql_settings(limits)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(ours).close())
    else:
        event.listen(engine, "connect", lambda raw, _: _run(raw, _mysql_settings(raw, limits)))
    _guard(engine, limits.silence)


def _postgresql_settings(limits: Limits) -> str:
    seconds = {
        "statement_timeout": limits.statement,
        "lock_timeout": limits.lock,
        "idle_in_transaction_session_timeout": limits.statement * 2,
    }
    settings = {name: f"{value * 1000:.0f}" for name, value in seconds.items()}
    # Each statement of ours goes by an index, for as many rows as it wants.  Without statistics,
    # which a table has only some time after it was filled or restored, PostgreSQL takes a list of
    # ids for half of it, and reads all; or it collects all that an index has, for a page.
    settings |= {"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}
    return "SELECT " + ", ".join(
        f"set_config('{name}', '{value}', true)" for name, value in settings.items()
    )


def _mysql_settings(raw: Any, limits: Limits) -> str:
    # whole seconds; and a lock's error tells more than a statement's, so it comes first
    lock = max(1, math.floor(limits.lock))
    statement = max(lock + 1, math.ceil(limits.statement))
    # row locks; those of LOCK TABLE and of somebody's migration
    settings = {"innodb_lock_wait_timeout": lock, "lock_wait_timeout": lock}
    if "mariadb" in str(raw.get_server_info()).lower():
        settings["max_statement_time"] = statement
        settings["idle_transaction_timeout"] = 2 * statement
    else:  # in ms, and for reading only
        settings["max_execution_time"] = statement * 1000
    return "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in settings.items())


def _run(raw: Any, statement: str) -> None:
    cursor = raw.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


# --- a server that says nothing --------------------------------------------------------------


class Fuse:
    """Shuts a connection's socket down when its time is over, unless it is removed before.

    Whoever waits for the server then gets the driver's error for a broken connection.

    Attributes:
        seconds: how much time there was.
        blown: whether it was over.
    """

    def __init__(self, raw: Any, seconds: float) -> None:
        self.blown = False
        # a duplicate of our own: the driver's number may be another connection's by then
        self._socket = socket.socket(fileno=os.dup(_descriptor(raw)))
        self._removed = threading.Event()
        self.renew(seconds)
        threading.Thread(target=self._burn, name=FUSE_THREAD, daemon=True).start()

    def renew(self, seconds: float) -> None:
        """The server has answered, and is asked something else; never for less time."""
        self.seconds = seconds
        self._deadline = _clock.monotonic() + seconds

    def remove(self) -> None:
        """The server has answered."""
        self._removed.set()
        self._socket.close()

    def _burn(self) -> None:
        while (left := self._deadline - _clock.monotonic()) > 0:
            if self._removed.wait(left):
                return
        self.blown = True
        with suppress(OSError):  # removed in this very moment
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _descriptor(raw: Any) -> int:
    # PyMySQL has no method for it
    number: int = raw.fileno() if hasattr(raw, "fileno") else raw._sock.fileno()
    return number


def _light(info: dict[Any, Any], raw: Any, seconds: float) -> None:
    _put_out(info)
    with suppress(AttributeError, OSError):  # no socket, or none any more
        info[_FUSE] = Fuse(raw, seconds)


def _put_out(info: dict[Any, Any]) -> None:
    fuse = info.pop(_FUSE, None)
    if fuse is not None:
        fuse.remove()


def _guard(engine: Engine, silence: float) -> None:
    """Put a fuse in front of all that waits for the server.

    One for each time that a connection is in use, renewed by each thing that is asked: what
    we do ourselves in between is short.
    """

    def connected(raw: Any, record: Any) -> None:
        _light(record.info, raw, silence)
        record.info[_NEW] = True

    def checked_out(raw: Any, record: Any, _proxy: Any) -> None:
        if record.info.pop(_NEW, False):
            return
        _light(record.info, raw, PING_TIMEOUT)
        try:
            alive = engine.dialect.do_ping(raw)  # the first releases of SQLAlchemy 2.0 raise less
        except engine.dialect.loaded_dbapi.Error:
            alive = False
        if not alive:
            _put_out(record.info)
            raise DisconnectionError("the connection has ended in the meantime")

    def asked(connection: Connection, *_: Any) -> None:
        if not connection.closed and not connection.invalidated:
            fuse = connection.info.get(_FUSE)
            if fuse is not None:
                fuse.renew(silence)

    def failed(context: ExceptionContext) -> None:
        fuse = context.connection.info.get(_FUSE) if context.connection is not None else None
        if fuse is not None and fuse.blown:
            raise AuditUnavailable(
                f"the audit database said nothing for {fuse.seconds:g} s (delay_database_timeout)"
            ) from context.original_exception

    # before SQLAlchemy asks the server who it is
    event.listen(engine, "connect", connected, insert=True)
    event.listen(engine, "checkout", checked_out)
    for name in ("checkin", "close", "invalidate"):
        event.listen(engine, name, lambda _raw, record, *_: _put_out(record.info))
    for name in ("before_cursor_execute", "commit", "rollback"):
        event.listen(engine, name, asked)
    event.listen(engine, "handle_error", failed)
