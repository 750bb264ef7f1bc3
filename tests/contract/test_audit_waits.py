"""What the audit does when the database keeps it waiting, or ends its transaction."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import Connection, create_engine, select, text, update
from sqlalchemy import event as listening

from celery_delay.audit import limits
from celery_delay.audit.database import ATTEMPTS, Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.sources import from_url
from celery_delay.audit.tables import cursor
from celery_delay.domain.ports import JournalPosition
from celery_delay.exceptions import AuditUnavailable
from tests.contract.audit_rows import EPOCH, Journal, rows, take
from tests.faults_proxy import FaultyProxy
from tests.processes import wait_until
from tests.sql import administrator, run_sql

#: The time-out of most of these tests, and how long its errors may be in coming on a machine
#: that has other things to do.
TIMEOUT, SOON = 1.0, 15.0

servers = pytest.mark.parametrize("sql_url", ["postgresql", "mariadb"], indirect=True)
postgresql = pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
mariadb = pytest.mark.parametrize("sql_url", ["mariadb"], indirect=True)


@pytest.fixture
def log(audit: Database, sql_url: str) -> Iterator[SQLAuditLog]:
    log = SQLAuditLog(Database(sql_url, timeout=TIMEOUT))
    yield log
    log.close()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@contextmanager
def rival(url: str) -> Iterator[Connection]:
    """A connection of somebody else, who has all the time in the world."""
    engine = create_engine(from_url(url).url)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def within(seconds: float = SOON) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def count_attempts(database: Database) -> list[str]:
    """A list that grows with each attempt to write a batch."""
    begun: list[str] = []
    first = "BEGIN" if database.is_sqlite else "UPDATE celery_delay_cursor"

    def note(*args: Any) -> None:
        if args[2].startswith(first):
            begun.append(args[2])

    listening.listen(database.engine, "before_cursor_execute", note)
    return begun


# --- transactions that the database ends -----------------------------------------------------


def weigh(connection: Connection) -> None:
    """Make this transaction the heavier one, which MariaDB lets live."""
    connection.execute(text("CREATE TABLE app_ballast (n INTEGER)"))
    numbers = ", ".join(f"({number})" for number in range(3_000))
    connection.execute(text(f"INSERT INTO app_ballast VALUES {numbers}"))


def is_waiting(url: str) -> bool:
    """Whether somebody waits for a row's lock."""
    question = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
        "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    }
    with administrator(url) as engine:
        return bool(run_sql(engine, question[engine.dialect.name]))


@servers
def test_a_batch_that_loses_a_deadlock_is_written_all_the_same_and_once(
    audit: Database, sql_url: str, journal: Journal
) -> None:
    # long enough for PostgreSQL to look for deadlocks, which it does after a second
    log = SQLAuditLog(Database(sql_url, timeout=10.0))
    first, *others = journal.life()
    take(log, [first])
    with administrator(sql_url) as engine:
        run_sql(engine, "DROP TABLE IF EXISTS app_ballast")
    begun = count_attempts(log.database)

    # Given somebody who holds the task's row, and then wants the cursor's, which the batch has
    with rival(sql_url) as other, ThreadPoolExecutor(1) as pool:
        if other.dialect.name == "postgresql":
            other.execute(text("SET deadlock_timeout = '60s'"))  # let the batch be the victim
        weigh(other)
        other.execute(text("UPDATE celery_delay_task SET version = version"))
        position = log.position(0, EPOCH)
        begun.clear()
        batch = pool.submit(log.take, position, others, others[-1].stream_id)
        wait_until(lambda: is_waiting(sql_url), SOON, "the batch waits")
        other.execute(text("UPDATE celery_delay_cursor SET at_ms = at_ms"))
        other.rollback()

        # Then the batch was begun a second time, and each event is there once
        assert batch.result(SOON) == []
    with administrator(sql_url) as engine:
        run_sql(engine, "DROP TABLE IF EXISTS app_ballast")
    assert len(begun) > 1
    assert AuditQueries(log.database).events("one") == [first, *others]
    log.close()


@pytest.mark.parametrize(
    ("sql_url", "query"),
    [
        ("postgresql", "options=" + quote("-c default_transaction_isolation=repeatable\\ read")),
        ("mariadb", "init_command=" + quote("SET innodb_snapshot_isolation = ON")),
    ],
    indirect=["sql_url"],
    ids=["postgresql", "mariadb"],
)
def test_a_row_that_has_changed_since_the_transaction_began_is_read_again(
    audit: Database, sql_url: str, query: str
) -> None:
    """With REPEATABLE READ, which an administrator may have made the default."""
    take(SQLAuditLog(audit), Journal().life())
    database = Database(f"{sql_url}?{query}")
    seen = []

    def work(connection: Connection) -> None:
        seen.append(connection.scalar(select(cursor.c.at_ms)))
        if len(seen) == 1:
            with rival(sql_url) as other:
                other.execute(text("UPDATE celery_delay_cursor SET at_ms = at_ms + 1"))
                other.commit()
        connection.execute(update(cursor).values(at_ms=cursor.c.at_ms + 10))

    database.write(work)

    assert len(seen) == 2
    assert rows(database)["cursor"][0]["at_ms"] == seen[0] + 11
    database.close()


