"""Pages of a real store while entries come, go, are held and move between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_delay.domain.entries import PUBLISHED, Due
from celery_delay.domain.ports import Change
from tests.projects import make_app
from tests.shards import addition, shape

#: Few instants and alike ids: much of the order is by id alone.
FIRST_MS = 2_000_000_000_000
instants = st.integers(0, 3).map(lambda n: FIRST_MS + n)
ids = st.text("ab\N{LATIN SMALL LETTER E WITH ACUTE}~", min_size=1, max_size=4)
entries = st.tuples(instants, st.booleans(), st.booleans())
changes = st.tuples(st.sampled_from(["add", "cancel", "move", "hold", "release"]), ids, entries)
SHAPES = {True: shape("out", PUBLISHED), False: shape()}


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def app(request: Any, redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    app = make_app(redis_url, delay_audit="off", delay_shards=request.param)
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.close()


def put(app: Celery, task_id: str, eta_ms: int, out: bool, held: bool) -> None:
    app.delayed.add([addition(task_id, at_ms=eta_ms, template=SHAPES[out])])
    if held:
        app.delayed.hold(task_id)


def change(app: Celery, what: str, task_id: str, entry: tuple[int, bool, bool]) -> None:
    delayed = app.delayed
    if what == "add" and delayed.get(task_id) is None:
        put(app, task_id, *entry)
    elif what == "cancel":
        delayed.cancel(task_id)
    elif what == "move":
        delayed._shard(task_id).steer(task_id, Change(Due(entry[0], False)))
    elif what == "hold":
        delayed.hold(task_id)
    elif what == "release":
        delayed.release(task_id)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=st.dictionaries(ids, entries, max_size=25),
    between=st.lists(st.lists(changes, max_size=4), max_size=12),
    limit=st.integers(1, 6),
)
def test_what_stays_is_on_exactly_one_page(
    app: Celery,
    first: dict[str, tuple[int, bool, bool]],
    between: list[list[tuple[str, str, tuple[int, bool, bool]]]],
    limit: int,
) -> None:
    _empty(app)
    for task_id, entry in first.items():
        put(app, task_id, *entry)
    # held or not and from whatever place: an entry that keeps its eta stays where it is
    moved = {
        task_id
        for some in between
        for what, task_id, _ in some
        if what in ("cancel", "move", "add")
    }
    stays = {one: first[one][0] for one in first if one not in moved}

    shown: list[tuple[int, bytes]] = []
    cursor = None
    for step in [*between, *[[] for _ in range(200)]]:
        page = app.delayed.list(limit=limit, cursor=cursor)
        assert len(page) <= limit
        shown += [(one.eta_ms, one.entry_id.task_id.encode()) for one in page]
        cursor = page.next
        if cursor is None:
            break
        for one in step:
            change(app, *one)

    assert cursor is None
    assert shown == sorted(set(shown)), "in order, and none twice at one place"
    told = {task_id.decode(): eta_ms for eta_ms, task_id in shown if task_id.decode() in stays}
    assert told == stays
    times = [task_id.decode() for _, task_id in shown]
    assert all(times.count(one) == 1 for one in stays)


def _empty(app: Celery) -> None:
    with app.delayed.shards[0]._link() as link:
        link.call("FLUSHDB")
