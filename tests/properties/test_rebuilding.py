"""An updated message is the one that the changed call would have put onto its queue.

Judged as in ``test_message.py``: on the raw queue, against a stock app in another process.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest
import redis
import time_machine
from celery import Celery
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from kombu import compression
from kombu.exceptions import EncodeError
from kombu.serialization import loads

from celery_delay import CeleryDelay
from celery_delay.domain.entries import Addition, Record, StoredEntry, Template
from celery_delay.embedded import EmbeddedRedis
from celery_delay.message.rebuilding import rebuilt
from tests.projects import hand_off
from tests.properties.test_message import calls, comparable, json_values, names, plain
from tests.servers import wipe
from tests.stock import PROJECTS, Refused, Stock, apply, clear, declare, make_app, queued

pytestmark = [pytest.mark.properties, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def apps(server: EmbeddedRedis) -> Iterator[Mapping[str, tuple[Celery, redis.Redis]]]:
    made = {}
    for db, project in enumerate(PROJECTS):
        app = make_app(project, server.tcp_url, db)
        app.conf.update(delay_redis_timeout=1.5, delay_publish_timeout=20)
        assert CeleryDelay(app).settings.publish_timeout == 20
        declare(app)
        client = redis.Redis.from_url(f"{server.tcp_url.rpartition('/')[0]}/{db}")
        made[project] = app, client
    yield made
    for app, client in made.values():
        app.close()
        client.close()
    wipe(server)


def message(addition: Addition) -> tuple[Any, ...]:
    """Where the message goes, and what it is but for its delivery tag."""
    template = Template.decode(addition.template)
    record = Record(1, 1, 0, 0, "", addition.values, addition.labels.encode())
    envelope = json.loads(template.fill(record.slots(addition.entry_id.task_id, 1)))
    return template.database, template.queue, template.expires_ms, envelope


def kept(stored: StoredEntry) -> dict[str, Any]:
    envelope = json.loads(json.dumps(stored.envelope))
    envelope["headers"]["celery_delay"].update(run=1, eta_ms=1)
    return envelope  # type: ignore[no-any-return]


common = settings(
    max_examples=60,
    # an example is a call in two processes: to shrink one takes minutes
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@common
@given(project=st.sampled_from(sorted(PROJECTS)), call=calls())
@example(project="plain", call=plain)
@example(project="steps", call={**plain, "task": "project.tuned"})
@example(project="plain", call={**plain, "options": {"task_id": 'a"b', "queue": "brief"}})
def test_a_change_of_nothing_makes_the_same_message(
    apps: Mapping[str, tuple[Celery, redis.Redis]], project: str, call: dict[str, Any]
) -> None:
    app, client = apps[project]
    clear(client)
    try:
        result = apply(app, call, "apply_delayed", countdown=30)
    except (TypeError, ValueError, EncodeError):
        assume(False)
    stored = app.delayed.get(result.id)
    assert stored is not None

    addition = rebuilt(app, stored, {})

    *place, envelope = message(addition)
    before = kept(stored)
    for one in (envelope, before):
        one["properties"].pop("delivery_tag")
    if before["content-type"] == "application/x-python-serialize":
        # its bytes depend on which equal objects are one
        envelope["body"], before["body"] = content(envelope), content(before)
    assert envelope == before
    assert place[1] == stored.queue
    assert (addition.entry_id, addition.version) == (stored.entry_id, 2)
    assert addition.expires_ms == stored.expires_ms
    assert queued(client) == {}


def content(message: dict[str, Any]) -> Any:
    """What a worker reads."""
    if not isinstance(message["body"], str):
        return message["body"]  # a pickle, read already
    data = base64.b64decode(message["body"])
    if kind := message["headers"].get("compression"):
        data = compression.decompress(data, kind)
    accept = {message["content-type"]}
    return loads(data, message["content-type"], message["content-encoding"], accept=accept)


@st.composite
def changes(draw: st.DrawFn, serializer: str) -> dict[str, Any]:
    """Arguments of ``update``, a few at a time."""
    every = {
        "args": st.lists(json_values, max_size=2),
        "kwargs": st.dictionaries(names.map("k_{}".format), json_values, max_size=2),
        "priority": st.integers(0, 9),
        "time_limit": st.integers(200, 300) | st.none(),
        "soft_time_limit": st.integers(1, 100) | st.none(),
        "shadow": names,
        "ignore_result": st.booleans(),
        "serializer": st.sampled_from(["json", "yaml", serializer]),
        "compression": st.sampled_from(["zlib", "bzip2"]),
        "headers": st.dictionaries(names.map("y-{}".format), json_values, max_size=2),
        "delivery_mode": st.sampled_from([1, 2]),
        "expires": st.integers(100_000, 10**7) | st.floats(100_000, 10**7) | st.none(),
        "user_id": names,
        "reply_to": names,
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
    }
    chosen = draw(st.sets(st.sampled_from(sorted(every)), min_size=1, max_size=4))
    found: dict[str, Any] = {}
    for name in sorted(chosen):
        value = draw(every[name])
        found.update(value if name == "where" else {name: value})
    return found


ROUTE = {"queue", "exchange", "routing_key", "exchange_type"}


def changed(call: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The call that was meant."""
    options = dict(call["options"])
    if wanted.keys() & ROUTE:
        options = {name: value for name, value in options.items() if name not in ROUTE}
    for name in {"args", "kwargs"} & wanted.keys():
        options.pop(f"{name}repr", None)
    options |= {k: v for k, v in wanted.items() if k not in ("args", "kwargs")}
    given = {name: wanted[name] for name in ("args", "kwargs") if name in wanted}
    return {**call, **given, "options": options}


@common
@given(project=st.sampled_from(sorted(PROJECTS)), call=calls(), data=st.data())
def test_an_updated_message_equals_that_of_the_changed_call(
    stock: Stock,
    apps: Mapping[str, tuple[Celery, redis.Redis]],
    project: str,
    call: dict[str, Any],
    data: st.DataObject,
) -> None:
    app, client = apps[project]
    # what cannot be JSON stays a pickle
    wanted = data.draw(changes(call["options"].get("serializer") or "json"))
    if call["options"].get("serializer") == "pickle" and not {"args", "kwargs"} <= wanted.keys():
        wanted.pop("serializer", None)
    assume(wanted)
    task_id = call["options"].get("task_id")
    clear(client)
    try:
        result = apply(app, call, "apply_delayed", countdown=30)
    except (TypeError, ValueError, EncodeError):
        assume(False)
    try:
        expected = comparable(stock.queued(project, changed(call, wanted)), task_id)
    except Refused:
        assume(False)

    with time_machine.travel(datetime.fromisoformat(call["at"]), tick=False):
        assert result.update(**wanted)

    assert queued(client) == {}, "it is on its queue before it is due"
    assert hand_off(app, result) == 1
    found = queued(client)
    if "reply_to" in wanted:
        [[text]] = found.values()
        assert json.loads(text)["properties"]["reply_to"] == wanted["reply_to"]
    got = comparable(found, task_id)
    # whether kombu knows the expiry of "brief" depends on what it has declared before
    assert [one.split()[0] for one in got] == [one.split()[0] for one in expected]
    [[mine]], [[theirs]] = got.values(), expected.values()
    # another serializer has read the body before, and may have put its keys in order
    mine["body"], theirs["body"] = content(mine), content(theirs)
    for part in ("headers", "properties"):
        assert mine.pop(part) == theirs.pop(part)
    assert mine == theirs
