"""Real beats on one Redis, with periodic tasks of many kinds, and what they put on its queues."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.store.keys import ShardKeys
from tests.processes import CeleryProcess, ProcessHarness, wait_until

__all__ = ["APP", "Beats", "Fired", "beats"]

APP = '''
import json, os
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from celery_delay import CeleryDelay

app = Celery("periodic", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.delay_audit = "off"

class Own(BaseSchedule):
    """Every so many seconds, by code of the user's own."""
    def __init__(self, seconds):
        self.seconds = seconds
        super().__init__()
    def is_due(self, last):
        left = self.seconds - (self.now() - last).total_seconds()
        return schedstate(left <= 0, self.seconds if left <= 0 else left)

class Broken(BaseSchedule):
    def is_due(self, last):
        raise TypeError("this schedule is broken")

def counted():
    counted.calls += 1
    return counted.calls
counted.calls = 0

def failing():
    raise OSError("no such argument")

def entry(schedule, **more):
    return {"task": "periodic.note", "schedule": schedule, **more}

ENTRIES = {
    "interval": lambda: entry(1.0, args=("interval",)),
    "relative": lambda: entry(1.0, relative=True),
    "own": lambda: entry(Own(1.0)),
    "often": lambda: entry(0.25),
    "hourly": lambda: entry(3600.0),
    "slow": lambda: entry(3.0),
    "crontab": lambda: entry(crontab()),
    "solar": lambda: entry(solar("sunset", 52, 13)),
    "queue": lambda: entry(1.0, options={"queue": "other", "priority": 3}),
    "countdown": lambda: entry(1.0, options={"countdown": 1.5, "queue": "later"}),
    "expires": lambda: entry(1.0, options={"expires": 60, "queue": "expiring"}),
    "lazy": lambda: entry(1.0, args=(BeatLazyFunc(counted),), kwargs={"b": BeatLazyFunc(counted)},
                          options={"queue": "lazy", "headers": {"mine": 1}}),
    "unregistered": lambda: {"task": "elsewhere.task", "schedule": 1.0, "kwargs": {"x": 1},
                             "options": {"queue": "elsewhere"}},
    "failing": lambda: entry(1.0, args=(BeatLazyFunc(failing),)),
    "broken": lambda: entry(Broken()),
}
app.conf.beat_schedule = {name: ENTRIES[name]() for name in os.environ["ENTRIES"].split(",")}
CeleryDelay(app)

@app.task
def note(what=None, b=None):
    with open(os.environ["BOOK"], "a") as book:
        book.write(f"{note.request.id}\\n")
'''


class Fired(NamedTuple):
    """One message of a periodic task, read off its queue."""

    name: str
    task_id: str
    nominal_ms: int
    message: dict[str, Any]

    @property
    def arguments(self) -> list[Any]:
        args, kwargs, _ = json.loads(base64.b64decode(self.message["body"]))
        return [args, kwargs]


class Beats:
    """Beats on one Redis, and what they have put on its queues."""

    def __init__(self, server: EmbeddedRedis, processes: ProcessHarness) -> None:
        self.processes = processes
        self.client = redis.Redis.from_url(server.url, socket_timeout=5)
        self.keys = ShardKeys("celery-delay:", 0)

    def start(self, name: str, *entries: str) -> CeleryProcess:
        return self.processes.beat(name, env={"ENTRIES": ",".join(entries)})

    def lead(self, name: str, *entries: str) -> CeleryProcess:
        beat = self.start(name, *entries)
        beat.wait_for_log(r"leads \(term \d+\)")
        return beat

    def leader(self) -> CeleryProcess | None:
        holder = self.client.hget(self.keys.lease, "holder") or b"::"
        pid = holder.decode().split(":")[1]
        beats = (one for one in self.processes.processes.values() if one.is_running)
        return next((one for one in beats if str(one.pid) == pid), None)

    def next(self, name: str) -> int | None:
        """The stored next occurrence, in ms."""
        score = self.client.zscore(self.keys.occurrences, name)
        return None if score is None else int(score)

    def now(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000)

    def wait_for_schedules(self, count: int) -> None:
        wait_until(lambda: self.client.zcard(self.keys.occurrences) >= count, what="schedules")

    def pull(self, name: str, to_ms: int) -> None:
        """Let an occurrence have come: time does not pass faster for a test."""
        self.client.zadd(self.keys.occurrences, {name: to_ms}, xx=True)

    def names(self) -> dict[str, str]:
        """Task id → entry, from what the beats say that they fired."""
        found = {}
        for beat in self.processes.processes.values():
            for line in beat.output().splitlines():
                words = line.partition("] fired ")[2].split()
                if words:
                    found[words[1].strip("()")] = words[0]
        return found

    def fired(self, *queues: str) -> list[Fired]:
        """All that is on the queues, the oldest first."""
        found = []
        for queue in queues or ("celery",):
            for text in reversed(self.client.lrange(queue, 0, -1)):
                message = json.loads(text)
                task_id = message["headers"]["id"]
                run = message["headers"]["celery_delay"]["run"]
                found.append(Fired("", task_id, run, message))
        names = self.names()
        return [one._replace(name=names.get(one.task_id, "?")) for one in found]

    def nominals(self, name: str, *queues: str) -> list[int]:
        return [one.nominal_ms for one in self.fired(*queues) if one.name == name]


@pytest.fixture
def beats(
    redis_server: EmbeddedRedis, harness: Callable[..., ProcessHarness], tmp_path: Path
) -> Iterator[Beats]:
    (tmp_path / "periodic.py").write_text(APP)
    env = {"URL": redis_server.tcp_url, "BOOK": str(tmp_path / "book")}
    made = Beats(redis_server, harness("periodic", path=(tmp_path,), env=env))
    yield made
    made.client.close()
