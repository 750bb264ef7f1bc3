"""Which entries fit which tasks; no store."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import pytest
from celery import Celery, Task

from celery_delay.delayed.checking import UNKNOWN_TASK, EntryCheck, _Tally
from celery_delay.domain.entries import EntryId, StoredEntry


@pytest.fixture
def app() -> Celery:
    app = Celery("bare", set_as_current=False)

    @app.task(shared=False, name="plain")
    def plain(a: int, b: int = 1) -> None: ...

    @app.task(shared=False, name="bound", bind=True)
    def bound(self: Any, a: int) -> None: ...

    @app.task(shared=False, name="named")
    def named(*, order: int) -> None: ...

    @app.task(shared=False, name="loose", typing=False)
    def loose(a: int) -> None: ...

    @app.task(shared=False, name="any")
    def anything(*args: Any, **kwargs: Any) -> None: ...

    class Classic(Task):  # type: ignore[misc]
        name = "classic"

        def run(self, a: int) -> None: ...

    class Calling(Classic):
        name = "calling"

        def __call__(self, *args: Any, **kwargs: Any) -> None: ...

    app.register_task(Classic())
    app.register_task(Calling())
    return app


def entry(task: str, *args: Any, task_id: str = "x", eta_ms: int = 1, **kwargs: Any) -> StoredEntry:
    body = base64.b64encode(json.dumps([args, kwargs, {}]).encode()).decode()
    return stored(task, {"content-type": "application/json", "body": body}, task_id, eta_ms)


def stored(
    task: str, envelope: dict[str, Any], task_id: str = "x", eta_ms: int = 1, **headers: Any
) -> StoredEntry:
    whole = {"task": task, **headers}
    return StoredEntry(EntryId(task_id, 1), 1, eta_ms, 0, whole, "celery", envelope)


def judged(app: Celery, *entries: StoredEntry, ignore: tuple[str, ...] = ()) -> EntryCheck:
    tally = _Tally(app.tasks, ignore)
    for one in entries:
        tally.take(one)
    return tally.result()


@pytest.mark.parametrize(
    "one",
    [
        entry("plain", 1),
        entry("plain", 1, 2),
        entry("plain", a=1, b=2),
        entry("bound", 1),
        entry("bound", a=1),
        entry("named", order=1),
        entry("any", 1, 2, x=3),
        entry("classic", 1),
        entry("celery.backend_cleanup"),
    ],
    ids=lambda one: one.task,
)
def test_what_binds_fits(app: Celery, one: StoredEntry) -> None:
    found = judged(app, one)

    assert (found.fitting, found.misfits, found.not_looked_at) == (1, [], {})


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (entry("gone", 1), UNKNOWN_TASK),
        (entry("plain"), "missing 1 required"),
        (entry("plain", 1, 2, 3), "3 were given"),
        (entry("plain", 1, c=2), "'c'"),
        (entry("bound"), "missing 1 required"),
        (entry("bound", 1, 2), "were given"),
        (entry("named", 1), "positional"),
        (entry("classic"), "missing a required argument: 'a'"),
        (entry("classic", 1, 2), "too many"),
    ],
    ids=lambda one: getattr(one, "task", one),
)
def test_what_does_not_bind_is_a_misfit(app: Celery, one: StoredEntry, says: str) -> None:
    found = judged(app, one)

    [misfit] = found.misfits
    assert says in misfit.reason
    assert misfit.task == one.task
    assert misfit.task_ids == ["x"]
    assert found.fitting == 0


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    "one",
    [
        stored("plain", {"content-type": "application/x-python-serialize",
                         "body": base64.b64encode(pickle.dumps(Bomb())).decode()}),
        stored("plain", {"content-type": "application/json", "body": "?"}),
        stored("plain", {"content-type": "application/json"}),
        stored("plain", {"content-type": "application/json",
                         "body": base64.b64encode(b'[{"a": 1}, [], {}]').decode()}),
        stored("plain", {**entry("plain", 1).envelope}, compression="application/x-gzip"),
        entry("loose", 1, 2, 3),
        entry("calling", 1, 2, 3),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_counted_and_never_unpickled(
    app: Celery, one: StoredEntry
) -> None:
    found = judged(app, one)

    assert list(found.not_looked_at.values()) == [1]
    assert (found.fitting, found.misfits, found.total) == (0, [], 1)


def test_a_name_is_judged_also_where_the_body_cannot_be_read(app: Celery) -> None:
    found = judged(app, stored("gone", {"content-type": "application/x-python-serialize"}))

    assert [one.reason for one in found.misfits] == [UNKNOWN_TASK]


def test_misfits_are_grouped_the_earliest_first_and_each_entry_counts_once(app: Celery) -> None:
    found = judged(
        app,
        entry("gone", task_id="b", eta_ms=20),
        entry("plain", task_id="c", eta_ms=15),
        entry("gone", task_id="a", eta_ms=10),
        entry("gone", task_id="a", eta_ms=10),
        entry("gone.too", task_id="d"),
        ignore=("gone.*", "other"),
    )

    assert [(one.task, one.task_ids, one.first_eta_ms) for one in found.misfits] == [
        ("gone", ["a", "b"], 10),
        ("plain", ["c"], 15),
    ]
    assert (found.misfitting, found.ignored, found.total) == (3, 1, 4)
