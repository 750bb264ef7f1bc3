"""For Django projects: the URL of its database, and its own transactions.

What is for the settings module imports neither Django nor SQLAlchemy.  Nothing else of
celery-delay knows Django: Celery's own integration does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

from celery_delay.domain.backing import BackedRow
from celery_delay.domain.outbox import Transaction
from celery_delay.exceptions import InvalidSetting

__all__ = ["database_url", "transaction_of"]

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


#: By the database of an audit, the aliases that were found to lead to it.
_known: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def transaction_of(using: str, rows: Any, uuid: Callable[[], str | None]) -> Transaction:
    """The transaction that Django's connection is in; without one, each statement commits.

    Arguments:
        using: the alias in ``DATABASES``.
        rows: what the audit has of rows.
        uuid: tells the uuid of the audit's database.

    Raises:
        django.utils.connection.ConnectionDoesNotExist: there is no such alias.
        InvalidSetting: it is another database than the audit's.
    """
    from django.db import connections

    made = _Atomic(connections[using], using, rows)
    known = _known.setdefault(rows.database, set())
    if using not in known:
        made.check(uuid())
        known.add(using)
    return made


class _Atomic:
    def __init__(self, connection: Any, using: str, rows: Any) -> None:
        self._connection, self._using, self._rows = connection, using, rows

    def _table(self, name: str) -> str:
        schema, quote = self._rows.database.schema, self._connection.ops.quote_name
        table: str = quote(f"celery_delay_{name}")
        return table if schema is None else f"{quote(schema)}.{table}"

    def check(self, ours: str | None) -> None:
        from django.db import DatabaseError, transaction

        found = None
        try:
            # in a savepoint: PostgreSQL ends a transaction in which a statement has failed
            with transaction.atomic(using=self._using), self._connection.cursor() as cursor:
                cursor.execute(f"SELECT value FROM {self._table('meta')} WHERE name = 'uuid'")
                found = cursor.fetchone()
        except DatabaseError as exc:
            raise InvalidSetting(self._other()) from exc
        if found is None or ours is None or found[0] != ours:
            raise InvalidSetting(self._other())

    def _other(self) -> str:
        return (
            f"using={self._using!r} leads to another database than the audit's, which is"
            f" {self._rows.database}: the relay would never see the task.  Let delay_database_url"
            " name that of Django (celery_delay.django.database_url), and run migrate"
        )

    def clock_ms(self) -> int | None:
        from celery_delay.audit.clocks import clock_text

        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT {clock_text(self._connection.vendor)}")
            return int(cursor.fetchone()[0])

    def write(self, rows: Sequence[BackedRow]) -> None:
        values = self._rows.new_values(rows)
        names = list(values[0])
        columns = ", ".join(names)
        marks = ", ".join(["%s"] * len(names))
        text = f"INSERT INTO {self._table('payload')} ({columns}) VALUES ({marks})"
        with self._connection.cursor() as cursor:
            cursor.executemany(text, [[one[name] for name in names] for one in values])

    def afterwards(self, call: Callable[[], None]) -> None:
        from django.db import transaction

        transaction.on_commit(call, using=self._using, robust=True)
