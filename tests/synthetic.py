"""An audit as it is after a month of traffic, made by the database itself: as large as you like.

Ids are in no relation to time, as those of real tasks.  Most tasks have succeeded; what is rare
(a state, a name, a queue, a namespace, a tag) is old as well, so that no walk from either end of
time meets it soon.  One task in 25 has the same eta as the others of its kind.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, Index, text

from celery_delay.audit.database import Database
from celery_delay.audit.tables import entry, event, metadata, tag, task
from tests.sql import administrator

__all__ = ["BURST_MS", "EPOCH", "RARE", "T0", "T1", "fill", "task_id"]

T0 = 1_700_000_000_000
#: A month of traffic, of which the last hundredth has still to come.
MONTH_MS = 30 * 86_400_000
T1 = T0 + MONTH_MS
EPOCH = T0 - 5_000
#: The eta that many tasks share.
BURST_MS = T0 + MONTH_MS // 2
#: How many tasks have what is rare.
RARE = 10

_CHUNK = 250_000
#: Odd and no multiple of five, so that n * STRIDE mod a round number takes each value once.
_STRIDE = 7_654_321


def task_id(number: int) -> str:
    """The id of a task by its number in the order of the ids."""
    return f"{number:08x}-0000-4000-8000-000000000000"


class _Words:
    """What each kind of database calls things."""

    def __init__(self, kind: str) -> None:
        tail = "-0000-4000-8000-000000000000"
        self.join = "CONCAT({}, {})" if kind == "mysql" else "{} || {}"
        self.divide = "DIV" if kind == "mysql" else "/"
        hexadecimal = {
            "postgresql": "lpad(to_hex({}), 8, '0')",
            "mysql": "lower(lpad(hex({}), 8, '0'))",
            "sqlite": "printf('%08x', {})",
        }[kind]
        self.id = self.join.format(hexadecimal, f"'{tail}'")
        self.numbers = {
            "postgresql": "SELECT n FROM generate_series(CAST({0} AS bigint), {1}) AS s(n)",
            "mysql": "SELECT {0} + seq AS n FROM seq_0_to_{2}",
            "sqlite": "WITH RECURSIVE s(n) AS (SELECT {0} UNION ALL SELECT n + 1 FROM s"
            " WHERE n < {1}) SELECT n FROM s",
        }[kind]
        self.cast = "CAST({} AS CHAR)" if kind == "mysql" else "CAST({} AS TEXT)"

    def text(self, prefix: str, number: str) -> str:
        return self.join.format(f"'{prefix}'", self.cast.format(number))


def fill(database: Database, tasks: int) -> None:
    """Fill migrated, empty tables with *tasks* tasks, as many entries and thrice as many events.

    Arguments:
        tasks: a multiple of ten thousand.
    """
    assert tasks % 10_000 == 0
    with administrator(database.url) as engine:
        indexes = [one for table in (task, entry, event, tag) for one in table.indexes]
        for index in indexes:
            _drop(engine, index)
        for statement in _statements(engine.dialect.name, tasks):
            with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                _run(connection, statement)
        for index in indexes:
            index.create(engine)
        refresh(engine)


def refresh(engine: Engine) -> None:
    """Let the planner know what is in the tables."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in metadata.tables:
            if connection.dialect.name == "mysql":
                connection.execute(text(f"ANALYZE TABLE {table}")).close()
            elif connection.dialect.name == "postgresql":
                _run(connection, f"VACUUM ANALYZE {table}")
            else:
                _run(connection, f"ANALYZE {table}")


def _drop(engine: Engine, index: Index) -> None:
    index.drop(engine, checkfirst=True)


