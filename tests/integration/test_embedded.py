"""The embedded Redis as a child process: up, down, killed, and its parent killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import StoreUnavailable


@pytest.fixture
def server(new_redis: Callable[..., EmbeddedRedis]) -> EmbeddedRedis:
    return new_redis()


def call(url: str, *command: str) -> Any:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.execute_command(*command)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_it_answers_by_socket_and_by_tcp(server: EmbeddedRedis) -> None:
    assert call(server.url, "SET", "key", "value")
    assert call(server.tcp_url, "GET", "key") == "value"
    assert server.socket.stat().st_mode & 0o777 == 0o700


def test_by_default_there_is_no_tcp_port(server: EmbeddedRedis) -> None:
    with EmbeddedRedis(executable=server.executable) as other:
        assert call(other.url, "CONFIG", "GET", "port")["port"] == "0"


def test_data_outlive_a_kill(server: EmbeddedRedis) -> None:
    call(server.url, "SET", "key", "value")
    server.kill()
    assert server.pid is None
    server.start()
    assert call(server.url, "GET", "key") == "value"


def test_stop_leaves_nothing_and_may_be_repeated(server: EmbeddedRedis) -> None:
    pid, home = server.pid, server.socket.parent
    assert pid
    server.stop()
    server.stop()
    assert not is_alive(pid)
    assert not home.exists()


def test_stop_ends_a_frozen_server(server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = server.pid
    assert pid
    monkeypatch.setattr("celery_delay.embedded._PATIENCE", 0.1)
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not is_alive(pid)


def test_a_given_folder_is_kept(server: EmbeddedRedis, tmp_path: Path) -> None:
    for expected in (None, "value"):
        with EmbeddedRedis(tmp_path, server.executable) as kept:
            assert call(kept.url, "GET", "key") == expected
            call(kept.url, "SET", "key", "value")


def test_a_server_that_does_not_come_up_says_why(server: EmbeddedRedis) -> None:
    broken = EmbeddedRedis(executable=server.executable, options=("--nonsense", "1"))
    with pytest.raises(StoreUnavailable, match="nonsense"):
        broken.start()
    broken.stop()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_it_dies_with_a_killed_parent(
    server: EmbeddedRedis, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    source = (
        "import sys, time; from celery_delay.embedded import EmbeddedRedis\n"
        "server = EmbeddedRedis(executable=sys.argv[1]); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, str(server.executable)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    wait_until(lambda: not is_alive(child), timeout=5)
