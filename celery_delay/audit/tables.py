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
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.ext.compiler import compiles

__all__ = [
    "ID_LENGTH",
    "IS_WAITING",
    "NAME_LENGTH",
    "TAG_LENGTH",
    "TEXT_LENGTH",
    "WHERE",
    "cursor",
    "entry",
    "epoch",
    "event",
    "meta",
    "metadata",
    "payload",
    "tag",
    "task",
]

#: Longest ids and names that are kept whole, in characters; InnoDB cannot index more.
ID_LENGTH = 255
NAME_LENGTH = 255
TAG_LENGTH = 100
#: Longest free text (arguments, errors), in characters; MySQL's TEXT ends at 65 535 bytes.
TEXT_LENGTH = 16_000

#: Which entries the partial index of those that wait has: those whose state's rank is below that
#: of QUARANTINED.  A query must say the same, word for word.
IS_WAITING = "state_rank < 20"

#: In the ``info`` of an index: which rows it has, where a database has partial indexes.
WHERE = "where"

# What concerns single databases (engine, collation, partial indexes) is in
# celery_delay.audit.declared: said here, it would load the dialects of those that are not used.
metadata = MetaData()


class _LongText(Text):
    """Text without MySQL's limit of 64 kB."""


class _Bytes(LargeBinary):
    """Bytes without MySQL's limit of 64 kB."""


# not MySQL's own types: they would load its dialect with every other database
@compiles(_LongText, "mysql", "mariadb")
def _long_text(*_: Any, **__: Any) -> str:
    return "LONGTEXT"


@compiles(_Bytes, "mysql", "mariadb")
def _long_blob(*_: Any, **__: Any) -> str:
    return "LONGBLOB"


def _table(name: str, *items: Any) -> Table:
    return Table(f"celery_delay_{name}", metadata, *items)


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
    Column("namespace", String(NAME_LENGTH)),
    # Each begins with what can be looked for and a state, and goes on in the order of the pages,
    # ids included: a million tasks may share one eta.  See celery_delay.audit.which.
    Index("ix_celery_delay_task_by_state", "state", "eta_ms", "task_id"),
    Index("ix_celery_delay_task_by_name", "name", "state", "eta_ms", "task_id"),
    Index("ix_celery_delay_task_by_queue", "queue", "state", "eta_ms", "task_id"),
    # MySQL has no partial indexes, and gets a whole one
    Index(
        "ix_celery_delay_task_by_namespace",
        "namespace",
        "state",
        "eta_ms",
        "task_id",
        info={WHERE: "namespace IS NOT NULL"},
    ),
    # what is old enough to be deleted
    Index("ix_celery_delay_task_by_age", "state", "updated_ms"),
)

#: The tags that a task's runs have had; a task without any has no row.
tag = _table(
    "tag",
    # first, since it is what is looked for
    _key("tag", String(TAG_LENGTH)),
    _key("task_id", String(ID_LENGTH)),
    Index("ix_celery_delay_tag_task_id", "task_id"),
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
    Column("chord", _LongText()),
    Column("ignore_result", Boolean(create_constraint=False)),
    # what should be waiting in the store; see celery_delay.audit.waiting
    Index(
        "ix_celery_delay_entry_waiting",
        "state",
        "task_id",
        "run",
        info={WHERE: IS_WAITING},
    ),
)

#: One row per entry that SQL backs: see ``celery_delay/backing.py``.
payload = _table(
    "payload",
    _key("task_id", String(ID_LENGTH)),
    _key("run", BigInteger),
    Column("shard", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("seen", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("tier", String(4), nullable=False),
    Column("eta_ms", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    # when the relay looks at it; without an instant there is nothing to be done
    Column("look_ms", BigInteger),
    Column("record", _Bytes(), nullable=False),
    Index("ix_celery_delay_payload_look", "shard", "look_ms"),
    Index("ix_celery_delay_payload_tier_eta", "shard", "tier", "eta_ms"),
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
    Column("data", _LongText(), nullable=False),
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
