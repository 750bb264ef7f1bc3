"""`celery beat` with our scheduler: how it is started, how it ends, and what does not end it."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_delay.beat import Scheduler
from celery_delay.beats.replica import Replica
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import InvalidSetting
from celery_delay.store.keys import ShardKeys
from tests.processes import ProcessHarness, wait_until

APP = """
import os, time
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule
from celery_delay import CeleryDelay

app = Celery("beaten", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.delay_audit = "off"

def slow():
    print("slow begins", flush=True)
    time.sleep(30)

if os.environ.get("KIND") == "slow":
    more = {"args": (BeatLazyFunc(slow),)}
else:
    more = {}
every = 3600 if os.environ.get("KIND") == "rare" else 0.25
app.conf.beat_max_loop_interval = float(os.environ.get("MAX_INTERVAL", 0))
app.conf.beat_schedule = {"often": {"task": "beaten.note", "schedule": every, **more}}
for name, value in os.environ.items():
    if name.startswith("SET_"):
        app.conf[name[4:].lower()] = value
CeleryDelay(app)

@app.task
def note():
    pass
"""

LEADS = r"leads \(term \d+\)"


class Site:
    """One Redis, an app, and processes."""

    def __init__(self, server: EmbeddedRedis, processes: ProcessHarness) -> None:
        self.server = server
        self.processes = processes
        self.client = redis.Redis.from_url(server.url, socket_timeout=5)
        self.lease = ShardKeys("celery-delay:", 0).lease

    def fires(self) -> None:
        """Wait until a further occurrence is on the queue."""
        before = self.client.llen("celery")
        wait_until(lambda: self.client.llen("celery") > before, 15, "a further occurrence")

    def holder(self) -> str:
        return (self.client.hget(self.lease, "holder") or b"").decode()


@pytest.fixture
def site(
    redis_server: EmbeddedRedis, harness: Callable[..., ProcessHarness], tmp_path: Path
) -> Iterator[Site]:
    (tmp_path / "beaten.py").write_text(APP)
    made = Site(
        redis_server, harness("beaten", path=(tmp_path,), env={"URL": redis_server.tcp_url})
    )
    yield made
    made.client.close()


# --- how it is started -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["celery_delay.Scheduler", "celery_delay:Scheduler", "delay"])
def test_it_is_started_by_name(site: Site, name: str) -> None:
    beat = site.processes.beat("one", scheduler=name)
    site.fires()
    assert ". store -> redis" in beat.output()
    assert beat.stop() == 0


def test_it_is_started_in_a_worker(site: Site) -> None:
    # `-S` means another option there
    site.processes.worker(
        "worker",
        "-B",
        "--scheduler",
        "celery_delay.Scheduler",
        "--schedule-filename",
        str(site.processes.folder / "schedule"),
        queues="elsewhere",
    )
    site.fires()
    assert site.processes.processes["worker"].stop() == 0


def test_it_is_started_in_a_worker_that_runs_the_tasks(site: Site) -> None:
    worker = site.processes.worker("worker", "-B", "--scheduler", "delay")
    worker.wait_for_log(r"Task beaten\.note\[.*succeeded")
    assert worker.stop() == 0


def test_it_goes_into_the_background(site: Site) -> None:
    pidfile, log = (site.processes.folder / name for name in ("beat.pid", "beat.log"))
    options = ("-S", "delay", "--pidfile", str(pidfile), "--logfile", str(log))
    # When it is started with --detach
    assert site.processes.run("beat", "--detach", *options).returncode == 0
    # Then it leads, though its parent is gone
    wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), what="the pidfile")
    pid = int(pidfile.read_text())
    try:
        site.fires()
        assert f":{pid}:" in site.holder()
        # and SIGTERM ends it: the lease is given back, the pidfile removed
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists(), 5, "the pidfile is removed")
        wait_until(lambda: site.holder() == "", 5, "the lease is given back")
    finally:
        if pidfile.exists():
            os.kill(pid, signal.SIGKILL)


def test_the_longest_interval_can_be_given(site: Site) -> None:
    given = site.processes.beat("one", "--max-interval", "7", env={"KIND": "rare"})
    given.wait_for_log("maxinterval -> 7.00 seconds")
    # and the tick keeps to it: it waits a second at most in any case
    short = site.processes.beat(
        "two", loglevel="debug", env={"KIND": "rare", "MAX_INTERVAL": "0.125"}
    )
    given.wait_for_log("beat: Starting")
    given.stop()
    short.wait_for_log(LEADS)
    since = short.mark()
    # (Celery says "now" of what is less than a second)
    short.wait_for_log(r"(?s)(Waking up now.*){5}", since=since)
    assert "Waking up in" not in short.output()[since:]


def test_celerys_own_entries_are_kept(site: Site, tmp_path: Path) -> None:
    # Given a backend whose results do not expire by themselves
    app = Celery(
        "own",
        broker=site.server.tcp_url,
        backend=f"db+sqlite:///{tmp_path}/results",
        set_as_current=False,
    )
    app.conf.beat_schedule = {"mine": {"task": "t", "schedule": 10}}
    scheduler = Scheduler(app)
    assert set(scheduler.schedule) == {"mine", "celery.backend_cleanup"}
    scheduler.close()


def test_what_is_there_when_it_starts_is_not_looked_through_for_garbage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Celery("own", broker=site.server.tcp_url, set_as_current=False)
    scheduler = Scheduler(app)
    did: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: did.append("freeze"))
    monkeypatch.setattr(Replica, "start", lambda _: did.append("start"))
    try:
        scheduler.tick()
        scheduler.tick()
    finally:
        scheduler.close()
        app.close()

    assert did == ["freeze", "start"]


# --- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["idle", "slow"])
def test_a_signal_ends_it(site: Site, number: signal.Signals, kind: str) -> None:
    # Given a leader that waits, or one that is in the middle of a tick of 30 seconds
    beat = site.processes.beat("one", env={"KIND": kind})
    beat.wait_for_log(LEADS if kind == "idle" else "slow begins")
    began = time.monotonic()
    beat.signal(number)
    # Then it ends at once, and another can lead at once
    assert beat.wait(10) == 0
    assert time.monotonic() - began < 5
    assert site.holder() == ""
    assert "gave the lease back" in beat.output()


def test_a_standby_ends(site: Site) -> None:
    leader = site.processes.beat("one")
    leader.wait_for_log(LEADS)
    standby = site.processes.beat("two")
    standby.wait_for_log("beat: Starting")
    assert standby.stop() == 0
    site.fires()
    assert leader.is_running


# --- what does not end it --------------------------------------------------------------------


def changes_of_state(output: str) -> list[str]:
    """What it has said but for who leads, what fires, and Celery's banner."""
    return [
        line.partition("] ")[2]
        for line in output.splitlines()
        if "/MainProcess] " in line
        and not any(word in line for word in ("fired ", "Sending due task", "beat: Starting"))
    ]


def test_redis_away_and_back(
    site: Site, new_redis: Callable[..., EmbeddedRedis], known_keys: tuple[str, ...]
) -> None:
    # Given a leader and a standby whose Redis goes away
    server = new_redis()
    env = {"URL": server.tcp_url}
    beats = [site.processes.beat(name, env=env) for name in ("one", "two")]
    wait_until(lambda: any("leads (term" in one.output() for one in beats), 15, "a leader")
    for one in beats:
        one.wait_for_log(
            "answers as"
        )  # both are at work: one that still starts has nothing to lose
    client = redis.Redis.from_url(server.url, socket_timeout=5, retry=None)
    wait_until(lambda: client.llen("celery") > 1, 15, "occurrences")
    marks = [beat.mark() for beat in beats]
    server.kill()
    time.sleep(6)
    # Then each part says so once, and not with each try
    for beat, mark in zip(beats, marks, strict=True):
        said = changes_of_state(beat.output()[mark:])
        failing = [line for line in said if "keeps trying" in line or "tried again" in line]
        assert failing, said
        assert len(failing) == len({line.split(",")[0] for line in failing})
        # five parts; with each try it would be far more in these seconds
        assert len(said) <= 10, said
    # And when it is back, they go on, and say so
    marks = [beat.mark() for beat in beats]
    server.start()
    before = client.llen("celery")
    wait_until(lambda: client.llen("celery") > before + 2, 20, "occurrences")
    for beat, mark in zip(beats, marks, strict=True):
        assert beat.is_running
        beat.wait_for_log(r"works again", since=mark)
    client.close()


def test_it_starts_without_redis(site: Site, new_redis: Callable[..., EmbeddedRedis]) -> None:
    server = new_redis()
    server.kill()
    beat = site.processes.beat("one", env={"URL": server.tcp_url})
    beat.wait_for_log("are tried again: cannot connect")
    assert ". store -> redis" in beat.output()  # the banner needs none
    server.start()
    beat.wait_for_log(LEADS)
    client = redis.Redis.from_url(server.url, socket_timeout=5, retry=None)
    wait_until(lambda: client.llen("celery") > 1, 15, "occurrences")
    client.close()


def test_an_error_in_a_tick_does_not_end_it(site: Site, tmp_path: Path) -> None:
    # Given a scheduler with a bug, which shows now and then
    (tmp_path / "buggy.py").write_text(
        """
from celery_delay import Scheduler
class Buggy(Scheduler):
    ticks = 0
    def _plans(self, revision):
        self.ticks += 1
        if self.ticks % 3 == 1:
            raise ZeroDivisionError("a bug")
        return super()._plans(revision)
"""
    )
    beat = site.processes.beat("one", scheduler="buggy.Buggy")
    beat.wait_for_log("a tick failed; beat goes on")
    site.fires()
    site.fires()
    assert beat.stop() == 0


# --- what does -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("delay_lease", "soon", "delay_lease"),
        ("delay_leese", "1", "delay_lease"),  # the nearest name
        ("broker_url", "memory://", "delay_redis_url must say"),
    ],
)
def test_a_wrong_setting_ends_it_at_start(site: Site, setting: str, value: str, said: str) -> None:
    beat = site.processes.beat("one", env={f"SET_{setting.upper()}": value})
    assert beat.wait(20) != 0
    assert said in beat.output()
    assert site.holder() == ""


def test_a_wrong_setting_is_refused_before_any_thread_is_started() -> None:
    app = Celery("wrong", broker="redis://", set_as_current=False)
    app.conf.delay_lease = "soon"
    with pytest.raises(InvalidSetting, match="delay_lease"):
        Scheduler(app)


def test_a_lazy_scheduler_needs_nothing() -> None:
    # Celery makes one for the banner
    app = Celery("lazy", broker="redis://127.0.0.1:1", set_as_current=False)
    lazy: Any = Scheduler(app, lazy=True)
    assert "redis" in lazy.info
    lazy.close()
    lazy.close()
