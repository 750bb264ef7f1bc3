"""Scheduling in the caller's own transaction: committed is scheduled, rolled back never was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, group
from sqlalchemy import URL, Engine, UpdateBase, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_delay.domain.states import State
from celery_delay.exceptions import InvalidSetting
from tests.integration import running
from tests.processes import wait_until
from tests.projects import make_app
from tests.sql import migrated


@pytest.fixture
def app(redis_url: str, sql_url: str) -> Iterator[Celery]:
    """An app whose audit is the application's own database, on each kind."""
    with migrated(sql_url):
        app = make_app(redis_url, delay_database_url=sql_url)

        @app.task(shared=False, name="later")
        def later(what: Any = None) -> None: ...

        lead(app)
        yield app
        app.delayed.audit_log.close()
        app.close()


def lead(app: Celery) -> None:
    """Name the Redis history, as a leading beat does."""
    from tests.shards import lead as take_the_lease

    take_the_lease(app.delayed.shards[0])


@pytest.fixture
def engine(app: Celery) -> Iterator[Engine]:
    """The application's engine, not ours."""
    engine = create_engine(app.delayed.audit_log.database.url)
    yield engine
    engine.dispose()


def rows(app: Celery) -> set[str]:
    """The tasks of which there are rows, as everybody else sees them."""
    with app.delayed.audit_log.database.reading() as connection:
        return set(connection.execute(text("SELECT task_id FROM celery_delay_payload")).scalars())


def is_in_redis(app: Celery, task_id: str) -> bool:
    return app.delayed.shards[0].get(task_id) is not None


# --- every kind of session -----------------------------------------------------------------


def test_what_a_session_commits_is_scheduled_and_else_nothing(app: Celery, engine: Engine) -> None:
    later: Any = app.tasks["later"]
    with Session(engine) as session:
        kept = later.apply_delayed(("kept",), countdown=60, session=session)
        assert (rows(app), is_in_redis(app, kept.id)) == (set(), False)  # nobody else knows it
        with suppress(RuntimeError), session.begin_nested():
            gone = later.apply_delayed(("gone",), countdown=60, session=session)
            raise RuntimeError
        with session.begin_nested():
            nested = later.apply_delayed(("nested",), countdown=0, session=session)
        many = later.apply_delayed_many([(1,), (2,)], countdown=60, session=session)
        session.commit()
        dropped = later.apply_delayed(("dropped",), countdown=60, session=session)
        session.rollback()
        three = group(later.s(1), later.s(2)).apply_delayed(countdown=60, session=session)
        named = app.delayed.send_task("later", countdown=60, session=session)
        session.commit()

    wanted = [kept, nested, *many, *three.results, named]
    assert rows(app) == {one.id for one in wanted}
    assert all(is_in_redis(app, one.id) for one in wanted)
    for one in (gone, dropped):
        assert (one.delay_state, is_in_redis(app, one.id)) == (None, False)
    assert kept.delay_state is State.SCHEDULED
    assert abs(kept.eta.timestamp() * 1000 - app.delayed.now_ms() - 60_000) < 30_000


def test_a_scoped_session_and_a_connection(app: Celery, engine: Engine) -> None:
    later: Any = app.tasks["later"]
    scoped = scoped_session(sessionmaker(engine))
    one = later.apply_delayed(countdown=60, session=scoped)
    scoped.commit()
    scoped.remove()
    with engine.begin() as connection:
        other = later.apply_delayed(countdown=60, session=connection)
    with engine.connect() as connection:
        later.apply_delayed(countdown=60, session=connection)
        connection.rollback()

    assert rows(app) == {one.id, other.id}
    # a bare connection tells nobody of its commit: the relay looks
    assert (is_in_redis(app, one.id), is_in_redis(app, other.id)) == (True, False)


def test_what_is_not_in_redis_yet_can_be_cancelled_and_changed(app: Celery, engine: Engine) -> None:
    later: Any = app.tasks["later"]
    with engine.begin() as connection:
        moved = later.apply_delayed(countdown=60, session=connection)
        cancelled = later.apply_delayed(countdown=60, session=connection)

    assert moved.reschedule(countdown=900)
    assert is_in_redis(app, moved.id)
    assert cancelled.cancel()
    assert not is_in_redis(app, cancelled.id)


