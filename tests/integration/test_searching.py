"""Entries found by what they have in common, from Python."""

from __future__ import annotations

import base64
import json
import resource
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_delay import State
from celery_delay.domain.entries import Template
from celery_delay.domain.filters import Filter
from celery_delay.domain.labels import Labels
from celery_delay.store import scanning
from tests.projects import make_app
from tests.shards import addition, park, shape

HOUR = 3_600
MANY = 20_000
NOON = datetime(2040, 1, 31, 12, tzinfo=timezone.utc)


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def app(request: Any, redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    app = make_app(redis_url, delay_audit="off", delay_shards=request.param)
    for name in ("till.pay", "till.refund", "mail.send"):
        app.task(nothing, name=name, shared=False)
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.close()


def put(app: Celery, task_id: str, name: str = "till.pay", hours: float = 1, **more: Any) -> None:
    eta = more.pop("eta", None) or NOON + timedelta(hours=hours)
    app.tasks[name].apply_delayed((1,), eta=eta, task_id=task_id, **more)


def ids(page: Any) -> list[str]:
    return [one.entry_id.task_id for one in page]


def test_what_is_quarantined_is_listed_when_asked_for(app: Celery) -> None:
    for number in range(5):
        put(app, f"t{number}", "till.pay" if number % 2 else "mail.send", hours=number)
    for task_id in ("t1", "t3", "t4"):
        park(app, task_id)

    first = app.delayed.list(state="QUARANTINED", limit=2)
    second = app.delayed.list(state="QUARANTINED", limit=2, cursor=first.next)

    assert (ids(first), ids(second), second.next) == (["t1", "t3"], ["t4"], None)
    assert {one.state for one in first} == {State.QUARANTINED}
    assert ids(app.delayed.list(state=["SCHEDULED", "QUARANTINED"], task="mail.*")) == [
        "t0", "t2", "t4",
    ]  # fmt: skip
    assert (app.delayed.count(), app.delayed.count(state="QUARANTINED")) == (2, 3)
    assert [one.entry_id.task_id for one in app.delayed.iterate(state="QUARANTINED")] == [
        "t1", "t3", "t4",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="source='audit' does not know what is QUARANTINED"):
        app.delayed.list(state="QUARANTINED", source="audit")


def test_a_page_of_the_quarantine_reads_its_own_records_alone(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        put(app, f"t{number:02}", "till.pay" if number % 2 else "mail.send", hours=number)
        park(app, f"t{number:02}")
    read: list[str] = []

    def decode(task_id: str, *more: Any) -> Any:
        read.append(task_id)
        return original(task_id, *more)

    original = scanning.decode
    monkeypatch.setattr(scanning, "decode", decode)

    first = app.delayed.list(state="QUARANTINED", limit=5)
    shards = len(app.delayed.shards)
    assert ids(first) == ["t00", "t01", "t02", "t03", "t04"]
    assert len(read) <= (5 + 1) * shards
    read.clear()
    assert app.delayed.count(state="QUARANTINED") == 40
    before = NOON + timedelta(hours=9)
    assert app.delayed.count(state="QUARANTINED", before=before) == 10
    assert read == []
    # who looks for something reads each record, but once
    mails = ids(app.delayed.list(state="QUARANTINED", task="mail.*", limit=100))
    assert mails == [f"t{one:02}" for one in range(0, 40, 2)]
    assert len(read) == 40


def test_what_cannot_be_read_in_the_quarantine_is_counted_and_comes_in_its_place(
    app: Celery, redis_url: str
) -> None:
    put(app, "whole")
    park(app, "whole")
    shard = app.delayed.shards[0]
    raw = redis.Redis.from_url(redis_url)
    raw.hset(shard.keys.quarantine, "no-json", "?")
    raw.hset(shard.keys.quarantine, "no-record", json.dumps(["damaged", 5.0, "?"]))

    found = list(app.delayed.found(Filter().only(State.QUARANTINED)))

    assert [(one.task_id, one.position.eta_ms > 0, one.entry() is None) for one in found] == [
        ("no-json", False, True),
        ("no-record", True, True),
        ("whole", True, False),
    ]
    assert app.delayed.count(state="QUARANTINED") == 3
    raw.close()


def test_pages_go_on_from_where_the_last_one_ended(app: Celery) -> None:
    for number in range(7):
        put(app, f"t{number}", hours=number % 2)

    first = app.delayed.list(limit=3)
    app.delayed.cancel("t4")  # the last one of that page
    put(app, "t1a", hours=1)
    second = app.delayed.list(limit=3, cursor=first.next)
    third = app.delayed.list(limit=3, cursor=second.next)

    assert [ids(one) for one in (first, second, third)] == [
        ["t0", "t2", "t4"], ["t6", "t1", "t1a"], ["t3", "t5"],
    ]  # fmt: skip
    assert (first.source, third.next) == ("store", None)
    assert app.delayed.list(limit=2, cursor=second.next).next is None


def test_each_filter_finds_its_own(app: Celery) -> None:
    put(app, "a", hours=1, namespace="acme", tags=["red", "blue"])
    put(app, "b", "till.refund", hours=2, queue="slow")
    put(app, "c", "mail.send", hours=3, namespace="acme", tags=["red"])
    app.delayed.hold("c")
    found = app.delayed.list

    assert ids(found(task="till.refund")) == ["b"]
    assert ids(found(task="till.*")) == ["a", "b"]
    assert ids(found(queue="slow")) == ["b"]
    assert ids(found(namespace="acme")) == ["a", "c"]
    assert ids(found(tag="red")) == ["a", "c"]
    assert ids(found(tag=["red", "blue"])) == ["a"]
    assert ids(found(state="HELD", namespace="acme")) == ["c"]
    assert ids(found(state=[State.HELD, "SCHEDULED"])) == ["a", "b", "c"]
    assert ids(found(after=NOON + timedelta(hours=2))) == ["b", "c"]
    assert ids(found(after="2040-01-31T13:00:01Z", before="2040-01-31T14:00:00Z")) == ["b"]
    assert ids(found(task="nobody")) == []
    counts = [app.delayed.count(**one) for one in ({}, {"tag": "red"}, {"state": "HELD"})]
    assert counts == [3, 2, 1]
    assert ids(app.delayed.iterate(namespace="acme")) == ["a", "c"]


def test_a_unique_key_is_looked_up(app: Celery) -> None:
    for n in range(4):
        app.tasks["till.pay"].apply_delayed(
            (n,), eta=NOON + timedelta(hours=n), unique_key=f"key {n}"
        )
    (entry,) = page = app.delayed.list(unique_key="key 2", limit=1)

    assert entry.labels.unique is not None
    assert (entry.labels.unique.key, page.next, page.source) == ("key 2", None, "store")
    assert app.delayed.count(unique_key="key 2") == 1
    assert app.delayed.list(unique_key="nobody") == []
    assert app.delayed.list(unique_key="key 2", task="mail.send") == []
    assert app.delayed.list(unique_key="key 2", before=NOON) == []
    with pytest.raises(ValueError, match="does not know unique keys"):
        app.delayed.list(unique_key="key 2", source="audit")
    assert app.delayed.hold_many(unique_key="key 2").outcomes == {"HELD": 1}
    assert app.delayed.cancel_many(unique_key="key 2").outcomes == {"CANCELLED": 1}
    assert app.delayed.list(unique_key="key 2") == []
    assert app.delayed.count() == 3


#: A cursor that is well-formed, and of no eta.
FAR_OFF = base64.urlsafe_b64encode(b'["store", Infinity, "x"]').decode()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"tags": ["a"]}, TypeError, "did you mean tag?"),
        ({"colour": "red"}, TypeError, "there is no filter 'colour': known are task, queue"),
        ({"task": 3}, TypeError, "task must be a text"),
        ({"queue": ""}, ValueError, "queue is empty"),
        ({"tag": [3]}, TypeError, "tag must be a text"),
        ({"tag": 3}, TypeError, "tag must be a text or a list"),
        ({"state": "ASLEEP"}, ValueError, "state='ASLEEP' is none of CANCELLED"),
        ({"state": []}, ValueError, "state is an empty list"),
        ({"after": "noon"}, ValueError, "after: eta='noon' is no ISO 8601"),
        ({"after": "2040-01-01", "after_ms": 1}, ValueError, "after and after_ms were both given"),
        ({"before_ms": 1.5}, TypeError, "before_ms must be a whole number"),
        ({"limit": 0}, ValueError, "limit=0 must be from 1 to 10000"),
        ({"limit": True}, TypeError, "limit must be a whole number"),
        ({"cursor": "x"}, ValueError, "cursor='x' is not the next of any page"),
        ({"cursor": FAR_OFF}, ValueError, "is not the next of any page"),
        ({"cursor": 3}, TypeError, "cursor must be the next"),
    ],
)
def test_what_is_wrong_is_named(
    app: Celery, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        app.delayed.list(**given)

    assert says in str(caught.value)


def test_all_of_a_state_that_does_not_wait_is_refused(app: Celery) -> None:
    with pytest.raises(ValueError, match="FAILED is no state of what waits"):
        app.delayed.iterate(state="FAILED")


# --- with many -----------------------------------------------------------------------------


def _fill(app: Celery, count: int) -> None:
    """Of *count* entries at one instant every hundredth has a tag."""
    text = app.delayed.shards[0]
    assert text is not None
    rare = Labels("acme", ("rare",))
    template = shape("celery", task="till.pay")
    assert Template.decode(template).task == "till.pay"
    for start in range(0, count, 1_000):
        app.delayed.add(
            [
                addition(
                    f"{one * 7919 % count:07}",
                    at_ms=2_000_000_000_000 + one % 2,
                    template=template,
                    **({"labels": rare} if one % 100 == 0 else {}),
                )
                for one in range(start, start + 1_000)
            ]
        )


def test_a_walk_over_many_is_bounded_in_each_step_and_in_memory(
    app: Celery, redis_url: str
) -> None:
    _fill(app, MANY)
    raw = redis.Redis.from_url(redis_url)
    raw.config_set("slowlog-log-slower-than", 10_000)
    raw.slowlog_reset()
    assert sum(1 for _ in app.delayed.iterate()) == MANY  # warm
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raw.config_resetstat()

    seen = [one.entry_id.task_id for one in app.delayed.iterate(tag="rare")]

    assert len(seen) == len(set(seen)) == MANY // 100
    commands = raw.info("commandstats")
    calls = commands["cmdstat_evalsha"]["calls"]
    assert calls <= MANY // 200 + 2 * len(app.delayed.shards)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 5_000, "kB more than the walk before"
    # 10 ms are plenty for one page, but for the few that a busy machine sleeps over
    assert raw.slowlog_len() * 10 <= calls
    raw.close()


def test_a_small_page_of_many_costs_little(app: Celery, redis_url: str) -> None:
    _fill(app, MANY)
    raw = redis.Redis.from_url(redis_url)
    app.delayed.list(limit=20)
    raw.config_resetstat()
    sent = raw.info("stats")["total_net_output_bytes"]

    page = app.delayed.list(limit=20)
    assert app.delayed.count() == MANY

    assert len(page) == 20
    commands = raw.info("commandstats")
    assert commands["cmdstat_evalsha"]["calls"] <= len(app.delayed.shards)
    assert raw.info("stats")["total_net_output_bytes"] - sent < 60_000
    raw.close()
