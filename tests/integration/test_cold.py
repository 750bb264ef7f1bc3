"""``delay_hot_window`` and ``delay_hot_max``: what is not due for long waits in SQL alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from celery_delay import CancelOutcome, HoldOutcome, RescheduleOutcome, UpdateOutcome
from celery_delay.calling.calls import DelayedCall
from celery_delay.exceptions import AlreadyScheduled, AuditUnavailable, InvalidSetting
from tests.integration import running
from tests.integration.running import Running
from tests.processes import wait_until
from tests.projects import make_app

WINDOW = 60
FAR, NEAR = 3_600, 30


@pytest.fixture
def projects(
    harness: Callable[..., Any], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from running.projects(harness, redis_url, tmp_path)


@pytest.fixture(params=["async", "sync"])
def project(request: Any, projects: Callable[..., Running]) -> Running:
    """A beat, no worker; a window of a minute."""
    return projects(delay_audit=request.param, delay_hot_window=WINDOW).start_beat()


def in_redis(project: Running) -> set[str]:
    [shard] = project.app.delayed.shards
    return {entry_id.task_id for page in shard.live() for entry_id, _ in page}


def ids(page: Any) -> list[str]:
    return [one.entry_id.task_id for one in page]


def note(project: Running, task_id: str, countdown: float = FAR, **options: Any) -> Any:
    task: Any = project.app.tasks["note"]
    return task.apply_delayed((task_id,), countdown=countdown, task_id=task_id, **options)


def test_readers_are_told_of_both_in_one_order(project: Running) -> None:
    delayed = project.app.delayed
    for task_id, countdown in (("d", 7_200), ("a", 10), ("c", FAR), ("b", 20)):
        note(project, task_id, countdown, tags=["x"] if task_id in "bd" else [])

    first = delayed.list(limit=3)

    assert in_redis(project) == {"a", "b"}
    assert ids(first) == ["a", "b", "c"]
    assert ids(delayed.list(limit=3, cursor=first.next)) == ["d"]
    assert ids(delayed.list(tag="x", source="store")) == ["b", "d"]
    assert (delayed.count(), delayed.count(after=in_minutes(2))) == (4, 2)
    assert delayed.get("c").entry_id == first[2].entry_id
    assert delayed.forecast("hour", 3).total == 4
    assert (delayed.stats().cold, delayed.stats().scheduled) == (2, 2)


def in_minutes(minutes: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(minutes=minutes)


def test_the_audit_knows_the_cold_ones(project: Running) -> None:
    # Given tasks of which half wait in SQL alone, and an audit that has heard of all
    delayed = project.app.delayed
    for task_id, countdown in (("d", 7_200), ("a", 10), ("c", FAR), ("b", 20)):
        note(project, task_id, countdown, tags=["x"], namespace="acme")
    wait_until(lambda: delayed.count(tag="x", source="audit") == 4, 10, what="the drain")

    # Then the usual question, which the audit answers, is answered of all of them
    first = delayed.list(tag="x", limit=3)
    assert (first.source, ids(first)) == ("audit", ["a", "b", "c"])
    assert ids(delayed.list(tag="x", limit=3, cursor=first.next)) == ["d"]
    assert ids(delayed.list(task="not*", after=in_minutes(2))) == ["c", "d"]
    assert delayed.count(namespace="acme") == 4


def test_what_becomes_of_cold_ones_is_in_the_audit(project: Running) -> None:
    delayed = project.app.delayed
    results = {one: note(project, one, tags=["x"]) for one in ("cancelled", "held", "moved")}
    hot = note(project, "hot")

    assert results["cancelled"].cancel(reason="paid")
    assert results["held"].hold(reason="closed")
    assert results["moved"].reschedule(countdown=2 * FAR)
    assert hot.reschedule(countdown=NEAR)
    assert hot.hold()
    assert hot.reschedule(countdown=FAR, reason="later")
    assert "hot" not in in_redis(project)

    def told() -> dict[str, list[str]]:
        return {
            one: [event.state for event in delayed.history(one).events] for one in (*results, "hot")
        }

    wait_until(
        lambda: told() == {
            "cancelled": ["SCHEDULED", "CANCELLED"],
            "held": ["SCHEDULED", "HELD"],
            "moved": ["SCHEDULED", "SCHEDULED"],
            "hot": ["SCHEDULED", "SCHEDULED", "HELD", "HELD"],
        }, 10, what="the drain",
    )  # fmt: skip
    [gone] = delayed.past(state="CANCELLED")
    assert (gone.task_id, gone.name, gone.error) == ("cancelled", "note", "paid")
    assert gone.eta_ms == results["cancelled"]._eta_ms
    assert ids(delayed.list(tag="x", state="HELD")) == ["held"]
    assert ids(delayed.list(task="note", state="HELD")) == ["held", "hot"]
    for one in ("held", "moved", "hot"):
        [run] = delayed.history(one).runs
        assert run.eta_ms == delayed.get(one).eta_ms
    assert delayed.history("held").events[-1].data["reason"] == "closed"


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_audit_knows_cold_ones_of_before_the_first_beat(
    projects: Callable[..., Running], mode: str
) -> None:
    # Given a task that is scheduled before any beat has named this Redis history
    project = projects(delay_audit=mode, delay_hot_window=WINDOW)
    note(project, "early", tags=["x"])

    # When a beat comes, then it is found like all others
    project.start_beat()
    delayed = project.app.delayed
    wait_until(lambda: ids(delayed.list(tag="x", source="audit")) == ["early"], 10, what="it")
    assert delayed.history("early").events[0].state == "SCHEDULED"


def test_a_task_id_is_taken_by_the_cold_and_the_hot(project: Running) -> None:
    first = note(project, "far")
    note(project, "near", NEAR)

    for task_id in ("far", "near"):
        with pytest.raises(AlreadyScheduled) as raised:
            note(project, task_id)
        assert raised.value.task_id == task_id
    if project.app.delayed.settings.is_sync:
        with pytest.raises(AlreadyScheduled):
            note(project, "far", NEAR)
    assert ids(project.app.delayed.list()) == ["near", "far"]
    assert first.hold()
    with pytest.raises(AlreadyScheduled):
        note(project, "far")
    assert first.cancel()
    assert note(project, "far").delay_state == "SCHEDULED"


def test_a_retry_of_a_task_that_runs_may_be_cold(projects: Callable[..., Running]) -> None:
    # Given a window so short that a retry waits in SQL alone
    project = projects(
        delay_audit="sync", delay_hot_window=2, delay_intercept=True, delay_intercept_min=1
    ).start(pool="solo")
    task: Any = project.app.tasks["flaky"]

    # When a task retries, then each run comes once
    task.apply_delayed((2,), {"countdown": 3}, countdown=0.1)
    wait_until(lambda: len(project.effects) == 3, 30, what="three runs")
    assert project.effects == ["flaky 0", "flaky 1", "flaky 2"]


def test_the_cold_ones_are_changed_like_the_hot(project: Running) -> None:
    results = {one: note(project, one) for one in ("cancelled", "held", "moved", "changed")}
    delayed = project.app.delayed

    assert results["cancelled"].cancel() is CancelOutcome.CANCELLED
    assert results["cancelled"].cancel() is CancelOutcome.CANCELLED
    assert results["held"].hold() is HoldOutcome.HELD
    assert results["moved"].reschedule(by=FAR) is RescheduleOutcome.RESCHEDULED
    assert results["changed"].update(args=("other",)) is UpdateOutcome.UPDATED

    assert in_redis(project) == set()
    assert ids(delayed.list()) == ["held", "changed", "moved"]
    assert ids(delayed.list(state="HELD")) == ["held"]
    assert (delayed.forecast().held, delayed.forecast().total) == (1, 2)
    assert "other" in delayed.get("changed").headers["argsrepr"]
    assert project.app.delayed.release_many(state="HELD").outcomes == {"RELEASED": 1}
    assert delayed.count(state="HELD") == 0


def test_a_new_eta_moves_it_between_the_two(project: Running) -> None:
    delayed = project.app.delayed
    result = note(project, "t", FAR)

    assert result.reschedule(countdown=NEAR)
    assert in_redis(project) == {"t"}
    assert result.reschedule(countdown=FAR)
    assert (in_redis(project), ids(delayed.list())) == (set(), ["t"])
    assert result.run_now()
    wait_until(lambda: in_redis(project) == set(), 10, what="its hand-off")
    assert result.reschedule(countdown=FAR) is RescheduleOutcome.TOO_LATE
    assert ids(delayed.list()) == []


def test_they_come_in_time_and_run_once(projects: Callable[..., Running]) -> None:
    # Given tasks that are due two seconds after they come to Redis
    project = projects(delay_hot_window=2).start(pool="solo")
    task: Any = project.app.tasks["note"]
    calls = [DelayedCall((f"t{number}",)) for number in range(200)]
    task.apply_delayed_many(calls, eta=in_minutes(0.1))
    assert in_redis(project) == set()

    # When their time comes
    wait_until(lambda: len(in_redis(project)) == 200, 10, what="all to be paged in")
    assert project.effects == []
    wait_until(lambda: len(project.effects) >= 200, 20, what="all to run")

    # Then each runs once, and lists have none of them any more
    assert Counter(project.effects) == Counter(f"note t{number}" for number in range(200))
    wait_until(lambda: project.app.delayed.count() == 0, 10, what="SQL to know")
    assert ids(project.app.delayed.list()) == []


def test_beyond_the_most_the_latest_wait_in_sql(projects: Callable[..., Running]) -> None:
    project = projects(delay_audit="sync", delay_hot_max=1_000).start_beat()
    task: Any = project.app.tasks["note"]
    etas = [in_minutes(10 + number / 60) for number in range(1_200)]

    task.apply_delayed_many([DelayedCall((str(n),), eta=eta) for n, eta in enumerate(etas)])

    wait_until(lambda: project.app.delayed.stats().scheduled == 1_000, 20, what="to be fewer")
    assert project.app.delayed.count() == 1_200
    assert len(list(project.app.delayed.iterate())) == 1_200
    hot = max(project.app.delayed.get(one).eta_ms for one in in_redis(project))
    assert hot < min(one.eta_ms for one in project.app.delayed.iterate() if one.eta_ms > hot)
    assert hot <= int(etas[999].timestamp() * 1000) + 1


def test_what_needs_sql_fails_without_it(redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="delay_hot_window lets tasks wait in SQL: set delay"):
        _ = make_app(redis_url, delay_hot_window=60).delayed.settings
    conf = {"delay_database_url": f"sqlite:///{tmp_path}/a", "delay_hot_max": 1_000}
    with pytest.raises(InvalidSetting, match="delay_hot_max is about tasks that SQL has as well"):
        _ = make_app(redis_url, **conf).delayed.settings
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    app = make_app(redis_url, delay_hot_window=60, delay_database_url=url)

    @app.task(name="far", shared=False)
    def task() -> None: ...

    with pytest.raises(AuditUnavailable):
        task.apply_delayed(countdown=FAR)
    assert app.delayed.shards[0].sizes()["pending"] == 0
    app.close()
