"""Periodic tasks on a real Redis with real beats: once per occurrence, whatever happens."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.beats import Beats, beats
from tests.processes import wait_until

__all__ = ["beats"]


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "other*", "later", "expiring", "lazy", "elsewhere")


def steps(instants: list[int]) -> set[int]:
    return {later - earlier for earlier, later in pairwise(instants)}


def test_each_occurrence_fires_once_with_three_beats(beats: Beats) -> None:
    # Given three beats with entries of several kinds
    entries = ("interval", "relative", "own", "often", "hourly")
    for name in ("one", "two", "three"):
        beats.start(name, *entries)
    wait_until(lambda: len(beats.fired()) >= 30, 30, "30 occurrences")
    # Then each occurrence is on the queue once, and none is left out
    fired = beats.fired()
    assert max(Counter(one.task_id for one in fired).values()) == 1
    assert steps(beats.nominals("interval")) == {1_000}
    assert steps(beats.nominals("relative")) == {1_000}
    assert steps(beats.nominals("often")) == {250}
    assert len(beats.nominals("own")) == len(set(beats.nominals("own"))) >= 3
    assert min(steps(beats.nominals("own"))) >= 990  # it is due by the user's clock, in µs
    assert beats.nominals("hourly") == []
    # and each message is that of Celery's beat, handed off when it was due and not before
    for one in fired:
        assert one.message["headers"]["celery_beat_task"] is True
        assert one.message["headers"]["celery_delay"]["eta_ms"] >= one.nominal_ms


def test_an_entry_keeps_its_options(beats: Beats) -> None:
    entries = ("queue", "countdown", "expires", "lazy", "unregistered")
    queues = ("other\x06\x163", "later", "expiring", "lazy", "elsewhere")
    beats.start("one", *entries)
    wait_until(lambda: all(beats.fired(one) for one in queues), 20, "one of each")

    [queued, later, expiring, lazy, elsewhere] = (beats.fired(one)[0] for one in queues)
    assert queued.message["properties"]["priority"] == 3
    # a countdown is counted from the occurrence's firing on
    headers = later.message["headers"]
    assert later.nominal_ms + 1_500 <= headers["celery_delay"]["eta_ms"] < beats.now()
    assert headers["eta"] is None
    assert expiring.message["headers"]["expires"] is not None
    assert lazy.arguments == [[1], {"b": 2}]
    assert lazy.message["headers"]["mine"] == 1
    assert elsewhere.message["headers"]["task"] == "elsewhere.task"
    assert elsewhere.arguments == [[], {"x": 1}]
    # callables are called for each occurrence
    wait_until(lambda: len(beats.fired("lazy")) > 1)
    assert beats.fired("lazy")[1].arguments == [[3], {"b": 4}]


def test_of_missed_occurrences_the_latest_runs(beats: Beats) -> None:
    # Given a crontab and a sunset whose occurrences of the last minutes nobody has fired
    beats.start("one", "crontab", "solar")
    beats.wait_for_schedules(2)
    sunset = beats.next("solar")
    minute = beats.now() // 60_000 * 60_000
    long_ago = beats.now() - 1_000
    beats.pull("crontab", minute - 3 * 60_000)
    beats.pull("solar", long_ago)
    # Then one occurrence of each runs
    wait_until(lambda: len(beats.fired()) >= 2, what="both have fired")
    time.sleep(0.5)  # nothing else comes
    # (a minute may have begun meanwhile)
    assert beats.nominals("crontab")[0] in (minute, minute + 60_000)
    assert len(beats.nominals("crontab")) <= 2
    assert beats.nominals("solar") == [long_ago]
    # and the next one is where it was
    assert abs((beats.next("solar") or 0) - (sunset or 0)) < 1_000
    assert (beats.next("crontab") or 0) % 60_000 == 0


def test_a_restart_of_all_beats_is_no_event(beats: Beats) -> None:
    # Given an interval that is longer than any beat lives
    for name in ("one", "two", "three"):
        beats.lead(name, "hourly", "slow") if name == "one" else beats.start(name, "hourly", "slow")
    beats.wait_for_schedules(2)
    hourly = beats.next("hourly")
    wait_until(lambda: beats.nominals("slow"), what="the first occurrence")
    # When all are stopped, an occurrence is missed, and others are started
    for beat in list(beats.processes.processes.values()):
        beat.stop()
    time.sleep(6.5)
    beats.lead("four", "hourly", "slow")
    beats.start("five", "hourly", "slow")
    wait_until(lambda: len(beats.nominals("slow")) >= 4, 20, "further occurrences")
    # Then nothing has been restarted from zero, and of those that were missed one has run
    assert beats.next("hourly") == hourly
    nominals = beats.nominals("slow")
    assert {step % 3_000 for step in steps(nominals)} == {0}
    assert max(steps(nominals)) >= 6_000  # more where the machine is busy
    assert len(nominals) == len(set(nominals))


def test_leaders_that_are_killed_lose_and_double_nothing(beats: Beats) -> None:
    # Given three beats, of which the leader is killed twice in the middle of its work
    for name in ("one", "two", "three"):
        beats.start(name, "often", "own")
    for count in (4, 16):
        wait_until(lambda: len(beats.nominals("often")) >= count, 20, "occurrences")  # noqa: B023
        leader = wait_until(beats.leader, what="a leader")
        leader.kill()
    wait_until(lambda: len(beats.nominals("often")) >= 28, 20, "occurrences")
    # Then no occurrence has been doubled, and only those that came while nobody led are missing
    ids = [one.task_id for one in beats.fired()]
    assert len(ids) == len(set(ids))
    nominals = beats.nominals("often")
    # (what a killed beat fired it may not have said)
    every = [one.nominal_ms for one in beats.fired() if one.name in ("often", "?")]
    assert {step % 250 for step in steps(nominals)} == {0}
    assert len([step for step in steps(sorted(every)) if step > 250]) <= 2


def test_an_entry_that_fails_stops_no_other(beats: Beats) -> None:
    beat = beats.lead("one", "failing", "broken", "interval")
    wait_until(lambda: len(beats.nominals("interval")) >= 4, 20, "occurrences of the other")
    assert steps(beats.nominals("interval")) == {1_000}
    assert len(beats.fired()) == len(beats.nominals("interval"))
    output = beat.output()
    assert output.count("cannot calculate the next run of 'broken'") == 1
    assert "no such argument" in output
    # it is tried again with each occurrence, not all the time
    failures = output.count("Couldn't apply scheduled task failing")
    assert failures <= 2 * (len(beats.nominals("interval")) + 2)


def test_a_redis_that_is_emptied_gets_its_schedules_again(beats: Beats) -> None:
    beats.lead("one", "often", "hourly")
    wait_until(beats.fired, what="an occurrence")
    beats.client.flushall()
    wait_until(beats.fired, what="an occurrence after that")
    assert beats.next("hourly") is not None


def test_a_schedule_that_changes_starts_anew(beats: Beats) -> None:
    # Given an entry of an older deployment that is due in an hour, and one that is no more
    old = beats.lead("one", "hourly", "slow")
    beats.wait_for_schedules(2)
    old.stop()
    state = json.loads(beats.client.hget(beats.keys.schedules, "hourly"))
    beats.client.hset(beats.keys.schedules, "hourly", json.dumps({**state, "version": "older"}))
    beats.pull("hourly", beats.now() + 7_200_000)
    # When beats of the new one are started
    beats.lead("two", "hourly", "interval")
    # Then the changed one starts anew, and the other is gone
    wait_until(lambda: (beats.next("hourly") or 0) <= beats.now() + 3_600_000)
    assert beats.next("slow") is None
    wait_until(lambda: beats.nominals("interval"))


def test_a_worker_runs_each_occurrence_once(beats: Beats, tmp_path: Path) -> None:
    beats.processes.env["ENTRIES"] = "often"
    beats.start("one", "often")
    beats.start("two", "often")
    beats.processes.worker(pool="solo", concurrency=1)
    book = tmp_path / "book"
    wait_until(lambda: book.exists() and len(book.read_text().split()) >= 8, 20, "effects")
    ids = book.read_text().split()
    assert len(ids) == len(set(ids))
