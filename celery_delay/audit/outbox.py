"""The caller's own SQLAlchemy transaction, for entries that are to commit with it.

``Session`` and ``scoped_session`` write at once, over the session's connection.  ``AsyncSession``
cannot be waited for in a call that is none of ``async``: its row is an object that the session
flushes, like any other, at the latest when it commits.  A bare ``Connection`` has no hook for what
comes after the commit, so the leader's relay mirrors what it wrote.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import URL, Connection, Engine, MetaData, Table, event, insert, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, registry, scoped_session

from celery_delay.audit.backed import SQLBackedRows
from celery_delay.audit.clocks import clock_of
from celery_delay.audit.database import Database
from celery_delay.audit.tables import meta, payload
from celery_delay.domain.backing import BackedRow
from celery_delay.domain.outbox import Transaction
from celery_delay.exceptions import InvalidSetting

__all__ = ["transaction_of"]

#: Where a session keeps what is to be called after its transaction.
_CALLS = "celery_delay_calls"
_OTHER = (
    "session= leads to {there}, and the audit's database is {ours}: the relay would never see the"
    " task.  Use that database (delay_database_url, delay_database_schema), or no session="
)
#: The databases of audits that an engine was found to lead to.
_known: WeakKeyDictionary[Engine, WeakSet[Database]] = WeakKeyDictionary()
_PORTS: dict[str, int] = {"postgresql": 5432, "mysql": 3306}
_THIS_HOST = {"", "localhost", "127.0.0.1", "::1"}


def transaction_of(
    session: Any, rows: SQLBackedRows, uuid: Callable[[], str | None]
) -> Transaction:
    """The transaction that *session* is in, or begins.

    Arguments:
        session: a Session, AsyncSession, scoped_session (async too) or Connection.
        uuid: tells the uuid of the audit's database.

    Raises:
        TypeError: it is something else.
        InvalidSetting: it leads to another database than the audit's.
    """
    if isinstance(session, (scoped_session, async_scoped_session)):
        session = session()
    if isinstance(session, AsyncSession):
        return _Deferred(session.sync_session, rows, uuid)
    if isinstance(session, Session):
        return _Direct(session, rows, uuid)
    if isinstance(session, Connection):
        return _Plain(session, rows, uuid)
    raise TypeError(
        f"session={session!r} must be SQLAlchemy's Session, AsyncSession, scoped_session or"
        " Connection (of an AsyncConnection, give what run_sync gives you)"
    )


class _Plain:
    """The transaction of a connection."""

    def __init__(
        self, connection: Connection, rows: SQLBackedRows, uuid: Callable[[], str | None]
    ) -> None:
        self._connection, self._rows = connection, rows
        # said even where there is none: the caller's own map is not meant for our tables
        self._place = {"schema_translate_map": {None: rows.database.schema}}
        known = _known.setdefault(connection.engine, WeakSet())
        if rows.database not in known:
            self._check(uuid())
            known.add(rows.database)

    def _check(self, ours: str | None) -> None:
        schema = self._rows.database.schema
        # not by trying: PostgreSQL ends a transaction in which a statement has failed
        there = inspect(self._connection).has_table(meta.name, schema=schema)
        asked = select(meta.c.value).where(meta.c.name == "uuid")
        if not there or ours is None or self._execute(asked).scalar() != ours:
            url = self._connection.engine.url
            raise InvalidSetting(_OTHER.format(there=url, ours=self._rows.database))

    def clock_ms(self) -> int | None:
        return clock_of(self._connection)

    def write(self, rows: Sequence[BackedRow]) -> None:
        self._execute(insert(payload), self._rows.new_values(rows))

    def afterwards(self, call: Callable[[], None]) -> None:
        pass  # there is no such hook; the relay looks at the row

    def _execute(self, statement: Any, given: Any = None) -> Any:
        return self._connection.execute(statement, given, execution_options=self._place)


class _Direct(_Plain):
    """The transaction of a session, whose connection is at hand."""

    def __init__(
        self, session: Session, rows: SQLBackedRows, uuid: Callable[[], str | None]
    ) -> None:
        self._session = session
        # says what it is for: a session may read elsewhere than it writes
        connection = session.connection(bind_arguments={"clause": insert(payload)})
        super().__init__(connection, rows, uuid)

    def afterwards(self, call: Callable[[], None]) -> None:
        _call_after(self._session, call)


class _Deferred:
    """The transaction of a session that only its event loop can wait for."""

    def __init__(
        self, session: Session, rows: SQLBackedRows, uuid: Callable[[], str | None]
    ) -> None:
        self._session, self._rows = session, rows
        self._class = _mapped(rows.database.schema)
        there, ours = _engine_of(session, self._class).url, rows.database.url
        if _name(there) != _name(ours):
            raise InvalidSetting(_OTHER.format(there=there, ours=rows.database))
        if not _hosts(there) & _hosts(ours):
            # two names of one server, or two servers: its connection tells, when it flushes
            _ask_at_flush(session, rows, self._class, uuid())

    def clock_ms(self) -> int | None:
        return None

    def write(self, rows: Sequence[BackedRow]) -> None:
        self._session.add_all([self._class(**one) for one in self._rows.new_values(rows)])

    def afterwards(self, call: Callable[[], None]) -> None:
        _call_after(self._session, lambda: _beside(call))


def _call_after(session: Session, call: Callable[[], None]) -> None:
    if _CALLS not in session.info:
        session.info[_CALLS] = []
        event.listen(session, "after_transaction_end", _ended)
    session.info[_CALLS].append(call)


def _ended(session: Session, transaction: Any) -> None:
    # of a savepoint nothing is known before all of it has ended
    if transaction.parent is None:
        calls, session.info[_CALLS][:] = list(session.info[_CALLS]), []
        for call in calls:
            call()


def _beside(call: Callable[[], None]) -> None:
    """Call it without keeping the event loop waiting, where there is one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        call()
    else:
        loop.run_in_executor(None, call)


@cache
def _mapped(schema: str | None) -> type:
    table: Table = payload if schema is None else payload.to_metadata(MetaData(), schema=schema)
    made = type("_Payload", (), {})
    registry().map_imperatively(made, table)
    return made


def _engine_of(session: Session, mapped: type) -> Engine:
    return session.get_bind(mapped).engine


def _name(url: URL) -> tuple[str, str | None]:
    """The kind of a database, and its name."""
    backend, name = url.get_backend_name(), url.database
    if backend == "sqlite" and name and not name.startswith(("file:", ":")):
        name = os.path.realpath(name)
    return "mysql" if backend == "mariadb" else backend, name


def _hosts(url: URL) -> set[tuple[str, str]]:
    """The servers that a URL names, each with its port."""
    backend, _ = _name(url)
    usual = str(url.port or _PORTS.get(backend) or "")
    ports = _listed(url.query.get("port"))
    named = [url.host] if url.host else _listed(url.query.get("host")) or [""]
    found = set()
    for number, one in enumerate(named):
        host, _, port = ("", "", "") if one.startswith("/") else one.partition(":")
        port = port or (ports[min(number, len(ports) - 1)] if ports else usual)
        found.add(("" if host in _THIS_HOST else host, port))
    return found


def _listed(value: str | tuple[str, ...] | None) -> list[str]:
    return ",".join([value] if isinstance(value, str) else value or []).split(",") if value else []


def _ask_at_flush(session: Session, rows: SQLBackedRows, mapped: type, ours: str | None) -> None:
    def ask(_: Session, *__: Any) -> None:
        if any(isinstance(one, mapped) for one in session.new):
            _Direct(session, rows, lambda: ours)

    event.listen(session, "before_flush", ask)
