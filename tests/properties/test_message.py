"""The message on the queue is the one that a stock app's ``apply_async`` puts there.

"Identical" is judged on the raw queue, against a Celery without celery-delay in another
process, with the clocks of both standing at the same instant.  The delivery tag, the
sender's name and its reply queue differ between any two processes; our header is ours.
"""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import signals
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu import compression

from celery_delay import CeleryDelay
from celery_delay.embedded import EmbeddedRedis
from tests.projects import hand_off
from tests.servers import wipe
from tests.stock import PROJECTS, Refused, Stock, apply, clear, declare, make_app, queued

#: Hypothesis shrinks better, and the entries' expiry stays ahead, with one instant for all.
AT = datetime.now(timezone.utc).isoformat()

# --- calls --------------------------------------------------------------------------------

names = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)
texts = st.text(max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
python_values = st.one_of(
    st.sets(st.integers(), max_size=3),
    st.binary(max_size=20),
    st.just(timedelta(days=1)),
    st.just(Decimal("1.10")),
)
ids = st.uuids().map(str)
#: ids that the template cannot leave to the store, because JSON writes them otherwise
odd_ids = st.sampled_from(['a"b', "käse", "with space", "back\\slash", "x" * 255, "100%", "%1"])


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Any ``apply_async`` options, a few at a time."""
    every = {
        "priority": st.integers(0, 9),
        "serializer": st.sampled_from(["json", "pickle", "msgpack", "yaml"]),
        "compression": st.sampled_from(["zlib", "bzip2"]),
        "headers": st.dictionaries(names.map("x-{}".format), json_values, max_size=2),
        "time_limit": st.integers(1, 100),
        "soft_time_limit": st.integers(1, 100),
        "shadow": texts,
        "ignore_result": st.booleans(),
        "argsrepr": texts,
        "kwargsrepr": texts,
        "retry": st.booleans(),
        "retry_policy": st.just({"max_retries": 1, "interval_start": 0}),
        "add_to_parent": st.booleans(),
        "root_id": ids,
        "parent_id": ids,
        "group_id": ids,
        "group_index": st.integers(0, 5),
        "replaced_task_nesting": st.integers(0, 2),
        "delivery_mode": st.sampled_from([1, 2]),
        # later than any delay below, so that the entry is still good when it is due
        "expires": st.integers(100_000, 10**7)
        | st.floats(100_000, 10**7)
        | st.timedeltas(timedelta(days=2), timedelta(days=900)),
        "where": st.sampled_from(
            [
                {"queue": "slow"},
                {"queue": "brief"},
                {"queue": "made-on-the-way"},
                {"routing_key": "slow.key", "exchange": "slow-exchange"},
                {"routing_key": "brief", "exchange": "brief-exchange", "exchange_type": "direct"},
                {"queue": "important", "priority": 9},
            ]
        ),
        "stamps": st.just({"stamped_headers": ["ticket"], "ticket": "T-1"})
        | st.just({"stamped_headers": ["a", "b"], "a": [1, 2], "b": "é"}),
        "user_id": names,
    }
    # those that a template can be cached for, by themselves, or all of them
    literal = {"priority", "time_limit", "shadow", "ignore_result", "expires", "where", "retry"}
    among = draw(st.sampled_from([sorted(literal), sorted(every)]))
    chosen = draw(st.sets(st.sampled_from(among), max_size=5))
    found: dict[str, Any] = {}
    for name in sorted(chosen):
        value = draw(every[name])
        found.update(value if name in ("where", "stamps") else {name: value})
    if "soft_time_limit" in found and "time_limit" in found:
        found["time_limit"] += found["soft_time_limit"]  # Celery refuses the reverse
    return found


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """A call, as :func:`tests.stock.apply` reads it."""
    chosen = draw(options())
    if draw(st.integers(0, 3)):
        chosen["task_id"] = draw(ids | odd_ids)
    values = json_values
    if chosen.get("serializer") == "pickle":
        values |= python_values
    args = draw(st.lists(values, max_size=2))
    kwargs = draw(st.dictionaries(names, values, max_size=2).map(lambda d: _renamed(d)))
    if draw(st.integers(0, 9)) == 0:
        args = ["big" * 5_000]
    inside = None
    if draw(st.integers(0, 4)) == 0:
        inside = {"id": draw(ids), "root_id": draw(ids), "delivery_info": {"priority": 7}}
    return {
        "task": draw(st.sampled_from(["project.add", "project.tuned"])),
        "args": draw(st.sampled_from([tuple, list]))(args),
        "kwargs": kwargs or draw(st.sampled_from([None, {}])),
        "options": chosen,
        "links": draw(st.lists(st.just("project.add"), max_size=1)) if _one_in(draw, 5) else [],
        "errlinks": draw(st.lists(st.just("project.tuned"), max_size=2))
        if _one_in(draw, 5)
        else [],
        "inside": inside,
        "at": AT,
    }


def _one_in(draw: st.DrawFn, number: int) -> bool:
    return draw(st.integers(1, number)) == 1


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments that do not collide with the positional ones."""
    return {f"k_{name}": value for name, value in kwargs.items()}


delays = st.sampled_from([0, -5, 0.001, 30, timedelta(hours=2), timedelta(days=1)])
plain: dict[str, Any] = {
    "task": "project.add",
    "args": (1, 2),
    "kwargs": None,
    "options": {},
    "links": [],
    "errlinks": [],
    "inside": None,
    "at": AT,
}

# --- both sides ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def delayed(server: EmbeddedRedis) -> Iterator[Callable[..., dict[str, list[str]]]]:
    """What is on the queues after ``apply_delayed`` of a call, once it is due."""
    url = server.tcp_url
    apps, clients = {}, {}
    for db, project in enumerate(PROJECTS):
        apps[project] = app = make_app(project, url, db)
        CeleryDelay(app)
        declare(app)
        clients[project] = redis.Redis.from_url(f"{url.rpartition('/')[0]}/{db}")

    def ask(project: str, call: dict[str, Any], delay: Any) -> dict[str, list[str]]:
        clear(clients[project])
        try:
            result = apply(apps[project], call, "apply_delayed", countdown=delay)
        except Exception:
            assert apps[project].delayed.count() == 0
            assert queued(clients[project]) == {}
            raise
        assert queued(clients[project]) == {}, "it is on its queue before it is due"
        assert hand_off(apps[project], result) == 1
        return queued(clients[project])

    yield ask
    for app in apps.values():
        app.close()
    for client in clients.values():
        client.close()
    wipe(server)


def comparable(found: dict[str, list[str]], task_id: str | None) -> dict[str, list[Any]]:
    """The messages without what differs between any two processes.

    Where Celery drew the task id, it has another one on either side.  A pickle's bytes
    depend on which equal objects are one, so its content is compared.
    """
    seen = {}
    for key, messages in found.items():
        parsed = [json.loads(text) for text in messages]
        for message in parsed:
            drawn = message["headers"]["id"]
            message["headers"].pop("celery_delay", None)
            assert message["properties"].pop("delivery_tag")
            assert message["properties"].pop("reply_to")
            assert message["headers"].pop("origin")
            if message["content-type"] == "application/x-python-serialize":
                data = base64.b64decode(message["body"])
                if kind := message["headers"].get("compression"):
                    data = compression.decompress(data, kind)
                message["body"] = pickle.loads(data)
            if task_id is None:
                for name in ("id", "root_id"):
                    if message["headers"][name] == drawn:
                        message["headers"][name] = "drawn"
                assert message["properties"]["correlation_id"] == drawn
                message["properties"]["correlation_id"] = "drawn"
        seen[key] = parsed
    return seen


@contextlib.contextmanager
def the_full_way() -> Iterator[None]:
    """With a receiver of a publish signal every message is built by Celery itself."""

    def receiver(**_: Any) -> None: ...

    signals.before_task_publish.connect(receiver)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(receiver)


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(project=st.sampled_from(sorted(PROJECTS)), call=calls(), delay=delays)
@example(project="plain", call=plain, delay=30)
@example(project="steps", call={**plain, "task": "project.tuned"}, delay=0)
@example(project="plain", call={**plain, "options": {"task_id": 'a"b', "queue": "brief"}}, delay=1)
@example(project="plain", call={**plain, "options": {"expires": 200_000.5}}, delay=1)
def test_the_message_equals_that_of_a_stock_app(
    stock: Stock, delayed: Callable[..., Any], project: str, call: dict[str, Any], delay: Any
) -> None:
    task_id = call["options"].get("task_id")
    # Given what a stock app in another process puts onto its queue
    try:
        expected = comparable(stock.queued(project, call), task_id)
    except Refused as exc:
        # a call that Celery refuses is refused alike (`delayed` sees to it that nothing is stored)
        with pytest.raises(Exception) as raised:  # noqa: PT011
            delayed(project, call, delay)
        assert type(raised.value).__name__ == str(exc)  # noqa: PT017
        return
    assert len(expected) == 1

    # When the call is delayed by the full way
    with the_full_way():
        full = comparable(delayed(project, call, delay), task_id)
    # Then the very same message lies on the queue of the same name
    assert full == expected

    # When a call of the same shape came before, so that its template may be there
    before = {**call, "options": {**call["options"], "task_id": str(uuid4())}}
    if task_id is None:
        before["options"].pop("task_id")
    delayed(project, {**before, "args": [], "kwargs": None}, delay)
    # Then nothing is different
    assert comparable(delayed(project, call, delay), task_id) == expected


def test_only_ours_bears_our_header(stock: Stock, delayed: Callable[..., Any]) -> None:
    call = {**plain, "options": {"task_id": "one"}}

    [[theirs]] = stock.queued("plain", call).values()
    [[ours]] = delayed("plain", call, 30).values()

    assert set(json.loads(ours)["headers"]) - set(json.loads(theirs)["headers"]) == {"celery_delay"}
    header = json.loads(ours)["headers"]["celery_delay"]
    assert header["task_id"] == "one"
    assert {name: type(value) for name, value in header.items()} == {
        "task_id": str,
        "run": int,
        "eta_ms": int,
    }


def test_each_push_has_a_delivery_tag_of_its_own(delayed: Callable[..., Any]) -> None:
    call = {**plain, "options": {"task_id": "one"}}

    tags = {
        json.loads(text)["properties"]["delivery_tag"]
        for _ in range(3)
        for [text] in delayed("plain", call, 0).values()
    }

    assert len(tags) == 3


def test_the_cached_template_was_really_used(delayed: Callable[..., Any], monkeypatch: Any) -> None:
    # Given a call whose shape is known
    delayed("plain", {**plain, "options": {"task_id": "one"}}, 0)

    def sent(*_: Any, **__: Any) -> None:
        raise AssertionError("the message was built in full")

    # When Celery's way of building messages is closed
    monkeypatch.setattr("celery.app.base.Celery.send_task", sent)
    # Then calls of the shape still go through, and others do not
    delayed("plain", {**plain, "args": (["x"], None), "options": {"task_id": "two"}}, 30)
    with pytest.raises(AssertionError, match="built in full"):
        delayed("plain", {**plain, "options": {"compression": "zlib"}}, 30)
