"""Redis and SQL come back from backups of different moments: what is doubled, missing, or told."""

from __future__ import annotations

import runpy
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import make_url

from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Transition
from celery_delay.domain.states import State
from celery_delay.embedded import EmbeddedRedis
from celery_delay.services.auditor import Auditor
from celery_delay.services.reconciler import Reconciler
from celery_delay.services.relay import Relay
from celery_delay.services.setback import SetBack
from tests.processes import wait_until
from tests.projects import hand_off, make_app, messages
from tests.sql import KINDS, SQLDatabases, emptied

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "after_restore.py"


def pay() -> None: ...


class Site:
    """A project with a Redis of its own, in the hands of one leader: the test."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.url, self._folder = make_url(database_url), folder
        self._redis_folder = folder / "redis"
        self._redis_folder.mkdir()
        self.redis = EmbeddedRedis(path=self._redis_folder, port=None)
        self.redis.start()
        self.app: Celery = make_app(self.redis.tcp_url, delay_database_url=database_url)
        self.app.delayed.audit_log.migrate()
        self.task = self.app.task(pay, shared=False, name="shop.pay")
        self.queries = AuditQueries(self.app.delayed.audit_log.database)

    def later(self, seconds: float) -> Any:
        return self.task.delay_for(seconds)

    def drain(self) -> None:
        parts = self.app.delayed
        [store] = parts.shards
        waiting, settings = SQLWaitingEntries(parts.audit_log.database), parts.settings
        back = SetBack(0, store, waiting, parts.cold_rows, settings)
        given = (parts.results, settings, parts.clock, None, back)
        audit = Auditor(0, store, parts.audit_log, *given)
        relay = Relay(0, store, parts.backed_rows, settings, parts.clock)
        lost, term = Reconciler(store, waiting), store.leader()[1]
        while audit.run_once(term) or relay.run_once(term) or lost.run_once(term):
            pass

    def states(self, **results: Any) -> dict[str, str | None]:
        """What the audit believes of them."""
        rows = {name: self.queries.task(one.id) for name, one in results.items()}
        return {name: row and row.state for name, row in rows.items()}

    # -- backups, as the how-to says ----------------------------------------------------

    def dump(self) -> Path:
        """SQL, while it is in use."""
        to = self._folder / "audit.dump"
        if self.url.get_backend_name() == "sqlite":
            with sqlite3.connect(str(self.url.database)) as source, sqlite3.connect(to) as target:
                source.backup(target)
            target.close()
            source.close()
        elif self.url.get_backend_name() == "postgresql":
            _run("pg_dump", "--clean", "--if-exists", "-t", "celery_delay_*", "-f", to, self._dsn)
        else:
            _run("mariadb-dump", "--single-transaction", "-r", to, *self._place)
        return to

    def restore(self, dump: Path) -> None:
        self.app.delayed.audit_log.close()
        if self.url.get_backend_name() == "sqlite":
            path = Path(str(self.url.database))
            for one in path.parent.glob(path.name + "*"):
                one.unlink()
            shutil.copy(dump, path)
        elif self.url.get_backend_name() == "postgresql":
            _run("psql", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", dump, self._dsn)
        else:
            with dump.open() as lines:
                _run("mariadb", *self._place, stdin=lines)

    def copy_redis(self) -> Path:
        """Redis' append-only files, while it is in use."""
        return Path(shutil.copytree(self._redis_folder, self._folder / "redis.copy",
                                    ignore=shutil.ignore_patterns("*.sock*", "*.pid")))  # fmt: skip

    def restore_redis(self, copy: Path) -> None:
        self.redis.kill()
        shutil.rmtree(self._redis_folder)
        shutil.copytree(copy, self._redis_folder)
        self.redis.start()
        wait_until(lambda: self.app.delayed.shards[0].now_ms() > 0, 10, "Redis")

    @property
    def _dsn(self) -> str:
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def _place(self) -> list[str]:
        url = self.url
        port = [] if url.port is None else ["-P", str(url.port)]
        password = [] if url.password is None else [f"-p{url.password}"]
        return ["-h", str(url.host), *port, "-u", str(url.username), *password, str(url.database)]

    def close(self) -> None:
        self.app.delayed.audit_log.close()
        self.app.close()
        self.redis.stop()


