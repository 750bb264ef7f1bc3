"""The guard in real workers: copies in each pool, and workers that know nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_delay.domain.events import DROPPED
from celery_delay.store.keys import ShardKeys
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until

POOLS = {"threads": 4, "gevent": 10, "solo": 1}
KEYS = ShardKeys("celery-delay:", 0)
PLAIN = """
import os, pathlib
from celery import Celery

app = Celery("plain", broker=os.environ["URL"])

@app.task(name="note")
def note(what):
    with pathlib.Path(os.environ["EFFECTS"]).open("a") as file:
        file.write(what + "\\n")
"""
FULL = """
import os, pathlib, time
from celery import Celery
from celery_delay import CeleryDelay
from kombu.transport.redis import Transport

app = Celery("full", broker=os.environ["URL"])
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=1, delay_guard="track",
    delay_guard_patience=1.0, broker_connection_retry_on_startup=True,
)
Transport.brpop_timeout = 60  # instead of a second: the task shall come while one is under way
CeleryDelay(app)
folder = pathlib.Path(os.environ["FOLDER"])

@app.task(name="busy", acks_late=True)
def busy():
    (folder / "begun").touch()
    while not (folder / "enough").exists():
        time.sleep(0.05)

@app.task(name="note")
def note():
    with (folder / "noted").open("a") as file:
        file.write("once\\n")
"""


@pytest.fixture
def project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def double(raw: redis.Redis, queue: str) -> None:
    """Put a copy of each message on the queue, as a publisher that heard no confirmation does."""
    for text in raw.lrange(queue, 0, -1):
        message = json.loads(text)
        message["properties"]["delivery_tag"] += ".copy"
        raw.lpush(queue, json.dumps(message))


def events(here: Running, task_id: str) -> list[str]:
    return sorted(one.state for one in here.audit.events(task_id))


def test_a_copy_does_not_run_in_any_pool(
    project: Callable[..., Running], raw: redis.Redis, tmp_path: Path
) -> None:
    # Given messages that stand twice on the queues of three workers
    here = project(delay_guard="guard", delay_guard_patience=5.0).start_beat()
    sent: dict[str, list[Any]] = {}
    for pool in POOLS:
        flag = str(tmp_path / pool)
        calls = (("note", pool), ("waits_late", 0.5), ("rejects_once", flag))
        sent[pool] = [
            here.app.tasks[name].apply_delayed((value,), countdown=0.1, queue=pool)
            for name, value in calls
        ]
        wait_until(lambda: raw.llen(pool) == 3, what="all on the queue")  # noqa: B023
        double(raw, pool)

    # When the workers come
    for pool, size in POOLS.items():
        here.procs.worker(pool, pool=pool, concurrency=size, queues=pool, wait=False)

    # Then each has its effect once, though one of them went back to its queue in between
    ends = ["SCHEDULED", "STARTED", "SUCCEEDED"]
    told = {
        "note": sorted(["DISPATCHED", DROPPED, *ends]),
        "waits_late": sorted(["DISPATCHED", DROPPED, *ends]),
        "rejects_once": sorted(["DISPATCHED", DROPPED, "STARTED", *ends]),
    }
    for pool in POOLS:
        for name, result in zip(told, sent[pool], strict=True):
            wait_until(
                lambda: events(here, result.id) == told[name],  # noqa: B023
                30,
                f"{name} in {pool}: {events(here, result.id)}",
            )
    for pool in POOLS:
        assert here.effects.count(f"note {pool}") == 1
    assert here.effects.count("waits 0.5") == len(POOLS)
    assert not raw.exists(*POOLS, "unacked", KEYS.marks, KEYS.watched, KEYS.watching)
    history = here.procs.run("delay", "history", sent["solo"][0].id, "--json")
    assert DROPPED in history.stdout, history


def test_nothing_is_sent_again_where_a_worker_does_not_report(
    project: Callable[..., Running],
    harness: Callable[..., ProcessHarness],
    raw: redis.Redis,
    redis_url: str,
    tmp_path: Path,
) -> None:
    # Given a queue that a worker without celery-delay serves, beside one that reports
    here = project(delay_guard="track", delay_guard_patience=1.0)
    beat = here.procs.beat()
    (tmp_path / "plain.py").write_text(PLAIN)
    effects = tmp_path / "plain-effects"
    env = {"URL": redis_url, "EFFECTS": str(effects)}
    harness("plain", path=(tmp_path,), env=env).worker("stranger", pool="solo", queues="mixed")
    beat.wait_for_log(r"leads \(term")
    here.app.delayed.shards[0].give_sign("w@host 1", ["mixed"])

    # When it runs a task
    here.app.tasks["note"].apply_delayed(("once",), countdown=0.1, queue="mixed")

    # Then the task looks lost, but it is noticed why, and it is not run twice
    beat.wait_for_log("do not report what they begin.*mixed: stranger@test", timeout=20)
    [check] = [one for one in here.app.delayed.doctor().checks if one.name == "guard"]
    assert check.result == "problem"
    assert "stranger@test (mixed)" in check.text
    looks = raw.zscore(KEYS.watched, raw.zrange(KEYS.watched, 0, 0)[0])
    wait_until(
        lambda: raw.zscore(KEYS.watched, raw.zrange(KEYS.watched, 0, 0)[0]) > looks + 1_000,
        what="two more looks",
    )
    assert effects.read_text() == "once\n"
    assert raw.llen("mixed") == 0
    assert "is sent again: its" not in beat.output()


def test_what_a_full_worker_has_fetched_and_not_taken_is_not_sent_again(
    harness: Callable[..., ProcessHarness], raw: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    # Given a worker that asks for a message while it waits for a task's eta, and is full when that
    # has come: it leaves in its socket what Redis answers
    (tmp_path / "full.py").write_text(FULL)
    env = {"URL": redis_url, "FOLDER": str(tmp_path)}
    procs = harness("full", path=(tmp_path,), env=env)
    beat = procs.beat()
    procs.worker("worker", "--without-mingle", concurrency=1)
    beat.wait_for_log(r"leads \(term")
    send = "import full, sys; full.app.tasks[sys.argv[1]].{}(countdown=float(sys.argv[2]))"
    caller = procs.python("busy", "-c", send.format("apply_async"), "busy", "1")
    assert caller.wait(30) == 0, caller
    wait_until((tmp_path / "begun").exists, 30, "the task with an eta begins")

    # When it has fetched a task for longer than two looks
    caller = procs.python("note", "-c", send.format("apply_delayed"), "note", "0.1")
    assert caller.wait(30) == 0, caller
    wait_until(lambda: raw.zcard(KEYS.watched) == 1, 20, "the hand-off")

    def next_look() -> float:
        return max((at for _, at in raw.zrange(KEYS.watched, 0, -1, withscores=True)), default=0.0)

    for _ in range(4):
        before = next_look()
        wait_until(lambda: next_look() > before, 20, "a look")  # noqa: B023
        assert raw.llen("celery") == 0, "sent again, or the worker was not full"
        assert not [one for one in raw.hkeys("unacked") if one.count(".") > 1]

    # Then it is not sent again, and runs once
    (tmp_path / "enough").touch()
    wait_until((tmp_path / "noted").exists, 30, "its run")
    wait_until(lambda: raw.zcard(KEYS.watched) == 0, 20, "its report")
    assert "is sent again" not in beat.output()
    assert (tmp_path / "noted").read_text() == "once\n"
