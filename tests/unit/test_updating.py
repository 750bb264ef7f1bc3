"""What may be changed of a waiting task, and how long a change is tried."""

from __future__ import annotations

import base64
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_delay import UpdateOutcome
from celery_delay.delayed.updating import Updating
from celery_delay.domain.callers import caller
from celery_delay.domain.entries import Addition, Due, EntryId, StoredEntry
from celery_delay.domain.ports import Steered
from celery_delay.exceptions import StoreUnavailable
from celery_delay.message.rebuilding import UNCHANGED, rebuilt, wanted
from celery_delay.store.replacing import Replaceable

# --- what may be given ---------------------------------------------------------------------


def test_what_is_not_given_is_not_changed_and_none_is_a_value() -> None:
    assert wanted(args=UNCHANGED, kwargs=None, queue=UNCHANGED, priority=0) == {
        "kwargs": None, "priority": 0,
    }  # fmt: skip
    assert repr(UNCHANGED) == "UNCHANGED"


@pytest.mark.parametrize("name", ["countdown", "eta", "tz", "window"])
def test_when_it_is_due_is_changed_by_reschedule(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} says when .* reschedule\(\)"):
        wanted(queue="q", **{name: 1})


@pytest.mark.parametrize(
    "name", ["task_id", "root_id", "group_id", "chord", "chain", "retries", "unique_key", "tags"]
)
def test_what_makes_the_task_itself_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} cannot be changed"):
        wanted(queue="q", **{name: None})


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "say what to change"),
        ({"retry": True}, "say what to change"),
        ({"prioritiy": 3}, "did you mean priority"),
        ({"zzz": 3}, "zzz is no option of apply_async that can be changed$"),
        ({"args": "text"}, "args='text' must be a list or tuple"),
        ({"args": 7}, "args=7 must be"),
        ({"kwargs": [1]}, r"kwargs=\[1\] must be a mapping"),
        ({"headers": {"id": 1}}, "'id': …} is a header of Celery's own"),
        ({"headers": {"celery_delay": 1}}, "'celery_delay': …"),
        ({"stamped_headers": ["ticket"]}, "names 'ticket', and no such option"),
        ({"ticket": "T-1"}, "ticket is no option"),
        ({"expires": 1, "expires_from": "now"}, "expires_from is 'call' or 'eta'"),
        ({"expires": "2030-01-01", "expires_from": "eta"}, "goes with expires=seconds"),
        ({"expires_from": "eta"}, "goes with expires=seconds"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        wanted(**given)


def test_stamps_and_what_apply_async_takes_are_taken() -> None:
    given = {
        "args": None, "kwargs": {}, "stamped_headers": ["ticket"], "ticket": "T-1", "link": None,
        "headers": None, "expires": 7, "message_id": "m", "retry": False, "soft_time_limit": None,
    }  # fmt: skip
    assert wanted(**given) == given


# --- what is stored ------------------------------------------------------------------------


def add(x: Any, y: Any = 1) -> None: ...


@pytest.fixture
def app() -> Celery:
    app = Celery("unit", broker="memory://", set_as_current=False)
    app.task(add, name="add", shared=False)
    return app


def stored(**changes: Any) -> StoredEntry:
    body = base64.b64encode(json.dumps([[1], {}, {}]).encode()).decode()
    envelope = {
        "body": body, "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"id": "a", "task": "add"},
        "properties": {"delivery_info": {"exchange": "", "routing_key": "celery"}},
        **changes,
    }  # fmt: skip
    return StoredEntry(
        EntryId("a", 5), 1, 10, 0, envelope["headers"], envelope["queue"] if "queue" in changes
        else "celery", envelope,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"body": base64.b64encode(pickle.dumps(((1,), {}, {}))).decode(),
             "content-type": "application/x-python-serialize", "content-encoding": "binary"},
            "is application/x-python-serialize, which accept_content does not have here",
        ),
        ({"content-type": "application/x-ours"}, "accept_content"),
        ({"body": "rubbish"}, "cannot be read here"),
        ({"body": base64.b64encode(b"[1]").decode()}, "cannot be read here"),
        ({"body": base64.b64encode(b"7").decode()}, "cannot be read here"),
        ({"body": None}, "cannot be read here"),
        ({"headers": {"id": "a", "task": "add", "compression": "ours"}}, "cannot be read here"),
        ({"headers": {"id": "a", "task": "add", "compression": "zlib"}}, "cannot be read here"),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_read_here_says_why(
    app: Celery, changes: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error) as raised:
        rebuilt(app, stored(**changes), {"queue": "q"})
    assert "message of a " in str(raised.value)


