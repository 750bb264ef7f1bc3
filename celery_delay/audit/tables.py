"""The audit tables, one definition for SQLite, PostgreSQL, MySQL and MariaDB.

Instants are integer milliseconds since the epoch, UTC, by the store's clock.  JSON is
kept as text: the databases' own JSON types differ, and nobody searches in it.

A change here needs a migration; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.mysql import LONGTEXT

__all__ = [
    "ID_LENGTH",
    "NAME_LENGTH",
    "TEXT_LENGTH",
    "cursor",
    "entry",
    "epoch",
    "event",
    "meta",
    "metadata",
    "task",
]

#: Longest ids and names that are kept whole, in characters; InnoDB cannot index more.
ID_LENGTH = 255
NAME_LENGTH = 255
#: Longest free text (arguments, errors), in characters; MySQL's TEXT ends at 65 535 bytes.
TEXT_LENGTH = 16_000

metadata = MetaData()

_LongText = Text().with_variant(LONGTEXT(), "mysql", "mariadb")

# Ids are compared byte by byte: MySQL's default would take "a" and "A" for one task.
_OPTIONS: dict[str, Any] = {
    f"{dialect}_{name}": value
    for dialect in ("mysql", "mariadb")
    for name, value in (
        ("engine", "InnoDB"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_bin"),
    )
}


def _table(name: str, *items: Any) -> Table:
    return Table(f"celery_delay_{name}", metadata, *items, **_OPTIONS)


def _key(name: str, kind: Any) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


#: One row per task id: what the task is, and where its latest run stands.
task = _table(
    "task",
    _key("task_id", String(ID_LENGTH)),
    Column("run", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    # State.rank of the state, so that rows can be merged by a formula
    Column("state_rank", SmallInteger, nullable=False),
    Column("name", String(NAME_LENGTH)),
    Column("queue", String(NAME_LENGTH)),
    Column("argsrepr", Text),
    Column("kwargsrepr", Text),
    Column("root_id", String(ID_LENGTH)),
    Column("parent_id", String(ID_LENGTH)),
    Column("group_id", String(ID_LENGTH)),
    Column("eta_ms", BigInteger),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Index("ix_celery_delay_task_state_eta", "state", "eta_ms"),
    Index("ix_celery_delay_task_eta", "eta_ms"),
)

#: One row per entry, that is per run of a task.
entry = _table(
    "entry",
    _key("task_id", String(ID_LENGTH)),
    _key("run", BigInteger),
    Column("version", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_rank", SmallInteger, nullable=False),
    Column("eta_ms", BigInteger),
    Column("scheduled_ms", BigInteger),
    Column("dispatched_ms", BigInteger),
    Column("started_ms", BigInteger),
    Column("ended_ms", BigInteger),
    # dispatch minus eta
    Column("lag_ms", BigInteger),
    Column("worker", String(NAME_LENGTH)),
    Column("error", Text),
    # what the result of an entry that no worker will see needs
    Column("group_id", String(ID_LENGTH)),
    Column("group_index", Integer),
    Column("chord", _LongText),
    Column("ignore_result", Boolean(create_constraint=False)),
)

#: Every transition, as the journal told it; rows are only ever added.
event = _table(
    "event",
    _key("shard", Integer),
    # the Redis history in which it was written
    _key("epoch", BigInteger),
    # the stream id's two numbers, so that the key's order is the journal's
    _key("stream_ms", BigInteger),
    _key("stream_seq", BigInteger),
    # position inside its journal entry
    _key("position", Integer),
    Column("state", String(16), nullable=False),
    Column("task_id", String(ID_LENGTH), nullable=False),
    Column("run", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("eta_ms", BigInteger),
    Column("data", _LongText, nullable=False),
    Index("ix_celery_delay_event_task_id", "task_id"),
)

#: The Redis histories that were seen.
epoch = _table(
    "epoch",
    _key("shard", Integer),
    _key("epoch", BigInteger),
    Column("first_ms", BigInteger, nullable=False),
)

#: How far each shard's journal has been taken; moved by compare-and-set only.
cursor = _table(
    "cursor",
    _key("shard", Integer),
    Column("epoch", BigInteger, nullable=False),
    Column("last_id", String(42), nullable=False),
    # of the newest event taken
    Column("at_ms", BigInteger, nullable=False),
)

#: Facts about the database itself: its uuid.
meta = _table(
    "meta",
    _key("name", String(64)),
    Column("value", String(255), nullable=False),
)
