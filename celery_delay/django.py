"""For the settings module of a Django project; imports neither Django nor SQLAlchemy.

Nothing else of celery-delay knows Django: Celery's own integration does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, urlencode

from celery_delay.exceptions import InvalidSetting

__all__ = ["database_url"]

#: Django's backends by the last part of their name: dialect, and drivers in Django's order.
_DRIVERS = {
    "sqlite3": ("sqlite", ()),
    "spatialite": ("sqlite", ()),
    "postgresql": ("postgresql", ("psycopg", "psycopg2")),
    "postgis": ("postgresql", ("psycopg", "psycopg2")),
    "mysql": ("mysql", ("MySQLdb", "pymysql")),
}
#: ``OPTIONS`` that concern only Django's own way with its connections.
_DJANGOS_OWN = frozenset(
    "pool isolation_level server_side_binding prepare_threshold connect_timeout"
    " timeout transaction_mode init_command sql_mode charset client_encoding".split()
)


def database_url(database: Mapping[str, Any]) -> str:
    """The URL of a database of Django's, for ``CELERY_DELAY_DATABASE_URL``.

    Arguments:
        database: an entry of ``DATABASES``.

    Returns:
        An SQLAlchemy URL for the driver that Django uses too, password included.

    Raises:
        InvalidSetting: the audit cannot use this ``ENGINE``, or an entry of ``OPTIONS`` has no
            place in a URL; then write the URL by hand.
    """
    engine = str(database.get("ENGINE", ""))
    try:
        dialect, drivers = _DRIVERS[engine.rpartition(".")[2]]
    except KeyError:
        raise InvalidSetting(
            f"celery-delay keeps its audit in SQLite, PostgreSQL, MySQL or MariaDB, not in {engine}"
        ) from None
    name = str(database.get("NAME") or "").replace("%", "%25").replace("?", "%3F")
    if dialect == "sqlite":
        return f"sqlite:///{name}"
    driver = next(filter(find_spec, drivers), drivers[0]).lower()
    query = _query(database.get("OPTIONS") or {})
    host = str(database.get("HOST") or "")
    if host.startswith("/"):
        query["unix_socket" if dialect == "mysql" else "host"] = host
        host = ""
    port = f":{database['PORT']}" if database.get("PORT") else ""
    if port and not host:
        query["port"] = port[1:]
        port = ""
    user = quote(str(database.get("USER") or ""), safe="")
    if database.get("PASSWORD"):
        user += f":{quote(str(database['PASSWORD']), safe='')}"
    where = (f"{user}@" if user else "") + (f"[{host}]" if ":" in host else host) + port
    return f"{dialect}+{driver}://{where}/{name}" + (f"?{urlencode(query)}" if query else "")


def _query(options: Mapping[str, Any]) -> dict[str, str]:
    query = {}
    for name, value in options.items():
        if name == "ssl" and isinstance(value, Mapping):
            query.update({f"ssl_{part}": str(one) for part, one in value.items()})
        elif isinstance(value, str | int) and name not in (*_DJANGOS_OWN, "assume_role"):
            query[name] = str(value)
        elif name not in _DJANGOS_OWN:
            # to leave it out might mean no encryption, or another role
            raise InvalidSetting(
                f"OPTIONS[{name!r}] of the database cannot be carried over into a URL:"
                " write CELERY_DELAY_DATABASE_URL by hand"
            )
    return query
