"""The audit tables are what the migrations make, and nobody else's tables are touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from celery_delay.audit import schema
from celery_delay.audit.database import Database
from celery_delay.audit.declared import declared
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.tables import metadata
from celery_delay.audit.version import VERSION_TABLE
from celery_delay.exceptions import AuditUnavailable, SchemaOutdated
from tests.contract.audit_rows import EPOCH, Journal, rows, take

OURS = {*metadata.tables, VERSION_TABLE}


def tables(connection: Connection) -> set[str]:
    return {one for one in inspect(connection).get_table_names() if one.startswith("celery_delay")}


# --- the migrations ------------------------------------------------------------------------


def test_the_migrations_make_what_the_code_declares(database: Database) -> None:
    SQLAuditLog(database).migrate()

    with database.reading() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_type": True,
                "include_name": lambda name, kind, _: kind != "table" or name in OURS,
            },
        )
        assert compare_metadata(context, declared()) == []
        assert tables(connection) == OURS


def test_keys_and_table_options_are_those_declared(database: Database) -> None:
    """What compare_metadata does not look at."""
    SQLAuditLog(database).migrate()

    with database.reading() as connection:
        found = inspect(connection)
        for table in declared().tables.values():
            key = found.get_pk_constraint(table.name)["constrained_columns"]
            assert key == [one.name for one in table.primary_key], table.name
            nullable = {one["name"]: one["nullable"] for one in found.get_columns(table.name)}
            assert nullable == {one.name: one.nullable for one in table.c}, table.name
            if connection.dialect.name in ("mysql", "mariadb"):
                options = found.get_table_options(table.name)
                assert options["mysql_engine"] == table.kwargs["mysql_engine"] == "InnoDB"
                assert options["mysql_collate"] == table.kwargs["mysql_collate"] == "utf8mb4_bin"


def test_down_and_up_again(database: Database) -> None:
    log = SQLAuditLog(database)
    log.migrate()
    take(log, Journal().life())
    steps = list(ScriptDirectory.from_config(schema.alembic_config()).walk_revisions())

    for step in steps:
        with database.migrating() as connection:
            command.downgrade(schema.alembic_config(connection), step.down_revision or "base")
    with database.reading() as connection:
        assert tables(connection) == {VERSION_TABLE}

    for step in reversed(steps):
        with database.writing() as connection:
            command.upgrade(schema.alembic_config(connection), step.revision)
    log.prepare() if database.is_sqlite else log.migrate()
    assert {name: len(found) for name, found in rows(database).items()} == dict.fromkeys(
        ("task", "tag", "entry", "event", "epoch", "cursor"), 0
    )
    take(log, Journal().life())
    assert len(rows(database)["event"]) == 4


def test_other_peoples_tables_are_left_alone(database: Database) -> None:
    log = SQLAuditLog(database)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
        connection.execute(text("CREATE TABLE celery_delays (id INTEGER)"))
    try:
        log.migrate()
        with database.writing() as connection:
            command.downgrade(schema.alembic_config(connection), "base")
        log.migrate()

        with database.reading() as connection:
            assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "theirs"
            assert inspect(connection).has_table("celery_delays")
    finally:
        with database.writing() as connection:
            connection.execute(text("DROP TABLE alembic_version"))
            connection.execute(text("DROP TABLE celery_delays"))


def test_migrating_again_changes_nothing(database: Database) -> None:
    log = SQLAuditLog(database)
    uuid = log.migrate()
    take(log, Journal().life())
    before = rows(database)

    assert log.migrate() == log.prepare() == log.uuid() == uuid
    assert rows(database) == before


def test_the_tables_of_a_newer_release_are_refused(database: Database) -> None:
    log = SQLAuditLog(database)
    log.migrate()
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    for step in (log.prepare, log.migrate):
        with pytest.raises(SchemaOutdated, match="newer"):
            step()


def test_a_migration_that_fails_leaves_nothing_and_can_be_repeated(database: Database) -> None:
    log = SQLAuditLog(database)
    with database.writing() as connection:  # the last table but one of the migration is in the way
        connection.execute(text("CREATE TABLE celery_delay_cursor (x INTEGER)"))

    with pytest.raises(AuditUnavailable):
        log.migrate()

    with database.writing() as connection:
        connection.execute(text("DROP TABLE celery_delay_cursor"))
        left = tables(connection)
    if database.url.get_backend_name() == "mysql":
        assert "celery_delay_task" in left  # it commits each statement of a schema by itself
        return
    assert left == set()
    log.migrate()


# --- adoption ------------------------------------------------------------------------------


def test_to_adopt_is_to_bear_the_stores_uuid_and_forget_its_place(database: Database) -> None:
    log = SQLAuditLog(database)
    log.migrate()
    take(log, Journal().life())

    assert log.migrate(adopt="theirs") == "theirs"

    assert log.prepare() == log.uuid() == "theirs"
    # the other store's epochs may well be lower
    assert log.position(0, 1).last_id == "0"
    take(log, Journal(epoch=1).life("two"), epoch=1)
    assert len(rows(database)["event"]) == 8


def test_to_adopt_ones_own_changes_nothing(database: Database) -> None:
    log = SQLAuditLog(database)
    uuid = log.migrate()
    take(log, Journal().life())

    log.migrate(adopt=uuid)

    assert log.position(0, EPOCH).last_id != "0"


# --- SQLite --------------------------------------------------------------------------------

_PREPARE = """
import sys
from celery_delay.audit.log import SQLAuditLog
log = SQLAuditLog(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(log.prepare())
"""


def test_of_several_beats_that_start_at_once_one_migrates(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    beats = [
        subprocess.Popen(
            [sys.executable, "-c", _PREPARE, f"sqlite:///{tmp_path}/audit.db"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
        for _ in range(4)
    ]
    for beat in beats:
        assert beat.stdout is not None
        assert beat.stdout.readline() == "ready\n"
    for beat in beats:
        assert beat.stdin is not None
        beat.stdin.write("go\n")
        beat.stdin.flush()
    answers = {beat.communicate(timeout=30)[0] for beat in beats}

    assert len(answers) == 1
    assert len(answers.pop().strip()) == 36


def test_readers_of_a_file_go_on_while_somebody_writes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/audit.db")
    log = SQLAuditLog(database)
    log.migrate()

    with database.writing() as connection:
        connection.execute(text("INSERT INTO celery_delay_epoch VALUES (0, 1, 1)"))
        assert log.position(0, 1).last_id == "0"
    with database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.close()


def test_a_file_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    log = SQLAuditLog(f"sqlite:///{tmp_path}/none/audit.db")

    with pytest.raises(AuditUnavailable, match="unable to open"):
        log.prepare()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "audit.db"
    file.write_text("a shopping list, and a long one at that\n" * 100)

    with pytest.raises(AuditUnavailable, match="not a database"):
        SQLAuditLog(f"sqlite:///{file}").prepare()


# --- servers -------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_a_server_that_is_away(driver: str) -> None:
    pytest.importorskip(driver.partition("+")[2])
    log = SQLAuditLog(f"{driver}://ann:secret@127.0.0.1:1/db")

    with pytest.raises(AuditUnavailable) as raised:
        log.prepare()
    assert "secret" not in str(raised.value)


# --- by a DBA ------------------------------------------------------------------------------


def test_printed_statements_make_the_tables(database: Database) -> None:
    """Run by the server's own client, or by the driver."""
    dialect = database.url.get_backend_name()
    statements = schema.as_sql(dialect, None)

    with database.engine.connect().execution_options(begin="") as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        for one in re.sub(r"(?m)^--.*$", "", statements).split(";"):
            if one.strip():
                connection.exec_driver_sql(one)

    uuid = SQLAuditLog(database).prepare()
    assert len(uuid) == 36
    with database.reading() as connection:
        assert tables(connection) == OURS
        assert compare_metadata(
            MigrationContext.configure(
                connection, opts={"include_name": lambda n, k, _: k != "table" or n in OURS,
                                  "version_table": VERSION_TABLE},
            ),
            declared(),
        ) == []  # fmt: skip
    assert SQLAuditLog(database).migrate() == uuid


def test_statements_name_the_schema_and_the_version_that_is_there() -> None:
    whole = schema.as_sql("postgresql", "delayed tasks")
    assert 'SET search_path TO "delayed tasks";' in whole
    # "delayed" is a word of MySQL's own
    assert "USE `delayed`;" in schema.as_sql("mysql", "delayed")
    head = ScriptDirectory.from_config(schema.alembic_config()).get_current_head()
    assert "CREATE TABLE" not in schema.as_sql("sqlite", None, head)
    with pytest.raises(ValueError, match="9999"):
        schema.as_sql("sqlite", None, "9999")
