"""Where the audit lives: in a schema, among other people's tables, in any time zone, and on
an engine that the project has made."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, inspect, text
from sqlalchemy import event as listening

from celery_delay.audit import schema
from celery_delay.audit.database import Database
from celery_delay.audit.declared import declared
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.sources import from_engine, from_url
from celery_delay.audit.tables import metadata
from celery_delay.audit.version import VERSION_TABLE
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.domain.entries import EntryId
from celery_delay.exceptions import AuditUnavailable, SchemaOutdated
from tests.contract.audit_rows import EPOCH, T0, Journal, rows, take
from tests.sql import administrator, run_sql

OURS = {*metadata.tables, VERSION_TABLE}
#: As awkward as a name may be: case, a hyphen, and what begins a driver's parameter.
AWKWARD = "Delay-%s"

servers = pytest.mark.parametrize("sql_url", ["postgresql", "mariadb"], indirect=True)
postgresql = pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
mariadb = pytest.mark.parametrize("sql_url", ["mariadb"], indirect=True)


def drop_schema(url: str, name: str) -> None:
    with administrator(url) as engine:
        if engine.dialect.name == "postgresql":
            run_sql(engine, f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
        else:
            run_sql(engine, f"DROP SCHEMA IF EXISTS `{name}`")


@pytest.fixture
def place(sql_url: str) -> Iterator[str]:
    """The name of a schema that is not there; on MariaDB it is a whole server's."""
    name = f"{AWKWARD}-{os.getpid()}"
    drop_schema(sql_url, name)
    yield name
    drop_schema(sql_url, name)


@pytest.fixture
def placed(database: Database, sql_url: str, place: str) -> Iterator[Database]:
    placed = Database(sql_url, schema=place)
    yield placed
    placed.close()


def tables(database: Database, where: str | None = None) -> set[str]:
    with database.reading() as connection:
        return set(inspect(connection).get_table_names(schema=where))


# --- a schema --------------------------------------------------------------------------------


@servers
def test_in_a_schema_everything_is_there_and_nothing_elsewhere(
    placed: Database, database: Database, place: str
) -> None:
    log, queries = SQLAuditLog(placed), AuditQueries(placed)
    with pytest.raises(SchemaOutdated, match="delay migrate"):
        log.prepare()
    assert queries.schema().state == "missing"

    uuid = log.migrate()

    assert log.migrate() == log.prepare() == log.uuid() == uuid
    assert queries.schema() == ("current", uuid)
    assert tables(database, place) == OURS
    assert tables(database) == set()
    # and all that is written and read goes there
    journal = Journal()
    events = journal.life()
    take(log, events)
    take(log, events)
    take(log, journal.life("two", "SCHEDULED"))
    take(log, [journal.event("QUARANTINED", "two", run=0, version=0)])
    assert queries.events("one") == events
    assert queries.counts() == {"SUCCEEDED": 1, "QUARANTINED": 1}
    assert SQLWaitingEntries(placed).waiting(None, 10) == []
    assert log.position(0, EPOCH).last_id != "0"
    assert log.migrate(adopt="theirs") == "theirs"


@servers
def test_a_schema_has_the_tables_that_the_code_declares(placed: Database, place: str) -> None:
    SQLAuditLog(placed).migrate()

    def ours(name: str | None, kind: str, _: Any) -> bool:
        if kind == "schema":
            return name == place
        return kind != "table" or name != VERSION_TABLE

    options = {"compare_type": True, "include_schemas": True, "include_name": ours}
    with placed.reading() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, declared(place)) == []


@servers
def test_a_schema_can_be_migrated_down_and_stays(
    placed: Database, database: Database, place: str
) -> None:
    log = SQLAuditLog(placed)
    log.migrate()
    with placed.migrating() as connection:
        command.downgrade(schema.alembic_config(connection), "base")
    assert tables(database, place) == {VERSION_TABLE}

    log.migrate()
    take(log, Journal().life())


