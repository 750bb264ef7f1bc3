"""Which version of our tables a database has, and whose they are.

Asked at every start and before every query, so without Alembic, which takes as much memory as
all of the audit: :mod:`celery_delay.audit.schema` has it, and is loaded only to migrate.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from celery_delay.audit.tables import meta
from celery_delay.exceptions import SchemaOutdated

__all__ = [
    "UUID",
    "VERSIONS",
    "VERSION_TABLE",
    "has_tables",
    "is_current",
    "read_uuid",
    "schema_of",
]

VERSION_TABLE = "celery_delay_version"

#: Every version there has been, oldest first: the names of the migrations.
VERSIONS = ("0001", "0002", "0003", "0004")

#: The row of ``celery_delay_meta`` that names the database.
UUID = "uuid"

# Alembic makes it, and it is none of ours to create or drop with the others
_version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True))


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
    if not inspect(connection).has_table(VERSION_TABLE, schema=schema_of(connection)):
        return False
    found: str | None = connection.scalar(select(_version.c.version_num))
    if found is None:
        return False
    if found not in VERSIONS:
        raise SchemaOutdated(
            f"the audit tables have the version {found}, which this release does not know:"
            " they were migrated by a newer one"
        )
    return found == VERSIONS[-1]


def has_tables(connection: Connection) -> bool:
    """Whether the database has audit tables, of whatever version."""
    return inspect(connection).has_table(meta.name, schema=schema_of(connection))


def read_uuid(connection: Connection) -> str | None:
    """The database's uuid; ``None`` if it bears none."""
    found: str | None = connection.scalar(select(meta.c.value).where(meta.c.name == UUID))
    return found
