"""Entries that SQL backs: the truth of which Redis is the mirror."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGBLOB

revision = "0003"
down_revision = "0002"
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
_Bytes = sa.LargeBinary().with_variant(LONGBLOB(), "mysql", "mariadb")


def _key(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def upgrade() -> None:
    op.create_table(
        "celery_delay_payload",
        _key("task_id", sa.String(255)),
        _key("run", sa.BigInteger),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("seen", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tier", sa.String(4), nullable=False),
        sa.Column("eta_ms", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("look_ms", sa.BigInteger),
        sa.Column("record", _Bytes, nullable=False),
        **_OPTIONS,
    )
    table = "celery_delay_payload"
    op.create_index("ix_celery_delay_payload_look", table, ["shard", "look_ms"])
    op.create_index("ix_celery_delay_payload_tier_eta", table, ["shard", "tier", "eta_ms"])


def downgrade() -> None:
    op.drop_table("celery_delay_payload")
