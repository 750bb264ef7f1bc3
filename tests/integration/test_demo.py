"""The demo, as a user runs it: it succeeds, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

import celery_delay
from celery_delay.embedded import EmbeddedRedis
from tests.brokers import OwnRabbitMQ
from tests.servers import REDIS, REDIS_62, RedisServers
from tests.sql import SQLDatabases, administrator

DEMO = Path(__file__).parents[2] / "example_project" / "demo.py"
#: Small, and patient with a busy machine: how quick it is, is not what these tests ask.
QUICK = ("--plain", "--no-flower", "--minute", "0.1", "--orders", "20", "--bound", "20")

pytestmark = pytest.mark.timeout(180)


class Run:
    """A run of the demo in a temporary folder of its own."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        self.folder = folder
        package = str(Path(celery_delay.__file__).parents[1])
        path = {} if "site-packages" in package else {"PYTHONPATH": package}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DELAY_")}
        self.log = folder.parent / "demo.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(DEMO), *QUICK, *options],
                env={**kept, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", **path, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def says(self, text: str) -> bool:
        return text in self.output

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        code = self.process.wait(150)
        print(self.output)
        return code

    def leftovers(self) -> list[str]:
        """Files in its temporary folder, and processes that have it in their environment."""
        mark = f"TMPDIR={self.folder}".encode()
        left = [str(path) for path in self.folder.iterdir()]
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environment.read_bytes().split(b"\0"):
                    left.append((environment.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:  # gone by now, or not ours
                continue
        return left


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*options: str, **env: str) -> Run:
        folder = tmp_path / "t"
        folder.mkdir()
        runs.append(Run(folder, *options, **env))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


@pytest.mark.long  # CI runs the demo itself, with both
@pytest.mark.parametrize(("kind", "chosen"), [(REDIS, ""), (REDIS_62, "embedded")])
def test_every_effect_happens_once_though_the_leader_is_killed(
    demo: Callable[..., Run], redis_servers: RedisServers, kind: str, chosen: str
) -> None:
    # Given a Redis of that kind (or the test is not for this machine)
    redis_servers.get(kind)

    run = demo(DELAY_REDIS=chosen)

    assert run.wait() == 0
    assert run.says("kill -9")
    assert run.says("every effect happened exactly once, never early, with the right result")
    assert run.leftovers() == []


def test_a_given_redis_keeps_its_own_keys_and_no_others(
    demo: Callable[..., Run], new_redis: Callable[..., EmbeddedRedis]
) -> None:
    # Given a Redis in which somebody else has something
    server = new_redis()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.set("mine", "1")

        run = demo(DELAY_REDIS_URL=server.url)

        assert run.wait() == 0
        assert client.keys("*") == ["mine"]
    assert run.leftovers() == []


def test_it_runs_on_rabbitmq_and_postgresql_and_leaves_them_as_they_were(
    demo: Callable[..., Run],
    redis_servers: RedisServers,
    rabbitmq: OwnRabbitMQ,
    sql_databases: SQLDatabases,
) -> None:
    redis_servers.get(REDIS)
    database = sql_databases.url("postgresql")
    with administrator(database) as engine:
        before = _databases(engine)

        run = demo("--broker", rabbitmq.url, "--database", database)

        assert run.wait() == 0
        assert run.says("kill -9")
        assert run.says("every effect happened exactly once, never early, with the right result")
        assert _databases(engine) == before
    assert run.leftovers() == []
    for what in ("list_queues", "list_exchanges"):
        assert "celery-delay-demo" not in rabbitmq.control(what, "name")


def _databases(engine: Engine) -> set[str]:
    """The server's databases; those of other tests come and go."""
    with engine.connect() as connection:
        names = connection.scalars(text("SELECT datname FROM pg_database"))
        return {name for name in names if name.startswith("celery_delay_demo")}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--broker", "amqp://guest:secret@127.0.0.1:1//"), "--broker: cannot connect to amqp"),
        (("--database", "postgresql+psycopg://me:secret@127.0.0.1:1"), "--database: cannot make"),
        (("--database", "nonsense"), "--database: "),
    ],
)
def test_a_server_that_is_not_there_is_named(
    demo: Callable[..., Run], redis_servers: RedisServers, option: tuple[str, str], says: str
) -> None:
    redis_servers.get(REDIS)

    run = demo(*option)

    assert run.wait() == 1
    assert run.says(says)
    assert not run.says("Traceback")
    assert not run.says("secret")
    assert run.leftovers() == []


@pytest.mark.parametrize(
    ("sabotage", "fault"),
    [
        pytest.param(
            "no-beats",
            "order 1 cancelled: happened 0 times instead of once",
            marks=pytest.mark.long,
        ),
        ("twice", "coupon SAVE10 expires soon: happened 2 times instead of once"),
    ],
)
def test_it_can_fail(
    demo: Callable[..., Run], redis_servers: RedisServers, sabotage: str, fault: str
) -> None:
    redis_servers.get(REDIS)

    run = demo("--sabotage", sabotage, "--bound", "3" if sabotage == "no-beats" else "20")

    assert run.wait() == 1
    assert run.says(fault)
    assert run.leftovers() == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param("come up", signal.SIGTERM, marks=pytest.mark.long),
        ("the shop opens", signal.SIGINT),
        pytest.param("kill -9", signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_signal_at_any_moment_leaves_nothing(
    demo: Callable[..., Run],
    redis_servers: RedisServers,
    wait_until: Callable[..., Any],
    number: signal.Signals,
    moment: str,
) -> None:
    redis_servers.get(REDIS)
    run = demo()
    wait_until(lambda: run.says(moment), timeout=60, what=moment)

    run.process.send_signal(number)

    assert run.wait() == 128 + number
    assert run.leftovers() == []
