"""The database's own clock, in ms since 1970, at the moment of the statement."""

from __future__ import annotations

from sqlalchemy import Connection, literal_column, select

__all__ = ["clock_of", "clock_text"]

_CLOCKS = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
    "mysql": "CAST(unix_timestamp(sysdate(3)) * 1000 AS signed)",
}


def clock_text(dialect: str) -> str:
    """The expression, as SQLAlchemy and Django name the dialects."""
    return _CLOCKS["mysql" if dialect == "mariadb" else dialect]


def clock_of(connection: Connection) -> int:
    """The clock of the database behind *connection*."""
    return int(connection.scalar(select(literal_column(clock_text(connection.dialect.name)))) or 0)
