"""An index for each thing that tasks can be looked for by, in the order of the pages."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TASK, _ENTRY = "celery_delay_task", "celery_delay_entry"


def _schema() -> str | None:
    found: str | None = op.get_context().opts.get("version_table_schema")
    return found


def _partial(condition: str) -> dict[str, Any]:
    return {f"{dialect}_where": sa.text(condition) for dialect in ("postgresql", "sqlite")}


def upgrade() -> None:
    schema = _schema()
    order = ["state", "eta_ms", "task_id"]
    op.create_index("ix_celery_delay_task_by_state", _TASK, order, schema=schema)
    for name in ("name", "queue"):
        op.create_index(f"ix_celery_delay_task_by_{name}", _TASK, [name, *order], schema=schema)
    op.create_index(
        "ix_celery_delay_task_by_namespace",
        _TASK,
        ["namespace", *order],
        schema=schema,
        **_partial("namespace IS NOT NULL"),
    )
    op.create_index("ix_celery_delay_task_by_age", _TASK, ["state", "updated_ms"], schema=schema)
    op.create_index(
        "ix_celery_delay_entry_waiting",
        _ENTRY,
        ["state", "task_id", "run"],
        schema=schema,
        **_partial("state_rank < 20"),
    )
    for name in ("state_eta", "eta"):
        op.drop_index(f"ix_celery_delay_task_{name}", _TASK, schema=schema)


def downgrade() -> None:
    schema = _schema()
    op.create_index("ix_celery_delay_task_state_eta", _TASK, ["state", "eta_ms"], schema=schema)
    op.create_index("ix_celery_delay_task_eta", _TASK, ["eta_ms"], schema=schema)
    op.drop_index("ix_celery_delay_entry_waiting", _ENTRY, schema=schema)
    for name in ("state", "name", "queue", "namespace", "age"):
        op.drop_index(f"ix_celery_delay_task_by_{name}", _TASK, schema=schema)
