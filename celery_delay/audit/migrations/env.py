"""Alembic's entry: runs the migrations on the connection that it is given."""

from __future__ import annotations

from typing import Any

from alembic import context

from celery_delay.audit.schema import VERSION_TABLE
from celery_delay.audit.tables import metadata


def ours(name: str | None, kind: str, parents: Any) -> bool:
    """Whether a reflected object is ours: the database may hold other people's tables."""
    return kind != "table" or (name or "") in metadata.tables


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=ours,
)
with context.begin_transaction():
    context.run_migrations()
