"""Alembic's entry: runs the migrations on the connection that it is given."""

from __future__ import annotations

from typing import Any

from alembic import context

from celery_delay.audit.declared import declared
from celery_delay.audit.tables import metadata
from celery_delay.audit.version import VERSION_TABLE, schema_of


def ours(name: str | None, kind: str, parents: Any) -> bool:
    """Whether a reflected object is ours: the database may hold other people's tables."""
    return kind != "table" or (name or "") in metadata.tables


connection = context.config.attributes["connection"]
if context.is_offline_mode():
    context.configure(
        dialect_name=context.config.attributes["dialect"],
        target_metadata=declared(),
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
else:
    context.configure(
        connection=connection,
        target_metadata=declared(),
        version_table=VERSION_TABLE,
        version_table_schema=schema_of(connection),
        include_name=ours,
    )
with context.begin_transaction():
    context.run_migrations()
