"""The look for revokes in the store, with the signals as Celery sends them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest
from celery import Celery, signals
from celery.worker.state import revoked

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable
from celery_delay.message.envelope import HEADER
from celery_delay.worker.revokes import Revokes
from tests.fakes import FakeClock


class Shard:
    """Knows what is marked; may be away, which takes its while to be noticed."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.marked: set[EntryId] = set()
        self.asked: list[str] = []
        self.away = 0.0

    def is_revoked(self, entry_id: EntryId) -> bool:
        self.asked.append(entry_id.task_id)
        if self.away:
            self.clock.advance(self.away)
            raise StoreUnavailable("no answer")
        return entry_id in self.marked


class Delayed:
    """An app's manager with one shard."""

    def __init__(self, **settings: Any) -> None:
        self.clock: Clock = cast(Any, FakeClock())
        self.settings = Settings(**settings)
        self.shard = Shard(cast(Any, self.clock))
        self.shards = [cast(Any, self.shard)]


class Task:
    """A task of *app*."""

    def __init__(self, app: Any) -> None:
        self.app = app


class Request:
    """What Celery's main process makes of a message."""

    def __init__(self, app: Any, task_id: str, run: int | None = 7) -> None:
        self.id = task_id
        self.task = Task(app)
        self.request_dict = {HEADER: {"task_id": task_id, "run": run}} if run else {}


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("revokes", set_as_current=False)
    yield app
    app.close()
    revoked.clear()


def listening(app: Celery, **settings: Any) -> tuple[Revokes, Shard]:
    delayed = Delayed(**{"worker_revokes": True, **settings})
    return Revokes(app, delayed), delayed.shard


def test_what_is_marked_is_put_among_celerys_revokes_until_it_is_dropped(app: Celery) -> None:
    revokes, shard = listening(app)
    shard.marked = {EntryId("a", 7)}

    for task_id in ("a", "b"):
        revokes.on_received(request=Request(app, task_id))
    assert ("a" in revoked, "b" in revoked) == (True, False)
    # the id is free for another task, whose run is not marked
    revokes.on_revoked(request=Request(app, "a"))
    assert "a" not in revoked
    revokes.on_received(request=Request(app, "a", 8))
    assert "a" not in revoked


def test_what_celery_was_told_stays_told(app: Celery) -> None:
    revokes, shard = listening(app)
    shard.marked = {EntryId("a", 7)}
    revoked.add("a")

    revokes.on_received(request=Request(app, "a"))
    revokes.on_revoked(request=Request(app, "a"))
    revokes.on_revoked(request=None)

    assert "a" in revoked


def test_nothing_is_asked_for_other_messages_other_apps_or_when_off(app: Celery) -> None:
    revokes, shard = listening(app)
    with Celery("other", set_as_current=False) as other:
        revokes.on_received(request=Request(other, "a"))
    revokes.on_received(request=Request(app, "a", None))
    off, shard_of_off = listening(app, worker_revokes=False)
    off.on_received(request=Request(app, "a"))

    assert shard.asked == shard_of_off.asked == []


def test_a_store_that_does_not_answer_lets_tasks_run_and_is_rationed(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    revokes, shard = listening(app)
    caplog.set_level(logging.WARNING)
    shard.marked = {EntryId("a", 7)}
    shard.away = 0.5

    for _ in range(3):
        revokes.on_received(request=Request(app, "a"))
    assert (shard.asked, "a" in revoked) == (["a"], False)
    shard.clock.advance(1.0)
    revokes.on_received(request=Request(app, "a"))
    assert shard.asked == ["a", "a"]
    assert [cast(Any, one).event for one in caplog.records] == ["revokes_unknown"]
    shard.away = 0.0
    shard.clock.advance(1.0)
    revokes.on_received(request=Request(app, "a"))
    assert "a" in revoked
    assert cast(Any, caplog.records[-1]).event == "revokes_known"


def test_it_hears_of_each_message(app: Celery) -> None:
    revokes, shard = listening(app)
    revokes.connect()
    revokes.connect()
    shard.marked = {EntryId("a", 7)}
    try:
        signals.task_received.send(sender=None, request=Request(app, "a"))
        assert shard.asked == ["a"]
        signals.task_revoked.send(sender=None, request=Request(app, "a"))
        assert "a" not in revoked
    finally:
        for signal in (signals.task_received, signals.task_revoked):
            for receiver in (revokes.on_received, revokes.on_revoked):
                uid = ("celery-delay", id(app), f"revokes.{receiver.__name__}")
                signal.disconnect(receiver, dispatch_uid=uid)