@pytest.mark.parametrize("given", [{"args": []}, {"kwargs": {"z": 1}}, {"args": [1, 2, 3]}])
def test_the_signature_of_a_task_that_is_known_here_checks_new_arguments(
    app: Celery, given: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="argument") as raised:
        rebuilt(app, stored(), given)

    positional, keyword = given.get("args", [1]), given.get("kwargs", {})
    with pytest.raises(TypeError) as celerys:
        app.tasks["add"].apply_async(positional, keyword)
    assert str(raised.value) == str(celerys.value)


# --- how long it is tried ------------------------------------------------------------------


class Tried(Updating):
    """The service without its neighbours."""

    def __init__(self, reads: list[Any], answers: list[str], left: bool = False) -> None:
        self.app = SimpleNamespace()
        self.told: list[Any] = []
        self._left = left
        self._fake = SimpleNamespace(
            replaceable=lambda task_id: reads.pop(0) if len(reads) > 1 else reads[0],
            replace=self._replace,
            steer=lambda task_id, change, run: Steered(self._next()),
        )
        self._answers = answers

    @property
    def settings(self) -> Any:
        return SimpleNamespace(is_backed=False)

    def _next(self) -> str:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def _replace(self, before: Any, addition: Any, data: Any) -> str:
        self.told.append(data)
        return self._next()

    def _shard(self, task_id: str) -> Any:
        return self._fake

    def _has_left(self, task_id: str, eta_ms: int | None) -> bool:
        return self._left


@pytest.fixture(autouse=True)
def no_celery(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "app" not in request.fixturenames:
        made = Addition(EntryId("a", 5), Due(1, False), "", (), story='{"name": "add"}')
        monkeypatch.setattr("celery_delay.delayed.updating.rebuilt", lambda *_: made)


THERE = Replaceable(stored(), "digest")


def test_a_message_that_somebody_else_has_replaced_is_built_anew() -> None:
    service = Tried([THERE], ["STALE", "STALE", "DONE"])

    assert service.update("a", queue="q", reason="why") is UpdateOutcome.UPDATED

    assert service.told == [{"name": "add", "by": caller(), "reason": "why"}] * 3


def test_the_audit_is_told_that_a_result_is_wanted_after_all() -> None:
    service = Tried([THERE], ["DONE"])
    assert service.update("a", ignore_result=False)
    assert service.told == [{"name": "add", "ignore_result": False, "by": caller()}]


def test_without_end_nothing_has_changed() -> None:
    with pytest.raises(StoreUnavailable, match="others change the message of a all the time"):
        Tried([THERE], ["STALE"]).update("a", queue="q")


@pytest.mark.parametrize("answer", ["TOO_LATE", "NOT_FOUND", "DAMAGED"])
@pytest.mark.parametrize("reads", [[None], [THERE]])
def test_why_it_cannot_be_changed(reads: list[Any], answer: str) -> None:
    outcome = Tried(reads, [answer]).update("a", queue="q")

    assert outcome is UpdateOutcome(answer)
    assert not outcome


@pytest.mark.parametrize("reads", [[None], [THERE]])
def test_what_has_left_is_too_late(reads: list[Any]) -> None:
    outcome = Tried(reads, ["NOT_FOUND"], left=True).update("a", queue="q")
    assert outcome is UpdateOutcome.TOO_LATE


def test_what_was_changing_its_place_is_looked_at_again() -> None:
    service = Tried([None, None, THERE], ["DONE", "QUARANTINED", "DONE"])
    assert service.update("a", queue="q") is UpdateOutcome.UPDATED


def test_what_can_never_be_read_is_damaged() -> None:
    assert Tried([None], ["DONE"]).update("a", queue="q") is UpdateOutcome.DAMAGED
