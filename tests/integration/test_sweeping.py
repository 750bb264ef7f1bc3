"""Many entries changed by what they have in common: from Python, and under faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from celery_delay.domain.entries import Due
from celery_delay.domain.ports import Change
from celery_delay.exceptions import StoreUnavailable
from tests.projects import hand_off, make_app
from tests.shards import park

NOON = datetime(2040, 1, 31, 12, tzinfo=timezone.utc)


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def app(request: Any, redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    app = make_app(redis_url, delay_audit="off", delay_shards=request.param)
    for name in ("till.pay", "mail.send"):
        app.task(nothing, name=name, shared=False)
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.close()


def put(app: Celery, task_id: str, name: str = "till.pay", hours: float = 1, **more: Any) -> Any:
    eta = NOON + timedelta(hours=hours)
    return app.tasks[name].apply_delayed((1,), eta=eta, task_id=task_id, **more)


def etas(app: Celery, **filters: Any) -> dict[str, float]:
    """Task id → hours after noon."""
    noon = NOON.timestamp() * 1000
    found = app.delayed.iterate(**filters)
    return {one.entry_id.task_id: (one.eta_ms - noon) / 3_600_000 for one in found}


def test_cancel_many_takes_out_what_is_meant_and_nothing_else(app: Celery) -> None:
    results = [put(app, f"t{n}", hours=n, tags=["x"] if n % 2 else []) for n in range(6)]
    seen: list[int] = []

    outcome = app.delayed.cancel_many(tag="x", reason="enough", progress=seen.append)

    assert outcome
    assert (outcome.looked_at, outcome.done, outcome.outcomes) == (3, 3, {"CANCELLED": 3})
    assert seen == [1, 2, 3]
    assert sorted(etas(app)) == ["t0", "t2", "t4"]
    with pytest.raises(TaskRevokedError):
        results[1].get(timeout=5)


def test_a_dry_run_changes_nothing_and_shows_some(app: Celery) -> None:
    for n in range(30):
        put(app, f"t{n:02}", hours=n)

    outcome = app.delayed.cancel_many(task="till.*", dry_run=True)

    assert not outcome
    assert (outcome.looked_at, outcome.done, outcome.outcomes) == (30, 0, {})
    assert [one.entry_id.task_id for one in outcome.sample] == [f"t{n:02}" for n in range(20)]
    assert app.delayed.count() == 30
    assert app.delayed.cancel_many(everything=True, limit=4, dry_run=True).looked_at == 4


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, ValueError, "say which entries by a filter, or everything=True"),
        ({"task": None}, ValueError, "say which entries by a filter"),
        ({"task": "a", "everything": True}, ValueError, "everything=True goes with no filter"),
        ({"tags": ["a"]}, TypeError, "did you mean tag?"),
        ({"task": "a", "limit": 0}, ValueError, "limit=0 must be 1 or more"),
        ({"task": "a", "limit": "4"}, TypeError, "limit must be a whole number"),
        ({"state": "FAILED"}, ValueError, "state: no entry that is FAILED can be changed"),
    ],
)
def test_without_a_clear_word_nothing_is_done(
    app: Celery, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    put(app, "a")
    for change in ("cancel_many", "run_many", "hold_many", "release_many", "reschedule_many"):
        more = {"by": 5} if change == "reschedule_many" else {}
        with pytest.raises(error) as caught:
            getattr(app.delayed, change)(**given, **more)
        assert says in str(caught.value)
    assert etas(app) == {"a": 1}


def test_reschedule_many_moves_each_once_also_along_with_the_walk(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(450):  # more than two pages
        put(app, f"t{n}", hours=n / 1000)

    with caplog.at_level(logging.ERROR):
        outcome = app.delayed.reschedule_many(by=timedelta(hours=0.3), everything=True)

    assert outcome.outcomes == {"RESCHEDULED": 450}
    assert etas(app) == pytest.approx({f"t{n}": n / 1000 + 0.3 for n in range(450)})
    assert app.delayed.reschedule_many(eta=NOON, task="till.pay").done == 450
    assert set(etas(app).values()) == {0}
    with pytest.raises(TypeError, match="say when"):
        app.delayed.reschedule_many(task="till.pay")


def test_what_others_move_meanwhile_is_changed_once(app: Celery) -> None:
    for n in range(5):
        put(app, f"t{n}", hours=n)

    def disturb(number: int) -> None:
        # somebody puts the first one off again and again
        if number < 20:
            due = Due(round(NOON.timestamp() * 1000) + (4 + number) * 3_600_000, False)
            app.delayed._shard("t0").steer("t0", Change(due))

    outcome = app.delayed.run_many(task="till.pay", progress=disturb)

    assert outcome.outcomes == {"RESCHEDULED": 5}


def test_run_many_ends_where_nobody_hands_anything_off(app: Celery) -> None:
    for n in range(250):
        app.tasks["till.pay"].apply_delayed((n,), countdown=0)

    assert app.delayed.run_many(everything=True).outcomes == {"RESCHEDULED": 250}
    assert hand_off(app) == 250


def test_hold_and_release_many(app: Celery) -> None:
    for n in range(4):
        put(app, f"t{n}", "mail.send" if n % 2 else "till.pay", hours=n)

    assert app.delayed.hold_many(task="mail.*").outcomes == {"HELD": 2}
    assert sorted(etas(app, state="HELD")) == ["t1", "t3"]
    # what is held already is not looked at again
    assert app.delayed.hold_many(everything=True).outcomes == {"HELD": 2}
    assert app.delayed.release_many(before=NOON + timedelta(hours=1)).outcomes == {"RELEASED": 2}
    assert sorted(etas(app, state="HELD")) == ["t2", "t3"]
    assert app.delayed.release_many(everything=True).done == 2
    assert app.delayed.count(state="HELD") == 0


def test_quarantined_entries_are_released_and_cancelled_too(app: Celery) -> None:
    for n in range(4):
        put(app, f"t{n}", "mail.send" if n % 2 else "till.pay", hours=n)
        park(app, f"t{n}")

    assert app.delayed.cancel_many(everything=True).looked_at == 0
    assert app.delayed.cancel_many(state="QUARANTINED", task="mail.send").done == 2
    assert app.delayed.release_many(state="QUARANTINED").outcomes == {"RELEASED": 2}
    assert sorted(etas(app)) == ["t0", "t2"]


def test_damaged_entries_are_part_of_everything(app: Celery) -> None:
    put(app, "good")
    put(app, "bad")
    shard = app.delayed._shard("bad")
    with shard._link() as link:
        link.call("HSET", shard.keys.entries, "bad", "9 what")

    held = app.delayed.hold_many(everything=True)
    assert not held
    assert (held.outcomes, held.failed) == ({"HELD": 1, "DAMAGED": 1}, {"DAMAGED": ["bad"]})
    assert app.delayed.cancel_many(everything=True).outcomes == {"CANCELLED": 2}
    assert app.delayed.count() == 0


def test_a_failure_in_the_middle_tells_how_far_it_came(app: Celery) -> None:
    for n in range(5):
        put(app, f"t{n}", hours=n)

    def away(number: int) -> None:
        if number == 3:
            raise StoreUnavailable("the cable")

    with pytest.raises(StoreUnavailable) as caught:
        app.delayed.cancel_many(everything=True, progress=away)

    assert caught.value.so_far.outcomes == {"CANCELLED": 3}  # type: ignore[attr-defined]
    assert app.delayed.cancel_many(everything=True).done == 2


def test_what_is_handed_off_between_reading_and_asking_is_told_as_too_late(app: Celery) -> None:
    for n in range(3):
        app.tasks["till.pay"].apply_delayed((n,), countdown=0, task_id=f"t{n}")

    def meanwhile(number: int) -> None:
        if number == 1:
            assert hand_off(app) == 2

    outcome = app.delayed.cancel_many(task="till.pay", progress=meanwhile)

    assert outcome.outcomes == {"CANCELLED": 1, "TOO_LATE": 2}
    assert sum(map(len, outcome.failed.values())) == 2
    assert not outcome
    assert app.delayed.count() == 0


def test_purge_takes_everything_that_waits(app: Celery) -> None:
    for n in range(4):
        put(app, f"t{n}", hours=n)
    app.delayed.hold("t1")
    park(app, "t2")

    assert app.delayed.purge(dry_run=True).looked_at == 4
    with pytest.raises(TypeError, match="purge takes no filter, and task was given: cancel_many"):
        app.delayed.purge(task="till.pay")
    assert app.delayed.purge(reason="new data").outcomes == {"CANCELLED": 4}
    assert (app.delayed.count(), app.delayed.quarantined()) == (0, {})
