"""Real beats on each kind of database: whose it is, when it is away, and when it is locked."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.sources import from_url
from celery_delay.embedded import EmbeddedRedis
from tests.processes import CeleryProcess, ProcessHarness, wait_until
from tests.projects import make_app

APP = """
import json, os
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("kept", broker=os.environ["URL"])
app.conf.update(json.loads(os.environ["CONF"]))
CeleryDelay(app)
"""
LEADS = r"leads \(term \d+\)"

postgresql = pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
mariadb = pytest.mark.parametrize("sql_url", ["mariadb"], indirect=True)


class Site:
    """A project with its Redis, its audit database and its processes."""

    def __init__(
        self, url: str, folder: Path, harness: Callable[..., ProcessHarness], **conf: Any
    ) -> None:
        conf = {"delay_drain_interval": 0.05, "delay_database_timeout": 1.0, **conf}
        self.app = make_app(url, **conf)
        self.client = redis.Redis.from_url(url)
        (folder / "kept.py").write_text(APP)
        self.processes = harness("kept", path=(folder,), env={"URL": url, "CONF": json.dumps(conf)})
        self._sent = 0

    def task_is_handed_off(self) -> str:
        self._sent += 1
        before = self.client.llen("celery")
        result = self.app.delayed.send_task("any", task_id=f"task-{self._sent}", countdown=0.1)
        wait_until(lambda: self.client.llen("celery") > before, 20, "a task is handed off")
        return str(result.id)

    def holder(self) -> bytes | None:
        """Who leads."""
        found: bytes | None = self.client.hget(self.app.delayed.shard_keys[0].lease, "holder")
        return found

    def delay(self, *arguments: str) -> str:
        done = self.processes.run("delay", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        self.client.close()
        self.app.close()


@pytest.fixture
def site(
    redis_server: EmbeddedRedis, harness: Callable[..., ProcessHarness], tmp_path: Path
) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**conf: Any) -> Site:
        made.append(Site(redis_server.tcp_url, tmp_path, harness, **conf))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_whose_the_database_is(site: Callable[..., Site], database: Database, sql_url: str) -> None:
    here = site(delay_database_url=sql_url)
    queries = AuditQueries(database)

    # Given a database without tables: a beat leads all the same, and a server wants `migrate`
    beat = here.processes.beat("first")
    beat.wait_for_log(LEADS)
    first = here.task_is_handed_off()
    if not database.is_sqlite:
        beat.wait_for_log(r"run `celery -A proj delay migrate`")
        assert "made now" in here.delay("migrate")
    wait_until(lambda: queries.schema().state == "current", 20, "the tables")
    wait_until(lambda: queries.counts() == {"DISPATCHED": 1}, 20, "drained")
    assert beat.stop() == 0

    # When the store belongs to another database: a beat does not lead, and says why
    mark = here.app.delayed.shard_keys[0].mark
    here.client.hset(mark, "audit_id", "another")
    beat = here.processes.beat("second")
    beat.wait_for_log(r"bears the uuid .* belong to another: .*delay migrate --adopt")
    assert "leads" not in beat.output()
    assert not here.holder()
    assert here.processes.run("delay", "status").returncode == 1

    # Then taking the database over is all that is needed
    assert "taken over" in here.delay("migrate", "--adopt")
    beat.wait_for_log(LEADS)
    second = here.task_is_handed_off()
    wait_until(lambda: queries.counts() == {"DISPATCHED": 2}, 20, "drained")
    assert [one.state for one in queries.events(first)] == ["SCHEDULED", "DISPATCHED"]
    assert [one.state for one in queries.events(second)] == ["SCHEDULED", "DISPATCHED"]


@pytest.mark.parametrize(
    ("sql_url", "away"),
    [
        ("postgresql", "refuses"),
        ("postgresql", "says nothing"),
        ("mariadb", "says nothing"),
    ],
    indirect=["sql_url"],
)
def test_a_database_that_is_away_keeps_no_beat_from_leading(
    site: Callable[..., Site], sql_url: str, away: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        if away == "refuses":
            mute.close()
        there = from_url(sql_url).url.set(host="127.0.0.1", port=port)
        here = site(delay_database_url=there.render_as_string(hide_password=False))

        beat = here.processes.beat()

        beat.wait_for_log(LEADS)
        here.task_is_handed_off()
        beat.wait_for_log(r"auditor-0 cannot work, and keeps trying: the audit database")


def test_a_database_that_cannot_work_ends_beat_at_once(site: Callable[..., Site]) -> None:
    beat = site(delay_database_engine="no_such_module:engine").processes.beat()

    assert beat.wait(30) != 0
    assert "delay_database_engine" in beat.output()
    assert "No module named 'no_such_module'" in beat.output()


@postgresql
def test_an_engine_of_the_projects_own_module(
    site: Callable[..., Site], audit: Database, sql_url: str, tmp_path: Path
) -> None:
    module = f"from sqlalchemy import create_engine\nengine = create_engine({sql_url!r})\n"
    (tmp_path / "shop_db.py").write_text(module)
    here = site(delay_database_engine="shop_db:engine")
    # the producer needs no engine
    beat = here.processes.beat()
    beat.wait_for_log(LEADS)

    task_id = here.task_is_handed_off()

    queries = AuditQueries(audit)
    wait_until(lambda: queries.counts() == {"DISPATCHED": 1}, 20, "drained")
    assert "DISPATCHED" in here.delay("history", task_id)


def test_a_locked_table_holds_no_task_up_and_the_audit_follows(
    site: Callable[..., Site], audit: Database, sql_url: str
) -> None:
    here = site(delay_database_url=sql_url)
    beat: CeleryProcess = here.processes.beat()
    beat.wait_for_log(LEADS)
    tasks = [here.task_is_handed_off()]
    queries = AuditQueries(audit)
    wait_until(lambda: queries.counts() == {"DISPATCHED": 1}, 20, "drained")

    lock = {
        "postgresql": "LOCK TABLE celery_delay_cursor IN ACCESS EXCLUSIVE MODE",
        "mysql": "LOCK TABLES celery_delay_cursor WRITE",
        "sqlite": "BEGIN EXCLUSIVE",
    }
    engine = create_engine(from_url(sql_url).url)
    with engine.connect() as other:
        # Given somebody who has locked the table
        other.execute(text(lock[other.dialect.name]))
        # When tasks become due, they are handed off
        tasks += [here.task_is_handed_off() for _ in range(3)]
        beat.wait_for_log(r"(?i)auditor-0 cannot work, and keeps trying: the audit database .*lock")
        tasks.append(here.task_is_handed_off())
        other.rollback()
        if other.dialect.name == "mysql":
            other.execute(text("UNLOCK TABLES"))
    engine.dispose()

    # Then the audit follows when it is free again
    wait_until(lambda: queries.counts() == {"DISPATCHED": len(tasks)}, 30, "drained")
    beat.wait_for_log("auditor-0 works again")
    for one in tasks:
        assert [event.state for event in queries.events(one)] == ["SCHEDULED", "DISPATCHED"]


@mariadb
def test_a_project_with_a_schema_of_its_own(
    site: Callable[..., Site], database: Database, sql_url: str
) -> None:
    name = f"{database.url.database}_delayed"
    placed = Database(sql_url, schema=name)
    here = site(delay_database_url=sql_url, delay_database_schema=name)
    try:
        assert "made now" in here.delay("migrate")
        here.processes.beat().wait_for_log(LEADS)
        task_id = here.task_is_handed_off()
        queries = AuditQueries(placed)
        wait_until(lambda: queries.counts() == {"DISPATCHED": 1}, 20, "drained")
        assert "DISPATCHED" in here.delay("show", task_id)
        assert SQLAuditLog(database).uuid() is None
    finally:
        here.processes.close()
        with database.writing() as connection:
            connection.execute(text(f"DROP SCHEMA {name}"))
        placed.close()
