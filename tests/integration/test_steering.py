"""Tasks that wait, changed by their callers and from a terminal; with a real beat and worker."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery, chord
from click.testing import CliRunner

from celery_delay import HoldOutcome, ReleaseOutcome, RescheduleOutcome, State
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.cli import delay
from celery_delay.domain.callers import caller
from celery_delay.domain.clock import from_ms
from celery_delay.exceptions import AlreadyScheduled, StoreUnavailable
from celery_delay.services.auditor import Auditor
from celery_delay.services.reconciler import Reconciler
from tests.integration.running import Running, projects
from tests.processes import ProcessHarness, wait_until
from tests.projects import hand_off, make_app, messages

HELD, RELEASED = HoldOutcome.HELD, ReleaseOutcome.RELEASED
RESCHEDULED = RescheduleOutcome.RESCHEDULED
HOUR = 3_600


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture
def app(redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    app = make_app(redis_url, delay_database_url=f"sqlite:///{tmp_path}/audit.sqlite3")
    app.task(nothing, name="till.pay", shared=False)
    app.delayed.audit_log.migrate()
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.delayed.audit_log.close()
    app.close()


def pay(app: Celery, *args: Any, **options: Any) -> Any:
    options = options if "eta" in options else {"countdown": HOUR, **options}
    return app.tasks["till.pay"].apply_delayed(args, **options)


def drain(app: Celery) -> None:
    """Bring the journal to SQL, as the leader's auditor does."""
    parts = app.delayed
    auditor = Auditor(
        0, parts.shards[0], parts.audit_log, parts.results, parts.settings, parts.clock
    )
    while auditor.run_once(parts.shards[0].leader()[1]):
        pass


def told(app: Celery, *arguments: str, exit_code: int = 0) -> Any:
    """The JSON document that a verb gives."""
    given = [*arguments, "--json"]
    answer = CliRunner().invoke(delay, given, obj=SimpleNamespace(app=app, no_color=False))
    assert answer.exit_code == exit_code, answer.output
    return json.loads(answer.stdout)


def eta_ms(app: Celery, task_id: str) -> int:
    entry = app.delayed.get(task_id)
    assert entry is not None
    return int(entry.eta_ms)


# --- from Python ---------------------------------------------------------------------------


def test_a_result_reschedules_its_task_and_knows_the_new_eta(app: Celery) -> None:
    result = pay(app)
    instant = datetime(2040, 1, 31, 9, tzinfo=timezone.utc)

    assert result.reschedule(eta=instant, reason="moved") is RESCHEDULED
    assert result.eta == instant == from_ms(eta_ms(app, result.id))
    assert result.reschedule(by=-60) is RESCHEDULED
    assert result.eta == instant - timedelta(minutes=1)
    assert result.reschedule(eta="2040-06-01T12:00", tz="Europe/Berlin") is RESCHEDULED
    assert result.eta == datetime(2040, 6, 1, 10, tzinfo=timezone.utc)
    before = app.delayed.now_ms()
    assert result.reschedule(countdown=timedelta(minutes=5)) is RESCHEDULED
    assert before + 300_000 <= eta_ms(app, result.id) <= app.delayed.shards[0].time_ms() + 300_001

    assert result.delay_state is State.SCHEDULED
    assert hand_off(app, result) == 1
    assert len(messages(app)) == 1


def test_the_same_by_id(app: Celery) -> None:
    task_id, delayed = pay(app).id, app.delayed

    assert delayed.reschedule(task_id, by=timedelta(hours=1)) is RESCHEDULED
    assert delayed.hold(task_id) is HELD
    assert delayed.result(task_id).delay_state is State.HELD
    assert delayed.held() == [task_id]
    assert [one.state for one in delayed.list()] == [State.HELD]
    assert [delayed.count(state=one) for one in (None, "HELD", "SCHEDULED")] == [1, 1, 0]
    assert delayed.list(state="SCHEDULED") == []
    assert delayed.release(task_id, "nobody", reason="go on") == {
        task_id: RELEASED, "nobody": ReleaseOutcome.NOT_FOUND,
    }  # fmt: skip
    assert delayed.result(task_id).delay_state is State.SCHEDULED
    assert delayed.run_now(task_id) is RESCHEDULED
    assert hand_off(app) == 1
    assert delayed.hold("nobody") is HoldOutcome.NOT_FOUND
    assert delayed.run_now("nobody") is RescheduleOutcome.NOT_FOUND


def test_run_now_lets_a_held_task_go(app: Celery) -> None:
    result = pay(app)
    assert result.hold() is HELD
    assert hand_off(app, until=eta_ms(app, result.id)) == 0

    assert result.run_now() is RESCHEDULED

    assert hand_off(app) == 1


