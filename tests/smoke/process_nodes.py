"""Nodes as processes, for where no Docker daemon answers.

pytest-celery's containers are wrappers over what docker-py calls a container.  A
:class:`ProcessContainer` is such a thing over a process, so the wrappers, and all of
pytest-celery above them, are the real ones.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pytest_celery import CeleryWorkerContainer, RedisContainer

import celery_delay
from celery_delay.embedded import locate
from celery_delay.exceptions import StoreUnavailable
from tests.processes import CeleryProcess, wait_until
from tests.servers import unavailable
from tests.smoke.nodes import CeleryBeatContainer


class ProcessContainer:
    """A process in a folder of its own, in the terms of docker-py.

    Arguments:
        command: as in a container, where ``python`` and ``celery`` are on the path.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.id = uuid4().hex
        self.name = name
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._env = env
        # in a container the host's name tells the nodes apart
        words = [one.replace("%h", self.id[:12]) for one in command]
        self._process = CeleryProcess(name, _here(words), env, folder).start()
        # docker-py shows where the container is; ours has no network of its own
        self.attrs: dict[str, Any] = {"NetworkSettings": {"Networks": {}, "Ports": {}}}

    @property
    def status(self) -> str:
        """``running`` or ``exited``."""
        return "running" if self._process.is_running else "exited"

    def reload(self) -> None:
        """Nothing: the status is always fresh."""

    def logs(self) -> bytes:
        """All output of all runs."""
        return self._process.output().encode()

    def kill(self, signal_name: str | int | None = None) -> None:
        """Send a signal; SIGKILL goes to the whole group, as it takes a whole container."""
        number = signal.Signals[signal_name] if isinstance(signal_name, str) else signal_name
        number = signal.Signals(number or signal.SIGKILL)
        if number is signal.SIGKILL:
            self._process.kill(group=True)
        else:
            self._process.signal(number)

    def restart(self, timeout: float = 10) -> None:
        """SIGTERM, SIGKILL after *timeout*, and start again."""
        if self._process.is_running:
            self._process.signal(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                self._process.wait(timeout)
            self._process.end()
        self._process.start()

    def exec_run(self, command: str) -> tuple[int, bytes]:
        """Run a command beside the process; its exit code and output."""
        done = subprocess.run(
            _here(shlex.split(command)),
            cwd=self._folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    def remove(self) -> None:
        """End it for good."""
        self._process.end()


class ProcessRedis(RedisContainer):
    """Redis where it listens on a port of this machine."""

    def __init__(self, process: ProcessContainer, port: int) -> None:
        super().__init__(process)
        self._port = port

    port = property(lambda self: self._port)
    hostname = property(lambda self: "localhost")
    url = property(lambda self: self.host_url)


def _here(command: list[str]) -> list[str]:
    given = {"python": [sys.executable], "celery": [sys.executable, "-m", "celery"]}
    return [*given.get(command[0], [command[0]]), *command[1:]]


@pytest.fixture
def process_folder(tmp_path: Path, default_worker_initial_content: dict[str, bytes]) -> Path:
    """What the volume is to containers: pytest-celery's content of the nodes."""
    folder = tmp_path / "app"
    for name, content in default_worker_initial_content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def process_env(
    process_folder: Path, tmp_path: Path, default_worker_env: dict[str, str]
) -> dict[str, str]:
    """A node's environment: pytest-celery's, and the celery_delay of this process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = (process_folder, Path(celery_delay.__file__).parents[1])
    return {
        **inherited,
        **default_worker_env,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "C_FORCE_ROOT": "1",
        "SMOKE_EFFECTS": str(tmp_path / "effects.log"),
    }


@contextlib.contextmanager
def _process(name: str, command: list[str], env: Any, folder: Path) -> Iterator[ProcessContainer]:
    process = ProcessContainer(name, command, dict(env), folder)
    try:
        yield process
    finally:
        process.remove()
        print(process._process)  # captured: pytest shows it beside a failure


@contextlib.contextmanager
def _redis(name: str, command: list[str], folder: Path) -> Iterator[ProcessRedis]:
    try:
        server = str(locate({"PATH": os.environ.get("PATH", "")}))
    except StoreUnavailable as exc:
        unavailable("redis", str(exc))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [server, *command[1:], "--port", str(port), "--bind", "127.0.0.1"]
    with _process(name, words, os.environ, folder) as process:
        redis = ProcessRedis(process, port)
        wait_until(redis.ready, what=name)
        yield redis


@pytest.fixture
def default_redis_broker(
    tmp_path: Path, default_redis_broker_command: list[str]
) -> Iterator[RedisContainer]:
    with _redis("broker", default_redis_broker_command, tmp_path / "broker") as redis:
        yield redis


@pytest.fixture
def default_redis_backend(
    tmp_path: Path, default_redis_backend_command: list[str]
) -> Iterator[RedisContainer]:
    with _redis("backend", default_redis_backend_command, tmp_path / "backend") as redis:
        yield redis


@pytest.fixture
def default_worker_container(
    process_folder: Path, process_env: dict[str, str], default_worker_command: list[str]
) -> Iterator[CeleryWorkerContainer]:
    with _process("worker", default_worker_command, process_env, process_folder) as process:
        worker = CeleryWorkerContainer(process)
        wait_until(worker.ready, 60, "the worker")
        yield worker


@pytest.fixture
def beat_container(
    process_folder: Path, process_env: dict[str, str]
) -> Iterator[CeleryBeatContainer]:
    command = CeleryBeatContainer.command()
    with _process("beat", command, process_env, process_folder) as process:
        yield CeleryBeatContainer(process)


@pytest.fixture
def second_beat_container(
    process_folder: Path, process_env: dict[str, str]
) -> Iterator[CeleryBeatContainer]:
    command = CeleryBeatContainer.command()
    with _process("second-beat", command, process_env, process_folder) as process:
        yield CeleryBeatContainer(process)
