"""The tables as the migrations make them: with what concerns single databases.

Apart from :mod:`celery_delay.audit.tables`, since SQLAlchemy loads the dialect of each database
that an option names, and a beat needs only one of them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import MetaData, text

from celery_delay.audit.tables import WHERE, metadata

__all__ = ["declared"]

# Ids are compared byte by byte: MySQL's default would take "a" and "A" for one task.
_OPTIONS = {
    f"{dialect}_{name}": value
    for dialect in ("mysql", "mariadb")
    for name, value in (
        ("engine", "InnoDB"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_bin"),
    )
}


def declared(schema: Any = None) -> MetaData:
    """The tables with all their options, in *schema*."""
    made = MetaData()
    for table in metadata.tables.values():
        copy = table.to_metadata(made, schema=schema)
        copy.kwargs.update(_OPTIONS)
        for index in copy.indexes:
            if WHERE in index.info:
                # MySQL has no partial indexes, and gets a whole one
                for dialect in ("postgresql", "sqlite"):
                    index.kwargs[f"{dialect}_where"] = text(index.info[WHERE])
    return made
