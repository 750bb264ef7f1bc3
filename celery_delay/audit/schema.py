"""Making and migrating the audit tables, with a version table of their own.

All of it happens in the schema that the connection's :class:`Database` names: SQLAlchemy
puts its name into our statements, and Alembic and the inspector are told it here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, delete, insert, inspect, select, text, update
from sqlalchemy.schema import CreateSchema

from celery_delay.audit.tables import cursor, meta
from celery_delay.exceptions import SchemaOutdated

__all__ = [
    "VERSION_TABLE",
    "adopt",
    "alembic_config",
    "has_tables",
    "is_current",
    "read_uuid",
    "schema_of",
    "upgrade",
]

VERSION_TABLE = "celery_delay_version"

_UUID = "uuid"
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


@cache
def _migrations() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def schema_of(connection: Connection) -> str | None:
    """The schema that has our tables; ``None`` for the connection's default."""
    schemas = connection.get_execution_options().get("schema_translate_map", {})
    found: str | None = schemas.get(None)
    return found


def is_current(connection: Connection) -> bool:
    """Whether the tables are those of this release.

    Raises:
        SchemaOutdated: they were made by a newer release.
    """
    place = {"version_table": VERSION_TABLE, "version_table_schema": schema_of(connection)}
    context = MigrationContext.configure(connection, opts=place)
    found = context.get_current_revision()
    if found is None:
        return False
    try:
        _migrations().get_revision(found)
    except CommandError as exc:
        raise SchemaOutdated(
            f"the audit tables have the version {found}, which this release does not know:"
            " they were migrated by a newer one"
        ) from exc
    return found == _migrations().get_current_head()


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
        connection.execute(insert(meta).values(name=_UUID, value=uuid))
    return uuid


def has_tables(connection: Connection) -> bool:
    """Whether the database has audit tables, of whatever version."""
    return inspect(connection).has_table(meta.name, schema=schema_of(connection))


def read_uuid(connection: Connection) -> str | None:
    """The database's uuid; ``None`` if it bears none."""
    found: str | None = connection.scalar(select(meta.c.value).where(meta.c.name == _UUID))
    return found


def adopt(connection: Connection, uuid: str) -> None:
    """Give the database to the store that knows it as *uuid*.

    What was written stays.  The cursors go: they are positions in another store's journal.
    """
    connection.execute(update(meta).where(meta.c.name == _UUID).values(value=uuid))
    connection.execute(delete(cursor))
