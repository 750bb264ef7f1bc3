"""Tracers see what happens to a delayed task, and are not misled by its delay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.store.keys import ShardKeys
from tests.processes import ProcessHarness, wait_until

PROJECT = Path(__file__).parent / "project"

SCHEDULE = """
import json
from traced import app
from opentelemetry import trace
with trace.get_tracer("test").start_as_current_span("the caller"):
    result = app.tasks["note"].apply_delayed(countdown=0.3)
print(json.dumps(result.get(timeout=30)))
"""

SEND = """
from traced import app
print(app.tasks["note"].apply_delayed(countdown=3).get(timeout=30))
"""


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def traced(harness: Callable[..., ProcessHarness], redis_url: str) -> Callable[..., ProcessHarness]:
    def start(conf: dict[str, Any], **env: str) -> ProcessHarness:
        given = {"URL": redis_url, "CONF": json.dumps({"delay_audit": "off", **conf}), **env}
        return harness("traced", path=(PROJECT,), env=given)

    return start


@pytest.mark.parametrize(("handoff", "instrument"), [("auto", "before"), ("claim", "after")])
def test_a_run_is_linked_to_what_scheduled_and_dispatched_it(
    traced: Callable[..., ProcessHarness], tmp_path: Path, handoff: str, instrument: str
) -> None:
    file = tmp_path / "spans"
    procs = traced({"delay_handoff": handoff}, SPANS=str(file), INSTRUMENT=instrument)
    beat, worker = procs.beat(), procs.worker(concurrency=1)
    beat.wait_for_log(r"leads \(term")

    caller = procs.python("caller", "-c", SCHEDULE)
    assert caller.wait(40) == 0, caller
    header = json.loads(caller.output().splitlines()[-1])
    worker.stop()
    beat.stop()

    def found(name: str) -> dict[str, Any]:
        wait_until(lambda: [one for one in lines(file) if one["name"] == name], what=name)
        [span] = [one for one in lines(file) if one["name"] == name]
        return span

    calling, schedule, published = (
        found("the caller"),
        found("schedule note"),
        found("apply_async/note"),
    )
    dispatch = found("dispatch" if handoff == "auto" else "dispatch note")
    run = found("run/note")
    ids = [one["context"]["trace_id"] for one in (calling, dispatch, run)]
    # three traces: none of them is as long as the delay
    assert len(set(ids)) == 3
    assert run["parent_id"] is None
    assert dispatch["parent_id"] is None
    assert schedule["parent_id"] == calling["context"]["span_id"]
    assert published["parent_id"] == schedule["context"]["span_id"]
    linked = {
        one["attributes"]["celery_delay.link"]: one["context"]["span_id"] for one in run["links"]
    }
    assert linked == {
        "scheduled": published["context"]["span_id"],
        "dispatch": dispatch["context"]["span_id"],
    }
    if handoff == "auto":
        assert dispatch["attributes"]["messaging.batch.message_count"] == 1
    else:
        [link] = dispatch["links"]
        assert link["context"]["span_id"] == published["context"]["span_id"]
    # it is in our header, where no instrumentation takes it for a parent
    assert header["traceparent"] is None
    assert header["celery_delay"]["traceparent"].split("-")[2] == published["context"][
        "span_id"
    ].removeprefix("0x")


def test_sentrys_queue_latency_is_that_of_the_queue_and_its_crons_go_on(
    traced: Callable[..., ProcessHarness], redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    file = tmp_path / "envelopes"
    conf = {"beat_schedule": {"often": {"task": "note", "schedule": 3600.0}}}
    procs = traced(conf, ENVELOPES=str(file))
    beat, worker = procs.beat(), procs.worker(queues="celery,ours", concurrency=1)
    beat.wait_for_log(r"leads \(term")
    occurrences = ShardKeys("celery-delay:", 0).occurrences
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: client.zscore(occurrences, "often"), what="the schedule")
        client.zadd(occurrences, {"often": client.time()[0] * 1000}, xx=True)

    send = SEND.replace("countdown=3", "countdown=3, queue='ours'")
    caller = procs.python("caller", "-c", send)
    assert caller.wait(40) == 0, caller
    wait_until(lambda: {"in_progress", "ok"} <= statuses(file), what="check-ins")
    worker.stop()

    runs = [
        span["data"]
        for kind, event in lines(file)
        if kind == "transaction"
        for span in event["spans"]
        if span["op"] == "queue.process"
        and span["data"].get("messaging.destination.name") == "ours"
    ]
    [latency] = [one["messaging.message.receive.latency"] for one in runs]
    assert 0 <= latency < 3_000, "it has the delay in it"


def statuses(file: Path) -> set[str]:
    return {event["status"] for kind, event in lines(file) if kind == "check_in"}
