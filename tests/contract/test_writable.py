"""A server that has stopped taking writes is left, also where it says so on an open connection."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection

from celery_delay.audit.database import Database
from celery_delay.exceptions import AuditUnavailable
from tests.sql import SQLDatabases

_NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}
#: What a server answers that was demoted under us.
_REFUSAL = {
    "postgresql": ("SET TRANSACTION READ ONLY", "CREATE TABLE celery_delay_none (x integer)"),
    "mysql": (
        "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290,"
        " MESSAGE_TEXT = 'running with the --read-only option'",
    ),
}


def _session(connection: Connection) -> Any:
    return connection.exec_driver_sql(_NUMBER[connection.dialect.name]).scalar()


def _refused(connection: Connection) -> None:
    for one in _REFUSAL[connection.dialect.name]:
        connection.exec_driver_sql(one)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_connection_to_a_demoted_server_is_given_up(
    sql_databases: SQLDatabases, kind: str
) -> None:
    database = Database(sql_databases.url(kind))
    try:
        first = database.write(_session)
        assert database.write(_session) == first  # it is kept, and used again

        with pytest.raises(AuditUnavailable, match="read-only"):
            database.write(_refused)

        assert database.write(_session) != first
    finally:
        database.close()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_of_several_servers_the_dead_are_passed_over(
    sql_databases: SQLDatabases, kind: str
) -> None:
    alive = sql_databases.url(kind)
    dead = Database(alive).url.set(port=1).render_as_string(hide_password=False)
    database = Database([dead, alive])
    nobody = Database([dead, dead])
    try:
        assert database.write(_session)
        with pytest.raises(AuditUnavailable, match="no server takes writes"):
            nobody.write(_session)
    finally:
        database.close()
        nobody.close()
