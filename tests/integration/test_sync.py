"""``delay_audit = "sync"``: what SQL has committed runs, whatever becomes of Redis."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import group
from celery.exceptions import TaskRevokedError

from celery_delay.domain.backing import stored
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable, ForeignDatabase, OutcomeUnknown
from celery_delay.store.keys import shard_of
from tests.integration import running
from tests.integration.running import Running
from tests.processes import wait_until
from tests.projects import make_app
from tests.shards import lead

#: ``DELAY_SYNC_PENDING=20000`` for what is too long for CI.
PENDING = int(os.environ.get("DELAY_SYNC_PENDING", "2000"))


@pytest.fixture
def projects(
    harness: Callable[..., Any], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from running.projects(harness, redis_url, tmp_path)


def handed_off(url: str) -> Counter[str]:
    """How often each task id is on the queue, where no worker takes it."""
    messages = redis.Redis.from_url(url).lrange("celery", 0, -1)
    return Counter(json.loads(one)["headers"]["id"] for one in messages)


def test_an_emptied_redis_loses_nothing(projects: Callable[..., Running], redis_url: str) -> None:
    # Given many tasks that wait
    project = projects(delay_audit="sync").start_beat()
    note: Any = project.app.tasks["note"]
    calls = [(f"n{number}",) for number in range(PENDING)]
    stored = note.apply_delayed_many(calls, countdown=2 + PENDING / 500)

    # When Redis is emptied
    redis.Redis.from_url(redis_url).flushall()

    # Then each of them is handed off, once
    wanted = Counter(one.id for one in stored)
    wait_until(
        lambda: len(handed_off(redis_url)) == PENDING,
        timeout=20 + PENDING / 50,
        what="all handed off",
    )
    assert handed_off(redis_url) == wanted
    wait_until(lambda: project.audit.counts() == {"DISPATCHED": PENDING}, timeout=60)


# --- callers -------------------------------------------------------------------------------


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> Iterator[Any]:
    app = make_app(redis_url, delay_audit="sync", delay_database_url=f"sqlite:///{tmp_path}/a.db")

    @app.task(shared=False, name="later")
    def later(what: Any = None) -> None: ...

    lead(app.delayed.shards[0])
    yield app
    app.delayed.audit_log.close()
    app.close()


def test_every_change_goes_through_sql(app: Any) -> None:
    later = app.tasks["later"]
    result = later.apply_delayed(("old",), countdown=3_600)
    rows = app.delayed.backed_rows

    def both() -> tuple[Any, ...]:
        """The entry, as SQL and Redis have it, which must be the same."""
        row, entry = rows.read(result.id), app.delayed.shards[0].get(result.id)
        told = (row.version, row.state, row.eta_ms)
        assert told == (entry.version, entry.state, entry.eta_ms)
        assert stored(row).envelope["body"] == entry.envelope["body"]
        return told

    assert both()[:2] == (1, State.SCHEDULED)
    assert result.reschedule(countdown=7_200)
    assert both()[2] == round(result.eta.timestamp() * 1000)
    assert result.hold()
    assert both()[1] is State.HELD
    assert result.release()
    assert not result.release()
    assert result.update(args=("new",))
    assert both()[:2] == (5, State.SCHEDULED)
    assert result.run_now()
    assert both()[2] <= app.delayed.now_ms()
    assert result.cancel()
    assert result.cancel()  # again
    assert (rows.read(result.id).state, app.delayed.get(result.id)) == (State.CANCELLED, None)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)
    assert app.delayed.result("unknown").cancel() == "NOT_FOUND"


def test_each_of_several_shards_is_asked_in_its_own_history(redis_url: str, tmp_path: Path) -> None:
    # Given two shards, which have different names for one Redis history, over one connection
    app = make_app(
        redis_url, delay_audit="sync", delay_shards=2, delay_database_url=f"sqlite:///{tmp_path}/a"
    )

    @app.task(shared=False, name="later")
    def later() -> None: ...

    try:
        delayed = app.delayed
        for shard in delayed.shards:
            lead(shard)
        assert len({shard.named() for shard in delayed.shards}) == 2
        tasks = [f"{letter}{number}" for letter in "ab" for number in range(4)]

        # When tasks are scheduled in both, in turn
        for one in tasks:
            later.apply_delayed(countdown=60, task_id=one)  # type: ignore[attr-defined]
            key: Any = {"countdown": 60, "unique_key": f"key of {one}"}
            first, second = (later.apply_delayed(**key) for _ in "12")  # type: ignore[attr-defined]

            # Then Redis has decided about each when its call returns
            assert delayed.shards[shard_of(one, 2)].get(one) is not None
            assert first.id == second.id == delayed.get_unique(f"key of {one}").task_id
    finally:
        app.delayed.audit_log.close()
        app.close()


def test_without_redis_nobody_knows_who_has_a_key(app: Any) -> None:
    # Given a Redis whose history no beat has named yet
    [shard] = app.delayed.shards
    redis.Redis.from_url(app.conf.broker_url).delete(shard.keys.mark)
    shard._links.close()

    # When tasks are scheduled, then those with a key are in doubt, and no other
    assert app.tasks["later"].apply_delayed(countdown=60).delay_state is State.SCHEDULED
    for key in ("unique_key", "idempotency_key"):
        with pytest.raises(OutcomeUnknown, match="call again with the same key"):
            app.tasks["later"].apply_delayed(countdown=60, **{key: "k"})


def test_canvas_and_bulk_commit_first(app: Any) -> None:
    later = app.tasks["later"]
    many = later.apply_delayed_many([(n,) for n in range(5)], countdown=60)
    both = group(later.s(1), later.s(2)).apply_delayed(countdown=60)

    assert later.apply_delayed_many([], countdown=60) == []
    assert app.delayed.add([]) == []
    known = app.delayed.backed_rows.hot(0, None, 100)
    assert {one.entry_id.task_id for one in known} == {one.id for one in [*many, *both.results]}


def test_without_sql_nothing_is_scheduled(app: Any, tmp_path: Path) -> None:
    later = app.tasks["later"]
    later.apply_delayed(countdown=60)
    with sqlite3.connect(tmp_path / "a.db") as blocking:
        blocking.execute("DROP TABLE celery_delay_payload")

    with pytest.raises(AuditUnavailable, match="no such table"):
        later.apply_delayed(countdown=60)
    assert app.delayed.shards[0].sizes()["pending"] == 1


def test_another_stores_database_is_refused(app: Any) -> None:
    app.delayed.shards[0].audit_id("another")
    with pytest.raises(ForeignDatabase, match="no beat would see this one"):
        app.tasks["later"].apply_delayed(countdown=60)
    assert app.delayed.shards[0].sizes()["pending"] == 0
