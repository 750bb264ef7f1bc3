"""``app.delayed.schedules`` and ``celery delay schedule`` on a real Redis with real beats."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import SchedulingError
from celery.schedules import crontab
from click.testing import CliRunner

from celery_delay.cli import delay
from celery_delay.domain.callers import caller
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import ScheduleExists, StaticSchedule, UnknownSchedule
from tests.integration.beats import Beats, beats
from tests.processes import wait_until
from tests.projects import hand_off, make_app, messages

__all__ = ["beats"]

UTC = timezone.utc


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "other*", "lazy")


@pytest.fixture
def app(redis_server: EmbeddedRedis) -> Iterator[Celery]:
    """A project that has no ``beat_schedule`` of its own."""
    app = make_app(redis_server.tcp_url, delay_audit="off")
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.close()


def run(app: Celery, *arguments: str) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    return CliRunner().invoke(delay, ["schedule", *arguments], obj=context)


def told(app: Celery, *arguments: str, exit_code: int = 0) -> Any:
    """The JSON document that a verb gives."""
    answer = run(app, *arguments, "--json")
    assert answer.exit_code == exit_code, answer.output
    return json.loads(answer.stdout)


# --- what there is -------------------------------------------------------------------------


def test_what_the_beats_have_is_seen_by_a_process_that_has_it_not(
    beats: Beats, app: Celery
) -> None:
    beats.start("one", "interval", "crontab", "solar", "own", "lazy", "queue")
    beats.wait_for_schedules(6)
    wait_until(lambda: len(beats.nominals("interval")) >= 2, what="two occurrences")

    found = {one.name: one for one in app.delayed.schedules.list()}

    assert list(found) == sorted(found)
    assert found.keys() >= {"interval", "crontab", "solar", "own", "lazy", "queue"}
    assert {one.source for one in found.values()} == {"static"}
    interval = app.delayed.schedules.get("interval")
    assert (interval.task, interval.schedule) == ("periodic.note", "every 1 s")
    assert (interval.args, interval.kwargs, interval.options) == (["interval"], {}, {})
    assert interval.enabled
    assert interval.version == 0
    assert interval.last_fired is not None
    assert interval.next is not None
    assert interval.next - interval.last_fired == timedelta(seconds=1)
    assert interval.next.tzinfo is UTC
    assert found["crontab"].schedule == "* * * * * (UTC)"
    assert found["solar"].schedule == "sunset at 52, 13"
    assert (found["own"].schedule, found["own"].times) == ("Own", None)
    assert found["queue"].options == {"queue": "other", "priority": 3}
    assert (found["lazy"].args, found["lazy"].kwargs) == (None, None)  # they are code


def test_without_any_beat_a_process_tells_of_its_own(app: Celery) -> None:
    app.conf.beat_schedule = {"tick": {"task": "x", "schedule": 30.0, "args": (1,)}}
    [found] = app.delayed.schedules.list()
    assert (found.name, found.schedule, found.args, found.next) == ("tick", "every 30 s", [1], None)
    assert len(app.delayed.schedules.preview("tick", 3)) == 3


def test_a_name_that_is_none_is_said(app: Celery) -> None:
    schedules = app.delayed.schedules
    for question in (
        schedules.get, schedules.preview, schedules.pause, schedules.resume, schedules.trigger,
    ):  # fmt: skip
        with pytest.raises(UnknownSchedule, match="there is no schedule 'nobody'"):
            question("nobody")
        with pytest.raises(ValueError, match="name=''"):
            question("")


def test_a_preview_follows_the_clocks_of_the_zone(app: Celery) -> None:
    # Given a crontab whose time comes twice in one night, and one whose time does not come
    app.conf.timezone = "Europe/Berlin"
    app.conf.beat_schedule = {
        "hourly": {"task": "x", "schedule": crontab(minute=30)},
        "nightly": {"task": "x", "schedule": crontab(minute=30, hour=2)},
    }
    found = app.delayed.schedules.preview("nightly", 400)
    assert {str(one.tzinfo) for one in found} == {"Europe/Berlin"}
    assert len({one.date() for one in found}) == 400
    offsets = {one.utcoffset() for one in found}
    assert offsets == {timedelta(hours=1), timedelta(hours=2)}
    # the day on which there is no 02:30 it fires when there is a time again
    assert {(one.hour, one.minute) for one in found} == {(2, 30), (3, 0)}
    hours = app.delayed.schedules.preview("hourly", 1_000)
    assert {two - one for one, two in pairwise(one.astimezone(UTC) for one in hours)} == {
        timedelta(hours=1)
    }
    for wrong in (0, 1_001):
        with pytest.raises(ValueError, match="n="):
            app.delayed.schedules.preview("nightly", wrong)


def test_a_preview_is_what_will_be_fired(beats: Beats, app: Celery) -> None:
    beats.start("one", "slow", "own")
    beats.wait_for_schedules(2)
    preview = app.delayed.schedules.preview("slow", 2)
    wait_until(lambda: len(beats.nominals("slow")) >= 2, 20, "two occurrences")
    assert [round(one.timestamp() * 1000) for one in preview] == beats.nominals("slow")[:2]
    with pytest.raises(ValueError, match="known to its own code only"):
        app.delayed.schedules.preview("own")


# --- pause, resume -------------------------------------------------------------------------


def test_a_paused_schedule_fires_nothing_over_restarts_and_goes_on_in_its_phase(
    beats: Beats, app: Celery
) -> None:
    # Given two beats with two schedules
    for name in ("one", "two"):
        beats.start(name, "often", "interval")
    wait_until(lambda: len(beats.nominals("often")) >= 3, 20, "occurrences")
    # When one of the schedules is paused, and the leader is killed
    assert app.delayed.schedules.pause("often", reason="too often") is True
    assert app.delayed.schedules.pause("often") is False
    before = beats.nominals("often")
    leader = wait_until(beats.leader, what="a leader")
    leader.kill()
    count = len(beats.nominals("interval"))
    wait_until(lambda: len(beats.nominals("interval")) >= count + 2, 20, "the other goes on")
    # Then it has fired nothing more
    assert beats.nominals("often") == before
    paused = app.delayed.schedules.get("often")
    assert not paused.enabled
    assert paused.reason == "too often"
    assert paused.paused is not None
    # And when it goes on after a restart of all, nothing is made up for, and its phase is the same
    for beat in beats.processes.processes.values():
        if beat.is_running:
            beat.stop()
    resumed_ms = beats.now()
    assert app.delayed.schedules.resume("often") is True
    assert app.delayed.schedules.resume("often") is False
    beats.lead("three", "often", "interval")
    wait_until(lambda: len(beats.nominals("often")) >= len(before) + 3, 20, "it goes on")
    after = beats.nominals("often")[len(before) :]
    assert after[0] >= resumed_ms
    assert {(one - before[0]) % 250 for one in after} == {0}


def test_a_pause_during_the_leaders_freeze_holds(beats: Beats, app: Celery) -> None:
    # Given a leader that is frozen, as between looking and firing
    for name in ("one", "two"):
        beats.start(name, "often")
    wait_until(lambda: len(beats.nominals("often")) >= 2, 20, "occurrences")
    leader = wait_until(beats.leader, what="a leader")
    leader.pause()
    app.delayed.schedules.pause("often")
    before = beats.fired()
    leader.resume()
    time.sleep(2)
    assert beats.fired() == before


# --- trigger -------------------------------------------------------------------------------


def test_a_trigger_runs_once_what_the_beats_have(beats: Beats, app: Celery, tmp_path: Path) -> None:
    beats.start("one", "hourly", "queue")
    beats.wait_for_schedules(2)
    app.delayed.schedules.pause("queue")
    following = beats.next("hourly")

    result = app.delayed.schedules.trigger("hourly")
    other = app.delayed.schedules.trigger("queue")

    [message] = wait_until(lambda: messages(app), what="a message")
    assert message["headers"]["id"] == result.id
    assert message["headers"]["task"] == "periodic.note"
    assert message["headers"]["celery_beat_task"] is True
    assert beats.next("hourly") == following
    assert app.delayed.schedules.get("hourly").last_fired is None
    # with its options, also while it is paused
    queued = wait_until(lambda: beats.fired("other\x06\x163"), what="a message")
    assert [one.task_id for one in queued] == [other.id]
    # and each is a task of its own
    assert app.delayed.schedules.trigger("hourly").id != result.id


def test_a_trigger_takes_the_call_of_this_process_code(app: Celery) -> None:
    app.conf.beat_schedule = {
        "tick": {"task": "x", "schedule": 30.0, "args": (1,), "options": {"queue": "other"}}
    }
    result = app.delayed.schedules.trigger("tick")
    assert hand_off(app) == 1
    [message] = messages(app, "other")
    assert message["headers"]["id"] == result.id
    assert app.conf.beat_schedule["tick"]["options"] == {"queue": "other"}


def test_what_is_code_can_be_triggered_by_code_only(beats: Beats, app: Celery) -> None:
    beats.start("one", "lazy")
    beats.wait_for_schedules(1)
    with pytest.raises(ValueError, match="the arguments of 'lazy' are no JSON"):
        app.delayed.schedules.trigger("lazy")


def test_a_message_that_cannot_be_made_is_said(app: Celery) -> None:
    app.conf.beat_schedule = {"tick": {"task": "x", "schedule": 30.0, "args": (object(),)}}
    with pytest.raises(SchedulingError):
        app.delayed.schedules.trigger("tick")
    answer = run(app, "trigger", "tick")
    assert answer.exit_code == 1
    assert "tick" in answer.stderr


# --- added at run time -----------------------------------------------------------------------


def test_what_is_added_fires_at_once_and_over_kills_each_occurrence_once(
    beats: Beats, app: Celery, tmp_path: Path
) -> None:
    # Given two beats that lead, a worker, and a process that adds a schedule
    beats.processes.env["ENTRIES"] = "hourly"
    beats.lead("one", "hourly")
    beats.start("two", "hourly")
    beats.processes.worker(pool="solo", concurrency=1)
    added_ms = beats.now()
    added = app.delayed.schedules.add("extra", "periodic.note", 0.5, ("extra",))
    assert (added.source, added.version, added.schedule) == ("dynamic", 1, "every 0.5 s")
    book = tmp_path / "book"
    wait_until(lambda: book.exists() and book.read_text(), 20, "the first effect")
    assert added.next is not None
    assert added_ms + 500 <= added.next.timestamp() * 1000 < beats.now()
    # at last within a tick or two; measured in minutes where the machine is busy
    assert beats.now() - added.next.timestamp() * 1000 < 10_000
    # When the leader is killed, started again, and the other one killed
    leader = wait_until(beats.leader, what="a leader")
    leader.kill()
    count = len(book.read_text().split())
    wait_until(lambda: len(book.read_text().split()) >= count + 4, 20, "the other goes on")
    leader.start()
    leader.wait_for_log("beat: Starting")
    wait_until(beats.leader, what="a leader").kill()
    count = len(book.read_text().split())
    wait_until(lambda: len(book.read_text().split()) >= count + 4, 30, "the first goes on")
    # Then each occurrence ran once, in its phase
    app.delayed.schedules.pause("extra")
    ids = book.read_text().split()
    assert len(ids) == len(set(ids))
    fired = app.delayed.schedules.get("extra").last_fired
    assert fired is not None
    assert (fired - added.next) % timedelta(milliseconds=500) == timedelta(0)


def test_leaders_that_freeze_and_come_back_double_nothing(beats: Beats, app: Celery) -> None:
    # Given three beats, and leaders that are frozen in turn until another one leads
    for name in ("one", "two", "three"):
        beats.start(name, "hourly")
    app.delayed.schedules.add("extra", "periodic.note", 0.25, misfire="fire_all")
    wait_until(beats.fired, 20, "occurrences")
    for _ in range(3):
        leader = wait_until(beats.leader, 20, "a leader")
        leader.pause()
        wait_until(lambda: beats.leader() not in (None, leader), 30, "another leader")  # noqa: B023
        count = len(beats.fired())
        wait_until(lambda: len(beats.fired()) >= count + 2, 20, "it fires")  # noqa: B023
        leader.resume()
    count = len(beats.fired())
    wait_until(lambda: len(beats.fired()) >= count + 4, 20, "occurrences")
    # Then each occurrence is there once, and with this misfire none is left out
    fired = beats.fired()
    assert len({one.task_id for one in fired}) == len(fired)
    assert steps(sorted(one.nominal_ms for one in fired)) == {250}


def test_each_occurrence_of_what_was_added_is_a_message_as_of_code(
    beats: Beats, app: Celery
) -> None:
    beats.lead("one", "hourly")
    app.delayed.schedules.add(
        "extra", "elsewhere.task", 0.25, [1], {"x": {"y": 2}}, queue="other", priority=3,
        expires=60, headers={"mine": 1},
    )  # fmt: skip
    found = wait_until(
        lambda: [one for one in beats.fired("other\x06\x163") if one.name == "extra"],
        20,
        "messages",
    )
    headers = found[0].message["headers"]
    assert headers["task"] == "elsewhere.task"
    assert headers["celery_beat_task"] is True
    assert headers["mine"] == 1
    assert headers["expires"] is not None
    assert found[0].arguments == [[1], {"x": {"y": 2}}]
    wait_until(lambda: len(beats.fired("other\x06\x163")) >= 4, 20, "messages")
    assert steps([one.nominal_ms for one in beats.fired("other\x06\x163")]) == {250}


def steps(instants: list[int]) -> set[int]:
    return {later - earlier for earlier, later in pairwise(instants)}


def test_changes_count_from_their_answer_on(beats: Beats, app: Celery) -> None:
    schedules = app.delayed.schedules
    for name in ("one", "two"):
        beats.start(name, "hourly")
    schedules.add("extra", "periodic.note", 0.25, ("old",))
    wait_until(lambda: len(beats.nominals("extra")) >= 2, 20, "occurrences")
    # Other arguments: none of the old ones is added any more, and the phase stays
    changed = schedules.update("extra", args=["new"])
    already = len(beats.fired())
    assert (changed.version, changed.args, changed.schedule) == (2, ["new"], "every 0.25 s")
    wait_until(lambda: len(beats.fired()) >= already + 4, 20, "occurrences")
    # (what was fired before the answer may have been on its way)
    assert all(one.arguments[0] == ["new"] for one in beats.fired()[already + 1 :])
    assert steps(sorted(one.nominal_ms for one in beats.fired())) == {250}
    # Other times: anew from then
    schedules.update("extra", schedule=3600)
    time.sleep(1.5)
    count = len(beats.fired())
    time.sleep(1.5)
    assert len(beats.fired()) == count
    # Removed: gone
    schedules.upsert("extra", "periodic.note", 0.25)
    wait_until(lambda: len(beats.fired()) > count, 20, "it goes on")
    schedules.remove("extra")
    time.sleep(0.5)  # what was added is on its way
    count = len(beats.fired())
    time.sleep(1.5)
    assert len(beats.fired()) == count
    with pytest.raises(UnknownSchedule):
        schedules.get("extra")


def test_a_single_occurrence_comes_once(beats: Beats, app: Celery) -> None:
    beats.lead("one", "hourly")
    at = datetime.fromtimestamp(beats.now() / 1000 + 2, UTC)
    added = app.delayed.schedules.add("launch", "periodic.note", at)
    wait_until(lambda: beats.nominals("launch"), 20, "it")
    time.sleep(1.5)
    assert len(beats.nominals("launch")) == 1
    found = app.delayed.schedules.get("launch")
    assert (found.last_fired, found.next) == (added.next, None)
    assert app.delayed.schedules.preview("launch") == []


def test_what_cannot_be_read_stops_no_other(beats: Beats, app: Celery) -> None:
    beat = beats.lead("one", "interval")
    app.delayed.schedules.add("extra", "periodic.note", 0.25)
    beats.client.hset(beats.keys.definitions, "bad", "1\n2\n{}\n{}")
    app.delayed.schedules.add("more", "periodic.note", 0.25)
    wait_until(lambda: beats.nominals("more") and beats.nominals("extra"), 20, "occurrences")
    count = len(beats.nominals("interval"))
    wait_until(lambda: len(beats.nominals("interval")) > count, 20, "occurrences")
    assert beat.output().count("the schedule 'bad' is left out") == 1
    # it is listed, shown as what it is, and can be removed
    found = app.delayed.schedules.get("bad")
    assert (found.task, found.source) == ("?", "dynamic")
    app.delayed.schedules.remove("bad")
    assert "bad" not in [one.name for one in app.delayed.schedules.list()]


def test_what_was_missed_is_fired_as_its_misfire_says(beats: Beats, app: Celery) -> None:
    # Given three schedules, and no beat while two occurrences and more come
    schedules = app.delayed.schedules
    for name, words in {
        "once": {}, "all": {"misfire": "fire_all"}, "none": {"misfire": "skip", "grace": 0.01},
    }.items():  # fmt: skip
        schedules.add(name, "periodic.note", 1.0, **words)
    time.sleep(3.6)
    started_ms = beats.now()
    beats.start("one", "hourly")
    wait_until(lambda: beats.nominals("all") and beats.nominals("once"), 20, "occurrences")
    wait_until(lambda: max(beats.nominals("all")) > started_ms, 20, "occurrences")
    # Then all of one were made up for, the latest of the second, none of the third
    assert steps(beats.nominals("all")) == {1_000}
    assert beats.nominals("all")[0] < started_ms - 2_000
    assert beats.nominals("once")[0] > started_ms - 1_000
    assert [one for one in beats.nominals("none") if one < started_ms] == []


def test_what_code_owns_is_not_changed_here(beats: Beats, app: Celery) -> None:
    schedules = app.delayed.schedules
    schedules.add("interval", "periodic.note", 3600)
    beat = beats.lead("one", "interval")
    beat.wait_for_log("the schedule 'interval' of beat_schedule hides one")
    wait_until(lambda: beats.nominals("interval"), 20, "that of the code")
    assert schedules.get("interval").source == "static"
    for change in (
        lambda: schedules.add("interval", "x", 1), lambda: schedules.upsert("interval", "x", 1),
        lambda: schedules.update("interval", task="x"),
    ):  # fmt: skip
        with pytest.raises(StaticSchedule, match="beat_schedule"):
            change()
    # the hidden one can be removed, the other one cannot
    schedules.remove("interval")
    with pytest.raises(StaticSchedule, match="beat_schedule"):
        schedules.remove("interval")


def test_code_that_no_beat_has_told_is_known_to_its_process(app: Celery) -> None:
    app.conf.beat_schedule = {"tick": {"task": "x", "schedule": 30.0}}
    with pytest.raises(StaticSchedule):
        app.delayed.schedules.add("tick", "x", 1)
    with pytest.raises(StaticSchedule):
        app.delayed.schedules.remove("tick")


def test_what_is_wrong_is_refused_and_nothing_is_stored(app: Celery) -> None:
    schedules = app.delayed.schedules
    with pytest.raises(ValueError, match="is past"):
        schedules.add("x", "x", datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(TypeError, match="no option 'que'"):
        schedules.add("x", "x", 1, que="y")
    assert schedules.list() == []
    schedules.add("x", "x", 1, queue="y", priority=1)
    with pytest.raises(ScheduleExists, match="'x' already"):
        schedules.add("x", "x", 1)
    # an option goes with None, the others stay
    assert schedules.update("x", queue=None).options == {"priority": 1}
    assert schedules.upsert("x", "x", 1, priority=1).version == 2
    assert schedules.update("x", schedule="0 7 * * *", tz="Europe/Berlin").times == {
        "kind": "crontab", "minute": "0", "hour": "7", "day_of_month": "*",
        "month_of_year": "*", "day_of_week": "*", "tz": "Europe/Berlin",
    }  # fmt: skip
    assert schedules.update("x", tz="UTC").schedule == "0 7 * * * (UTC)"
    for nobody in (schedules.update, schedules.remove):
        with pytest.raises(UnknownSchedule):
            nobody("nobody")


def test_updates_at_the_same_time_are_all_made(app: Celery) -> None:
    app.delayed.schedules.add("x", "x", 60)
    words = [{"queue": "a"}, {"priority": 1}, {"args": [1]}, {"kwargs": {"a": 1}}, {"grace": 5}]
    with ThreadPoolExecutor(len(words)) as pool:
        list(pool.map(lambda one: app.delayed.schedules.update("x", **one), words))
    found = app.delayed.schedules.get("x")
    assert found.version == 1 + len(words)
    assert found.options == {"queue": "a", "priority": 1}
    assert (found.args, found.kwargs, found.grace) == ([1], {"a": 1}, 5.0)


def test_the_verbs_that_change(app: Celery) -> None:
    added = told(
        app, "add", "nightly", "celery.backend_cleanup", "--cron", "30 2 * * *",
        "--tz", "Europe/Berlin", "--args", "[7]", "--expires", "1h", "--misfire", "skip",
    )["schedule"]  # fmt: skip
    assert added["schedule"] == "30 2 * * * (Europe/Berlin)"
    assert (added["args"], added["options"], added["misfire"]) == ([7], {"expires": 3600.0}, "skip")
    assert added["next"] is not None
    assert run(app, "add", "nightly", "celery.backend_cleanup", "--every", "3s").exit_code == 1
    replaced = run(app, "add", "nightly", "celery.chain", "--every", "30s", "--replace")
    assert "every 30 s, version 2" in replaced.output
    unknown = run(app, "add", "x", "no.such", "--every", "3s")
    assert unknown.exit_code == 1
    assert "no task 'no.such' is registered here" in unknown.stderr
    assert run(app, "add", "x", "no.such", "--every", "3s", "--by-name").exit_code == 0
    for wrong in (
        ["add", "y", "celery.chain"], ["add", "y", "celery.chain", "--every", "1s", "--cron", "x"],
        ["add", "y", "celery.chain", "--cron", "x"], ["update", "x"],
        ["add", "y", "celery.chain", "--every", "1s", "--options", '{"que": 1}'],
        ["add", "y", "celery.chain", "--every", "1s", "--queue", "a", "--options", '{"queue": 1}'],
        ["add", "y", "celery.chain", "--solar", "sunset", "x", "1"],
    ):  # fmt: skip
        assert run(app, *wrong).exit_code == 2, wrong
    assert told(app, "update", "nightly", "--args", "[8]")["schedule"]["args"] == [8]
    assert run(app, "update", "nobody", "--args", "[8]").exit_code == 1
    assert run(app, "add", "sun", "celery.chain", "--solar", "sunset", "52", "13").exit_code == 0
    at = "2035-01-31T09:00Z"
    once = told(app, "add", "once", "celery.chain", "--at", at)["schedule"]
    assert once["schedule"] == "once at 2035-01-31T09:00:00.000Z"

    asked = run(app, "remove", "nightly")
    assert asked.exit_code == 1  # nobody says yes
    assert "Remove nightly" in asked.stderr
    assert told(app, "remove", "nightly", "--yes") == {"name": "nightly", "removed": True}
    assert run(app, "remove", "nightly", "--yes").exit_code == 1
    assert [one["name"] for one in told(app, "list")["schedules"]] == ["once", "sun", "x"]


# --- the past --------------------------------------------------------------------------------


def test_what_was_missed_is_fired_after_all_with_the_ids_it_would_have_had(
    beats: Beats, app: Celery
) -> None:
    # Given an interval with occurrences that ran, that fell into a pause, and that nobody fired
    schedules = app.delayed.schedules
    beat = beats.start("one", "often")
    wait_until(lambda: len(beats.nominals("often")) >= 3, 20, "occurrences")
    first = beats.nominals("often")[0]
    schedules.pause("often")
    time.sleep(1.2)
    schedules.resume("often")
    wait_until(lambda: len(beats.nominals("often")) >= 6, 20, "occurrences")
    beat.stop()
    time.sleep(1)
    beats.lead("two", "often")
    count = len(beats.nominals("often"))
    wait_until(lambda: len(beats.nominals("often")) >= count + 2, 20, "occurrences")
    schedules.pause("often")
    time.sleep(0.6)
    before = beats.nominals("often")
    last = max(before)
    start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (first, last + 1))
    missing = set(range(first, last + 1, 250)) - set(before)
    assert len(missing) >= 5
    # When they are looked for, and fired
    foreseen = schedules.backfill("often", start, end, dry_run=True)
    assert beats.nominals("often") == before
    done = schedules.backfill("often", start, end)
    # Then those run that did not, and only those
    fired = {round(one.timestamp() * 1000): task_id for one, task_id in done.fired.items()}
    assert fired.keys() == missing
    assert foreseen.fired.keys() == done.fired.keys()
    assert (foreseen.refused, done.left) == (done.refused, [])
    wait_until(lambda: len(beats.fired()) >= len(before) + len(missing), 20, "them")
    every = beats.fired()
    assert sorted(one.nominal_ms for one in every) == list(range(first, last + 1, 250))
    assert len({one.task_id for one in every}) == len(every)
    assert {one.task_id for one in every} >= set(fired.values())
    assert every[-1].message["headers"]["celery_beat_task"] is True
    # Again, nothing is left to do; by force all, with other ids
    again = schedules.backfill("often", start, end)
    assert (again.fired, len(again.refused)) == ({}, len(every))
    forced = schedules.backfill("often", start, end, force=True)
    assert len(forced.fired) == len(every)
    assert not {one.task_id for one in every} & set(forced.fired.values())


def test_a_crontab_of_another_zone_is_backfilled_where_its_clocks_change(
    beats: Beats, app: Celery
) -> None:
    beats.lead("one", "hourly")
    schedules = app.delayed.schedules
    schedules.add("night", "periodic.note", "30 2 * * *", tz="Europe/Berlin")
    wait_until(lambda: beats.next("night"), 20, "a beat has seen it")
    days = datetime(2024, 3, 30, tzinfo=UTC), datetime(2024, 4, 2, tzinfo=UTC)
    found = schedules.backfill("night", *days, dry_run=True).fired
    assert [one.isoformat() for one in found] == [
        "2024-03-30T01:30:00+00:00", "2024-03-31T01:00:00+00:00", "2024-04-01T00:30:00+00:00",
    ]  # fmt: skip
    assert schedules.backfill("night", *days).fired.keys() == found.keys()
    wait_until(lambda: len(beats.nominals("?")) == 3, 20, "they run")


def test_a_span_that_cannot_be_backfilled_is_refused(beats: Beats, app: Celery) -> None:
    beats.lead("one", "own", "hourly", "crontab")
    beats.wait_for_schedules(3)
    schedules, now = app.delayed.schedules, datetime.fromtimestamp(beats.now() / 1000, UTC)
    day, hour = timedelta(days=1), timedelta(hours=1)
    for words, text in (
        (("hourly", now, now - hour), "is not before end"),
        (("hourly", now, now + hour), "is in the future"),
        (("hourly", now.replace(tzinfo=None), now), "has no time zone"),
        (("own", now - hour, now), "known to its own code only"),
        (("crontab", now - 2 * day, now), "more than 1000 occurrences"),
    ):
        with pytest.raises(ValueError, match=text):
            schedules.backfill(*words)
    with pytest.raises(UnknownSchedule):
        schedules.backfill("nobody", now - hour, now)
    app.conf.beat_schedule = {"tick": {"task": "x", "schedule": 30.0}}
    with pytest.raises(ValueError, match="no beat has led"):
        schedules.backfill("tick", now - hour, now)


def test_the_verb_that_backfills(beats: Beats, app: Celery) -> None:
    beats.lead("one", "crontab")
    beats.wait_for_schedules(1)
    span = ["backfill", "crontab", "--start", "-10m", "--end", "-5m"]
    foreseen = told(app, *span, "--dry-run")
    assert (foreseen["fired"], foreseen["refused"], foreseen["dry_run"]) == (5, 0, True)
    asked = run(app, *span)
    assert asked.exit_code == 1  # nobody says yes
    assert "Fire 5 occurrences of crontab?" in asked.stderr
    done = told(app, *span, "--yes")
    assert [one["outcome"] for one in done["occurrences"]] == ["FIRED"] * 5
    assert all(one["task_id"] for one in done["occurrences"])
    refused = run(app, *span)
    assert refused.exit_code == 1
    assert "0 fired, 5 were fired before" in refused.output
    assert run(app, *span, "--force", "--yes").exit_code == 0
    assert run(app, "backfill", "crontab", "--start", "1h").exit_code == 2
    assert run(app, "backfill", "nobody", "--start", "-1h").exit_code == 1


# --- the command line ----------------------------------------------------------------------


def test_the_verbs_that_look(beats: Beats, app: Celery) -> None:
    beats.start("one", "hourly", "crontab", "own", "lazy")
    beats.wait_for_schedules(4)
    app.delayed.schedules.pause("hourly", reason="not now")

    names = [one["name"] for one in told(app, "list")["schedules"]]
    assert names == ["crontab", "hourly", "lazy", "own"]
    [paused] = told(app, "list", "--paused")["schedules"]
    assert (paused["name"], paused["enabled"], paused["reason"]) == ("hourly", False, "not now")
    assert paused["paused_by"] == caller()
    assert told(app, "list", "--source", "dynamic")["schedules"] == []
    table = run(app, "list")
    assert "every 3600 s" in table.output
    assert "schedules: 4" in table.output

    shown = told(app, "show", "crontab")["schedule"]
    assert shown["times"]["kind"] == "crontab"
    assert "not now" in run(app, "show", "hourly").output
    assert "known to its own code only" in run(app, "show", "lazy").output

    document = told(app, "preview", "crontab", "-n", "3")
    assert document["timezone"] == "UTC"
    assert [one["at_ms"] % 60_000 for one in document["occurrences"]] == [0, 0, 0]
    assert "in UTC" in run(app, "preview", "crontab").output
    assert run(app, "preview", "own").exit_code == 2
    for verb in ("show", "preview", "trigger"):
        answer = run(app, verb, "nobody")
        assert (answer.exit_code, answer.stdout) == (1, "")
        assert "there is no schedule 'nobody'" in answer.stderr


def test_the_verbs_that_steer(app: Celery) -> None:
    app.conf.beat_schedule = {"tick": {"task": "x", "schedule": 30.0}}
    assert "no schedules" not in run(app, "list").output

    document = told(app, "pause", "tick", "nobody", exit_code=1)
    assert [one["outcome"] for one in document["answers"]] == ["PAUSED", "NOT_FOUND"]
    assert document["paused"] == 1
    assert run(app, "pause", "tick").exit_code == 0
    assert told(app, "resume", "tick")["resumed"] == 1
    assert "it was not paused" in run(app, "resume", "tick").output
    task_id = told(app, "trigger", "tick")["task_id"]
    assert app.delayed.get(task_id) is not None
    assert run(app, "trigger", "tick").exit_code == 0
    assert run(app, "pause", "").exit_code == 2


def test_without_redis_the_verbs_say_so(app: Celery) -> None:
    app.conf.delay_redis_url = "redis://127.0.0.1:1/0"
    app.conf.beat_schedule = {"tick": {"task": "x", "schedule": 30.0}}
    for arguments in (["list"], ["show", "tick"], ["pause", "tick"], ["trigger", "tick"]):
        answer = run(app, *arguments)
        assert answer.exit_code == 69, arguments
        assert answer.stderr.startswith("celery delay: ")
