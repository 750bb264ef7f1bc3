"""Unique keys and idempotency keys as a user calls them: on real Redis, brokers and workers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group, signals
from celery.exceptions import TaskRevokedError
from click.testing import CliRunner

from celery_delay import CancelOutcome
from celery_delay.calling import shapes
from celery_delay.calling.calls import DelayedCall
from celery_delay.cli import delay
from celery_delay.exceptions import UniqueConflict
from celery_delay.store.keys import shard_of
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until
from tests.projects import close, hand_off, make_app, messages, publish
from tests.shards import park

HOUR = 3600


def remind(user: Any, order: Any = None) -> Any:
    return user


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(url: str = redis_url, **conf: Any) -> Celery:
        app = make_app(url, **conf)
        app.remind = app.task(remind, shared=False, name="shop.remind")
        made.append(app)
        return app

    yield make
    for app in made:
        close(app)


@pytest.fixture
def app(new_app: Callable[..., Celery]) -> Celery:
    return new_app()


def stored(app: Celery) -> list[str]:
    return sorted(one.entry_id.task_id for one in app.delayed.list(limit=10_000))


# --- policies ------------------------------------------------------------------------------


def test_by_default_the_second_call_gets_the_first_result(app: Celery) -> None:
    first = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="remind:1")
    for _ in range(3):  # the full way, and the cached one
        again = app.remind.apply_delayed((1,), countdown=2 * HOUR, unique_key="remind:1")

        assert (again.id, again.entry_id, again.eta) == (first.id, first.entry_id, first.eta)
    assert stored(app) == [first.id]
    entry = app.delayed.get(first.id)
    assert entry.labels.unique.key == "remind:1"


def test_replace_leaves_the_new_one_and_ends_the_other(app: Celery) -> None:
    first = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")

    second = app.remind.apply_delayed((2,), countdown=HOUR, unique_key="k", on_conflict="replace")

    assert stored(app) == [second.id]
    with pytest.raises(TaskRevokedError, match="replaced"):
        first.get(timeout=5)
    assert first.cancel() is CancelOutcome.CANCELLED


def test_extend_moves_the_first_one(app: Celery) -> None:
    first = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")

    second = app.remind.apply_delayed(
        (2,), countdown=2 * HOUR, unique_key="k", on_conflict="extend"
    )

    assert second.id == first.id
    assert (second.eta - first.eta).total_seconds() == pytest.approx(HOUR, abs=30)
    assert app.delayed.get(first.id).eta_ms == second._eta_ms


def test_error_names_who_has_the_key(app: Celery) -> None:
    first = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")

    with pytest.raises(UniqueConflict) as caught:
        app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k", on_conflict="error")

    assert (caught.value.key, caught.value.task_id) == ("k", first.id)
    assert stored(app) == [first.id]


def test_a_hundred_threads_with_one_key_store_one_entry(app: Celery) -> None:
    gate, ids, failures = threading.Barrier(100), [], []

    def call() -> None:
        gate.wait()
        try:
            ids.append(app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k").id)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=call) for _ in range(100)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert failures == []
    assert len(ids) == 100
    assert [*set(ids)] == stored(app)


def test_a_hundred_threads_that_replace_leave_one_entry(app: Celery) -> None:
    ids: list[str] = []

    def call(number: int) -> None:
        for _ in range(10):
            options = {"unique_key": "k", "on_conflict": "replace"}
            ids.append(app.remind.apply_delayed((number,), countdown=HOUR, **options).id)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(10)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert len(set(ids)) == 100
    [left] = stored(app)
    ended = [one for one in set(ids) if app.AsyncResult(one).state == "REVOKED"]
    assert len(ended) == 99
    assert left not in ended


# --- keys of tasks -------------------------------------------------------------------------


def test_a_task_makes_its_key_of_its_arguments(app: Celery) -> None:
    keyed = app.task(remind, shared=False, name="shop.keyed", delay_unique_key="r:{0}:{order}")

    first = keyed.apply_delayed((7,), {"order": 3}, countdown=HOUR)
    again = [
        keyed.delay_for(HOUR, 7, order=3),
        keyed.s(7, order=3).apply_delayed(countdown=HOUR),
        keyed.s(order=3).apply_delayed((7,), countdown=HOUR),
        *keyed.apply_delayed_many([DelayedCall((7,), {"order": 3})], countdown=HOUR),
    ]
    other = keyed.delay_for(HOUR, 7, order=4)

    assert {one.id for one in again} == {first.id}
    assert stored(app) == sorted([first.id, other.id])
    assert app.delayed.get_unique("r:7:3").task_id == first.id


def test_a_template_that_does_not_fit_is_a_clear_error(app: Celery) -> None:
    keyed = app.task(remind, shared=False, name="shop.keyed", delay_unique_key="r:{0}:{order}")

    with pytest.raises(ValueError, match=r"delay_unique_key.*shop\.keyed.*KeyError: 'order'"):
        keyed.apply_delayed((7,), countdown=HOUR)


def test_a_tasks_other_words_count_where_the_call_says_nothing(app: Celery) -> None:
    keyed = app.task(
        remind, shared=False, name="shop.keyed", delay_unique_key="{0}",
        delay_on_conflict="error", delay_unique_until="done", delay_unique_for=60,
    )  # fmt: skip
    first = keyed.delay_for(HOUR, "a")

    with pytest.raises(UniqueConflict):
        keyed.delay_for(HOUR, "a")
    assert keyed.apply_delayed(("a",), countdown=HOUR, on_conflict="keep").id == first.id
    assert app.delayed.get(first.id).labels.unique == ("a", "done", 60_000)


@pytest.mark.parametrize("key", ["unique_key", "idempotency_key"])
def test_an_empty_key_is_none_forgotten(app: Celery, key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}='' must have 1 to 255 characters"):
        app.tasks["shop.remind"].apply_delayed((7,), countdown=HOUR, **{key: ""})


# --- other ways to call --------------------------------------------------------------------


def test_by_name_in_a_signature_and_in_a_chain(app: Celery) -> None:
    first = app.delayed.send_task("shop.remind", (1,), countdown=HOUR, unique_key="k")

    by_name = app.delayed.send_task("shop.remind", (1,), countdown=HOUR, unique_key="k")
    signature = app.remind.s(1).apply_delayed(countdown=HOUR, unique_key="k")
    chained = chain(app.remind.si(1), app.remind.si(2)).apply_delayed(
        countdown=HOUR, unique_key="k"
    )

    assert {by_name.id, signature.id, chained.id} == {first.id}
    assert stored(app) == [first.id]


def test_a_chain_whose_key_is_free_goes_as_ever(app: Celery) -> None:
    result = chain(app.remind.si(1), app.remind.si(2)).apply_delayed(countdown=HOUR, unique_key="k")

    assert stored(app) == [result.parent.id]
    assert app.delayed.get_unique("k").task_id == result.parent.id
    assert result.parent.cancel() is CancelOutcome.CANCELLED
    assert app.delayed.get_unique("k") is None


def test_several_tasks_cannot_share_a_key(app: Celery) -> None:
    parts = [app.remind.si(1), app.remind.si(2)]
    for canvas in (group(parts), chord(parts, app.remind.si(3)), chain(group(parts), parts[0])):
        for words in ({"unique_key": "k"}, {"idempotency_key": "k"}):
            with pytest.raises(ValueError, match="several entries cannot share one key"):
                canvas.apply_delayed(countdown=HOUR, **words)
    assert stored(app) == []


def test_the_parts_of_a_group_have_no_keys(app: Celery) -> None:
    keyed = app.task(remind, shared=False, name="shop.keyed", delay_unique_key="{0}")

    result = group(keyed.si(1), keyed.si(1)).apply_delayed(countdown=HOUR)

    assert stored(app) == sorted(one.id for one in result.results)
    assert app.delayed.get_unique("1") is None


def test_in_bulk_each_call_has_its_own_key(app: Celery) -> None:
    calls = [DelayedCall((n,), unique_key=f"k{n % 3}") for n in range(7)]

    for _ in range(2):
        results = app.remind.apply_delayed_many(calls, countdown=HOUR, chunk=4)

        assert len({one.id for one in results}) == 3
        assert [one.id for one in results[:3]] == [one.id for one in results[3:6]]
    assert len(stored(app)) == 3
    with pytest.raises(TypeError, match=r"DelayedCall\(unique_key=…\)"):
        app.remind.apply_delayed_many(calls, countdown=HOUR, unique_key="k")


def test_in_bulk_with_replace_the_last_one_stays(app: Celery) -> None:
    calls = [DelayedCall((n,), unique_key="k") for n in range(3)]
    options = {"countdown": HOUR, "on_conflict": "replace"}

    results = app.remind.apply_delayed_many(calls, chunk=1, **options)
    assert stored(app) == [results[-1].id]

    with pytest.raises(UniqueConflict):
        app.remind.apply_delayed_many(calls, chunk=2, **options)
    assert stored(app) == [results[-1].id]


def test_of_a_message_that_is_not_sent_nobody_is_told(new_app: Callable[..., Celery]) -> None:
    app = new_app(task_send_sent_event=True)
    told: list[tuple[str, str]] = []

    class Events:
        def publish(self, kind: str, fields: Any, *_: Any, **__: Any) -> None:
            told.append((kind, fields["uuid"]))

    def receiver(headers: Any = None, **_: Any) -> None:
        told.append(("published", headers["id"]))

    app.amqp.__dict__["_event_dispatcher"] = Events()
    signals.after_task_publish.connect(receiver)
    try:
        first = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")
        assert told == [("published", first.id), ("task-sent", first.id)]
        for canvas in (app.remind, app.remind.s(), chain(app.remind.si(1), app.remind.s())):
            result = canvas.apply_delayed((1,), countdown=HOUR, unique_key="k")
            assert result.id == first.id
    finally:
        signals.after_task_publish.disconnect(receiver)

    assert len(told) == 2


def test_eager_tasks_run_at_once_and_their_words_are_checked(
    new_app: Callable[..., Celery],
) -> None:
    app = new_app(task_always_eager=True)

    assert app.remind.apply_delayed((3,), countdown=HOUR, unique_key="k").get() == 3
    assert app.remind.apply_delayed((3,), countdown=HOUR, unique_key="k").get() == 3
    with pytest.raises(ValueError, match="unique_for"):
        app.remind.apply_delayed((3,), countdown=HOUR, unique_key="k", unique_until="done")


# --- idempotency ---------------------------------------------------------------------------


def test_a_repeated_call_gets_the_first_result(app: Celery) -> None:
    first = app.remind.apply_delayed((1,), countdown=HOUR, idempotency_key="pay-1")
    first.cancel()

    again = app.remind.apply_delayed((1,), countdown=2 * HOUR, idempotency_key="pay-1")

    assert (again.id, again.eta) == (first.id, first.eta)
    with pytest.raises(TaskRevokedError):
        again.get(timeout=5)
    assert stored(app) == []


def test_both_keys_at_once(app: Celery) -> None:
    first = app.remind.apply_delayed((1,), countdown=0, unique_key="k", idempotency_key="i")
    hand_off(app, first)

    same_call = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k", idempotency_key="i")
    next_call = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k", idempotency_key="j")

    assert same_call.id == first.id
    assert stored(app) == [next_call.id]


def test_a_time_can_be_said(app: Celery) -> None:
    first = app.remind.apply_delayed(
        (1,), countdown=HOUR, idempotency_key="i", idempotency_for=0.05
    )
    time.sleep(0.06)

    again = app.remind.apply_delayed((1,), countdown=HOUR, idempotency_key="i")

    assert stored(app) == sorted([first.id, again.id])


# --- who has a key -------------------------------------------------------------------------


def test_the_holder_can_be_asked_for_and_cancelled_by_the_key(app: Celery) -> None:
    assert app.delayed.get_unique("k") is None
    assert app.delayed.cancel_unique("k") is CancelOutcome.NOT_FOUND
    first = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")

    holder = app.delayed.get_unique("k")
    assert (holder.task_id, holder.free_at) == (first.id, None)
    assert holder.entry.task == "shop.remind"
    assert app.delayed.cancel_unique("k", reason="enough") is CancelOutcome.CANCELLED

    with pytest.raises(TaskRevokedError, match="enough"):
        first.get(timeout=5)
    assert app.delayed.get_unique("k") is None


def test_after_the_hand_off_the_holder_has_a_time_limit(app: Celery) -> None:
    words = {"unique_key": "k", "unique_until": "done", "unique_for": 60}
    first = app.remind.apply_delayed((1,), countdown=0, **words)
    hand_off(app, first)

    holder = app.delayed.get_unique("k")

    assert (holder.entry_id, holder.entry) == (first.entry_id, None)
    assert 0 < (holder.free_at - first.eta).total_seconds() < 90
    assert app.delayed.cancel_unique("k") is CancelOutcome.TOO_LATE
    assert app.remind.apply_delayed((1,), countdown=HOUR, **words).id == first.id


def test_a_parked_task_is_found_by_its_key(app: Celery) -> None:
    found = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")
    park(app, found.id)

    parked = {"unique_key": "k", "state": "QUARANTINED"}
    assert [one.entry_id for one in app.delayed.list(**parked)] == [found.entry_id]
    assert (app.delayed.count(**parked), app.delayed.count(unique_key="k")) == (1, 0)
    assert app.delayed.cancel_many(**parked).outcomes == {"CANCELLED": 1}
    assert app.delayed.get_unique("k") is None


@pytest.mark.parametrize("shards", [1, 5])
def test_lists_counts_and_changes_of_many_by_the_key(
    new_app: Callable[..., Celery], tmp_path: Path, shards: int
) -> None:
    app = new_app(delay_shards=shards, delay_database_url=f"sqlite:///{tmp_path / 'audit.db'}")
    found = app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k")
    app.remind.apply_delayed((1,), countdown=HOUR, unique_key="other")
    app.remind.apply_delayed((1,), countdown=HOUR)

    assert [one.entry_id for one in app.delayed.list(unique_key="k")] == [found.entry_id]
    assert [app.delayed.count(unique_key=one) for one in ("k", "nobody's")] == [1, 0]
    assert app.delayed.count(unique_key="k", before_ms=found._eta_ms - 1) == 0
    assert app.delayed.count(unique_key="k", task="another") == 0
    with pytest.raises(ValueError, match="unique keys"):
        app.delayed.count(unique_key="k", source="audit")
    app.delayed.cancel_many(unique_key="k")

    assert app.delayed.count() == 2
    assert app.delayed.get(found.id) is None


def test_the_command_line_adds_with_keys(app: Celery, tmp_path: Path) -> None:
    def add(*words: str) -> Any:
        command = ["add", *words, "--json"]
        return CliRunner().invoke(delay, command, obj=SimpleNamespace(app=app))

    keyed = app.task(remind, shared=False, name="shop.keyed", delay_unique_key="{0}")
    one = ("shop.remind", "--args", "[1]", "--countdown", "1h", "--unique-key", "k")
    first = json.loads(add(*one).stdout)
    again = json.loads(add(*one).stdout)
    refused = add(*one, "--on-conflict", "error")
    by_template = json.loads(add("shop.keyed", "--args", '["k"]', "--countdown", "1h").stdout)
    moved = add(*one, "--on-conflict", "extend", "--unique-until", "done", "--unique-for", "5m")

    assert (first["stored"], again["stored"]) == (1, 0)
    assert {again["task_id"], by_template["task_id"], json.loads(moved.stdout)["task_id"]} == {
        first["task_id"]
    }
    assert refused.exit_code == 1
    assert first["task_id"] in refused.stderr
    assert keyed.delay_for(HOUR, "k").id == first["task_id"]
    lines = tmp_path / "calls.jsonl"
    call = {"task": "shop.remind", "args": [1], "countdown": 60}
    calls = [{**call, "unique_key": one} for one in ("k", "l", "l")]
    lines.write_text("\n".join(map(json.dumps, calls)))
    ran = add("--from", str(lines))
    assert json.loads(ran.stdout)["stored"] == 1, ran.output
    lines.write_text(json.dumps({**calls[1], "on_conflict": "error"}))
    told = json.loads(add("--from", str(lines)).stdout)
    assert (told["stored"], told["refused"][0]["line"]) == (0, 1)
    lines.write_text(json.dumps({**call, "on_conflict": "error"}))
    assert "on_conflict needs unique_key" in add("--from", str(lines)).stderr


# --- shards --------------------------------------------------------------------------------


def test_a_key_and_its_entry_live_in_one_shard(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_shards=7)
    keys = [f"key-{number}" for number in range(30)]
    chained = chain(app.remind.si(1), app.remind.si(2))

    for _ in range(2):
        for key in keys:
            app.remind.apply_delayed((1,), countdown=HOUR, unique_key=key)
            app.remind.s(1).apply_delayed(countdown=HOUR, unique_key=key)
            app.delayed.send_task("shop.remind", (1,), countdown=HOUR, unique_key=key)
            chained.apply_delayed(countdown=HOUR, unique_key=key)
            chained.apply_delayed(countdown=HOUR, unique_key=key + "c")
        calls = [DelayedCall((1,), unique_key=key) for key in keys]
        app.remind.apply_delayed_many(calls, countdown=HOUR)

    assert len(stored(app)) == 60
    for key in keys:
        task_id = app.delayed.get_unique(key).entry.entry_id.task_id
        assert shard_of(task_id, 7) == shard_of(key, 7)
        assert app.delayed.cancel(task_id) is CancelOutcome.CANCELLED
    for _ in range(2):
        app.remind.apply_delayed((1,), countdown=HOUR, idempotency_key="only")
    assert len(stored(app)) == 31


def test_a_task_id_of_another_shard_is_refused(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_shards=7)
    near, far = (
        next(one for one in map(str, range(99)) if (shard_of(one, 7) == shard_of("k", 7)) is same)
        for same in (True, False)
    )

    with pytest.raises(ValueError, match=r"delay_shards.*leave task_id out"):
        app.remind.apply_delayed((1,), countdown=HOUR, unique_key="k", task_id=far)
    options = {"countdown": HOUR, "unique_key": "k"}
    assert app.remind.apply_delayed((1,), task_id=near, **options).id == near
    assert app.remind.s(1).set(task_id=near).apply_delayed(**options).id == near


# --- the broker is another -----------------------------------------------------------------


def test_on_rabbitmq_the_key_is_kept_until_the_broker_has_it(
    new_app: Callable[..., Celery], rabbitmq_url: str, redis_url: str
) -> None:
    name = f"delay-{uuid4().hex}"
    app = new_app(
        rabbitmq_url, delay_redis_url=redis_url, task_default_queue=name,
        result_backend="cache+memory://",
    )  # fmt: skip
    words = {"unique_key": "k", "unique_until": "started", "unique_for": 60}
    first = app.remind.apply_delayed((1,), countdown=0.1, **words)
    assert app.remind.apply_delayed((1,), countdown=HOUR, **words).id == first.id

    publish(app, first)

    assert app.remind.apply_delayed((1,), countdown=HOUR, **words).id == first.id
    assert app.delayed.get_unique("k").free_at is not None
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get(name, no_ack=True)
        connection.default_channel.queue_delete(name)
        connection.default_channel.exchange_delete(name)
    assert message.headers["celery_delay"]["labels"]["unique"] == ["k", "started", 60_000]


def test_the_message_tells_the_worker_of_the_key(app: Celery) -> None:
    words = {"unique_key": 'ü "k"', "unique_until": "done", "unique_for": 60, "tags": ["t"]}
    for _ in range(2):
        app.remind.apply_delayed((1,), countdown=0, **words)
        with shapes.disabled():
            app.remind.apply_delayed((2,), countdown=0, **{**words, "unique_key": "other"})
    hand_off(app, int(time.time() * 1000) + 1000)

    headers = [one["headers"]["celery_delay"] for one in messages(app)]

    told = [one["labels"] for one in headers]
    assert sorted(one["unique"][0] for one in told) == ["other", 'ü "k"']
    assert [one["unique"][1:] for one in told] == [["done", 60_000]] * 2
    assert app.delayed.get_unique('ü "k"').free_at is not None


# --- real workers --------------------------------------------------------------------------


@pytest.fixture
def new_project(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


def holder(here: Running, key: str) -> str | None:
    found = here.app.delayed.get_unique(key)
    return found.task_id if found is not None else None


@pytest.mark.parametrize("audit", ["async", "off"])
def test_a_worker_gives_the_key_back_when_the_task_is_done(
    new_project: Callable[..., Running], audit: str
) -> None:
    here = new_project(delay_audit=audit)
    here.procs.beat().wait_for_log(r"leads \(term")
    here.procs.worker(concurrency=2)
    tasks = here.app.tasks
    words = {"unique_until": "done", "unique_for": 600}

    slow = tasks["waits"].apply_delayed((3,), countdown=0, unique_key="slow", **words)
    flaky = tasks["flaky"].apply_delayed((2, 0.7), countdown=0, unique_key="flaky", **words)
    wait_until(lambda: "waits 3" in here.effects and "flaky 0" in here.effects, 20)

    # Then a run that is under way keeps it, and so does a retry that waits
    assert holder(here, "slow") == slow.id
    assert holder(here, "flaky") == flaky.id
    assert tasks["waits"].apply_delayed((1,), countdown=0, unique_key="slow", **words).id == slow.id
    wait_until(lambda: "flaky 1" in here.effects, 20)
    assert holder(here, "flaky") == flaky.id
    assert flaky.get(timeout=20) == 2
    assert slow.get(timeout=20) == "waited"
    wait_until(lambda: (holder(here, "slow"), holder(here, "flaky")) == (None, None), 10)


def test_a_retry_through_the_store_keeps_the_key(new_project: Callable[..., Running]) -> None:
    here = new_project(delay_intercept="retry", delay_intercept_min=0.0).start()
    words = {"unique_key": "k", "unique_until": "done", "unique_for": 600}

    result = here.app.tasks["flaky"].apply_delayed((2, 1.0), countdown=0, **words)
    wait_until(lambda: "flaky 0" in here.effects, 20)
    wait_until(lambda: here.app.delayed.get(result.id) is not None, 10)

    waiting = here.app.delayed.get_unique("k")
    assert waiting.entry.entry_id.run == result.entry_id.run + 1
    assert result.get(timeout=20) == 2
    wait_until(lambda: holder(here, "k") is None, 10)


@pytest.mark.parametrize("name", ["fails", "rejects", "dies", "sleeps", "hopeless"])
def test_every_end_gives_the_key_back(new_project: Callable[..., Running], name: str) -> None:
    here = new_project().start()
    args = {"dies": ("killed",), "sleeps": (30,)}.get(name, ())
    words = {"unique_key": "k", "unique_until": "done", "unique_for": 600}

    here.app.tasks[name].apply_delayed(args, countdown=0.5, **words)
    assert holder(here, "k") is not None

    wait_until(lambda: holder(here, "k") is None, 20)
    if name != "hopeless":
        wait_until(lambda: any(one.startswith(name) for one in here.effects), 10)


def test_the_start_gives_the_key_back(new_project: Callable[..., Running]) -> None:
    here = new_project().start(pool="threads")
    words = {"unique_key": "k", "unique_until": "started", "unique_for": 600}

    first = here.app.tasks["waits"].apply_delayed((5,), countdown=0, **words)
    wait_until(lambda: "waits 5" in here.effects, 20)
    second = here.app.tasks["waits"].apply_delayed((0,), countdown=0, **words)

    assert second.id != first.id
    assert second.get(timeout=20) == "waited"


def test_a_task_that_never_starts_gives_the_key_back(new_project: Callable[..., Running]) -> None:
    here = new_project()
    here.start_beat()
    words = {"unique_key": "k", "unique_until": "started", "unique_for": 600}
    # handed off at once, and too old when a worker comes
    here.app.tasks["add"].apply_delayed((1,), countdown=0, expires=2, **words)
    wait_until(lambda: here.app.delayed.get_unique("k").free_at is not None, 10)
    time.sleep(2)

    here.procs.worker()

    wait_until(lambda: holder(here, "k") is None, 20)
    assert here.effects == []


def test_a_machine_that_dies_leaves_no_key_behind(new_project: Callable[..., Running]) -> None:
    # Given a worker that dies with all its processes, and the beat with it
    here = new_project()
    beat = here.procs.beat()
    beat.wait_for_log(r"leads \(term")
    worker = here.procs.worker(pool="threads")
    words = {"unique_key": "k", "unique_until": "done", "unique_for": 4}
    here.app.tasks["waits"].apply_delayed((60,), countdown=0, **words)
    wait_until(lambda: "waits 60" in here.effects, 20)
    for one in (worker, beat):
        one.kill(group=True)

    # Then the key is kept until its time limit, and no longer
    assert here.app.delayed.get_unique("k").free_at is not None
    wait_until(lambda: holder(here, "k") is None, 10)
    assert here.app.tasks["waits"].apply_delayed((0,), countdown=60, **words).id


def test_a_replaced_task_ends_also_when_the_caller_dies(
    new_project: Callable[..., Running],
) -> None:
    here = new_project()
    here.start_beat()
    words = {"unique_key": "k", "on_conflict": "replace"}
    first = here.app.tasks["note"].apply_delayed((1,), countdown=HOUR, **words)

    # the step in the store, and nothing of what its caller does then
    code = f"""if True:
        from running import app
        app.delayed.results.end = lambda ending: None
        app.tasks["note"].apply_delayed((2,), countdown=3600, **{words!r})
    """
    assert here.procs.python("producer", "-c", code).wait() == 0

    with pytest.raises(TaskRevokedError, match="replaced"):
        first.get(timeout=20)
    here.wait_for_history(first.id, [["SCHEDULED", "CANCELLED"]])
    assert first.id not in stored(here.app)


@pytest.mark.parametrize("policy", ["replace", "extend", "keep"])
def test_producers_that_are_killed_leave_a_key_with_one_entry_or_free(
    new_project: Callable[..., Running], policy: str
) -> None:
    # Given producers that fight for one key, and are killed in the middle of it
    here = new_project()
    words = {"unique_key": "k", "on_conflict": policy}
    code = f"""if True:
        from running import app
        while True:
            app.tasks["note"].apply_delayed((1,), countdown=3600, **{words!r})
            print("stored", flush=True)
    """
    for turn in range(3):
        names = [f"producer-{turn}-{number}" for number in range(2)]
        fighters = [here.procs.python(one, "-c", code) for one in names]
        for one in fighters:
            one.wait_for_log("stored")
        for one in fighters:
            one.kill()

        # Then one entry is left, which has the key; and the next call goes as ever
        [left] = here.app.delayed.list()
        assert here.app.delayed.get_unique("k").entry_id == left.entry_id
        after = here.app.tasks["note"].apply_delayed((2,), countdown=3600, **words)
        [left] = here.app.delayed.list()
        assert left.entry_id == after.entry_id
    assert here.app.delayed.cancel_unique("k") is CancelOutcome.CANCELLED
    assert here.app.delayed.get_unique("k") is None
