"""What a database does for the questions that the product asks: which plan, and how much it reads.

The statements are those that the product sends, with their parameters: they are recorded on their
way, and then asked once more with the database's own accounting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import Connection, event

from celery_delay.audit.database import Database

__all__ = ["Plan", "Statement", "plan_of", "recorded"]

#: Tables of which a scan in full is looked for.
_OURS = re.compile(r"celery_delay_(task|entry|event|tag)\b")


class Statement(NamedTuple):
    """As the driver was given it."""

    text: str
    parameters: Any


class Plan(NamedTuple):
    """What was done for one statement.

    Attributes:
        steps: how tables are read, in the database's own words.
        scanned: the tables of ours that were read from one end to the other, or their indexes.
        rows: how many rows of tables and indexes were looked at; ``None`` where the database
            does not say.
    """

    steps: list[str]
    scanned: set[str]
    rows: int | None


@contextmanager
def recorded(database: Database, tables: re.Pattern[str] = _OURS) -> Iterator[list[Statement]]:
    """The statements on *tables* that are sent within the block."""
    found: list[Statement] = []

    def sent(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        if tables.search(statement):
            found.append(Statement(statement, parameters[0] if many else parameters))

    engine = database.engine
    event.listen(engine, "before_cursor_execute", sent)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", sent)


def plan_of(connection: Connection, statement: Statement) -> Plan:
    """The plan of *statement*, which is carried out; the caller rolls back."""
    return _PLANS[connection.dialect.name](connection, statement)


def _postgresql(connection: Connection, one: Statement) -> Plan:
    if one.text.startswith("INSERT"):
        answer = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {one.text}", one.parameters)
        [found] = answer.scalar()
        keys = found["Plan"].get("Conflict Arbiter Indexes", [])
        return Plan([f"Insert {' '.join(keys)}".strip()], set(), 0)
    asked = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {one.text}"
    answer = connection.exec_driver_sql(asked, one.parameters).scalar()
    [found] = json.loads(answer) if isinstance(answer, str) else answer
    steps: list[str] = []
    scanned: set[str] = set()
    rows = 0

    def walk(node: dict[str, Any]) -> None:
        nonlocal rows
        kind, table = node["Node Type"], node.get("Relation Name", "")
        if "Scan" in kind and kind not in ("Subquery Scan", "Function Scan", "CTE Scan"):
            index = node.get("Index Name", "")
            steps.append(f"{kind} {index or table}")
            removed = node.get("Rows Removed by Filter", 0)
            removed += node.get("Rows Removed by Index Recheck", 0)
            rows += round((node["Actual Rows"] + removed) * node["Actual Loops"])
            if kind == "Seq Scan" and _OURS.search(table):
                scanned.add(table)
        for child in node.get("Plans", ()):
            walk(child)

    walk(found["Plan"])
    return Plan(steps, scanned, rows)


def _mariadb(connection: Connection, one: Statement) -> Plan:
    if one.text.startswith("INSERT"):
        return Plan(["insert"], set(), 0)
    steps: list[str] = []
    scanned: set[str] = set()
    for row in connection.exec_driver_sql(f"EXPLAIN {one.text}", one.parameters).mappings():
        table, kind = row["table"] or "", row["type"]
        if table.startswith("<") or kind is None:
            continue
        steps.append(f"{kind} {row['key'] or table}")
        # "index" reads an index in its order: in full, unless a limit ends it
        if kind == "ALL":
            scanned.add(table)
    # a locking read needs no accounting of its own
    connection.exec_driver_sql("FLUSH STATUS")
    answer = connection.exec_driver_sql(one.text, one.parameters)
    if answer.returns_rows:
        answer.fetchall()
    status = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all()
    # of rnd and rnd_next, those that read the unions' own small tables
    return Plan(steps, scanned, sum(int(value) for _, value in status))


def _sqlite(connection: Connection, one: Statement) -> Plan:
    asked = f"EXPLAIN QUERY PLAN {one.text}"
    told = [row[3] for row in connection.exec_driver_sql(asked, one.parameters)]
    steps = [line for line in told if line.startswith(("SCAN", "SEARCH")) and "(" not in line[:8]]
    # ANY: the index is gone through from one end to the other, with leaps
    scanned = {
        line.split()[1] for line in steps if line.startswith("SCAN celery_delay") or "(ANY(" in line
    }
    return Plan(steps, scanned, None)


_PLANS: dict[str, Callable[[Connection, Statement], Plan]] = {
    "postgresql": _postgresql,
    "mysql": _mariadb,
    "mariadb": _mariadb,
    "sqlite": _sqlite,
}