def test_redis_may_be_away(new_redis: Callable[..., Any], tmp_path: Path) -> None:
    # Given a process that has scheduled this task before
    server, url = new_redis(), f"sqlite:///{tmp_path}/app.db"
    app = make_app(server.tcp_url, delay_database_url=url)

    @app.task(shared=False, name="later")
    def later() -> None: ...

    with migrated(url), Session(create_engine(url)) as session:
        later.apply_delayed(countdown=60)
        server.stop()

        # When it does so in a transaction while Redis is away
        result = later.apply_delayed(countdown=60, session=session)
        session.commit()

        # Then the task is committed, for a beat to bring it to Redis
        assert rows(app) == {result.id}
    app.close()


# --- what is refused -----------------------------------------------------------------------


def test_another_database_is_refused_and_the_transaction_goes_on(
    app: Celery, engine: Engine, tmp_path: Path
) -> None:
    later: Any = app.tasks["later"]
    other = f"sqlite:///{tmp_path}/other.db"
    with Session(create_engine(other)) as session:
        with pytest.raises(InvalidSetting, match="the relay would never see"):
            later.apply_delayed(countdown=60, session=session)
        assert session.scalar(text("SELECT 1")) == 1
    with Session(engine) as session, pytest.raises(ValueError, match="leave the key out"):
        later.apply_delayed(countdown=60, unique_key="k", session=session)
    with pytest.raises(TypeError, match="must be SQLAlchemy's"):
        later.apply_delayed(countdown=60, session=object())
    with Session(engine) as session:
        for call in (later.apply_async, later.s().set(session=session).apply_async):
            with pytest.raises(TypeError, match="is an argument of apply_delayed"):
                call(session=session)
    off = make_app("redis://127.0.0.1:1/0", delay_audit="off")

    @off.task(shared=False)
    def task() -> None: ...

    with Session(engine) as session, pytest.raises(InvalidSetting, match="delay_database_url"):
        task.apply_delayed(countdown=60, session=session)
    assert rows(app) == set()


def test_two_apps_with_databases_of_their_own(
    app: Celery, engine: Engine, redis_url: str, tmp_path: Path
) -> None:
    later: Any = app.tasks["later"]
    url = f"sqlite:///{tmp_path}/another.db"
    with migrated(url), Session(engine) as session:
        later.apply_delayed(countdown=60, session=session)  # this engine is known from now on
        another = make_app(redis_url, delay_database_url=url)
        with pytest.raises(InvalidSetting, match="the relay would never see"):
            another.delayed.send_task("later", countdown=60, session=session)
        another.delayed.audit_log.close()
        another.close()


# --- sessions that go their own ways -------------------------------------------------------


def test_a_session_that_writes_elsewhere_than_it_reads(app: Celery, engine: Engine) -> None:
    later: Any = app.tasks["later"]
    readers = create_engine("sqlite://")

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            return engine if self._flushing or isinstance(clause, UpdateBase) else readers

    with Routing() as session:
        kept = later.apply_delayed(countdown=60, session=session)
        session.commit()
    assert is_in_redis(app, kept.id)


def test_a_map_of_schemas_is_not_for_our_tables(app: Celery, engine: Engine) -> None:
    later: Any = app.tasks["later"]
    tenant = engine.execution_options(schema_translate_map={None: "tenant_1"})
    with Session(tenant) as session:
        kept = later.apply_delayed(countdown=60, session=session)
        session.commit()
    assert is_in_redis(app, kept.id)


