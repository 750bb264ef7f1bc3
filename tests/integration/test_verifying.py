"""``verify`` and ``rebuild``: what differs between Redis and SQL is found, named and mended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_delay.delayed import verifying
from celery_delay.domain.backing import OVER as TIER_OVER
from celery_delay.domain.backing import forget_at
from celery_delay.domain.states import State
from celery_delay.exceptions import InvalidSetting, StoreUnavailable
from celery_delay.store import digests
from tests.integration import running
from tests.integration.running import Running
from tests.processes import wait_until
from tests.projects import make_app

FAR = 3_600


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_SETTLE", 0.3)
    monkeypatch.setattr(digests, "STRETCH", 10)


@pytest.fixture
def projects(
    harness: Callable[..., Any], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from running.projects(harness, redis_url, tmp_path)


@pytest.fixture(params=["sync", "async"])
def project(request: Any, projects: Callable[..., Running]) -> Running:
    """A beat, and 40 tasks that SQL backs and whose rows nobody has to look at any more."""
    made = projects(delay_audit=request.param, delay_hot_window=86_400).start_beat()
    task: Any = made.app.tasks["note"]
    conf = {"sync": FAR, "async": FAR + 86_400}
    results = [
        task.apply_delayed((n,), countdown=conf[request.param] + n, task_id=f"t{n:02}")
        for n in range(40)
    ]
    if request.param == "async":
        # the far ones are SQL's; now they come to Redis, beside one that SQL does not back
        for n, result in enumerate(results):
            assert result.reschedule(countdown=FAR + n)
        task.apply_delayed(("other",), countdown=FAR, task_id="unbacked")
    settled(made)
    return made


def settled(project: Running) -> None:
    delayed = project.app.delayed
    rows = delayed.cold_rows

    def is_settled() -> bool:
        hot = rows.hot(0, None, 1_000)
        return bool(hot) and all(one.look_ms is None for one in hot)

    wait_until(is_settled, 15, what="the journal to be drained")


def break_it(project: Running) -> None:
    """Lose t03, take t05 back to another version, and end t07 in SQL alone."""
    delayed = project.app.delayed
    [shard] = delayed.shards
    with shard._link() as link:
        for key in (shard.keys.schedule, shard.keys.entries):
            link.call("ZREM" if key == shard.keys.schedule else "HDEL", key, "t03")
        record = link.call("HGET", shard.keys.entries, "t05").decode().split("\n")
        older = "\n".join([*record[:2], str(int(record[2]) - 1), *record[3:]])
        link.call("HSET", shard.keys.entries, "t05", older)
    five = delayed.backed_rows.read("t05")
    if five.version == 1:
        # a first version has none before it: SQL is one further, then
        delayed.backed_rows.change([(five, five._replace(version=2, look_ms=None))])
        with shard._link() as link:
            link.call("HSET", shard.keys.entries, "t05", "\n".join(record))
    seven = delayed.backed_rows.read("t07")
    at_ms = forget_at(delayed.now_ms())
    over = seven._replace(state=State.CANCELLED, tier=TIER_OVER, look_ms=at_ms, record=b"")
    delayed.backed_rows.change([(seven, over)])


def kinds(found: Any) -> dict[str, str]:
    return {one.entry_id.task_id: one.kind for one in found.differences}


def test_differences_are_named_and_mended(project: Running) -> None:
    delayed = project.app.delayed
    same = delayed.verify()
    assert (same.differences, same.repaired) == ([], 0)
    assert same.in_sql == 40
    is_sync = delayed.settings.is_sync
    assert same[:1] + same[2:4] == ((40, 4, 0) if is_sync else (41, 5, 1))
    assert same.unbacked == (0 if is_sync else 1)
    break_it(project)

    found = delayed.verify()
    assert kinds(found) == {"t03": "MISSING", "t05": "OLDER", "t07": "OVER"}
    assert kinds(delayed.verify(repair=True)) == kinds(found)

    wait_until(lambda: _version(delayed, "t05") == 2, 15, what="t05 to be mended")
    wait_until(lambda: _version(delayed, "t03") > 0, 15, what="t03 to be mended")
    assert not delayed.verify().differences
    listed = [one.entry_id.task_id for one in delayed.list()]
    assert "t03" in listed
    assert "t07" not in listed
    assert _version(delayed, "t05") == delayed.backed_rows.read("t05").version


def _version(delayed: Any, task_id: str) -> int:
    entry = delayed.shards[0].get(task_id)
    return entry.version if entry is not None else 0


def test_what_is_lost_with_redis_comes_back_by_a_rebuild(project: Running) -> None:
    delayed = project.app.delayed
    break_it(project)

    delayed.rebuild(timeout=20)

    assert not delayed.verify().differences
    assert delayed.shards[0].get("t03") is not None
    assert delayed.shards[0].get("t07") is None


def test_from_the_command_line(projects: Callable[..., Running]) -> None:
    project = projects(delay_audit="sync").start_beat()
    task: Any = project.app.tasks["note"]
    task.apply_delayed_many([(n,) for n in range(10)], countdown=FAR)
    settled(project)
    [lost] = project.app.delayed.list(limit=1)
    [shard] = project.app.delayed.shards
    with shard._link() as link:
        link.call("ZREM", shard.keys.schedule, lost.entry_id.task_id)
        link.call("HDEL", shard.keys.entries, lost.entry_id.task_id)

    def delay(*words: str) -> tuple[int, Any]:
        done = project.procs.run("delay", *words, "--json")
        return done.returncode, json.loads(done.stdout)

    code, document = delay("verify")
    assert (code, document["in_redis"], document["in_sql"]) == (1, 9, 10)
    assert [one["task_id"] for one in document["differences"]] == [lost.entry_id.task_id]
    code, document = delay("rebuild", "--dry-run")
    assert (code, document["done"], len(document["differences"])) == (0, False, 1)
    code, document = delay("rebuild", "--yes")
    assert (code, document["done"], document["in_redis"]) == (0, True, 10)


def test_where_sql_backs_nothing_it_says_so(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url, delay_database_url=f"sqlite:///{tmp_path}/audit")
    with pytest.raises(InvalidSetting, match='set delay_audit = "sync", or delay_hot_window'):
        app.delayed.verify()
    app = make_app(redis_url, delay_database_url=f"sqlite:///{tmp_path}/b", delay_audit="sync")
    with pytest.raises(StoreUnavailable, match="no leader has compared it with SQL yet"):
        app.delayed.rebuild()
