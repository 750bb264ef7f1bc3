"""What the journal is told of arguments, by every way on which a task can be scheduled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group

from celery_delay.calling import shapes
from celery_delay.calling.calls import DelayedCall
from tests.projects import hand_off, make_app, messages

SECRET = "hunter2"


def login(user: Any = None, password: Any = None, **more: Any) -> None: ...


@pytest.fixture
def new_app(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = make_app(redis_url, delay_database_url=f"sqlite:///{tmp_path}/audit.db", **conf)
        app.login = app.task(login, shared=False, name="project.login")
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "celery*")


@pytest.fixture(params=["full way", "cached template"])
def way(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    return shapes.disabled if request.param == "full way" else nullcontext


def told(app: Celery) -> list[tuple[Any, Any]]:
    """Arguments of each SCHEDULED event, as text."""
    [journal] = [one.read_journal("0", 1000) for one in app.delayed.shards]
    events = [event for _, events in journal for event in events if event.state == "SCHEDULED"]
    return [(one.data.get("args"), one.data.get("kwargs")) for one in events]


def test_secrets_are_not_told_and_the_message_stays_celerys(
    new_app: Callable[..., Celery], way: Callable[[], AbstractContextManager[None]]
) -> None:
    app = new_app()
    with way():
        for number in range(3):
            app.login.delay_for(0, "bob", SECRET, n=number)
            app.login.delay_for(0, user="bob", api_key=SECRET, deep=[{"Cookie": SECRET}])
            app.login.delay_for(0, "bob", n=number)

    expected = [
        [
            ("('bob', '…')", f"{{'n': {number}}}"),
            ("()", "{'user': 'bob', 'api_key': '…', 'deep': [{'Cookie': '…'}]}"),
            ("('bob',)", f"{{'n': {number}}}"),
        ]
        for number in range(3)
    ]
    assert told(app) == [one for some in expected for one in some]
    hand_off(app)
    texts = [one["headers"]["argsrepr"] + one["headers"]["kwargsrepr"] for one in messages(app)]
    assert sum(SECRET in one for one in texts) == 6


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("repr", ("('bob',)", f"{{'token': '{SECRET}'}}")), ("off", (None, None))],
)
def test_the_other_settings(
    new_app: Callable[..., Celery],
    way: Callable[[], AbstractContextManager[None]],
    setting: str,
    expected: Any,
) -> None:
    app = new_app(delay_audit_args=setting)
    with way():
        for _ in range(2):
            app.login.delay_for(60, "bob", token=SECRET)

    assert told(app) == [expected] * 2


def test_a_hook_is_asked_each_time(
    new_app: Callable[..., Celery], way: Callable[[], AbstractContextManager[None]]
) -> None:
    app = new_app(delay_audit_redact=lambda task, args, kwargs: (f"{task} {len(args)}", None))
    with way():
        for _ in range(2):
            app.login.delay_for(60, "bob", token=SECRET)

    assert told(app) == [("project.login 1", None)] * 2


def test_the_callers_own_text_is_told(new_app: Callable[..., Celery]) -> None:
    app = new_app()

    result = app.login.apply_delayed(
        ("bob", SECRET), {"token": SECRET}, countdown=60, argsrepr="(bob, a password)"
    )
    assert told(app) == [("(bob, a password)", "{'token': '…'}")]
    app.delayed.update(result.id, priority=3)

    assert SECRET not in str(app.delayed.shards[0].read_journal("0", 10))


def test_an_update_keeps_secrets_too(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    result = app.login.delay_for(60, "bob", SECRET, token=SECRET)

    result.update(priority=3)
    result.update(args=["eve", SECRET], kwargs={"token": SECRET})

    assert SECRET not in str(app.delayed.shards[0].read_journal("0", 10))


def test_every_way_of_scheduling_is_covered(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_intercept=True, delay_intercept_fallback="store")
    kwargs = {"token": SECRET}

    app.login.apply_async(("bob", SECRET), kwargs, countdown=60)
    app.delayed.send_task("project.login", ("bob", SECRET), kwargs, countdown=60)
    app.delayed.send_task("another.project", ("bob",), kwargs, countdown=60)
    app.login.apply_delayed_many([DelayedCall(("bob", SECRET), kwargs)] * 2, countdown=60)
    signature = app.login.si("bob", SECRET, token=SECRET)
    group(signature, signature).apply_delayed(countdown=60)
    chain(signature, signature).apply_delayed(countdown=60)
    app.login.apply_async(("bob",), kwargs, countdown=60, serializer="pickle")

    assert len(told(app)) >= 8
    assert SECRET not in str(app.delayed.shards[0].read_journal("0", 100))


def test_a_retry_from_a_worker_tells_no_secrets(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_intercept="retry", delay_intercept_fallback="store")

    again = app.login.signature_from_request(
        args=("bob", SECRET), kwargs={"token": SECRET}, countdown=60, retries=1
    )
    again.apply_async()

    assert told(app) == [("('bob', '…')", "{'token': '…'}")]
    assert SECRET not in str(app.delayed.shards[0].read_journal("0", 100))