def test_a_lock_that_is_given_back_in_time_costs_nothing_but_a_repeat(
    audit: Database, sql_url: str, journal: Journal
) -> None:
    log = SQLAuditLog(Database(sql_url, timeout=2.0))
    events = journal.life()
    take(log, events[:2])
    begun = count_attempts(log.database)
    holder = Holder(sql_url)

    with ThreadPoolExecutor(1) as pool:
        position = JournalPosition(0, EPOCH, events[1].stream_id)
        batch = pool.submit(log.take, position, events[2:], events[3].stream_id)
        wait_until(lambda: len(begun) > 1, SOON, "a second attempt")
        holder.close()
        assert batch.result(SOON) == []

    assert AuditQueries(log.database).events("one") == events
    log.close()


def test_an_error_of_another_kind_is_not_repeated(log: SQLAuditLog) -> None:
    done = []

    def work(connection: Connection) -> None:
        done.append(connection)
        connection.execute(text("SELECT no_such_column FROM celery_delay_cursor"))

    with pytest.raises(AuditUnavailable, match="no_such_column"):
        log.database.write(work)
    assert len(done) == 1


def test_repeats_come_to_an_end(audit: Database, sql_url: str) -> None:
    """Whoever always loses gets the last error."""
    done = []
    error = sqlite3.OperationalError("database is locked")

    def work(connection: Connection) -> None:
        done.append(connection)
        raise AuditUnavailable("refused") from _as_sqlalchemy(error)

    database = Database(sql_url, timeout=60)
    with pytest.raises(AuditUnavailable, match="refused"):
        database.write(work)
    database.close()
    assert len(done) == ATTEMPTS


def _as_sqlalchemy(error: Exception) -> Exception:
    from sqlalchemy.exc import OperationalError

    return OperationalError("UPDATE", {}, error)


# --- locks of others -------------------------------------------------------------------------


class Holder:
    """Somebody who has the table of the cursors, as a backup or a migration would."""

    def __init__(self, url: str) -> None:
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(url,))
        self._thread.start()
        assert self._ready.wait(SOON)

    def _hold(self, url: str) -> None:
        statements = {
            "postgresql": ("LOCK TABLE celery_delay_cursor IN ACCESS EXCLUSIVE MODE",),
            "mysql": ("LOCK TABLES celery_delay_cursor WRITE",),
            # another process' lock on the file, which a reader does not meet in WAL mode
            "sqlite": ("UPDATE celery_delay_cursor SET at_ms = at_ms",),
        }
        with rival(url) as other:
            for one in statements[other.dialect.name]:
                other.execute(text(one))
            self._ready.set()
            self._over.wait(60)
            other.rollback()
            if other.dialect.name == "mysql":
                other.execute(text("UNLOCK TABLES"))

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def test_a_table_that_somebody_has_locked_is_given_up_in_time(
    log: SQLAuditLog, sql_url: str, journal: Journal
) -> None:
    events = journal.life()
    take(log, events[:2])
    holder = Holder(sql_url)
    try:
        with within(), pytest.raises(AuditUnavailable, match=r"(?i)lock"):
            log.take(
                JournalPosition(0, EPOCH, events[1].stream_id), events[2:], events[3].stream_id
            )
    finally:
        holder.close()

    take(log, events[2:])
    assert AuditQueries(log.database).events("one") == events


# --- statements ------------------------------------------------------------------------------

_SLEEP = {"postgresql": "SELECT pg_sleep(40)", "mysql": "SELECT SLEEP(40)"}


@servers
def test_a_statement_that_takes_too_long_is_ended_by_the_server(log: SQLAuditLog) -> None:
    said = r"statement timeout|max_statement_time"
    with (
        within(),
        pytest.raises(AuditUnavailable, match=said),
        log.database.reading() as connection,
    ):
        connection.execute(text(_SLEEP[connection.dialect.name]))
    assert log.position(0, EPOCH).last_id == "0"


@servers
def test_a_migration_has_the_time_it_needs(log: SQLAuditLog) -> None:
    with log.database.migrating() as connection:
        nap = _SLEEP[connection.dialect.name].replace("40", str(TIMEOUT * 2.5))
        connection.execute(text(nap))