def _run(connection: Connection, statement: str) -> None:
    # a percent sign is one
    connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def _statements(kind: str, tasks: int) -> list[str]:
    words = _Words("mysql" if kind == "mariadb" else kind)
    step = MONTH_MS // tasks
    inverse = pow(_STRIDE, -1, tasks)
    old = tasks // 100
    made: list[str] = []

    def each(into: str, values: dict[str, str], of: str, where: str = "") -> None:
        for first in range(0, tasks, _CHUNK):
            last = min(first + _CHUNK, tasks) - 1
            numbers = words.numbers.format(first, last, last - first)
            made.append(
                f"INSERT INTO celery_delay_{into} ({', '.join(values)})"
                f" SELECT {', '.join(values.values())} FROM ({of.format(numbers)}) AS q {where}"
            )

    # n: its number in the order of the ids; k: in the order of time
    by_id = f"SELECT n, (n * {_STRIDE}) % {tasks} AS k FROM ({{0}}) AS s"
    by_time = f"SELECT n AS k, (n * {inverse}) % {tasks} AS n FROM ({{0}}) AS s"
    eta = (
        f"CASE WHEN k >= {tasks // 2} AND k < {tasks // 2 + tasks // 25} THEN {BURST_MS}"
        f" ELSE {T0} + k * {step} END"
    )
    rare = f"k < {old} AND k % {max(1, old // RARE)} = "
    state = (
        f"CASE WHEN k >= {tasks - old} THEN CASE WHEN n % 100 = 0 THEN 'HELD' ELSE 'SCHEDULED' END"
        f" WHEN {rare}0 THEN 'LOST' WHEN n % 200 = 1 THEN 'FAILED'"
        " WHEN n % 100 = 2 THEN 'CANCELLED' WHEN n % 500 = 3 THEN 'DISPATCHED'"
        " ELSE 'SUCCEEDED' END"
    )
    rank = (
        f"CASE WHEN k >= {tasks - old} THEN 10 WHEN {rare}0 THEN 25 WHEN n % 200 = 1 THEN 70"
        " WHEN n % 100 = 2 THEN 30 WHEN n % 500 = 3 THEN 40 ELSE 70 END"
    )
    each(
        "task",
        {
            "task_id": words.id.format("n"), "run": str(EPOCH), "version": "1", "state": state,
            "state_rank": rank, "eta_ms": eta, "created_ms": f"{T0} + k * {step} - 60000",
            "updated_ms": f"{T0} + k * {step} + 1500",
            "name": f"CASE WHEN {rare}1 THEN 'shop.rare'"
            f" ELSE {words.text('shop.task_', 'n % 50')} END",
            "queue": f"CASE WHEN {rare}2 THEN 'once' WHEN n % 10 = 3 THEN 'mail'"
            " WHEN n % 100 = 5 THEN 'slow' ELSE 'celery' END",
            "namespace": f"CASE WHEN {rare}3 THEN 'tiny' WHEN n % 2 = 0 THEN"
            f" {words.text('tenant-', 'n % 1000')} END",
            "argsrepr": "'(12345,)'", "kwargsrepr": "'{}'", "root_id": words.id.format("n"),
        },
        by_id,
    )  # fmt: skip
    each(
        "entry",
        {
            "task_id": words.id.format("n"), "run": str(EPOCH), "version": "1", "state": state,
            "state_rank": rank, "eta_ms": eta, "scheduled_ms": f"{T0} + k * {step} - 60000",
            "dispatched_ms": eta, "ended_ms": f"{T0} + k * {step} + 1500", "lag_ms": "n % 20",
        },
        by_id,
    )  # fmt: skip
    each(
        "tag",
        {"tag": "'vip'", "task_id": words.id.format("n")}, by_id, "WHERE n % 20 = 7",
    )  # fmt: skip
    each("tag", {"tag": "'rare'", "task_id": words.id.format("n")}, by_id, f"WHERE {rare}4")
    for happened, later in (("SCHEDULED", -60_000), ("DISPATCHED", 0), ("SUCCEEDED", 1_500)):
        each(
            "event",
            {
                "shard": "k % 2", "epoch": str(EPOCH), "stream_ms": f"{T0} + k * {step} + {later}",
                "stream_seq": f"k * 3 + {later % 7}", "position": "0", "state": f"'{happened}'",
                "task_id": words.id.format("n"), "run": str(EPOCH), "version": "1",
                "at_ms": f"{T0} + k * {step} + {later}", "eta_ms": eta,
                "data": "'{\"lag_ms\":5}'" if later == 0 else "'{}'",
            },
            by_time,
        )  # fmt: skip
    each(
        "event",
        {
            "shard": "0", "epoch": str(EPOCH), "stream_ms": f"{T0} + k * {step}",
            "stream_seq": "k", "position": "1", "state": "'GAP'", "task_id": "'-'",
            "run": "0", "version": "0", "at_ms": f"{T0} + k * {step}",
            "data": "'{\"missing\":1}'",
        },
        by_time, f"WHERE k % {tasks // 1000} = 0",
    )  # fmt: skip
    cursor = (
        "INSERT INTO celery_delay_cursor (shard, epoch, last_id, at_ms)"
        f" VALUES (0, {EPOCH}, '{T1}-0', {T1})"
    )
    return [*made, cursor]
