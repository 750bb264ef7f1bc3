"""Writing many rows at once, in the way that each database takes fastest.

PostgreSQL takes columns as arrays, in one statement.  The others take the driver's
``executemany`` (which PyMySQL turns into one statement with many rows); SQLAlchemy makes the
statement, but rows go past it, since its work on each would cost as much as the database's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Dialect,
    Insert,
    Table,
    bindparam,
    cast,
    func,
    insert,
    select,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite

from celery_delay.audit.merge import Row, merging

__all__ = ["insert_absent", "insert_rows", "merge_rows"]


def insert_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Insert *rows*."""
    _write(connection, table, rows, False)


def merge_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Insert *rows*, or merge them into those that are there."""
    _write(connection, table, rows, True)


def insert_absent(connection: Connection, table: Table, row: Row) -> None:
    """Insert a row, or leave the one with the same key as it is."""
    name = connection.dialect.name
    statement: Insert
    if name in ("mysql", "mariadb"):
        # rows are short numbers and ids: there is no other error that IGNORE could hide
        statement = insert(table).prefix_with("IGNORE")
    elif name == "postgresql":
        statement = postgresql.insert(table).on_conflict_do_nothing()
    else:
        statement = sqlite.insert(table).on_conflict_do_nothing()
    connection.execute(statement, row)


def _write(connection: Connection, table: Table, rows: Iterable[Row], merge: bool) -> None:
    shapes: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        shapes.setdefault(tuple(row), []).append(row)
    for names, alike in shapes.items():
        if connection.dialect.name == "postgresql":
            columns = {name: [row[name] for row in alike] for name in names}
            connection.execute(_of_arrays(table, names, merge), columns)
        else:
            schemas = connection.get_execution_options().get("schema_translate_map", {})
            text, order = _of_rows(connection.dialect, schemas.get(None), table, names, merge)
            values = list(map(itemgetter(*order), alike)) if order else alike
            connection.exec_driver_sql(text, values)


@lru_cache
def _of_arrays(table: Table, names: tuple[str, ...], merge: bool) -> Insert:
    arrays = (cast(bindparam(name), ARRAY(table.c[name].type)) for name in names)
    columns = func.unnest(*arrays).table_valued(*names).render_derived()
    into = postgresql.insert(table).from_select(names, select(columns))
    if not merge:
        return into
    given: dict[str, Any] = {name: into.excluded[name] for name in names}
    return into.on_conflict_do_update(
        index_elements=list(table.primary_key), set_=dict(merging(table, given))
    )


@lru_cache
def _of_rows(
    dialect: Dialect, schema: str | None, table: Table, names: tuple[str, ...], merge: bool
) -> tuple[str, list[str] | None]:
    """The statement's text, and the order of its parameters; ``None`` if they have names."""
    statement = _upsert(dialect.name, table, names) if merge else insert(table)
    place: Any = {"schema_translate_map": {None: schema}, "render_schema_translate": True}
    compiled: Any = statement.compile(
        dialect=dialect, column_keys=list(names), **(place if schema is not None else {})
    )
    return str(compiled), compiled.positiontup


def _upsert(dialect: str, table: Table, names: tuple[str, ...]) -> Insert:
    if dialect in ("mysql", "mariadb"):
        into = mysql.insert(table)
        given: dict[str, Any] = {name: into.inserted[name] for name in names}
        return into.on_duplicate_key_update(merging(table, given))
    upsert = sqlite.insert(table)
    given = {name: upsert.excluded[name] for name in names}
    return upsert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_=dict(merging(table, given))
    )
