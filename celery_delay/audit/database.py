"""Connections to the audit database.

The engine is made on first use in each process: a worker's children are forked, and a
connection that two processes share is broken for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from celery_delay.audit.limits import Limits, connect_args, impose
from celery_delay.audit.sources import Source, from_engine, from_url
from celery_delay.audit.writable import leave_read_only
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import AuditUnavailable, InvalidSetting

__all__ = ["ATTEMPTS", "Database", "unavailable"]

T = TypeVar("T")

#: How often a transaction is tried that the database ends for the sake of another one.
ATTEMPTS = 5

#: How the databases say that a transaction had to give way: SQLSTATE for a serialization
#: failure, a deadlock and a lock that was not to be had; and the numbers of MySQL and MariaDB
#: for a deadlock, a lock, and a row that has changed since the transaction's snapshot.
_GAVE_WAY = {"40001", "40P01", "55P03", 1213, 1205, 1020}


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn a driver's error into AuditUnavailable, without statement or parameters."""
    try:
        yield
    except DBAPIError as exc:
        raise AuditUnavailable(f"the audit database refused: {_reason(exc.orig)}") from exc
    except (SQLAlchemyError, OSError) as exc:
        raise AuditUnavailable(f"the audit database cannot be used: {exc}") from exc


class Database:
    """The audit database of one process, and of each process forked from it.

    Arguments:
        source: an SQLAlchemy URL, several, or what :mod:`celery_delay.audit.sources` has made of
            them.
        schema: the schema (on MySQL and MariaDB: the database) that has our tables; ``None``
            for the connection's default.
        timeout: how long the database may keep the auditor waiting, in seconds; see
            :mod:`celery_delay.audit.limits`.

    Raises:
        InvalidSetting: a URL that cannot work, a driver that is not installed, or a schema on
            SQLite.
    """

    def __init__(
        self,
        source: str | URL | Sequence[str] | Source,
        *,
        schema: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.source = source if isinstance(source, Source) else from_url(source)
        self.schema = schema
        self.timeout = timeout
        if self.is_sqlite and schema is not None:
            raise InvalidSetting(
                "delay_database_schema is for PostgreSQL, MySQL and MariaDB; SQLite has no schemas:"
                " leave it out, or name another file"
            )
        #: Makes what surrounds each transaction, to measure it.
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._engine: Engine | None = None
        self._pid = 0

    @classmethod
    def of(cls, settings: Settings) -> Database:
        """The database that the settings name; raises InvalidSetting."""
        if settings.database_engine is not None:
            source = from_engine(settings.database_engine)
        elif settings.database_url is not None:
            source = from_url(settings.database_url)
        else:
            raise InvalidSetting("delay_database_url is not set")
        return cls(source, schema=settings.database_schema, timeout=settings.database_timeout)

    def __str__(self) -> str:
        """The URL without its password."""
        return str(self.source)

    @property
    def url(self) -> URL:
        """The URL, with the driver that is used."""
        return self.source.url

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of our own, which we migrate ourselves."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def engine(self) -> Engine:
        """This process' engine."""
        if self._engine is None or self._pid != os.getpid():
            if self._engine is not None:
                # the parent goes on using these connections: forget them, close nothing
                self._engine.dispose(close=False)
            self._engine, self._pid = self._make(Limits.of(self.timeout)), os.getpid()
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read from; raises AuditUnavailable."""
        with self.around(), unavailable(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def paging(self) -> Iterator[Connection]:
        """As :meth:`reading`, for a page of what an index has in the order that is asked for.

        PostgreSQL without statistics would sort all that is left for each page.  Where an order
        has to be made, or another index is the better one, this setting would do harm.
        """
        with self.reading() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL enable_sort = off").close()
            yield connection

    @contextmanager
    def writing(self, lock: str = "IMMEDIATE") -> Iterator[Connection]:
        """One transaction, committed at the end of the block; raises AuditUnavailable.

        SQLite takes its *lock* at the start: a transaction that begins by reading and then
        wants to write may be refused without any waiting.
        """
        with (
            self.around(),
            unavailable(),
            self.engine.execution_options(begin=lock).begin() as connection,
        ):
            yield connection

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do *work* in one transaction, and again if that had to give way to another one.

        That is a deadlock, a serialization failure, or a lock that was not to be had.  A
        repeat begins within the database's time-out, and after some :data:`ATTEMPTS` the
        last error is raised.

        Raises:
            AuditUnavailable: nothing of *work* was kept, unless the connection broke amid the
                commit; so *work* must recognise what it did before.
        """
        done: T = self._again(stop_after_attempt(ATTEMPTS))(self._write, work)
        return done

    def _again(self, stop: stop_base = stop_never) -> Retrying:
        """Repeats what had to give way to another transaction, within the time-out."""
        return Retrying(
            retry=retry_if_exception(_gave_way),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            stop=stop | stop_after_delay(self.timeout * 0.9),
            reraise=True,
        )

    def _write(self, work: Callable[[Connection], T]) -> T:
        with self.writing() as connection:
            return work(connection)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """One transaction that changes tables, with time for it; raises AuditUnavailable."""
        if self.is_sqlite:
            with self.writing("EXCLUSIVE") as connection:
                yield connection
            return
        engine = self._make(Limits.of_migration(self.timeout))
        try:
            with unavailable(), engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def use_wal(self) -> None:
        """Let readers of an SQLite file go on while somebody writes; kept in the file."""
        # of several who ask for this at once SQLite refuses all but one, without any waiting
        self._again()(self._use_wal)

    def _use_wal(self) -> None:
        with unavailable(), self.engine.connect().execution_options(begin="") as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def close(self) -> None:
        """Close this process' connections; the next use opens new ones."""
        if self._engine is not None:
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    def _make(self, limits: Limits) -> Engine:
        engine = self.source.make(connect_args(self.url, limits))
        if self.schema is not None:
            engine.update_execution_options(schema_translate_map={None: self.schema})
        if self.is_sqlite:
            event.listen(engine, "connect", _on_sqlite_connect)
            event.listen(engine, "begin", _on_sqlite_begin)
        elif self.source.ready is not None:
            event.listen(engine, "connect", lambda raw, _: _in_transactions(engine, raw))
        impose(engine, limits)
        leave_read_only(engine)
        return engine


def _gave_way(exc: BaseException) -> bool:
    """Whether a transaction failed because of another one, and can be repeated."""
    cause = exc.__cause__
    if not isinstance(cause, DBAPIError):
        return False
    error: Any = cause.orig
    code = error.args[0] if error.args else None
    # SQLite has no code in Python 3.10
    return bool({code, *_sqlstates(error)} & _GAVE_WAY) or "is locked" in str(code)


def _reason(error: Any) -> str:
    """A driver's message, on one line."""
    text = str(error).strip()
    # below the first line, PostgreSQL shows the statement and the row
    return text.partition("\n")[0] if any(_sqlstates(error)) else " ".join(text.split())


def _sqlstates(error: Any) -> tuple[str | None, str | None]:
    """An error's SQLSTATE under the names that the drivers have for it."""
    return getattr(error, "sqlstate", None), getattr(error, "pgcode", None)


def _in_transactions(engine: Engine, raw: Any) -> None:
    # an engine that was given may commit each statement by itself; a batch is all or nothing
    level = engine.dialect.default_isolation_level
    if level is not None:
        engine.dialect.set_isolation_level(raw, level)


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