# --- asyncio -------------------------------------------------------------------------------


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
def test_an_async_session(app: Celery) -> None:
    later: Any = app.tasks["later"]

    async def work() -> tuple[Any, Any, Any]:
        engine = create_async_engine(app.delayed.audit_log.database.url)
        async with AsyncSession(engine) as session:
            kept = later.apply_delayed(("kept",), countdown=60, session=session)
            with suppress(RuntimeError):
                async with session.begin_nested():
                    gone = later.apply_delayed(("gone",), countdown=60, session=session)
                    raise RuntimeError
            await session.commit()
            dropped = later.apply_delayed(("dropped",), countdown=60, session=session)
            await session.rollback()
        await engine.dispose()
        return kept, gone, dropped

    kept, gone, dropped = asyncio.run(work())

    assert rows(app) == {kept.id}
    wait_until(lambda: is_in_redis(app, kept.id), what="the hook")
    assert not is_in_redis(app, gone.id)
    assert not is_in_redis(app, dropped.id)


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("host", ["localhost", "127.1"])
def test_an_async_session_may_name_the_server_otherwise(app: Celery, host: str) -> None:
    later: Any = app.tasks["later"]
    ours = app.delayed.audit_log.database.url
    url = ours.set(host=host, port=ours.port or 5432)

    async def work(url: URL) -> Any:
        engine = create_async_engine(url)
        try:
            async with AsyncSession(engine) as session:
                result = later.apply_delayed(countdown=60, session=session)
                await session.commit()
                return result
        finally:
            await engine.dispose()

    kept = asyncio.run(work(url))
    wait_until(lambda: is_in_redis(app, kept.id), what="the hook")
    with pytest.raises(InvalidSetting, match="the relay would never see"):
        asyncio.run(work(url.set(database="other")))
    # by its address it could be the same; by its tables it is not
    app.delayed.audit_log.uuid = lambda: "of another database"
    if host == "127.1":
        with pytest.raises(InvalidSetting, match="the relay would never see"):
            asyncio.run(work(url))
        assert rows(app) == {kept.id}


# --- crashes -------------------------------------------------------------------------------


def test_who_dies_between_commit_and_hook_is_made_up_for(
    harness: Callable[..., Any], redis_url: str, tmp_path: Path
) -> None:
    # Given two beats, and a producer that is killed in the middle of its hook
    made = running.projects(harness, redis_url, tmp_path)
    project = next(made)()
    project.start_beat()
    project.procs.beat(name="standby")
    note: Any = project.app.tasks["note"]
    url = project.audit.database.url
    pid = os.fork()
    if not pid:
        project.app.delayed.backed.mirror_committed = lambda ids: os.kill(
            os.getpid(), signal.SIGKILL
        )
        with Session(create_engine(url)) as session:
            note.apply_delayed(("dies",), countdown=0, session=session)
            session.commit()
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL

    # Then the relay hands its task off, once, and soon
    raw = redis.Redis.from_url(redis_url)
    wait_until(lambda: raw.llen("celery"), what="the hand-off")
    [message] = raw.lrange("celery", 0, -1)
    task_id = json.loads(message)["headers"]["id"]
    wait_until(lambda: project.audit.counts() == {"DISPATCHED": 1}, what="the audit")
    [dispatched] = [one for one in project.audit.events(task_id) if one.state == "DISPATCHED"]
    assert dispatched.at_ms - dispatched.eta_ms < 5_000
    assert raw.llen("celery") == 1
    with suppress(StopIteration):
        next(made)


# --- Django --------------------------------------------------------------------------------

DJANGO = """
import json, sys
import django
from django.conf import settings
from django.db import connection, transaction
from celery_delay.django import database_url

file, url = sys.argv[1:]
mine = {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
other = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": mine, "other": other})
django.setup()
from tests.projects import make_app
from tests.shards import lead

app = make_app(url, delay_database_url=database_url(mine))
app.delayed.audit_log.migrate()
lead(app.delayed.shards[0])

@app.task(shared=False, name="later")
def later(): ...

with transaction.atomic():
    kept = later.apply_delayed(countdown=60, using="default")
    try:
        with transaction.atomic():
            later.apply_delayed(countdown=60, using="default")
            raise LookupError
    except LookupError:
        pass
    early = app.delayed.get(kept.id) is not None
try:
    with transaction.atomic():
        later.apply_delayed(countdown=60, using="default")
        raise LookupError
except LookupError:
    pass
try:
    with transaction.atomic(using="other"):
        later.apply_delayed(countdown=60, using="other")
except Exception as exc:
    refused = str(exc)
with connection.cursor() as cursor:
    cursor.execute("SELECT task_id FROM celery_delay_payload")
    rows = [one[0] for one in cursor.fetchall()]
there = app.delayed.get(kept.id) is not None
pending = app.delayed.shards[0].sizes()["pending"]
print(json.dumps([rows == [kept.id], early, there, pending, refused]))
"""


def test_djangos_own_transaction(redis_url: str, tmp_path: Path) -> None:
    script = tmp_path / "site.py"
    script.write_text(DJANGO)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "db.sqlite3", redis_url],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    only_kept, early, there, pending, refused = json.loads(done.stdout.splitlines()[-1])
    assert (only_kept, early, there, pending) == (True, False, True, 1)
    assert "leads to another database than the audit's" in refused
