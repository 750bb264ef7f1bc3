"""Cancels that come too late for the store: real queues, workers, and what they did."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery, chord
from celery.exceptions import ChordError, TaskRevokedError
from click.testing import CliRunner

from celery_delay import CancelOutcome
from celery_delay.cli import delay
from celery_delay.embedded import EmbeddedRedis
from tests.faults_proxy import FaultyProxy
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until
from tests.projects import hand_off, make_app, messages, publish

CANCELLED, TOO_LATE, NOT_FOUND = CancelOutcome


def nothing(*_: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture
def make(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    """An app with one task, whose due tasks the test hands off itself."""
    made: list[Celery] = []

    def new(url: str = redis_url, **conf: Any) -> Celery:
        app = make_app(url, **conf)
        app.task(nothing, name="till.pay", shared=False)
        made.append(app)
        return app

    yield new
    for app in made:
        for shard in app.delayed.shards:
            shard.close()
        app.close()


def handed(app: Celery, *args: Any, **options: Any) -> Any:
    """A task that stands on its queue."""
    result = app.tasks["till.pay"].apply_delayed(args, countdown=0, **options)
    assert hand_off(app, result) == 1
    return result


def told(app: Celery, *arguments: str) -> tuple[int, Any]:
    """Exit code and JSON document of a verb."""
    given = [*arguments, "--json"]
    answer = CliRunner().invoke(delay, given, obj=SimpleNamespace(app=app, no_color=False))
    assert answer.exit_code in (0, 1), answer.output
    return answer.exit_code, json.loads(answer.stdout)


def marks(app: Celery) -> list[str]:
    keys = [shard.keys.revoked for shard in app.delayed.shards]
    link = app.delayed.links().link()
    try:
        return [one.decode() for key in keys for one in link.call("ZRANGE", key, 0, -1)]
    finally:
        link.close()


# --- off its queue -------------------------------------------------------------------------


def test_a_message_on_its_queue_is_cancelled_and_never_runs(make: Callable[..., Running]) -> None:
    """GIVEN a beat, and a task on its queue, since no worker is up
    WHEN it is cancelled, and cancelled with chase
    THEN it was too late, and then was not; a worker that comes runs the others only.
    """
    project = make().start_beat()
    note = project.app.tasks["note"]
    first, chased, last = (note.apply_delayed((one,), countdown=0) for one in "abc")
    client = redis.Redis.from_url(project.app.conf.broker_url)
    wait_until(lambda: client.llen("celery") == 3, what="the queue")
    client.close()

    assert chased.cancel() is TOO_LATE
    assert chased.cancel("paid", chase=True) is CANCELLED
    assert chased.cancel("paid", chase=True) is CANCELLED
    with pytest.raises(TaskRevokedError, match="taken off its queue: paid"):
        chased.get(timeout=5)
    assert project.app.delayed.cancel(chased.id) is CANCELLED

    project.procs.worker()
    assert [one.get(timeout=20) for one in (first, last)] == ["a", "c"]
    assert sorted(project.effects) == ["note a", "note c"]
    project.wait_for_history(chased.id, [["SCHEDULED", "DISPATCHED", "REVOKED"]])
    row = project.audit.task(chased.id)
    assert row is not None
    assert (row.state, row.error) == ("REVOKED", "taken off its queue: paid")
    assert marks(project.app) == []


def test_each_list_of_each_known_place_is_looked_at(
    new_app: Callable[..., Celery], redis_server: EmbeddedRedis
) -> None:
    """Priorities, a store in another DB, a prefix, queues that are made when they are used."""
    url = redis_server.tcp_url
    plain = new_app()
    for options in ({"priority": 3}, {"priority": 9}, {"queue": "mail"}, {}):
        assert handed(plain, **options).cancel(chase=True) is CANCELLED
    elsewhere = new_app(delay_redis_url=url.replace("/0", "/1"), delay_shards=3)
    assert handed(elsewhere, queue="mail").cancel(chase=True) is CANCELLED
    options = {"global_keyprefix": "shop:", "priority_steps": [0, 5]}
    prefixed = new_app(broker_transport_options=options, delay_key_prefix="shop-delay:")
    assert handed(prefixed, priority=7).cancel(chase=True) is CANCELLED
    # the shapes are forgotten: what the app knows of queues is as good
    result = handed(prefixed, priority=7)
    link = prefixed.delayed.links().link()
    link.call("DEL", prefixed.delayed.shards[0].keys.templates)
    link.close()
    assert prefixed.delayed.cancel(result.id, chase=True) is CANCELLED

    with redis.Redis(unix_socket_path=str(redis_server.socket)) as client:
        lists = [one for one in client.keys("*") if client.type(one) == b"list"]
        client.delete(*client.keys("shop:_kombu.*"))
    assert [one for one in lists if b"wake" not in one and b"handover" not in one] == []


def test_a_part_of_a_chord_fails_its_body(make: Callable[..., Running]) -> None:
    project = make().start_beat()
    add, total = project.app.tasks["add"], project.app.tasks["total"]
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_delayed(countdown=0)
    client = redis.Redis.from_url(project.app.conf.broker_url)
    wait_until(lambda: client.llen("celery") == 2, what="the queue")
    client.close()

    assert project.app.delayed.cancel(body.parent.results[0].id, chase=True) is CANCELLED

    project.procs.worker()
    with pytest.raises(ChordError, match="taken off its queue"):
        project.app.AsyncResult(body.id).get(timeout=20)
    assert project.effects == ["add 2 2"]


def test_who_dies_before_he_has_written_the_result_leaves_it_to_the_drain(
    make: Callable[..., Running],
) -> None:
    project = make().start_beat()
    result = project.app.tasks["note"].apply_delayed(("a",), countdown=0)
    client = redis.Redis.from_url(project.app.conf.broker_url)
    wait_until(lambda: client.llen("celery") == 1, what="the queue")
    client.close()

    assert project.app.delayed.take_off(result.id, reason="paid").is_taken

    with pytest.raises(TaskRevokedError, match="paid"):
        result.get(timeout=15)


def test_a_unique_key_is_free_again(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    for until in ("dispatched", "started", "done"):
        limit = {} if until == "dispatched" else {"unique_for": 60}
        options = {"unique_key": "order 17", "unique_until": until, "on_conflict": "error", **limit}
        for _ in range(2):
            assert handed(app, **options).cancel(chase=True) is CANCELLED
            assert app.delayed.get_unique("order 17") is None


def test_the_command_line_chases(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    result = handed(app)

    code, document = told(app, "cancel", result.id)
    assert (code, document["answers"][0]["outcome"]) == (1, "NOT_FOUND")
    code, document = told(app, "cancel", result.id, "unknown", "--chase", "--reason", "paid")
    assert (code, document["cancelled"]) == (1, 1)
    assert [one["outcome"] for one in document["answers"]] == ["CANCELLED", "NOT_FOUND"]
    assert messages(app) == []
    assert marks(app) == ["unknown"]
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)


def test_an_id_that_json_escapes_is_only_revoked(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    result = handed(app, task_id='order "17"')

    assert result.cancel(chase=True) is TOO_LATE
    assert (len(messages(app)), marks(app)) == (1, ['order "17"'])


def test_a_claimed_and_published_message_stays(new_app: Callable[..., Celery]) -> None:
    """What a beat has published may be there twice, so it is never called CANCELLED."""
    app = new_app(delay_handoff="claim")
    result = app.tasks["till.pay"].apply_delayed(countdown=0)
    publish(app, result)
    assert result.cancel(chase=True) is TOO_LATE
    moving = new_app()
    assert moving.delayed.moves()
    assert moving.delayed.cancel(result.id, chase=True) is NOT_FOUND

    assert (len(messages(app)), marks(app)) == (1, [result.id])


def test_a_redelivered_message_stays(new_app: Callable[..., Celery]) -> None:
    """GIVEN a message that was with a worker before, and may have run there
    WHEN it is chased
    THEN it is TOO_LATE.
    """
    app = new_app()
    result = handed(app)
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery")
        assert message is not None
        message.requeue()

    assert result.cancel(chase=True) is TOO_LATE
    assert (len(messages(app)), marks(app)) == (1, [result.id])


# --- revoked for good ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "on"),
    [("prefork", True), ("threads", True), ("solo", True), ("gevent", True), ("prefork", False)],
)
def test_a_mark_survives_the_workers_where_they_look_for_it(
    make: Callable[..., Running], pool: str, on: bool
) -> None:
    """GIVEN a queue that is too long to be searched, and no worker up when the cancel comes
    WHEN a worker starts
    THEN it drops the task if it looks for revokes, and else runs it.
    """
    project = make(delay_worker_revokes=on).start_beat()
    note = project.app.tasks["note"]
    fill = [note.s("fill").set(ignore_result=True) for _ in range(1_001)]
    client = redis.Redis.from_url(project.app.conf.broker_url)
    marked = note.apply_delayed(("marked",), countdown=0)
    last = note.apply_delayed(("last",), countdown=0.3)
    wait_until(lambda: client.llen("celery") == 2, what="the queue")
    fill[0].delay()
    client.lpush("celery", *client.lrange("celery", 0, 0) * 1_000)
    assert marked.cancel(chase=True) is TOO_LATE
    client.ltrim("celery", 1_001, -1)
    client.close()

    project.procs.worker(pool=pool, concurrency=1)
    assert last.get(timeout=20) == "last"

    assert ("note marked" in project.effects) is not on
    end = "REVOKED" if on else "SUCCEEDED"
    expected = ["SCHEDULED", "DISPATCHED", *([] if on else ["STARTED"]), end]
    project.wait_for_history(marked.id, [expected])
    if on:
        with pytest.raises(TaskRevokedError):
            marked.get(timeout=5)


def test_over_rabbitmq_a_revoke_survives_the_workers(
    make: Callable[..., Running], rabbitmq_url: str, redis_url: str
) -> None:
    """GIVEN tasks on a queue of RabbitMQ, and no worker
    WHEN one is chased, and one revoked with Celery's own words
    THEN the workers that come, a rate limit or not, run neither.
    """
    queue = f"delay-{uuid4().hex}"
    project = make(
        broker_url=rabbitmq_url,
        delay_redis_url=redis_url,
        task_default_queue=queue,
        delay_worker_revokes=True,
        task_annotations={"note": {"rate_limit": "20/s"}},
    ).start_beat()
    note = project.app.tasks["note"]
    chased, revoked, kept = (note.apply_delayed((one,), countdown=0) for one in "abc")
    for one in (chased, revoked, kept):
        project.wait_for_history(one.id, [["SCHEDULED", "DISPATCHED"]])

    assert chased.cancel(chase=True) is TOO_LATE
    revoked.revoke()
    assert sorted(marks(project.app)) == sorted([chased.id, revoked.id])

    project.procs.worker(queues=queue)
    assert kept.get(timeout=20) == "c"
    for one in (chased, revoked):
        with pytest.raises(TaskRevokedError):
            one.get(timeout=10)
    assert project.effects == ["note c"]
    with Celery(broker=rabbitmq_url, set_as_current=False).connection_for_write() as connection:
        project.procs.close()
        connection.default_channel.queue_delete(queue)
        connection.default_channel.exchange_delete(queue)


def test_tasks_run_where_the_store_cannot_be_asked(
    make: Callable[..., Running], redis_server: EmbeddedRedis
) -> None:
    """GIVEN a worker that looks for revokes, and whose way to the store falls silent
    WHEN revoked tasks and others come
    THEN all run, and it is said once; once the store is back, it looks again.
    """
    with FaultyProxy(redis_server.port) as proxy:
        project = make(delay_audit="off", delay_database_url=None)
        project.procs.beat().wait_for_log(r"leads \(term")
        settings = json.loads(project.procs.env["PROJECT"])
        settings |= {"delay_redis_url": proxy.url, "delay_worker_revokes": True}
        worker = project.procs.worker(env={"PROJECT": json.dumps(settings)})
        note = project.app.tasks["note"]
        proxy.fail("blackhole", 1_000_000)

        def revoked() -> Any:
            result = note.apply_delayed(("revoked",), countdown=0.5)
            project.app.delayed.shards[0].mark_revoked([result.id])
            return result

        came = [revoked(), *(note.apply_delayed((one,), countdown=0.5) for one in range(100))]
        assert [one.get(timeout=40) for one in came] == ["revoked", *range(100)]
        assert worker.output().count("tasks run that may be revoked") == 1

        proxy.fail("ok", 0)
        wait_until(lambda: note.apply_delayed((0,), countdown=0).get(timeout=20) == 0
                   and "revokes are known again" in worker.output(), 30)  # fmt: skip
        with pytest.raises(TaskRevokedError):
            revoked().get(timeout=20)


def test_workers_that_run_drop_what_they_hold(make: Callable[..., Running]) -> None:
    """GIVEN a worker that has taken more than it can run at once
    WHEN what it holds is chased
    THEN it is TOO_LATE, and does not run.
    """
    project = make().start(concurrency=1)
    tasks = project.app.tasks
    busy = tasks["waits"].apply_delayed((3,), countdown=0)
    wait_until(lambda: project.effects, what="a busy worker")
    held = tasks["note"].apply_delayed(("held",), countdown=0)
    client = redis.Redis.from_url(project.app.conf.broker_url)
    wait_until(lambda: client.hlen("unacked") == 1, what="a task in the worker")
    client.close()

    assert held.cancel(chase=True) is TOO_LATE

    assert busy.get(timeout=20) == "waited"
    with pytest.raises(TaskRevokedError):
        held.get(timeout=10)
    assert project.effects == ["waits 3"]


def test_revoke_leaves_no_mark_where_nobody_asked_for_it(new_app: Callable[..., Celery]) -> None:
    app = new_app()
    result = handed(app)
    result.revoke()
    app.control.revoke(["a", "b"])
    assert marks(app) == []
    assert app.delayed.revoke(result.id) is NOT_FOUND

    looking = new_app(delay_worker_revokes=True)
    waiting = looking.tasks["till.pay"].apply_delayed(countdown=3_600)
    looking.control.revoke([result.id, waiting.id, "a"])
    assert sorted(marks(looking)) == sorted([result.id, "a"])
    assert looking.delayed.count() == 0


# --- a race --------------------------------------------------------------------------------


def test_in_a_race_against_workers_what_was_cancelled_never_ran(
    make: Callable[..., Running],
) -> None:
    """GIVEN 1 500 tasks that come due, and a worker that takes them
    WHEN eight threads chase all of them, each once
    THEN each is run or CANCELLED and not both, none is lost, and none runs twice.
    """
    project = make(worker_prefetch_multiplier=1).start(pool="threads", concurrency=4)
    note = project.app.tasks["note"]
    results = [note.apply_delayed((number,), countdown=0.2) for number in range(1_500)]
    started = threading.Barrier(8)
    outcomes: dict[int, CancelOutcome] = {}

    def chase(first: int) -> None:
        started.wait()
        for number in range(1_499 - first, -1, -8):
            outcomes[number] = results[number].cancel(chase=True)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(chase, range(8)))
    assert len(outcomes) == 1_500
    cancelled = {number for number, outcome in outcomes.items() if outcome}
    ran_or_revoked = [one for number, one in enumerate(results) if number not in cancelled]
    wait_until(lambda: all(one.ready() for one in ran_or_revoked), 60, what="all results")
    ran = [int(line.split()[1]) for line in project.effects]

    assert len(ran) == len(set(ran))
    assert not cancelled & set(ran)
    assert cancelled
    assert ran
    states = {results[number].state for number in cancelled}
    assert states == {"REVOKED"}
    assert {one.state for one in ran_or_revoked} <= {"SUCCESS", "REVOKED"}
    assert sum(one.state == "SUCCESS" for one in ran_or_revoked) == len(ran)


class Consumer(threading.Thread):
    """Takes messages off the queue, a hundred times a second, and writes down whose."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._client = redis.Redis.from_url(url)
        self._stopping = False
        self.ran: list[str] = []

    def run(self) -> None:
        while not self._stopping:
            for taken in self._client.rpop("celery", 1_000) or ():
                self.ran.append(json.loads(taken)["headers"]["id"])
            time.sleep(0.01)

    def close(self) -> None:
        self._stopping = True
        self.join()
        self._client.close()


