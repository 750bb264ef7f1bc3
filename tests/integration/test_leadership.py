"""Leadership among real beats on a real Redis: who leads, and what a change costs the tasks."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

import celery_delay
from celery_delay.domain.ports import LeaseRecord
from celery_delay.embedded import EmbeddedRedis
from celery_delay.services.dispatcher import Dispatcher
from celery_delay.store.keys import ShardKeys
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore
from tests.processes import CeleryProcess, ProcessHarness, wait_until
from tests.projects import make_app

APP = """
import os
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("election", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.delay_key_prefix = os.environ.get("DELAY_PREFIX", "celery-delay:")
CeleryDelay(app)
"""

LEADS = r"leads \(term \d+\)"


class Beats:
    """Beats on one Redis, and a client that looks at their lease and at the raw queue."""

    def __init__(self, server: EmbeddedRedis, processes: ProcessHarness) -> None:
        self.server = server
        self.processes = processes
        self.client = redis.Redis.from_url(server.url, socket_timeout=5, retry=None)
        self.keys = ShardKeys("celery-delay:", 0)
        self.app = make_app(server.tcp_url)

    def start(self, name: str, **env: str) -> CeleryProcess:
        beat = self.processes.beat(name, env=env)
        beat.wait_for_log("beat: Starting")
        return beat

    def lead(self, name: str) -> CeleryProcess:
        """Start a beat that takes the lease."""
        beat = self.start(name)
        beat.wait_for_log(LEADS)
        return beat

    def leading_pid(self) -> int | None:
        holder = self.client.hget(self.keys.lease, "holder")
        return int(holder.split(b":")[1]) if holder else None

    def term(self) -> int:
        return int(self.client.hget(self.keys.lease, "term") or 0)

    def leads(self, beat: CeleryProcess) -> bool:
        return self.leading_pid() == beat.pid

    def schedule(self, *countdowns: float) -> dict[str, int]:
        """Delayed tasks; task id → eta in ms."""
        found = {}
        for countdown in countdowns:
            result = self.app.delayed.send_task("any", task_id=str(uuid4()), countdown=countdown)
            found[result.id] = round(result.eta.timestamp() * 1000)
        return found

    def queued(self) -> list[str]:
        """The ids on the queue."""
        return [json.loads(one)["headers"]["id"] for one in self.client.lrange("celery", 0, -1)]

    def lag_of(self, tasks: dict[str, int], timeout: float = 15.0) -> float:
        """Wait until *tasks* are on the queue, once each; seconds after the last eta."""
        wait_until(lambda: len(self.queued()) >= len(tasks), timeout, "the hand-off")
        late = time.time() - max(tasks.values()) / 1000
        assert Counter(self.queued()) == Counter(tasks.keys())
        assert late >= 0, "a task was early"
        return late

    def close(self) -> None:
        self.client.close()
        for shard in self.app.delayed.shards:
            shard.close()
        self.app.close()


@pytest.fixture
def beats(
    new_redis: Callable[..., EmbeddedRedis], harness: Callable[..., Any], tmp_path: Path
) -> Iterator[Beats]:
    server = new_redis()
    (tmp_path / "election.py").write_text(APP)
    path = (tmp_path, Path(celery_delay.__file__).parents[1])
    beats = Beats(server, harness("election", path=path, env={"URL": server.tcp_url}))
    yield beats
    beats.close()


def test_standby_takes_over_from_a_killed_leader(beats: Beats) -> None:
    """GIVEN a leader and a standby, and a task that falls due
    WHEN the leader is killed
    THEN the standby moves the task before it leads, and then leads in the next term.
    """
    first, second = beats.lead("first"), beats.start("second")
    term = beats.term()
    tasks = beats.schedule(0.3)
    time.sleep(0.15)
    first.kill()

    lag = beats.lag_of(tasks)

    second.wait_for_log(LEADS)
    assert beats.leads(second)
    assert beats.term() == term + 1
    assert lag < 5


def test_overdue_tasks_are_stolen_while_the_leader_is_frozen(beats: Beats) -> None:
    """GIVEN a leader that is frozen, and whose lease has not run out
    WHEN a task has been due for longer than the backstop
    THEN a standby moves it in the leader's place.
    """
    first, second = beats.lead("first"), beats.start("second")
    tasks = beats.schedule(0.2)
    first.pause()
    try:
        lag = beats.lag_of(tasks)
    finally:
        first.resume()

    assert lag < 5
    second.wait_for_log("in the leader's place")


def test_terminated_leader_hands_over_at_once(beats: Beats) -> None:
    """GIVEN a leader and a standby
    WHEN the leader gets SIGTERM
    THEN it gives the lease back and ends cleanly, and the standby leads without waiting for
        the lease to run out.
    """
    first, second = beats.lead("first"), beats.start("second")
    second.wait_for_log("beat: Starting")
    mark = first.mark()
    first.signal(signal.SIGTERM)
    begun = time.monotonic()
    wait_until(lambda: beats.leads(second), 10, "the hand-over")
    took = time.monotonic() - begun

    assert first.wait(10) == 0
    first.wait_for_log(r"gave the lease back", since=mark)
    assert took < 5
    assert beats.lag_of(beats.schedule(0.1)) < 5


def test_frozen_leader_wakes_up_as_nobody(beats: Beats) -> None:
    """GIVEN a leader that was frozen for longer than its lease while tasks fell due
    WHEN it goes on
    THEN it steps down, moves nothing a second time, and works on as a standby.
    """
    first, second = beats.lead("first"), beats.start("second")
    tasks = beats.schedule(0.3, 0.5, 1.0, 1.5)
    first.pause()
    wait_until(lambda: beats.leads(second), 10, "the take-over")
    lag = beats.lag_of(tasks)
    mark = first.mark()
    first.resume()

    first.wait_for_log("leads no more", since=mark)
    assert lag < 5
    assert beats.leads(second)
    assert Counter(beats.queued()) == Counter(tasks.keys())

    # and it can still take its turn
    second.kill()
    first.wait_for_log(LEADS, since=mark)


def test_a_task_is_not_late_when_a_frozen_leader_took_the_wake_up(beats: Beats) -> None:
    """GIVEN a former leader that was frozen while it waited to be woken
    WHEN a task is added, and Redis gives the wake-up to the frozen one
    THEN the present leader finds the task with its next renewal, and not only when its own
        longest wait of a second is over.
    """
    frozen, leading = beats.lead("first"), beats.start("second")
    lags = []
    for _ in range(3):  # a busy machine may spoil one
        mark = leading.mark()
        frozen.pause()
        leading.wait_for_log(LEADS, since=mark)
        lags.append(beats.lag_of(beats.schedule(0.02)))
        beats.client.delete("celery")
        frozen.resume()
        if lags[-1] < 0.6:
            break
        time.sleep(1.0)
        frozen, leading = leading, frozen

    assert min(lags) < 0.6, lags


def test_redis_away_and_back_does_not_end_a_beat(beats: Beats) -> None:
    """GIVEN two beats and tasks that wait
    WHEN Redis is killed, stays away for a while, and starts again on its data
    THEN both beats live, one leads, a new history is named, and the tasks are handed off.
    """
    first, second = beats.lead("first"), beats.start("second")
    tasks = beats.schedule(1.0, 2.0)
    epoch = int(beats.client.hget(beats.keys.mark, "epoch"))
    beats.server.kill()
    beats.client.close()
    for beat in (first, second):
        beat.wait_for_log("cannot work, and keeps trying")
    time.sleep(1.0)
    assert first.is_running
    assert second.is_running
    beats.server.start()

    beats.lag_of(tasks)
    assert int(beats.client.hget(beats.keys.mark, "epoch")) > epoch
    assert beats.leading_pid() in (first.pid, second.pid)
    for beat in (first, second):
        beat.wait_for_log("works again")
        # one line for a change of state, however often it was tried; a beat has three threads
        assert len(beat.output().split("cannot work, and keeps trying")) - 1 <= 6
        assert "Traceback" not in beat.output()


def test_emptied_redis_is_a_new_history(beats: Beats) -> None:
    """GIVEN two beats
    WHEN Redis is emptied under them
    THEN one leads again, gives the history a name, and what is scheduled then is handed off.
    """
    first, second = beats.lead("first"), beats.start("second")
    beats.client.flushall()

    assert beats.lag_of(beats.schedule(0.5)) < 10
    assert beats.leading_pid() in (first.pid, second.pid)
    assert int(beats.client.hget(beats.keys.mark, "epoch")) > 0
    assert first.is_running
    assert second.is_running


def test_paused_clients_cost_time_and_nothing_else(beats: Beats) -> None:
    """GIVEN two beats and tasks that fall due while Redis answers nobody
    WHEN it answers again
    THEN each task is handed off once.
    """
    first, second = beats.lead("first"), beats.start("second")
    tasks = beats.schedule(*[0.1 * n for n in range(1, 21)])
    time.sleep(0.3)
    beats.client.execute_command("CLIENT", "PAUSE", 1_500)

    assert beats.lag_of(tasks) < 10
    assert first.is_running
    assert second.is_running
    wait_until(lambda: beats.leading_pid() in (first.pid, second.pid), 10)


@pytest.mark.parametrize("role", ["leader", "standby"])
def test_jump_of_redis_clock_hands_nothing_off_early(
    role: str, new_redis: Callable[..., EmbeddedRedis]
) -> None:
    """GIVEN tasks that are due in an hour
    WHEN Redis' clock jumps by an hour, and this machine's does not
    THEN neither the leader nor a standby hands them off.
    """
    app = make_app(new_redis().tcp_url)
    delayed, [keys] = app.delayed, app.delayed.shard_keys
    ahead = 0
    links = delayed.links()
    store = RedisStore(
        links,
        keys,
        delayed.settings,
        delayed.clock,
        test_now=lambda: round(time.time() * 1000) + ahead,
    )
    lease = RedisLease(links.link(), keys, "test")
    dispatcher = Dispatcher(store, delayed.settings, delayed.clock)
    term = lease.elect(seen=None, may_take=False).term

    def look() -> None:
        asked = delayed.clock.boot()
        seen = LeaseRecord("other", term, 1, store._given_now(), tasks[0], 0)
        if role == "leader":
            dispatcher.run_once(lambda: term)
        else:
            dispatcher.steal(seen, asked, delayed.clock.boot())

    try:
        store.begin_epoch(term=term, known_epoch=0)
        tasks = [
            round(delayed.send_task("any", countdown=3_600).eta.timestamp() * 1000)
            for _ in range(3)
        ]
        look()
        ahead = 3_601_000
        for _ in range(3):
            look()
        with redis.Redis.from_url(app.conf.broker_url) as client:
            assert client.llen("celery") == 0
        assert store.count(after_ms=0, before_ms=2**50) == 3
    finally:
        lease.close()
        links.close()
        app.close()


def test_beats_with_different_prefixes_do_not_see_each_other(beats: Beats) -> None:
    """GIVEN two beats whose key prefixes differ, on one Redis
    THEN both lead, and an entry of one is not moved by the other.
    """
    ours = beats.lead("ours")
    theirs = beats.start("theirs", DELAY_PREFIX="another:")
    theirs.wait_for_log(LEADS)

    assert beats.leads(ours)
    ours.kill()
    time.sleep(0.1)
    tasks = beats.schedule(0.1)
    time.sleep(1.5)
    assert beats.queued() == []
    assert "in the leader's place" not in theirs.output()
    ours.start()
    beats.lag_of(tasks)


def test_idle_beats_leave_redis_alone(beats: Beats) -> None:
    """GIVEN a leader and a standby with tasks that are far away
    WHEN nothing happens
    THEN each sends Redis a handful of commands a second.
    """
    beats.lead("first")
    beats.start("second")
    beats.schedule(*[3_600.0] * 20)
    time.sleep(1.5)
    seconds, sent = 4.0, Counter[str]()
    with redis.Redis.from_url(beats.server.tcp_url) as client, client.monitor() as monitor:
        # what a script calls is no command of a client, so INFO would count too much
        end = time.monotonic() + seconds
        client.connection_pool.disconnect(inuse_connections=False)
        monitor.connection._sock.settimeout(0.2)
        while time.monotonic() < end:
            try:
                command = monitor.next_command()
            except (redis.TimeoutError, TimeoutError):
                continue
            if command["client_type"] != "lua":
                sent[command["command"].split()[0]] += 1

    rate = sum(sent.values()) / seconds / 2
    assert 1 < rate <= 20, sent
    print(f"{rate:.1f} commands a second and beat: {dict(sent)}")
