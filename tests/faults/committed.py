"""Outbox traffic under kills: committed = handed off, rolled back = absent.

    python -m tests.faults.committed --seconds 600 --mode sync

Producers commit, roll back and roll back to savepoints; they, the beats (the leader's relay with
them), PostgreSQL and Redis are killed at random.  Redis keeps what it has acknowledged
(``appendfsync always``); with ``--flush`` it is emptied now and then, too, which can double what
was handed off and not drained.  What was committed is read from a table of the application's own,
what was handed off from the queue itself.  Both servers are the run's own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import redis
from sqlalchemy import Engine, create_engine, text

from celery_delay.embedded import EmbeddedRedis
from tests.sql_servers import OwnPostgreSQL

ROOT = Path(__file__).parents[2]

#: How long a hand-off may wait to be drained, in seconds: another beat may have to lead first.
SUFFIX = 4.0
SHOP = """
import os
from celery import Celery
from celery_delay import CeleryDelay
app = Celery("shop", broker=os.environ["BROKER"], set_as_current=False)
app.conf.update(delay_database_url=os.environ["DB"], delay_audit=os.environ["MODE"],
                task_ignore_result=True)
CeleryDelay(app)

@app.task(shared=False, name="note")
def note(name): ...
"""
PRODUCER = """
import os, random, sys, time
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from shop import note

rng, engine, number = random.Random(int(sys.argv[1])), create_engine(os.environ["DB"]), 0

def later(name, session):
    wait = rng.choice([0, 0.3, 1, 2, 4])
    note.apply_delayed((name,), countdown=wait, session=session, task_id=name)

while True:
    number += 1
    name = f"{sys.argv[1]}-{number}"
    fate = rng.choice(["commit", "commit", "rollback", "savepoint"])
    try:
        with Session(engine) as session:
            session.execute(text("INSERT INTO orders VALUES (:name)"), {"name": name})
            if fate == "savepoint":
                try:
                    with session.begin_nested():
                        later("never-" + name, session)
                        raise LookupError
                except LookupError:
                    pass
            later(name, session)
            session.rollback() if fate == "rollback" else session.commit()
    except Exception as exc:
        print(name, exc, flush=True)
        time.sleep(0.2)
    time.sleep(rng.random() * 0.02)
