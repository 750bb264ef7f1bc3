"""The first tables: tasks, entries, events, and how far the journal was taken."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0001"
down_revision = None
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
_LongText = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def _key(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def upgrade() -> None:
    op.create_table(
        "celery_delay_task",
        _key("task_id", sa.String(255)),
        sa.Column("run", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("state_rank", sa.SmallInteger, nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("queue", sa.String(255)),
        sa.Column("argsrepr", sa.Text),
        sa.Column("kwargsrepr", sa.Text),
        sa.Column("root_id", sa.String(255)),
        sa.Column("parent_id", sa.String(255)),
        sa.Column("group_id", sa.String(255)),
        sa.Column("eta_ms", sa.BigInteger),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        **_OPTIONS,
    )
    op.create_index("ix_celery_delay_task_state_eta", "celery_delay_task", ["state", "eta_ms"])
    op.create_index("ix_celery_delay_task_eta", "celery_delay_task", ["eta_ms"])
    op.create_table(
        "celery_delay_entry",
        _key("task_id", sa.String(255)),
        _key("run", sa.BigInteger),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("state_rank", sa.SmallInteger, nullable=False),
        sa.Column("eta_ms", sa.BigInteger),
        sa.Column("scheduled_ms", sa.BigInteger),
        sa.Column("dispatched_ms", sa.BigInteger),
        sa.Column("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("lag_ms", sa.BigInteger),
        sa.Column("worker", sa.String(255)),
        sa.Column("error", sa.Text),
        sa.Column("group_id", sa.String(255)),
        sa.Column("group_index", sa.Integer),
        sa.Column("chord", _LongText),
        sa.Column("ignore_result", sa.Boolean(create_constraint=False)),
        **_OPTIONS,
    )
    op.create_table(
        "celery_delay_event",
        _key("shard", sa.Integer),
        _key("epoch", sa.BigInteger),
        _key("stream_ms", sa.BigInteger),
        _key("stream_seq", sa.BigInteger),
        _key("position", sa.Integer),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("task_id", sa.String(255), nullable=False),
        sa.Column("run", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("eta_ms", sa.BigInteger),
        sa.Column("data", _LongText, nullable=False),
        **_OPTIONS,
    )
    op.create_index("ix_celery_delay_event_task_id", "celery_delay_event", ["task_id"])
    op.create_table(
        "celery_delay_epoch",
        _key("shard", sa.Integer),
        _key("epoch", sa.BigInteger),
        sa.Column("first_ms", sa.BigInteger, nullable=False),
        **_OPTIONS,
    )
    op.create_table(
        "celery_delay_cursor",
        _key("shard", sa.Integer),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("last_id", sa.String(42), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        **_OPTIONS,
    )
    op.create_table(
        "celery_delay_meta",
        _key("name", sa.String(64)),
        sa.Column("value", sa.String(255), nullable=False),
        **_OPTIONS,
    )


def downgrade() -> None:
    for name in ("meta", "cursor", "epoch", "event", "entry", "task"):
        op.drop_table(f"celery_delay_{name}")