@servers
def test_two_audits_in_one_database_do_not_meet(placed: Database, database: Database) -> None:
    here, there = SQLAuditLog(database), SQLAuditLog(placed)
    assert here.migrate() != there.migrate()

    take(here, Journal().life("here"))
    take(there, Journal().life("there"))

    assert AuditQueries(database).task("there") is None
    assert AuditQueries(placed).task("here") is None


@postgresql
def test_a_user_who_may_make_no_schema_uses_one_that_is_there(
    database: Database, sql_url: str, place: str
) -> None:
    user = f"delay_{os.getpid()}"
    with administrator(sql_url) as engine:
        run_sql(engine, f"DROP ROLE IF EXISTS {user}", f"CREATE ROLE {user} LOGIN")
    url = from_url(sql_url).url.set(username=user)
    log = SQLAuditLog(Database(url, schema=place))
    try:
        with pytest.raises(AuditUnavailable, match="permission denied"):
            log.migrate()
        with administrator(sql_url) as engine:
            run_sql(engine, f'CREATE SCHEMA "{place}" AUTHORIZATION {user}')
        log.migrate()
        take(log, Journal().life())
    finally:
        log.close()
        drop_schema(sql_url, place)
        with administrator(sql_url) as engine:
            run_sql(engine, f"DROP ROLE {user}")


# --- other people's tables -------------------------------------------------------------------


@contextmanager
def application(database: Database) -> Iterator[Any]:
    """Tables of an application, with migrations of its own; what they hold, as a function."""
    theirs = MetaData()
    Table("alembic_version", theirs, Column("version_num", String(32), primary_key=True))
    order = Table("app_order", theirs, Column("id", Integer, primary_key=True))
    Table("celery_delays", theirs, Column("id", Integer, primary_key=True))
    with database.writing() as connection:
        theirs.create_all(connection)
        connection.execute(text("CREATE INDEX ix_celery_delay_of_theirs ON app_order (id)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('a1b2c3')"))
        connection.execute(order.insert(), [{"id": number} for number in range(1, 8)])

    def holds() -> dict[str, Any]:
        with database.reading() as connection:
            found = inspect(connection)
            return {
                name: (
                    connection.execute(table.select()).all(),
                    [one["name"] for one in found.get_indexes(name)],
                )
                for name, table in theirs.tables.items()
            }

    yield holds
    with database.writing() as connection:
        theirs.drop_all(connection)


def test_an_applications_tables_are_left_alone_up_and_down(database: Database) -> None:
    log = SQLAuditLog(database)
    with application(database) as holds:
        before = holds()
        log.migrate()
        take(log, Journal().life())
        with database.migrating() as connection:
            command.downgrade(schema.alembic_config(connection), "base")
        assert holds() == before

        log.migrate()
        take(log, Journal().life())

        assert holds() == before
        assert before["alembic_version"] == ([("a1b2c3",)], [])
        assert before["app_order"][1] == ["ix_celery_delay_of_theirs"]
        # and to look for changes of ours is not to look at theirs
        with database.migrating() as connection:
            command.check(schema.alembic_config(connection))


def test_a_change_of_ours_is_found(database: Database) -> None:
    """Else the comparison above would prove nothing."""
    SQLAuditLog(database).migrate()
    with database.migrating() as connection:
        connection.execute(text("ALTER TABLE celery_delay_epoch ADD COLUMN more INTEGER"))

    with database.migrating() as connection, pytest.raises(Exception, match="more"):
        command.check(schema.alembic_config(connection))


# --- time zones ------------------------------------------------------------------------------

_ODD = {
    "postgresql": "?options=" + quote("-c timezone=America/St_Johns"),
    "mysql": "?init_command=" + quote("SET time_zone = '+05:45'"),
    "sqlite": "",
}
_NOW = {
    "postgresql": "SELECT extract(hour FROM now())::int * 60 + extract(minute FROM now())::int",
    "mysql": "SELECT hour(now()) * 60 + minute(now())",
    "sqlite": "SELECT strftime('%H', 'now', 'localtime') * 60 + strftime('%M', 'now', 'localtime')",
}


