"""Making and migrating the audit tables, by Alembic; loaded only where that is done.

All of it happens in the schema that the connection's :class:`Database` names: SQLAlchemy
puts its name into our statements, and Alembic and the inspector are told it here.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Dialect, delete, insert, inspect, text, update
from sqlalchemy.schema import CreateSchema

from celery_delay.audit.tables import cursor, meta
from celery_delay.audit.version import UUID, VERSIONS, is_current, read_uuid, schema_of
from celery_delay.exceptions import SchemaOutdated

__all__ = ["adopt", "alembic_config", "as_sql", "upgrade"]

#: Any number will do that no other program locks in the same database.
_LOCK = 0x63656C64


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for *connection*, whose transaction the migrations join."""
    config = Config()
    # "%" begins an interpolation in Alembic's options
    folder = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> str:
    """Bring the tables to this release's version, within the caller's transaction.

    A schema that is not there is made; it is never dropped.  Safe to repeat.  Of several
    processes at once, the later ones wait and find nothing to do (on MySQL they fail: it
    commits each statement of a schema by itself, and a crash leaves what was done; elsewhere
    it leaves the tables as they were).

    Returns:
        The database's uuid, drawn now if it has none.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    wanted = schema_of(connection)
    # not IF NOT EXISTS: that needs the right to create one, even where it is there
    if wanted is not None and wanted not in inspect(connection).get_schema_names():
        connection.execute(CreateSchema(wanted))
    try:
        if not is_current(connection):
            command.upgrade(alembic_config(connection), "head")
    except CommandError as exc:
        raise SchemaOutdated(f"the audit tables cannot be migrated: {exc}") from exc
    uuid = read_uuid(connection)
    if uuid is None:
        uuid = str(uuid4())
        connection.execute(insert(meta).values(name=UUID, value=uuid))
    return uuid


def as_sql(dialect: str, wanted: str | None, since: str | None = None) -> str:
    """What :func:`upgrade` would run, as SQL for whoever may change the database; connects nowhere.

    Arguments:
        dialect: ``postgresql``, ``mysql``, ``mariadb`` or ``sqlite``.
        wanted: the schema (in MySQL and MariaDB the database) of the tables.
        since: the version that the tables have; ``None``: there are none yet.

    Raises:
        ValueError: there is no such version.
    """
    if since is not None and since not in VERSIONS:
        raise ValueError(
            f"{since!r} is no version of the audit tables: there are {', '.join(VERSIONS)}"
        )
    out = StringIO()
    config = alembic_config()
    config.attributes["dialect"] = dialect
    config.output_buffer = out
    command.upgrade(config, f"{since}:head" if since is not None else "head", sql=True)
    made = out.getvalue().strip()
    parts = [*_in_schema(dialect, wanted), made]
    if since is None:
        row = insert(meta).values(name=UUID, value=str(uuid4()))
        filled = row.compile(dialect=_dialect(dialect), compile_kwargs={"literal_binds": True})
        parts.append(f"{filled};")
    return "\n\n".join(one for one in parts if one) + "\n"


def _in_schema(dialect: str, wanted: str | None) -> list[str]:
    if wanted is None:
        return []
    quoted = _dialect(dialect).identifier_preparer.quote(wanted)
    if dialect == "postgresql":
        return [f"CREATE SCHEMA IF NOT EXISTS {quoted};", f"SET search_path TO {quoted};"]
    return [f"CREATE DATABASE IF NOT EXISTS {quoted};", f"USE {quoted};"]


def _dialect(name: str) -> Dialect:
    found: Dialect = URL.create(name).get_dialect()()
    return found


def adopt(connection: Connection, uuid: str) -> None:
    """Give the database to the store that knows it as *uuid*.

    What was written stays.  The cursors go: they are positions in another store's journal.
    """
    connection.execute(update(meta).where(meta.c.name == UUID).values(value=uuid))
    connection.execute(delete(cursor))