def test_in_a_race_of_ten_thousand_against_dispatch_what_was_cancelled_was_never_on_its_queue(
    make: Callable[..., Running],
) -> None:
    """GIVEN 10 000 tasks that come due within seconds, a beat, and a consumer
    WHEN threads cancel one half just as they come due, the other from the last one on, with chase
    THEN each is either CANCELLED or consumed, once.
    """
    project = make(delay_audit="off", delay_database_url=None)
    project.procs.beat().wait_for_log(r"leads \(term")
    note = project.app.tasks["note"]
    calls = [(number,) for number in range(10_000)]
    results = note.apply_delayed_many(calls, countdown=2, window=12, ignore_result=True)
    results.sort(key=lambda one: one.eta)
    consumer = Consumer(project.app.conf.broker_url)
    outcomes: dict[str, CancelOutcome] = {}

    def cancel(first: int) -> None:
        mine = results[first::4]
        for one in mine if first % 2 else reversed(mine):
            # on a fast machine: no sooner than about when it is due
            early = (one._eta_ms - project.app.delayed.now_ms()) / 1000 - 0.005
            if first % 2 and early > 0:
                time.sleep(early)
            outcomes[one.id] = one.cancel(chase=True)

    consumer.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(cancel, range(4)))
        cancelled = {task_id for task_id, outcome in outcomes.items() if outcome}
        wait_until(lambda: len(consumer.ran) + len(cancelled) >= 10_000, 20, "all that ran")
        wait_until(lambda: project.app.delayed.count() == 0, what="an empty store")
    finally:
        consumer.close()

    assert len(outcomes) == 10_000
    assert not cancelled & set(consumer.ran), "it was said never to run, and ran"
    assert cancelled | set(consumer.ran) == set(outcomes)
    assert len(consumer.ran) == len(set(consumer.ran)), "handed off twice"
    assert cancelled
    assert consumer.ran
