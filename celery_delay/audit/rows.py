"""Writing many rows at once, in the way that each database takes fastest.

PostgreSQL takes columns as arrays, in one statement; see ``arrays.py``.  The others take the
driver's ``executemany`` (which PyMySQL turns into one statement with many rows); SQLAlchemy makes
the statement, but rows go past it, since its work on each would cost as much as the database's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Dialect,
    Insert,
    Table,
    Text,
    bindparam,
    cast,
    func,
    insert,
    select,
)

from celery_delay.audit.arrays import array_text
from celery_delay.audit.merge import Row, merging

__all__ = ["insert_absent", "insert_rows", "merge_rows"]


def insert_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Insert *rows*."""
    _write(connection, table, rows, False)


def merge_rows(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    """Insert *rows*, or merge them into those that are there."""
    _write(connection, table, rows, True)


def insert_absent(connection: Connection, table: Table, *rows: Row) -> None:
    """Insert *rows*, or leave those with the same keys as they are."""
    name = connection.dialect.name
    statement: Insert
    if name in ("mysql", "mariadb"):
        # rows are short numbers and ids: there is no other error that IGNORE could hide
        statement = insert(table).prefix_with("IGNORE")
    else:
        statement = _insert(name, table).on_conflict_do_nothing()
    connection.execute(statement, list(rows))


def _insert(dialect: str, table: Table) -> Any:
    """The database's own INSERT.  Dialects that are not used stay unloaded: a megabyte each."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)


def _write(connection: Connection, table: Table, rows: Iterable[Row], merge: bool) -> None:
    shapes: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        shapes.setdefault(tuple(row), []).append(row)
    for names, alike in shapes.items():
        if connection.dialect.name == "postgresql":
            columns = zip(names, zip(*map(dict.values, alike), strict=True), strict=True)
            arrays = {name: array_text(table.c[name].type, some) for name, some in columns}
            connection.execute(_of_arrays(table, names, merge), arrays)
        else:
            schemas = connection.get_execution_options().get("schema_translate_map", {})
            text, order = _of_rows(connection.dialect, schemas.get(None), table, names, merge)
            values = list(map(itemgetter(*order), alike)) if order else alike
            connection.exec_driver_sql(text, values)


@lru_cache
def _of_arrays(table: Table, names: tuple[str, ...], merge: bool) -> Any:
    arrays = (cast(bindparam(name, type_=Text()), ARRAY(table.c[name].type)) for name in names)
    columns = func.unnest(*arrays).table_valued(*names).render_derived()
    into = _insert("postgresql", table).from_select(names, select(columns))
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


def _upsert(dialect: str, table: Table, names: tuple[str, ...]) -> Any:
    if dialect in ("mysql", "mariadb"):
        into = _insert("mysql", table)
        given: dict[str, Any] = {name: into.inserted[name] for name in names}
        return into.on_duplicate_key_update(merging(table, given))
    upsert = _insert("sqlite", table)
    given = {name: upsert.excluded[name] for name in names}
    return upsert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_=dict(merging(table, given))
    )
