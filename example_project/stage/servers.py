"""A broker and a database that the demo is given: used under names of its own, and left clean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.exceptions import DelayError
from stage.processes import Failure

__all__ = ["given_broker", "given_database"]

#: How long a server may take to answer, in seconds.
PATIENCE = 5
#: Where the demo's own databases are made from, if the URL names none.
DEFAULTS = {"postgresql": "postgres"}


@contextlib.contextmanager
def given_broker(url: str, name: str) -> Iterator[None]:
    """Make sure that the broker answers; what bears *name* on it is removed afterwards.

    Raises:
        Failure: it does not.
    """
    try:
        with Connection(url, connect_timeout=PATIENCE) as connection:
            connection.ensure_connection(max_retries=1, timeout=PATIENCE)
    except (OperationalError, OSError, ImportError, KeyError, ValueError) as exc:
        raise Failure(f"--broker: cannot connect to {_hidden(url)}: {exc}") from exc
    try:
        yield
    finally:
        with contextlib.suppress(Exception), Connection(url, connect_timeout=PATIENCE) as ours:
            channel = ours.channel()
            Queue(name, channel=channel).delete()
            control = f"{name}.control.pidbox"
            for exchange in (name, f"{name}.event", control, f"reply.{control}"):
                Exchange(exchange, channel=channel).delete()


@contextlib.contextmanager
def given_database(url: str, name: str) -> Iterator[str]:
    """Make a new database on that server, with the audit's tables; it is dropped afterwards.

    Yields:
        Its URL.

    Raises:
        Failure: it cannot be made.
    """
    try:
        given = make_url(url)
        kind = given.get_backend_name()
        server = given.set(database=given.database or DEFAULTS.get(kind))
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
    except (ArgumentError, NoSuchModuleError, ImportError) as exc:
        raise Failure(f"--database: {exc}") from exc
    name = name.replace("-", "_").lower()
    try:
        _execute(engine, f"CREATE DATABASE {name}")
    except SQLAlchemyError as exc:
        engine.dispose()
        why = str(getattr(exc, "orig", exc)).strip().splitlines()[0]
        raise Failure(f"--database: cannot make one on {server!r}: {why}") from exc
    ours = given.set(database=name).render_as_string(hide_password=False)
    try:
        log = SQLAuditLog(Database(ours))
        try:
            log.migrate()
        except DelayError as exc:
            raise Failure(f"--database: {exc}") from exc
        finally:
            log.close()
        yield ours
    finally:
        force = " WITH (FORCE)" if kind == "postgresql" else ""
        with contextlib.suppress(SQLAlchemyError):
            _execute(engine, f"DROP DATABASE {name}{force}")
        engine.dispose()


def _execute(engine: Engine, statement: str) -> None:
    with engine.connect() as connection:
        connection.execute(text(statement))


def _hidden(url: str) -> str:
    """*url* without its password."""
    before, at, after = url.rpartition("@")
    return f"{before.rpartition(':')[0]}:**@{after}" if at else after