def _run(*command: Any, **options: Any) -> None:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True,
                          check=False, **options)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def new_site(tmp_path: Path, sql_databases: SQLDatabases) -> Iterator[Callable[[str], Site]]:
    made: list[Site] = []
    contexts = []

    def new(kind: str) -> Site:
        url = f"sqlite:///{tmp_path}/audit.db"
        if kind != "sqlite":
            url = sql_databases.url(kind)
            contexts.append(emptied(url))
            contexts[-1].__enter__()
        made.append(Site(tmp_path, url))
        return made[-1]

    yield new
    for one in made:
        one.close()
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_an_sql_older_than_redis_has_a_hole_and_no_task_is_touched(
    new_site: Callable[[str], Site], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a backup of SQL, after which one task was handed off and another scheduled
    site = new_site(kind)
    sent, later = site.later(60), site.later(3600)
    hand_off(site.app)
    site.drain()
    dump = site.dump()
    assert hand_off(site.app, sent) == 1
    added = site.later(3600)
    site.drain()

    # When it is restored under a Redis that has gone on
    site.restore(dump)
    site.drain()

    # Then the audit knows that it does not know, but for what Redis can tell
    assert site.states(sent=sent, later=later, added=added) == {
        "sent": "DISPATCHED", "later": "SCHEDULED", "added": None,
    }  # fmt: skip
    [_, told] = site.queries.events(sent.id)
    assert told.data == {"why": "the audit database was set back"}
    [gap] = site.queries.events("-")
    assert gap.data["why"] == "set back"
    assert "audit_set_back" in [getattr(one, "event", "") for one in caplog.records]
    # and what waits, waits: nothing is doubled, nothing lost, and what comes is told
    waiting = {one.entry_id.task_id for one in site.app.delayed.list()}
    assert waiting == {later.id, added.id}
    assert hand_off(site.app, added) == 2
    site.drain()
    assert site.states(later=later, added=added) == dict.fromkeys(("later", "added"), "DISPATCHED")
    queued = Counter(one["headers"]["id"] for one in messages(site.app))
    assert queued == {sent.id: 1, later.id: 1, added.id: 1}
    assert len(site.queries.events("-")) == 1


def test_a_redis_older_than_sql_doubles_and_loses_what_the_audit_can_name(
    new_site: Callable[[str], Site],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Given a copy of Redis, after which tasks ended, were cancelled, handed off and scheduled
    site = new_site("sqlite")
    done, sent, dropped, later = (site.later(60 * number) for number in (1, 2, 3, 100))
    hand_off(site.app)
    site.drain()
    copy = site.copy_redis()
    assert hand_off(site.app, sent) == 2
    [shard] = site.app.delayed.shards
    [first] = site.queries.runs(done.id)
    shard.record([Transition(EntryId(done.id, first.run), 0, State.SUCCEEDED, {})])
    assert dropped.cancel()
    added = site.later(3600)
    site.drain()

    # When Redis comes back from it
    site.restore_redis(copy)
    hand_off(site.app)
    site.drain()

    # Then what was added since is LOST, and what has left since waits again
    everyone = {"done": done, "sent": sent, "dropped": dropped, "later": later, "added": added}
    told = {
        "done": "SUCCEEDED", "sent": "DISPATCHED", "dropped": "CANCELLED", "later": "SCHEDULED",
        "added": "LOST",
    }  # fmt: skip
    assert site.states(**everyone) == told
    waiting = {one.entry_id.task_id for one in site.app.delayed.iterate()}
    assert waiting == {done.id, sent.id, dropped.id, later.id}

    # The script of the how-to tells the three, and cancels those of which an end is known
    def run(*options: str) -> dict[str, str]:
        monkeypatch.setattr(sys, "argv", ["after_restore.py", "restored:app", *options])
        monkeypatch.setitem(sys.modules, "restored", site)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line.split(maxsplit=2)[2] for line in lines}

    assert run() == dict.fromkeys((done.id, sent.id, dropped.id), "waits again")
    assert run("--cancel") == {
        done.id: "CANCELLED", dropped.id: "CANCELLED", sent.id: "waits again",
    }  # fmt: skip
    site.drain()
    assert site.states(**everyone) == told
    # what was handed off may run a second time, or for the first: its message was in Redis, too
    assert hand_off(site.app, later) == 2
    queued = Counter(one["headers"]["id"] for one in messages(site.app))
    assert queued == {sent.id: 1, later.id: 1}
