"""Fixtures and rules that hold for every test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult
from hypothesis import settings

from celery_delay.audit.database import Database
from celery_delay.embedded import EmbeddedRedis
from tests import processes
from tests.brokers import OwnRabbitMQ
from tests.processes import ProcessHarness
from tests.schemas import watched
from tests.servers import MISSING, REDIS, REDIS_62, RedisServers, unknown_keys, wipe
from tests.sql import KINDS, SQLDatabases, emptied, migrated

HERE = Path(__file__).parent
FOLDERS = {"unit", "contract", "properties", "model", "integration", "smoke", "faults"}

# how long an example takes says more of the machine than of the code
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Celery's results unsubscribe when they are collected.  Where their Redis is gone by then, that
# takes 20 s and raises, in whatever test is running.
AsyncResult.__del__ = lambda self: None

# --- collection: the folder is the marker ------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            folder = item.path.relative_to(HERE).parts[0]
            if folder in FOLDERS:
                item.add_marker(folder)
            if folder == "faults" and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = metafunc.definition.get_closest_marker("redis62")
    if wanted and "redis_server" in metafunc.fixturenames:
        metafunc.parametrize("redis_server", [REDIS, REDIS_62], indirect=True)


# --- servers -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[RedisServers]:
    """The session's Redis servers by kind; most tests want :func:`redis_server`."""
    servers = RedisServers()
    yield servers
    servers.close()


@pytest.fixture
def redis_server(redis_servers: RedisServers, request: pytest.FixtureRequest) -> EmbeddedRedis:
    """An empty Redis of our own: ``.url`` (socket), ``.broker_url``, ``.tcp_url``, ``.pid``.

    With ``@pytest.mark.redis62`` the test runs a second time, on Redis 6.2.
    """
    server = redis_servers.get(getattr(request, "param", REDIS))
    wipe(server)
    return server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """``redis_server`` by TCP, which redis-py and kombu spell alike."""
    return redis_server.tcp_url


@pytest.fixture
def new_redis(redis_servers: RedisServers) -> Iterator[Callable[..., EmbeddedRedis]]:
    """Start a further Redis that the test may kill: ``new_redis(kind="redis", *options)``."""
    started: list[EmbeddedRedis] = []

    def start(kind: str = REDIS, *options: str) -> EmbeddedRedis:
        started.append(redis_servers.new(kind, *options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def sql_databases() -> Iterator[SQLDatabases]:
    """This process' databases by server; most tests want :func:`sql_url`."""
    databases = SQLDatabases()
    yield databases
    databases.close()


@pytest.fixture(params=KINDS)
def sql_url(request: pytest.FixtureRequest, sql_databases: SQLDatabases, tmp_path: Path) -> str:
    """A database of our own; the test runs on each kind."""
    kind: str = request.param
    return f"sqlite:///{tmp_path}/audit.db" if kind == "sqlite" else sql_databases.url(kind)


@pytest.fixture
def database(sql_url: str) -> Iterator[Database]:
    """The audit database at ``sql_url``, without tables, before and after."""
    with emptied(sql_url) as database:
        yield database


@pytest.fixture
def audit(sql_url: str) -> Iterator[Database]:
    """The audit database at ``sql_url``, with tables and without rows; quicker to be had."""
    with migrated(sql_url) as database:
        yield database


@pytest.fixture(scope="session")
def rabbitmq_node() -> Iterator[OwnRabbitMQ]:
    """The session's RabbitMQ; most tests want :func:`rabbitmq`."""
    node = OwnRabbitMQ()
    yield node
    node.close()


@pytest.fixture
def rabbitmq(rabbitmq_node: OwnRabbitMQ) -> Iterator[OwnRabbitMQ]:
    """A RabbitMQ of our own, which the test may kill, stop and alarm: whole again afterwards.

    What is in it is not removed: tests name their queues anew.
    """
    yield rabbitmq_node
    rabbitmq_node.mend()


@pytest.fixture
def rabbitmq_url(rabbitmq: OwnRabbitMQ) -> str:
    return rabbitmq.url


# --- processes ---------------------------------------------------------------------------


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """``wait_until(predicate, timeout=10.0, what="")``: its first true answer."""
    return processes.wait_until


@pytest.fixture
def harness(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., ProcessHarness]]:
    """Make harnesses: ``harness(app, path=(…), env={…})``; logs are shown when the test fails."""
    made: list[ProcessHarness] = []

    def make(app: str, **options: Any) -> ProcessHarness:
        folder = tmp_path / f"processes{len(made)}"
        folder.mkdir()
        made.append(ProcessHarness(folder, app, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
        print(one)  # captured: pytest shows it beside a failure


# --- nothing is left behind --------------------------------------------------------------


@pytest.fixture
def known_keys() -> tuple[str, ...]:
    """Glob patterns of the Redis keys that a test may leave; override to narrow or widen."""
    return (
        "*delay*",
        # kombu's transport and Celery's result backend
        "_kombu.*",
        "unacked*",
        "celery",
        "celery-task-meta-*",
        "celery-taskset-meta-*",
        "*.celery.pidbox",
        "chord-*",
    )


@pytest.fixture(autouse=True)
def no_unknown_key_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "redis_server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("redis_server")
    known = request.getfixturevalue("known_keys")
    yield
    if server.pid is not None:
        assert unknown_keys(server, known) == []


# --- what a verb prints is what its schema says ------------------------------------------


@pytest.fixture(autouse=True)
def documents_fit_their_schemas(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each ``celery delay … --json`` that a test runs in its own process."""
    with watched(monkeypatch) as wrong:
        yield wrong
    assert wrong == []


# --- what ran, and what did not ----------------------------------------------------------

_ran: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and not report.skipped:
        _ran["all"] += 1
        _ran.update(FOLDERS & set(report.keywords))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _proves_nothing(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    missing: Counter[str] = Counter()
    skipped = terminalreporter.stats.get("skipped", [])
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(MISSING):
            missing[reason] += 1
    total = _ran["all"] + len(skipped)
    if not total:
        return
    terminalreporter.section("what ran")
    folders = ", ".join(f"{_ran[name]} {name}" for name in sorted(FOLDERS) if _ran[name])
    share = 100 * _ran["all"] / total
    terminalreporter.line(
        f"{_ran['all']} of {total} tests ran ({share:.0f} %): {folders or 'other'}"
    )
    for reason, count in missing.most_common():
        terminalreporter.line(f"{count} could not run: {reason}")
    if _proves_nothing(config):
        terminalreporter.line("no integration test ran: this run proves nothing", red=True)


def _proves_nothing(config: pytest.Config) -> bool:
    """Whether all tests were asked for, and yet no integration test ran."""
    chosen = config.args_source is pytest.Config.ArgsSource.ARGS or any(
        config.getoption(name) for name in ("keyword", "markexpr", "collectonly", "lf", "stepwise")
    )
    return not chosen and not _ran["integration"]
