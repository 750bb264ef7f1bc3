"""The SQL databases that tests run on: one per kind of server, and of each test process its own.

The servers are those that the environment names (:mod:`tests.servers`); in each, a database
is made when it is first asked for and dropped at the end.  Its name bears the process, so that
several runs, or the workers of one, do not meet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Engine, create_engine, delete, inspect, make_url, text

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.sources import from_url
from celery_delay.audit.tables import cursor, entry, epoch, event, metadata, payload, tag, task
from celery_delay.audit.version import VERSION_TABLE
from tests.servers import server_url

__all__ = ["KINDS", "SERVERS", "SQLDatabases", "administrator", "emptied", "migrated", "run_sql"]

#: Every database that the contract is checked on.
KINDS = ("sqlite", "postgresql", "mariadb")
#: Those that are servers, by what the environment calls them.
SERVERS = {"postgresql": "postgres", "mariadb": "mysql"}


class SQLDatabases:
    """The databases of one test process, each made when first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[URL, str]] = {}

    def url(self, kind: str) -> str:
        """The URL of our database on ``postgresql`` or ``mariadb``."""
        if kind not in self._made:
            server = make_url(server_url(SERVERS[kind]))
            worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
            name = f"{server.database}_{worker}_{os.getpid()}"
            with administrator(server) as engine:
                run_sql(engine, f"CREATE DATABASE {name}")
            self._made[kind] = server, name
        server, name = self._made[kind]
        return server.set(database=name).render_as_string(hide_password=False)

    def close(self) -> None:
        """Drop them, whoever is still connected."""
        for kind, (server, name) in self._made.items():
            force = " WITH (FORCE)" if kind == "postgresql" else ""
            with administrator(server) as engine:
                run_sql(engine, f"DROP DATABASE IF EXISTS {name}{force}")
        self._made.clear()


@contextmanager
def administrator(url: str | URL) -> Iterator[Engine]:
    """An engine, not ours, whose statements are committed at once."""
    engine = create_engine(from_url(url).url, isolation_level="AUTOCOMMIT")
    try:
        yield engine
    finally:
        engine.dispose()


def run_sql(engine: Engine, *statements: str) -> Any:
    """Run statements one by one; the first value that the last one returns, if any."""
    with engine.connect() as connection:
        for one in statements:
            answer = connection.execute(text(one))
        return answer.scalar() if answer.returns_rows else None


@contextmanager
def emptied(url: str, **options: Any) -> Iterator[Database]:
    """The database at *url* without tables of ours, before and after."""
    database = Database(url, **options)
    _drop(database)
    try:
        yield database
    finally:
        _drop(database)
        database.close()


@contextmanager
def migrated(url: str) -> Iterator[Database]:
    """The database at *url* with our tables and no rows; the tables stay for the next test."""
    database = Database(url)
    with database.reading() as connection:
        there = set(inspect(connection).get_table_names())
    if not {*metadata.tables, VERSION_TABLE} <= there:
        _drop(database)
    SQLAuditLog(database).migrate()
    with database.writing() as connection:
        for table in (task, tag, entry, event, epoch, cursor, payload):
            connection.execute(delete(table))
    try:
        yield database
    finally:
        database.close()


def _drop(database: Database) -> None:
    with database.writing() as connection:
        metadata.drop_all(connection)
        if inspect(connection).has_table(VERSION_TABLE):
            connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
