"""Tasks that wait get other arguments and options; with a real beat and worker."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group, signals
from celery.exceptions import QueueNotFound
from kombu.exceptions import EncodeError

from celery_delay import ReleaseOutcome, State, UpdateOutcome
from celery_delay.domain.callers import caller
from celery_delay.exceptions import StoreUnavailable
from tests.integration.running import Running, projects
from tests.integration.test_steering import HOUR, drain, nothing, told
from tests.processes import ProcessHarness, wait_until
from tests.projects import hand_off, make_app, messages, publish

UPDATED = UpdateOutcome.UPDATED


@pytest.fixture
def known_keys() -> tuple[str, ...]:
    return ("*delay*", "celery*", "_kombu.*", "slow*", "celery-task-meta-*")


def pay_body(order: Any, currency: str = "EUR") -> None:
    """The body of a task whose signature matters."""


def make(url: str, **conf: Any) -> Celery:
    app = make_app(url, **conf)
    app.task(nothing, name="till.any", shared=False)
    app.task(pay_body, name="till.pay", shared=False)
    return app


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    app = make(redis_url, delay_database_url=f"sqlite:///{tmp_path}/audit.sqlite3")
    app.delayed.audit_log.migrate()
    yield app
    close(app)
    app.delayed.audit_log.close()


def close(app: Celery) -> None:
    for shard in app.delayed.shards:
        shard.close()
    app.close()


def pay(app: Celery, *args: Any, name: str = "till.pay", **options: Any) -> Any:
    return app.tasks[name].apply_delayed(args, **{"countdown": HOUR, **options})


def body_of(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


# --- from Python ---------------------------------------------------------------------------


def test_a_result_updates_its_task_and_all_else_stays(app: Celery) -> None:
    result = pay(app, 1, kwargs={"currency": "USD"}, priority=3, headers={"x-shop": "7"})
    eta = result.eta

    assert result.update(args=(2,), queue="slow", priority=6, reason="moved") is UPDATED

    assert (result.eta, result.delay_state) == (eta, State.SCHEDULED)
    assert hand_off(app, result) == 1
    [message] = messages(app, "slow\x06\x166")
    assert body_of(message)[:2] == [[2], {"currency": "USD"}]
    headers, properties = message["headers"], message["properties"]
    assert (headers["id"], headers["x-shop"], headers["argsrepr"]) == (result.id, "7", "(2,)")
    assert headers["celery_delay"]["run"] == result.entry_id.run
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "slow"}
    assert messages(app) == []


def test_after_the_hand_off_it_is_too_late(app: Celery) -> None:
    result = pay(app, 1, countdown=0)
    assert hand_off(app) == 1

    assert result.update(args=(2,)) is UpdateOutcome.TOO_LATE
    # and so it is long after, when Redis has forgotten
    keys = app.delayed.shard_keys[0]
    with redis.Redis.from_url(app.conf.broker_url) as raw:
        raw.delete(keys.tombstones_even, keys.tombstones_odd)
    assert result.update(args=(2,)) is UpdateOutcome.TOO_LATE

    [message] = messages(app)
    assert body_of(message)[0] == [1]


def test_the_same_by_id(app: Celery) -> None:
    task_id, delayed = pay(app, 1).id, app.delayed

    assert delayed.update(task_id, kwargs={"currency": "USD"}) is UPDATED
    assert delayed.update("nobody", queue="slow") is UpdateOutcome.NOT_FOUND

    entry = delayed.get(task_id)
    assert entry is not None
    assert (entry.version, entry.headers["kwargsrepr"]) == (2, "{'currency': 'USD'}")
    assert body_of(entry.envelope)[:2] == [[1], {"currency": "USD"}]


def test_labels_stay_and_an_expiry_may_count_from_the_eta(app: Celery) -> None:
    result = pay(app, 1, namespace="acme", tags=("vip", "eu"))
    before = app.delayed.get(result.id)

    assert result.update(args=(2,), expires=60, expires_from="eta")

    after = app.delayed.get(result.id)
    assert before is not None
    assert after is not None
    assert after.labels == before.labels
    assert (after.labels.namespace, after.labels.tags) == ("acme", ("vip", "eu"))
    assert abs(after.expires_ms - after.eta_ms - 60_000) < 10_000


def test_none_is_a_value(app: Celery) -> None:
    app.conf.task_routes = {"till.pay": {"queue": "till"}}
    result = pay(app, 1, queue="slow", expires=HOUR * 2, time_limit=5, link=app.signature("x"))
    assert result.update(args=None, kwargs={"order": 1}, expires=None, time_limit=None, link=None)
    entry = app.delayed.get(result.id)
    assert entry is not None
    assert (entry.expires_ms, entry.headers["expires"], entry.queue) == (0, None, "slow")
    assert (entry.headers["timelimit"], entry.embed["callbacks"]) == ([None, None], None)
    assert "expiration" not in entry.envelope["properties"]
    assert body_of(entry.envelope)[:2] == [[], {"order": 1}]

    assert result.update(queue=None)

    entry = app.delayed.get(result.id)
    assert entry is not None
    assert entry.queue == "till"


def test_options_are_those_of_apply_async(app: Celery) -> None:
    result = pay(app, 1, headers={"x-old": 1}, stamped_headers=["a"], a="1")

    assert result.update(
        expires=HOUR * 3, soft_time_limit=7, shadow="payment", compression="zlib",
        headers={"x-new": 2}, stamped_headers=["ticket"], ticket="T-1", ignore_result=True,
        link_error=app.signature("on.error"), message_id="m-1",
    )  # fmt: skip

    entry = app.delayed.get(result.id)
    assert entry is not None
    headers, properties = entry.headers, entry.envelope["properties"]
    assert abs(entry.expires_ms / 1000 - app.delayed.now_ms() / 1000 - HOUR * 3) < 60
    assert (headers["timelimit"], headers["shadow"]) == ([None, 7], "payment")
    assert headers["compression"] == "application/x-gzip"
    assert (headers["x-new"], "x-old" in headers) == (2, False)
    assert (headers["stamped_headers"], headers["stamps"]) == (["ticket"], {"ticket": "T-1"})
    assert headers["ignore_result"] is True
    assert properties["message_id"] == "m-1"  # type: ignore[index]


def test_wrong_arguments_change_nothing(redis_url: str) -> None:
    app = make(
        redis_url, task_create_missing_queues=False, delay_max_payload=2_000, delay_audit="off"
    )
    result = pay(app, 1)
    before = app.delayed.get(result.id)

    for given, error, text in [
        ({"args": ()}, TypeError, "missing 1 required positional argument: 'order'"),
        ({"kwargs": {"amount": 1}}, TypeError, "unexpected keyword argument 'amount'"),
        ({"args": (object(),)}, EncodeError, "not JSON serializable"),
        ({"args": ("x" * 4_000,)}, ValueError, "delay_max_payload"),
        ({"queue": "nowhere"}, QueueNotFound, "nowhere"),
        ({"eta": 1}, TypeError, r"reschedule\(\)"),
        ({"expires": "soon"}, ValueError, "soon"),
        ({}, TypeError, "say what to change"),
    ]:
        with pytest.raises(error, match=text):
            result.update(**given)

    assert app.delayed.get(result.id) == before
    # arguments of a task that is not known here are not checked
    other = app.delayed.send_task("elsewhere.pay", (1,), countdown=HOUR)
    assert other.update(args=("any", "thing"))
    close(app)


def test_pickles_are_read_where_a_worker_would_read_them(app: Celery, redis_url: str) -> None:
    app.conf.accept_content = ["json", "pickle"]
    result = pay(app, {1, 2}, serializer="pickle")
    other = make(redis_url, delay_audit="off")

    with pytest.raises(ValueError, match=r"x-python-serialize, which accept_content does not"):
        other.delayed.update(result.id, queue="slow")

    assert result.update(queue="slow")
    entry = app.delayed.get(result.id)
    assert entry is not None
    assert entry.envelope["content-type"] == "application/x-python-serialize"
    assert result.update(args=([1],), serializer="json")
    entry = app.delayed.get(result.id)
    assert entry is not None
    assert body_of(entry.envelope)[0] == [[1]]
    close(other)


def test_the_publish_signals_see_the_new_message(app: Celery) -> None:
    seen = []

    def before(body: Any = None, headers: Any = None, **_: Any) -> None:
        headers["x-trace"] = len(seen)
        seen.append((body[0], headers["id"]))

    signals.before_task_publish.connect(before)
    try:
        result = pay(app, 1)
        assert result.update(args=(2,))
    finally:
        signals.before_task_publish.disconnect(before)

    assert [(list(args), task_id) for args, task_id in seen] == [([1], result.id), ([2], result.id)]
    entry = app.delayed.get(result.id)
    assert entry is not None
    assert entry.headers["x-trace"] == 1


def test_parts_of_a_canvas_stay_parts_of_it(app: Celery) -> None:
    part = app.tasks["till.any"]
    made = chord(group(part.si(1), part.si(2)), part.s()).apply_delayed(countdown=HOUR)
    rest = chain(part.si(1), part.si(2)).apply_delayed(countdown=HOUR).parent
    for result in (made.parent[0], made.parent[1], rest):
        before = app.delayed.get(result.id)
        assert before is not None

        assert app.delayed.update(result.id, args=("new",), queue="slow")

        after = app.delayed.get(result.id)
        assert after is not None
        names = ("group", "group_index", "root_id", "parent_id", "retries")
        assert {n: after.headers[n] for n in names} == {n: before.headers[n] for n in names}
        assert after.embed == before.embed
        assert after.queue == "slow"
    assert made.parent[0].update(args=("newer",)).value == "UPDATED"


def test_an_update_from_inside_another_task_makes_no_child_of_it(app: Celery) -> None:
    result = pay(app, 1)
    before = app.delayed.get(result.id)
    outer = app.tasks["till.any"]

    from celery._state import _task_stack

    _task_stack.push(outer)
    outer.push_request(id="outer", root_id="root", children=[])
    try:
        assert result.update(queue="slow")
        assert outer.request.children == []
    finally:
        outer.pop_request()
        _task_stack.pop()

    after = app.delayed.get(result.id)
    assert before is not None
    assert after is not None
    for name in ("parent_id", "root_id", "origin"):
        assert after.headers[name] == before.headers[name]
    assert after.entry_id == before.entry_id


def test_an_intercepted_delay_keeps_its_eta_header(redis_url: str) -> None:
    app = make(redis_url, delay_audit="off", delay_intercept=True)
    assert hand_off(app) == 0
    task_id = app.tasks["till.pay"].apply_async((1,), countdown=HOUR).id
    before = app.delayed.get(task_id)

    assert app.delayed.update(task_id, args=(2,))

    after = app.delayed.get(task_id)
    assert before is not None
    assert after is not None
    assert before.headers["eta"]
    assert (after.headers["eta"], after.eta_ms) == (before.headers["eta"], before.eta_ms)
    close(app)


def test_a_held_task_stays_held_and_a_cancelled_one_is_not_found(app: Celery) -> None:
    result = pay(app, 1)
    result.hold()

    assert result.update(args=(2,)) is UPDATED
    assert result.delay_state is State.HELD
    assert hand_off(app, result) == 0
    assert result.release() is ReleaseOutcome.RELEASED
    assert result.cancel()
    assert result.update(args=(3,)) is UpdateOutcome.NOT_FOUND
    assert result.state == "REVOKED"


def test_a_record_without_its_template_is_damaged(app: Celery, redis_url: str) -> None:
    result = pay(app, 1)
    with redis.Redis.from_url(redis_url) as raw:
        raw.delete(app.delayed.shard_keys[0].templates)

    assert result.update(args=(2,)) is UpdateOutcome.DAMAGED


def test_without_redis_nothing_is_said_to_have_changed(new_redis: Callable[..., Any]) -> None:
    server = new_redis()
    app = make(server.tcp_url, delay_audit="off")
    result = pay(app, 1)
    server.stop()

    with pytest.raises(StoreUnavailable):
        result.update(args=(2,))
    app.close()


def test_an_eager_task_has_run_already(app: Celery) -> None:
    app.conf.task_always_eager = True
    assert pay(app, 1).update(args=(2,)) is UpdateOutcome.TOO_LATE


# --- where a beat publishes ----------------------------------------------------------------


def test_a_message_that_its_queue_kept_from_leaving_is_mended_and_released(
    redis_url: str, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/audit.sqlite3"
    app = make(redis_url, delay_handoff="claim", delay_database_url=database)
    app.delayed.audit_log.migrate()
    result = pay(app, 1, queue="broken", countdown=0)
    with redis.Redis.from_url(redis_url) as raw:
        raw.set("broken", "not a list")
    shard = app.delayed.shards[0]
    for _ in range(2):  # the first one names the history
        publish(app)
        claimed = shard.claim(token="t", limit=9, ttl_ms=3_000)
        shard.give_back("t", [(one.entry_id.task_id, "Q", "WRONGTYPE") for one in claimed.taken])
    drain(app)
    if result.id not in app.delayed.quarantined():
        pytest.fail(f"{app.delayed.quarantined()}")

    assert result.update(queue="celery", args=(2,), reason="mended") is UPDATED

    assert list(app.delayed.quarantined()) == [result.id]
    publish(app)
    assert messages(app) == []
    drain(app)
    shown = told(app, "show", result.id)["audit"]
    assert (shown["state"], shown["queue"], shown["args"]) == ("QUARANTINED", "celery", "(2,)")
    assert "WRONGTYPE" in shown["error"]
    assert result.release() is ReleaseOutcome.RELEASED
    publish(app)
    [message] = messages(app)
    assert (message["headers"]["id"], body_of(message)[0]) == (result.id, [2])
    with redis.Redis.from_url(redis_url) as raw:
        raw.delete("broken")
    close(app)
    app.delayed.audit_log.close()


# --- in the audit --------------------------------------------------------------------------


def test_the_audit_tells_the_new_story_with_who_and_why(app: Celery) -> None:
    assert hand_off(app) == 0  # somebody leads
    result = pay(app, 1, ignore_result=True)
    drain(app)
    result.update(args=(2,), queue="slow", ignore_result=False, reason="moved")
    result.hold()
    result.update(args=(3,))
    drain(app)

    shown = told(app, "show", result.id)["audit"]
    assert (shown["state"], shown["args"], shown["queue"]) == ("HELD", "(3,)", "slow")
    history = told(app, "history", result.id)["events"]
    assert [(one["state"], one["version"]) for one in history] == [
        ("SCHEDULED", 1), ("SCHEDULED", 2), ("HELD", 3), ("HELD", 4),
    ]  # fmt: skip
    assert history[1]["data"]["reason"] == "moved"
    assert {one["data"]["by"] for one in history[1:]} == {caller()}
    # and so the result of one that is cancelled by now is written
    result.cancel()
    assert result.state == "REVOKED"


# --- from a terminal -----------------------------------------------------------------------


def test_the_verb_on_a_real_store(app: Celery) -> None:
    first, second = pay(app, 1).id, pay(app, 1, name="till.any").id

    document = told(
        app, "update", first, "nobody", second, "--args", "[1, 2, 3]", "--expires", "2h",
        exit_code=1,
    )  # fmt: skip

    answers = document["answers"]
    assert [one["outcome"] for one in answers] == ["REFUSED", "NOT_FOUND", "UPDATED"]
    assert "takes from 1 to 2 positional arguments" in answers[0]["meaning"]
    entry = app.delayed.get(second)
    assert entry is not None
    assert entry.expires_ms > app.delayed.now_ms()
    assert body_of(entry.envelope)[0] == [1, 2, 3]
    document = told(app, "update", first, second, "--queue", "slow", "--priority", "9", "--expires",
                    "never", "--reason", "crowded")  # fmt: skip
    assert document["updated"] == 2
    assert {one["queue"] for one in told(app, "list")["tasks"]} == {"slow"}


# --- races ---------------------------------------------------------------------------------


def test_of_concurrent_updates_and_reschedules_none_is_lost(app: Celery) -> None:
    """Each update changes a name of its own; at the end all are there."""
    result = pay(app, name="till.any", headers={"x": 0}, kwargs={"start": 0})
    start = threading.Barrier(6)

    def update(number: int) -> None:
        mine = app.delayed.result(result.id)
        start.wait()
        for step in range(20):
            options: dict[str, Any] = {
                0: {"args": (step,)}, 1: {"kwargs": {"step": step}}, 2: {"priority": step % 10},
                3: {"time_limit": 100 + step}, 4: {"shadow": f"s{step}"},
            }[number]  # fmt: skip
            assert mine.update(**options) is UPDATED

    def reschedule() -> None:
        start.wait()
        for step in range(60):
            assert app.delayed.reschedule(result.id, countdown=HOUR + step)

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(update, number) for number in range(5)] + [pool.submit(reschedule)]
        for one in work:
            one.result(60)

    entry = app.delayed.get(result.id)
    assert entry is not None
    assert entry.version == 1 + 5 * 20 + 60
    args, kwargs, _ = body_of(entry.envelope)
    assert (args, kwargs) == ([19], {"step": 19})
    assert entry.headers["timelimit"] == [119, None]
    assert entry.headers["shadow"] == "s19"
    assert entry.envelope["properties"]["priority"] == 9  # type: ignore[index]
    assert app.delayed.reschedule(result.id, countdown=0)
    assert hand_off(app) == 1


@pytest.fixture
def run(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


@pytest.mark.parametrize("handoff", ["auto", "claim"])
def test_what_races_dispatch_gets_its_new_arguments_or_is_too_late(
    run: Callable[..., Running], handoff: str
) -> None:
    """1 500 tasks come due within 3 s and are handed off by a beat, while four threads update them.

    Judged on the raw queue, which no worker empties.
    """
    project = run(delay_audit="off", delay_database_url=None, delay_handoff=handoff)
    app, note, count = project.app, project.app.tasks["note"], 1_500
    project.procs.beat().wait_for_log(r"leads \(term")
    # spread: on a slow machine too some are changed in time, and some are not
    calls = [(number,) for number in range(count)]
    results = note.apply_delayed_many(calls, countdown=1.5, window=3)
    first = min(one.eta for one in results)
    outcomes: dict[int, UpdateOutcome] = {}

    def update(worker: int) -> None:
        for number in range(worker, count, 4):
            outcomes[number] = results[number].update(args=(count + number,))

    wait_until(lambda: datetime.now(timezone.utc) >= first + timedelta(seconds=0.3), 20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(update, range(4)))

    wait_until(lambda: len(messages(app)) >= count, 40)
    told = Counter(outcomes.values())
    seen = Counter(body_of(one)[0][0] for one in messages(app))
    wanted = [n + count if done else n for n, done in outcomes.items()]
    assert set(seen) == set(wanted), told
    assert seen.total() == count, "handed off twice"
    assert set(told) == {UPDATED, UpdateOutcome.TOO_LATE}, f"there was no race: {told}"


def test_a_worker_runs_what_it_was_last_told_to(run: Callable[..., Running]) -> None:
    project = run().start()
    note = project.app.tasks["note"]
    first, held = (note.apply_delayed((name,), countdown=HOUR) for name in ("first", "held"))
    held.hold()

    assert first.update(args=("changed",), soft_time_limit=30) is UPDATED
    assert held.update(kwargs={"what": "later"}, args=()) is UPDATED
    first.run_now()
    assert first.get(timeout=30) == "changed"
    held.run_now()
    assert held.get(timeout=30) == "later"

    assert project.effects == ["note changed", "note later"]
    project.wait_for_history(
        held.id, [["SCHEDULED", "SCHEDULED", "HELD", "HELD", "DISPATCHED", "STARTED", "SUCCEEDED"]]
    )
    task = project.audit.task(first.id)
    assert task is not None
    assert (task.state, task.args) == ("SUCCEEDED", "('changed',)")
