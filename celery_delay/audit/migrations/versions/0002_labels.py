"""Namespaces and tags of tasks, to find them by."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {
    f"{dialect}_{name}": value
    for dialect in ("mysql", "mariadb")
    for name, value in (
        ("engine", "InnoDB"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_bin"),
    )
}


def _schema() -> str | None:
    # SQLAlchemy puts the schema into the statements that make tables, not into ALTER TABLE
    found: str | None = op.get_context().opts.get("version_table_schema")
    return found


def upgrade() -> None:
    column = sa.Column("namespace", sa.String(255))
    op.add_column("celery_delay_task", column, schema=_schema())
    op.create_table(
        "celery_delay_tag",
        sa.Column("tag", sa.String(100), primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.String(255), primary_key=True, autoincrement=False),
        **_OPTIONS,
    )
    op.create_index("ix_celery_delay_tag_task_id", "celery_delay_tag", ["task_id"])


def downgrade() -> None:
    op.drop_table("celery_delay_tag")
    op.drop_column("celery_delay_task", "namespace", schema=_schema())