def test_after_the_hand_off_every_change_is_too_late(app: Celery) -> None:
    result = pay(app, countdown=0)
    assert hand_off(app) == 1

    assert result.reschedule(by=1) is RescheduleOutcome.TOO_LATE
    assert result.run_now() is RescheduleOutcome.TOO_LATE
    assert result.hold() is HoldOutcome.TOO_LATE
    assert result.release() is ReleaseOutcome.NOT_FOUND
    # and so it is long after, when Redis has forgotten
    keys = app.delayed.shard_keys[0]
    with redis.Redis.from_url(app.conf.broker_url) as raw:
        raw.delete(keys.tombstones_even, keys.tombstones_odd)
    assert result.hold() is HoldOutcome.TOO_LATE
    # by the id alone only the result backend can tell
    assert app.delayed.hold(result.id) is HoldOutcome.NOT_FOUND
    app.backend.store_result(result.id, 7, "SUCCESS")
    assert app.delayed.hold(result.id) is HoldOutcome.TOO_LATE


def test_a_cancelled_task_is_not_found(app: Celery) -> None:
    result = pay(app)
    assert result.hold() is HELD
    assert result.cancel()

    assert result.reschedule(by=1) is RescheduleOutcome.NOT_FOUND
    assert result.release() is ReleaseOutcome.NOT_FOUND
    assert result.state == "REVOKED"


def test_revoke_reaches_a_held_task_and_its_id_is_taken(app: Celery) -> None:
    result = pay(app, task_id="mine")
    result.hold()
    with pytest.raises(AlreadyScheduled):
        pay(app, task_id="mine")

    result.revoke()

    assert app.delayed.get("mine") is None
    assert app.delayed.held() == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "say when"),
        ({"countdown": 1, "eta": "2040-01-01"}, "both given"),
        ({"by": 1, "countdown": 1}, "give it alone"),
        ({"by": 1, "tz": "UTC"}, "give it alone"),
        ({"by": "soon"}, "by must be a number"),
        ({"eta": "soon"}, "eta='soon'"),
    ],
)
def test_wrong_arguments_change_nothing(app: Celery, given: dict[str, Any], error: str) -> None:
    result = pay(app)
    before = app.delayed.get(result.id)

    with pytest.raises((TypeError, ValueError), match=error):
        result.reschedule(**given)

    assert app.delayed.get(result.id) == before


@pytest.mark.parametrize(
    "ask",
    [
        lambda delayed, one: delayed.get(one),
        lambda delayed, one: delayed.cancel(one),
        lambda delayed, one: delayed.hold(one),
        lambda delayed, one: delayed.update(one, args=()),
        lambda delayed, one: delayed.release(one),
    ],
    ids=["get", "cancel", "hold", "update", "release"],
)
def test_what_is_no_id_is_said_to_be_none(app: Celery, ask: Any) -> None:
    for one in (pay(app), None):
        with pytest.raises(TypeError, match=r"task_id must be a text, not .*give its id"):
            ask(app.delayed, one)