@servers
def test_the_server_ends_a_transaction_that_a_frozen_beat_left_open(
    audit: Database, sql_url: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GRACE", 120.0)  # its own fuse is frozen too
    log = SQLAuditLog(Database(sql_url, timeout=TIMEOUT))
    take(log, journal.life())

    def work(connection: Connection) -> None:
        # Given a beat that is frozen while it has the cursor's row
        connection.execute(update(cursor).values(at_ms=0))
        # Then somebody else gets the row, soon
        with within(), rival(sql_url) as other:
            other.execute(text("UPDATE celery_delay_cursor SET at_ms = 1"))
            other.commit()
        # and the beat, awake again, finds its work undone
        connection.execute(update(cursor).values(at_ms=2))

    with pytest.raises(AuditUnavailable):
        log.database.write(work)
    assert rows(log.database)["cursor"][0]["at_ms"] == 1
    log.close()


@postgresql
def test_limits_end_with_the_transaction(log: SQLAuditLog) -> None:
    """A pooler between us and the server may give the session to somebody else."""
    with log.database.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "1s"
        connection.commit()
        raw: Any = connection.connection.dbapi_connection
        assert raw.execute("SHOW statement_timeout").fetchone() == ("0",)
        raw.rollback()


# --- a server that says nothing --------------------------------------------------------------


@pytest.fixture
def through_proxy(audit: Database, sql_url: str) -> Iterator[tuple[FaultyProxy, SQLAuditLog]]:
    url = from_url(sql_url).url
    port = url.port or {"postgresql": 5432, "mysql": 3306}[url.get_backend_name()]
    with FaultyProxy(port) as proxy:
        there = url.set(host="127.0.0.1", port=int(proxy.url.rpartition(":")[2].split("/")[0]))
        log = SQLAuditLog(Database(there, timeout=TIMEOUT))
        log.position(0, EPOCH)
        yield proxy, log
        log.close()


ALWAYS = 1_000_000


@servers
def test_a_server_that_says_nothing_is_given_up_and_found_again(
    through_proxy: tuple[FaultyProxy, SQLAuditLog], journal: Journal
) -> None:
    proxy, log = through_proxy
    take(log, journal.life())

    for _ in range(2):  # a connection from the pool, and then a new one
        proxy.fail("blackhole", ALWAYS)
        with within(), pytest.raises(AuditUnavailable) as raised:
            log.position(0, EPOCH)
        assert "refused" in str(raised.value) or "cannot be used" in str(raised.value)
    proxy.fail("ok", 0)

    assert log.position(0, EPOCH).last_id != "0"


@servers
@pytest.mark.parametrize("where", ["INTO celery_delay_event", "INTO celery_delay_task"])
def test_a_server_that_falls_silent_amid_a_batch(
    through_proxy: tuple[FaultyProxy, SQLAuditLog], journal: Journal, where: str
) -> None:
    proxy, log = through_proxy
    events = journal.life()

    def silence(*args: Any) -> None:
        if where in args[2]:
            proxy.fail("blackhole", ALWAYS)

    listening.listen(log.database.engine, "before_cursor_execute", silence)
    with within(), pytest.raises(AuditUnavailable):
        take(log, events)
    listening.remove(log.database.engine, "before_cursor_execute", silence)
    proxy.fail("ok", 0)

    wait_until(lambda: _taken(log, events), SOON, "the abandoned transaction is over")
    assert AuditQueries(log.database).events("one") == events


def _taken(log: SQLAuditLog, events: list[Any]) -> bool:
    try:
        return take(log, events) == []
    except AuditUnavailable:  # the server has not noticed yet that we are gone
        return False


@servers
@pytest.mark.parametrize("fault", ["drop-reply", "reset", "blackhole"])
def test_a_commit_whose_answer_is_lost_is_found_out_by_the_repeat(
    through_proxy: tuple[FaultyProxy, SQLAuditLog], journal: Journal, fault: str
) -> None:
    proxy, log = through_proxy
    events = journal.life()

    def lose(_connection: Connection) -> None:
        proxy.fail(fault, ALWAYS if fault == "blackhole" else 1)

    listening.listen(log.database.engine, "commit", lose)
    with within(), pytest.raises(AuditUnavailable):
        take(log, events)
    listening.remove(log.database.engine, "commit", lose)
    proxy.fail("ok", 0)

    wait_until(lambda: _taken(log, events), SOON, "the abandoned transaction is over")
    assert AuditQueries(log.database).events("one") == events


@servers
def test_a_connection_that_has_ended_meanwhile_is_replaced_without_a_word(
    log: SQLAuditLog, sql_url: str, journal: Journal
) -> None:
    take(log, journal.life())
    assert log.database.engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    kill_others(sql_url)

    take(log, journal.life("two"))

    assert AuditQueries(log.database).counts() == {"SUCCEEDED": 2}


def kill_others(url: str) -> None:
    """End all other connections to this database, as a restart does."""
    with administrator(url) as engine:
        if engine.dialect.name == "postgresql":
            run_sql(
                engine,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            return
        with engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT id FROM information_schema.processlist"
                    " WHERE db = database() AND id <> connection_id()"
                )
            )
            for number in found.scalars().all():
                connection.execute(text(f"KILL {number}"))


def test_no_fuse_is_left_after_a_batch(log: SQLAuditLog, journal: Journal) -> None:
    take(log, journal.life())

    # a thread that was told to end does so in a moment
    wait_until(
        lambda: limits.FUSE_THREAD not in [one.name for one in threading.enumerate()],
        TIMEOUT / 2,
        "no fuse burns",
    )