def test_no_time_zone_changes_what_is_stored_or_read(
    database: Database, sql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(by: Database) -> Any:
        log, queries = SQLAuditLog(by), AuditQueries(by)
        log.migrate()
        take(log, Journal().life())
        found = queries.tasks(states=["SUCCEEDED"], after_ms=T0, before_ms=T0 + 60_000)
        read = rows(by), found, queries.runs("one"), queries.events("one")
        with by.migrating() as connection:
            command.downgrade(schema.alembic_config(connection), "base")
        return read

    usual = told(database)
    monkeypatch.setenv("TZ", "America/St_Johns")
    time.tzset()
    try:
        odd = Database(sql_url + _ODD[database.url.get_backend_name()])
        with odd.reading() as connection:
            there = int(connection.scalar(text(_NOW[connection.dialect.name])))
            offset = (there - time.gmtime().tm_min) % 60
            assert offset in (29, 30, 31, 44, 45, 46), "the time zone is not odd"
        assert told(odd) == usual
        assert usual[1][0].eta_ms == T0 + 60_000
        odd.close()
    finally:
        monkeypatch.undo()
        time.tzset()


# --- an engine of the project's --------------------------------------------------------------


@pytest.fixture
def engine(sql_url: str) -> Iterator[Any]:
    """An application's engine: it commits each statement, and listens to its connections."""
    engine = create_engine(from_url(sql_url).url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


def test_an_engine_that_is_given_is_used_with_its_listeners(
    database: Database, engine: Any
) -> None:
    connected = []
    listening.listen(engine, "connect", lambda *_: connected.append(1))
    given = Database(from_engine(engine))
    log = SQLAuditLog(given)
    log.migrate()
    assert connected

    take(log, Journal().life())

    assert AuditQueries(given).counts() == {"SUCCEEDED": 1}
    given.close()
    # and the application's own connections are as they were
    assert engine.pool.checkedin() == engine.pool.checkedout() == 0


def test_an_engine_that_commits_each_statement_does_not_tear_a_batch(
    database: Database, engine: Any
) -> None:
    given = Database(from_engine(engine))
    log, journal = SQLAuditLog(given), Journal()
    log.migrate()
    take(log, journal.life("one", "SCHEDULED"))
    before = rows(given)

    def fail(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INTO celery_delay_task" in statement:
            raise OSError("the disk is full")

    listening.listen(given.engine, "before_cursor_execute", fail)
    with pytest.raises(AuditUnavailable, match="disk is full"):
        take(log, journal.life("two"))
    listening.remove(given.engine, "before_cursor_execute", fail)

    assert rows(given) == before
    given.close()


def test_an_engine_that_was_used_before_a_fork_is_not_shared(
    database: Database, engine: Any
) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    given = Database(from_engine(engine))
    log, journal = SQLAuditLog(given), Journal()
    log.migrate()
    take(log, journal.life("before"))
    child = os.fork()
    if child == 0:  # what pytest has set up is not the child's to take down
        try:
            assert given.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
            take(log, journal.life("child"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    for _ in range(4):
        journal.event("SCHEDULED")  # the child's stream ids
    take(log, journal.life("after"))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    assert AuditQueries(given).counts() == {"SUCCEEDED": 3}
    given.close()


@servers
def test_an_engine_keeps_to_our_limits_too(database: Database, engine: Any) -> None:
    given = Database(from_engine(engine), timeout=1.0)
    nap = {"postgresql": "SELECT pg_sleep(30)", "mysql": "SELECT SLEEP(30)"}

    with (
        pytest.raises(AuditUnavailable, match=r"statement timeout|max_statement_time"),
        given.reading() as connection,
    ):
        connection.execute(text(nap[connection.dialect.name]))
    given.close()


@mariadb
def test_mariadb_by_its_own_name(database: Database, sql_url: str) -> None:
    named = Database(sql_url.replace("mysql+pymysql", "mariadb"))
    log = SQLAuditLog(named)
    log.migrate()
    events = Journal().life()

    take(log, events)

    assert named.url.drivername == "mariadb+pymysql"
    assert AuditQueries(named).events("one") == events
    assert SQLWaitingEntries(named).still_waiting([EntryId("one", T0)]) == []
    named.close()
