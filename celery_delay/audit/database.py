"""Connections to the audit database.

The engine is made on first use in each process: a worker's children are forked, and a
connection that two processes share is broken for both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from celery_delay.exceptions import AuditUnavailable, InvalidSetting

__all__ = ["Database", "unavailable"]

#: How long a statement waits for another process' lock on an SQLite file, in seconds.
SQLITE_BUSY = 1.0
#: How long connecting to a server may take, in whole seconds.
CONNECT_TIMEOUT = 5

_SUPPORTED = ("sqlite", "postgresql", "mysql", "mariadb")
_CONNECT_ARGS: dict[str, dict[str, Any]] = {
    "pysqlite": {"timeout": SQLITE_BUSY},
    "psycopg": {"connect_timeout": CONNECT_TIMEOUT},
    "psycopg2": {"connect_timeout": CONNECT_TIMEOUT},
    # a server that hangs must not hold the auditor for ever
    "pymysql": {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": 60, "write_timeout": 60},
    "mysqldb": {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": 60, "write_timeout": 60},
}


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn a driver's error into AuditUnavailable, without statement or parameters."""
    try:
        yield
    except DBAPIError as exc:
        raise AuditUnavailable(f"the audit database refused: {exc.orig}") from exc
    except (SQLAlchemyError, OSError) as exc:
        raise AuditUnavailable(f"the audit database cannot be used: {exc}") from exc


class Database:
    """The audit database of one process, and of each process forked from it.

    Arguments:
        url: an SQLAlchemy URL.

    Raises:
        InvalidSetting: no URL, an unsupported database, an SQLite file without an absolute
            path, or a driver that is not installed (found at the first connection).
    """

    def __init__(self, url: str | URL) -> None:
        try:
            self.url = make_url(url)
            self._backend = self.url.get_backend_name()
        except ArgumentError as exc:
            raise InvalidSetting("delay_database_url is not a URL that SQLAlchemy reads") from exc
        if self._backend not in _SUPPORTED:
            names = ", ".join(_SUPPORTED)
            raise InvalidSetting(f"delay_database_url must name one of {names}: {self}")
        if self.is_sqlite and not _is_absolute(self.url.database or ""):
            raise InvalidSetting(
                "delay_database_url must have the absolute path of a file, as in"
                f" sqlite:////var/lib/shop/delay.db: {self}"
            )
        self._engine: Engine | None = None
        self._pid = 0

    def __str__(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of our own, which we migrate ourselves."""
        return self._backend == "sqlite"

    @property
    def engine(self) -> Engine:
        """This process' engine."""
        if self._engine is None or self._pid != os.getpid():
            if self._engine is not None:
                # the parent goes on using these connections: forget them, close nothing
                self._engine.dispose(close=False)
            self._engine, self._pid = self._make(), os.getpid()
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read from; raises AuditUnavailable."""
        with unavailable(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, lock: str = "IMMEDIATE") -> Iterator[Connection]:
        """One transaction, committed at the end of the block; raises AuditUnavailable.

        SQLite takes its *lock* at the start: a transaction that begins by reading and then
        wants to write may be refused without any waiting.
        """
        with unavailable(), self.engine.execution_options(begin=lock).begin() as connection:
            yield connection

    def use_wal(self) -> None:
        """Let readers of an SQLite file go on while somebody writes; kept in the file."""
        with unavailable(), self.engine.connect().execution_options(begin="") as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def close(self) -> None:
        """Close this process' connections; the next use opens new ones."""
        if self._engine is not None:
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    def _make(self) -> Engine:
        try:
            driver = self.url.get_driver_name()
            engine = create_engine(
                self.url,
                connect_args=_CONNECT_ARGS.get(driver, {}),
                # one for the auditor; more only while somebody reads at the same time
                pool_size=1,
                max_overflow=9,
                pool_pre_ping=not self.is_sqlite,
                # arguments of tasks do not belong into logs and tracebacks
                hide_parameters=True,
            )
        except (ImportError, NoSuchModuleError) as exc:
            raise InvalidSetting(f"the driver for {self} is not installed: {exc}") from exc
        if self.is_sqlite:
            event.listen(engine, "connect", _on_sqlite_connect)
            event.listen(engine, "begin", _on_sqlite_begin)
        return engine


def _is_absolute(path: str) -> bool:
    return os.path.isabs(path.removeprefix("file:").partition("?")[0])


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # the driver would begin transactions by itself, and too late
    connection.isolation_level = None
    # with NORMAL a power cut may undo a commit, and the journal is trimmed by then
    connection.execute("PRAGMA synchronous=FULL")
    # keys are random: with the default 2 MB, pages are read and written back all the time
    connection.execute("PRAGMA cache_size=-16000")
    connection.execute("PRAGMA wal_autocheckpoint=4000")


def _on_sqlite_begin(connection: Connection) -> None:
    lock = connection.get_execution_options().get("begin", "DEFERRED")
    if lock:
        connection.exec_driver_sql(f"BEGIN {lock}")