"""


class Run:
    """The processes of one run, and what was seen of them."""

    def __init__(
        self, folder: Path, server: EmbeddedRedis, postgres: OwnPostgreSQL, mode: str, seed: int
    ) -> None:
        (folder / "shop.py").write_text(SHOP)
        (folder / "produce.py").write_text(PRODUCER)
        self.rng = random.Random(seed)
        self.folder, self.seed, self.started = folder, seed, 0
        path = f"{folder}:{ROOT}"
        self.server, self.postgres = server, postgres
        broker, database = server.tcp_url, postgres.url
        own = {"BROKER": broker, "DB": database, "MODE": mode, "PYTHONPATH": path}
        self.env = {**os.environ, **own}
        self.raw = redis.Redis.from_url(broker, socket_timeout=2)
        self.handed: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.seen: dict[str, float] = {}
        self.flushed: list[float] = []
        #: What was noted, and perhaps not taken off the queue.
        self.unsure: Counter[bytes] = Counter()
        self.alive: dict[str, subprocess.Popen[bytes]] = {}

    def celery(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", "shop", *words]

    def start(self, name: str) -> None:
        self.started += 1
        command = [sys.executable, "produce.py", str(self.seed * 1_000 + self.started)]
        if name.startswith("beat"):
            options = ("-S", "celery_delay.Scheduler", "--schedule", name, "--pidfile=")
            command = self.celery("beat", *options)
        with (self.folder / f"{name}.log").open("a") as log:
            self.alive[name] = subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        self.alive[name].send_signal(signal.SIGKILL)
        self.alive[name].wait()

    def take(self) -> None:
        """Note what is on the queue; what Redis' end left in doubt, once."""
        try:
            while got := self.raw.lrange("celery", -500, -1):
                self.note(got)
                self.raw.ltrim("celery", 0, -len(got) - 1)
                self.unsure.clear()
        except redis.RedisError:
            time.sleep(0.05)

    def note(self, messages: list[bytes]) -> None:
        fresh = Counter(messages) - self.unsure
        self.unsure = Counter(messages)
        for one in fresh.elements():
            task_id = json.loads(one)["headers"]["id"]
            self.handed[task_id] += 1
            self.seen.setdefault(task_id, time.monotonic())

    def restart(self, server: EmbeddedRedis | OwnPostgreSQL) -> None:
        """End a server as a crash does; it is back after a while."""
        server.kill()
        time.sleep(self.rng.uniform(0.1, 1.5))
        server.start()

    def flush(self) -> None:
        """Empty Redis, but for what had reached the queue: that died with it, and is known."""
        with self.raw.pipeline() as pipeline:
            got = pipeline.lrange("celery", 0, -1).flushall().execute()[0]
        self.note(got)
        self.unsure.clear()
        self.flushed.append(time.monotonic())

    def is_excused(self, task_id: str) -> bool:
        """Whether its first hand-off may not have been drained when Redis was emptied."""
        return any(0 <= at - self.seen[task_id] <= SUFFIX for at in self.flushed)

    def go_on(self, seconds: float, may_flush: bool) -> None:
        names = ["producer1", "producer2", "beat1", "beat2"]
        for name in names:
            self.start(name)
        end = time.monotonic() + seconds
        fault = time.monotonic() + 4
        while time.monotonic() < end:
            self.take()
            time.sleep(0.05)
            if time.monotonic() > fault:
                fault = time.monotonic() + self.rng.uniform(1.0, 3.5)
                servers = ["redis", "postgresql", *(["flush"] if may_flush else [])]
                victim = self.rng.choice([*names, *servers])
                self.kills[victim.rstrip("12")] += 1
                if victim == "flush":
                    self.flush()
                elif victim in servers:
                    self.restart(self.server if victim == "redis" else self.postgres)
                else:
                    self.kill(victim)
                    self.start(victim)
        self.kill("producer1")
        self.kill("producer2")

    def settle(self, engine: Engine) -> dict[str, Any]:
        """Let the beats come to rest; what was committed, and what became of it."""
        with engine.connect() as connection:
            committed = set(connection.execute(text("SELECT name FROM orders")).scalars())
        end = time.monotonic() + 60
        while time.monotonic() < end and not committed <= set(self.handed):
            self.take()
            time.sleep(0.2)
        time.sleep(3)
        self.take()
        self.kill("beat1")
        self.kill("beat2")
        twice = [one for one, times in self.handed.items() if times > 1]
        return {
            "kills": dict(self.kills),
            "committed": len(committed),
            "lost": sorted(committed - set(self.handed)),
            "never_committed": sorted(set(self.handed) - committed),
            "flushed_suffix": sum(map(self.is_excused, twice)),
            "twice": sorted(one for one in twice if not self.is_excused(one)),
        }


@click.command()
@click.option("--seconds", default=60.0)
@click.option("--seed", default=1)
@click.option("--mode", default="sync", type=click.Choice(["async", "sync"]))
@click.option("--flush", is_flag=True, help="Empty Redis now and then.")
def main(seconds: float, seed: int, mode: str, flush: bool) -> None:
    """Run, and fail if anything was lost, or came from nowhere, or twice."""
    postgres = OwnPostgreSQL()
    engine = create_engine(postgres.url, pool_pre_ping=True)
    durable = ("--appendfsync", "always")
    try:
        with (
            EmbeddedRedis(port=None, options=durable) as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            run = Run(Path(folder), server, postgres, mode, seed)
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE orders (name text primary key)"))
            migrate = run.celery("delay", "migrate")
            subprocess.run(migrate, env=run.env, cwd=folder, check=True, capture_output=True)
            run.go_on(seconds, flush)
            found = run.settle(engine)
    finally:
        engine.dispose()
        postgres.close()
    click.echo(json.dumps(found, indent=1))
    if not found["committed"]:
        raise SystemExit("nothing was committed: this run proves nothing")
    if found["lost"] or found["never_committed"] or found["twice"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
