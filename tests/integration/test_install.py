"""An installed app in the ways that projects make and use one."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, shared_task

from celery_delay import CeleryDelay, DelayedResult
from celery_delay.exceptions import NotInstalled
from tests.projects import hand_off, make_app, messages


def add(x: Any, y: Any = 1) -> Any:
    return x + y


@pytest.fixture
def current() -> Iterator[None]:
    """Afterwards the current app is what it was."""
    from celery import _state

    before = _state._get_current_app()
    yield
    before.set_current()


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        made.append(make_app(redis_url, **conf))
        return made[-1]

    yield make
    for app in made:
        app.close()


def test_before_the_tasks_and_after_them(redis_url: str) -> None:
    app = Celery("project", broker=redis_url, set_as_current=False)
    early = app.task(add, shared=False, name="early")
    early.apply_async((1,))  # Celery's parts are made by now
    CeleryDelay(app)
    late = app.task(add, shared=False, name="late")

    for task in (early, late):
        assert isinstance(task.apply_delayed((1,), countdown=60), DelayedResult)

    assert app.delayed.count() == 2
    assert len(messages(app)) == 1
    app.close()


def test_a_base_class_of_ones_own(new_app: Callable[..., Celery]) -> None:
    class Loud(Task):
        abstract = True
        calls = 0

        def apply_async(self, *args: Any, **options: Any) -> Any:
            Loud.calls += 1
            return super().apply_async(*args, **options)

    app = new_app()
    loud = app.task(add, shared=False, name="loud", base=Loud)

    results = [loud.apply_delayed((1,), countdown=60) for _ in range(3)]

    assert all(isinstance(one, DelayedResult) for one in results)
    assert Loud.calls == 3
    assert app.delayed.count() == 3


def test_a_class_based_task(new_app: Callable[..., Celery]) -> None:
    class Adding(Task):
        name = "adding"

        def run(self, x: int, y: int) -> int:
            return x + y

    app = new_app()
    adding = app.register_task(Adding())

    for _ in range(2):
        assert isinstance(adding.delay_for(60, 1, 2), DelayedResult)


@pytest.mark.usefixtures("current")
def test_shared_tasks_go_to_the_current_app(new_app: Callable[..., Celery]) -> None:
    first, second = new_app(delay_key_prefix="first:"), new_app(delay_key_prefix="second:")
    shared = shared_task(add, name="shared.add")

    first.set_current()
    shared.apply_delayed((1,), countdown=60)
    second.set_current()
    shared.delay_for(60, 2)
    shared.s(3).apply_delayed(countdown=60)

    assert (first.delayed.count(), second.delayed.count()) == (1, 2)


@pytest.mark.usefixtures("current")
def test_a_current_app_without_us_is_told_and_sends_nothing(
    new_app: Callable[..., Celery], redis_url: str
) -> None:
    ours = new_app()
    other = Celery("other", broker=redis_url, set_as_current=False)
    shared = shared_task(add, name="shared.add2")

    other.set_current()
    for call in (
        lambda: shared.apply_delayed((1,), countdown=60),
        lambda: shared.s(1).apply_delayed(countdown=60),
    ):
        with pytest.raises(NotInstalled, match=r"other.*CeleryDelay\(app\).*set_current"):
            call()
    ours.set_current()
    shared.apply_delayed((1,), countdown=60)

    assert messages(other) == []
    assert ours.delayed.count() == 1
    other.close()


def test_two_apps_keep_to_themselves(new_app: Callable[..., Celery]) -> None:
    first, second = new_app(delay_key_prefix="first:"), new_app(delay_key_prefix="second:")
    in_first = first.task(add, shared=False, name="add")
    in_second = second.task(add, shared=False, name="add")

    mine = in_first.apply_delayed((1,), countdown=0, task_id="same")
    in_second.apply_delayed((2,), countdown=60, task_id="same")

    assert hand_off(second) == 0
    assert mine.cancel()
    assert second.delayed.get("same") is not None


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "{*first:*", "{*second:*", "*first:*", "*second:*")


CHILD = """
import base64, pickle, sys
app = pickle.loads(base64.b64decode(sys.stdin.read()))
result = app.delayed.send_task("project.add", (1, 2), countdown=60, task_id="from a child")
app.control.revoke("to be revoked")
print(result.entry_id.run)
"""


def test_a_pickled_app_schedules_in_another_process(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    task = app.task(add, shared=False, name="project.add")
    other = task.apply_delayed((1,), countdown=60, task_id="to be revoked")

    said = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=base64.b64encode(pickle.dumps(app)).decode(),
        check=True,
        capture_output=True,
        text=True,
    )

    assert app.delayed.get("from a child").entry_id.run == int(said.stdout)
    assert app.delayed.get(other.id) is None


def test_a_pickled_app_schedules_in_this_process(new_app: Callable[..., Celery]) -> None:
    app = pickle.loads(pickle.dumps(new_app()))
    task = app.task(add, shared=False, name="project.add")

    for _ in range(3):
        task.apply_delayed((1,), countdown=0)

    assert hand_off(app) == 3
    app.close()


def test_ordinary_calls_are_as_ever(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    task = app.task(add, shared=False, name="project.add")

    task.delay(1)
    task.apply_async((2,), countdown=60)
    app.send_task("elsewhere")

    assert app.delayed.count() == 0
    assert [one["headers"]["task"] for one in messages(app)] == [
        "project.add",
        "project.add",
        "elsewhere",
    ]
    assert all("celery_delay" not in one["headers"] for one in messages(app))
    assert messages(app)[1]["headers"]["eta"]


def test_ordinary_calls_of_an_old_protocol_are_as_ever(new_app: Callable[..., Celery]) -> None:
    app = new_app(task_protocol=1)
    task = app.task(add, shared=False, name="project.add")

    task.apply_async((1,), countdown=60)

    assert len(messages(app)) == 1