def test_an_eta_after_the_expiry_is_warned_of(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    result = pay(app, countdown=60, expires=120)

    with caplog.at_level(logging.WARNING, "celery_delay.message.expiry"):
        caplog.clear()
        assert result.reschedule(countdown=100) is RESCHEDULED
        assert result.hold() is HELD
        assert not caplog.records
        assert result.reschedule(countdown=180) is RESCHEDULED

    [record] = caplog.records
    assert (vars(record)["event"], vars(record)["task_id"]) == ("expires_before_eta", result.id)


def test_the_counter_of_a_chord_lives_until_its_last_part(app: Celery) -> None:
    part = app.tasks["till.pay"]
    result = chord([part.s(1), part.s(2) | part.s(3)], part.s()).apply_delayed(countdown=60)
    client = app.backend.client
    [counter] = [one for one in client.scan_iter() if one.endswith(b".s")]
    assert client.ttl(counter) <= 86_400

    first, second = result.parent
    assert first.reschedule(by=10 * 86_400) is RESCHEDULED
    assert 11 * 86_400 <= client.ttl(counter) <= 11 * 86_400 + 62
    # the second one's chord is in the rest of its chain
    assert app.delayed.reschedule(second.parent.id, by=20 * 86_400) is RESCHEDULED
    assert client.ttl(counter) >= 21 * 86_400


def test_without_redis_nothing_is_said_to_have_changed(new_redis: Callable[..., Any]) -> None:
    server = new_redis()
    app = make_app(server.tcp_url, delay_audit="off")
    app.task(nothing, name="till.pay", shared=False)
    result = pay(app)
    server.stop()

    for change in (result.hold, result.run_now, result.release):
        with pytest.raises(StoreUnavailable):
            change()
    app.close()


def test_an_eager_task_has_run_already(app: Celery) -> None:
    app.conf.task_always_eager = True
    result = pay(app)

    assert not result.reschedule(by=1)
    assert not result.hold()
    assert not result.run_now()
    assert not result.release()


# --- in the audit --------------------------------------------------------------------------


def test_the_audit_tells_each_change_with_who_and_why_and_keeps_the_story(app: Celery) -> None:
    assert hand_off(app) == 0  # somebody leads
    result = pay(app, 42)
    result.reschedule(by=60, reason="moved")
    result.hold(reason="closed")
    drain(app)

    [row] = told(app, "list", "--state", "HELD", "--task", "till.pay")["tasks"]
    assert (row["state"], row["task_id"]) == ("HELD", result.id)
    shown = told(app, "show", result.id)
    assert (shown["stored"]["state"], shown["audit"]["state"]) == ("HELD", "HELD")
    assert (shown["audit"]["error"], shown["audit"]["version"]) == ("closed", 3)
    assert (shown["audit"]["args"], shown["audit"]["task"]) == ("(42,)", "till.pay")
    result.release(reason="open")
    drain(app)

    shown = told(app, "show", result.id)["audit"]
    assert (shown["state"], shown["error"], shown["args"]) == ("SCHEDULED", None, "(42,)")
    assert shown["eta_ms"] == eta_ms(app, result.id)
    history = told(app, "history", result.id)["events"]
    assert [(one["state"], one["version"]) for one in history] == [
        ("SCHEDULED", 1), ("SCHEDULED", 2), ("HELD", 3), ("SCHEDULED", 4),
    ]  # fmt: skip
    assert [one["data"].get("reason") for one in history] == [None, "moved", "closed", "open"]
    assert {one["data"]["by"] for one in history[1:]} == {caller()}
    assert history[1]["eta_ms"] == history[0]["eta_ms"] + 60_000


def test_what_was_changed_and_is_lost_with_redis_is_lost_in_the_audit(app: Celery) -> None:
    assert hand_off(app) == 0
    held, later = pay(app), pay(app)
    held.hold()
    later.reschedule(by=60)
    drain(app)
    with redis.Redis.from_url(app.conf.broker_url) as raw:
        raw.flushall()
    assert hand_off(app) == 0
    kept = pay(app)
    kept.hold()
    drain(app)

    log = app.delayed.audit_log
    reconciler = Reconciler(app.delayed.shards[0], SQLWaitingEntries(log.database))
    while reconciler.run_once(1):
        drain(app)
    drain(app)

    states = [told(app, "show", one.id)["audit"]["state"] for one in (held, later, kept)]
    assert states == ["LOST", "LOST", "HELD"]


# --- from a terminal -----------------------------------------------------------------------


def test_the_verbs_on_a_real_store(app: Celery) -> None:
    first, second = pay(app).id, pay(app).id
    before = eta_ms(app, first)

    document = told(app, "reschedule", first, "nobody", "--by", "-10m", exit_code=1)
    assert [one["outcome"] for one in document["answers"]] == ["RESCHEDULED", "NOT_FOUND"]
    assert eta_ms(app, first) == before - 600_000
    assert told(app, "hold", first, second, "--reason", "closed")["held"] == 2
    assert {one["state"] for one in told(app, "list")["tasks"]} == {"HELD"}
    assert told(app, "list", "--state", "HELD")["total"] == 2
    assert told(app, "list", "--state", "SCHEDULED")["tasks"] == []
    assert told(app, "run-now", first)["rescheduled"] == 1
    status = told(app, "status", exit_code=1)
    assert (status["shards"][0]["held"], status["shards"][0]["pending"]) == (1, 1)
    assert "held" in [one["code"] for one in status["findings"]]
    assert told(app, "release", "--all", "--yes")["released"] == 1
    assert told(app, "list", "--state", "HELD")["tasks"] == []
    assert told(app, "release", second, exit_code=1)["answers"][0]["outcome"] == "NOT_FOUND"


def test_the_verbs_know_by_the_audit_what_was_handed_off(app: Celery) -> None:
    assert hand_off(app) == 0
    held = pay(app)
    held.hold()
    drain(app)
    held.run_now()
    assert hand_off(app) == 1
    keys = app.delayed.shard_keys[0]
    with redis.Redis.from_url(app.conf.broker_url) as raw:
        raw.delete(keys.tombstones_even, keys.tombstones_odd)

    for arguments in (("hold", held.id), ("reschedule", held.id, "--by", "1")):
        assert told(app, *arguments, exit_code=1)["answers"][0]["outcome"] == "TOO_LATE"


# --- with a beat and a worker --------------------------------------------------------------


@pytest.fixture
def make(
    harness: Callable[..., ProcessHarness], redis_url: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, redis_url, tmp_path)


def test_it_runs_when_it_was_last_told_to(make: Callable[..., Running]) -> None:
    project = make().start()
    note = project.app.tasks["note"]
    sooner, later, held, kept = (
        note.apply_delayed((name,), countdown=delay)
        for name, delay in (("sooner", HOUR), ("later", 1), ("held", 0.8), ("kept", 0.8))
    )

    # When they are changed, one of a thousand times at once
    assert later.reschedule(countdown=HOUR) is RESCHEDULED
    assert (held.hold(), kept.hold()) == (HELD, HELD)
    start = threading.Barrier(8)

    def change(number: int) -> list[tuple[int, bool]]:
        start.wait()
        mine = project.app.delayed.result(sooner.id)
        answers = []
        for step in range(125):
            wanted = time.time() + 3_000 + step * 8 + number
            eta = datetime.fromtimestamp(wanted, timezone.utc)
            answers.append((round(wanted * 1000), bool(mine.reschedule(eta=eta))))
        return answers

    with ThreadPoolExecutor(8) as pool:
        answers = [one for some in pool.map(change, range(8)) for one in some]

    # Then all were accepted, and the last accepted one stands
    assert len(answers) == 1_000
    assert all(done for _, done in answers)
    entry = project.app.delayed.get(sooner.id)
    assert entry is not None
    assert entry.version == 1_001
    assert any(abs(entry.eta_ms - wanted) <= 1 for wanted, _ in answers)

    # When the last word is a second from now, and the beat is another one by then
    project.procs.processes["beat"].stop()
    assert sooner.reschedule(countdown=1) is RESCHEDULED
    before = sooner.eta
    project.procs.beat("next")
    wait_until(lambda: project.effects, 20, "the task that was brought forward")
    assert datetime.now(timezone.utc) >= before
    # Then what is held waits, over the restart and long after it was due
    assert project.effects == ["note sooner"]
    assert held.delay_state is kept.delay_state is State.HELD
    assert held.release() is RELEASED
    wait_until(lambda: len(project.effects) > 1, 20, "the task that was released")
    assert later.run_now() is RESCHEDULED
    wait_until(lambda: len(project.effects) > 2, 20, "the task that was run at once")
    assert project.effects == ["note sooner", "note held", "note later"]
    # and SQL tells it
    project.wait_for_history(
        held.id, [["SCHEDULED", "SCHEDULED", "HELD", "DISPATCHED", "STARTED", "SUCCEEDED"]]
    )
    task = project.audit.task(sooner.id)
    assert task is not None
    assert (task.state, task.args) == ("SUCCEEDED", "('sooner',)")


@pytest.mark.parametrize("handoff", ["auto", "claim"])
def test_what_was_held_or_cancelled_in_a_race_against_dispatch_never_ran(
    make: Callable[..., Running], handoff: str
) -> None:
    """2 000 tasks come due while they are held, cancelled and put off."""
    project = make(delay_audit="off", delay_database_url=None, delay_handoff=handoff)
    app, note = project.app, project.app.tasks["note"]
    beat = project.procs.beat()
    project.procs.worker(pool="threads", concurrency=2)
    beat.wait_for_log(r"leads \(term")
    calls_of_note = [(number,) for number in range(2_000)]
    # spread: on a slow machine too some are changed in time, and some are not
    results = note.apply_delayed_many(calls_of_note, countdown=2, window=4)
    first = min(one.eta for one in results)
    calls = [lambda one: one.hold(), lambda one: one.cancel(), lambda one: one.reschedule(by=HOUR)]
    outcomes: dict[int, Any] = {}

    def change(worker: int) -> None:
        for number in range(worker, 2_000, 4):
            outcomes[number] = calls[number % 3](results[number])

    wait_until(lambda: datetime.now(timezone.utc) >= first + timedelta(seconds=0.4), 20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))

    told = Counter(outcome.value for outcome in outcomes.values())
    stopped = {number for number, outcome in outcomes.items() if outcome}
    rest = 2_000 - len(stopped)
    wait_until(lambda: len(project.effects) >= rest, 40, f"{rest} tasks; {told}")
    wait_until(lambda: app.delayed.count(state="SCHEDULED", before_ms=app.delayed.now_ms()) == 0)
    ran = Counter(int(line.split()[1]) for line in project.effects)
    assert not stopped & ran.keys(), "it was said not to run, and ran"
    assert ran.keys() == set(range(2_000)) - stopped
    if handoff == "auto":
        assert ran.total() == rest, "handed off twice"
    assert app.delayed.count(state="HELD") == told["HELD"]
    assert app.delayed.count(state="SCHEDULED") == told["RESCHEDULED"]
    # some came in time, and some did not: else there was no race
    assert told["TOO_LATE"], told
    assert min(told[one] for one in ("HELD", "CANCELLED", "RESCHEDULED")), told
