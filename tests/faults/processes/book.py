"""The ledger's pages: append-only files of JSON lines, outside the systems under test.

One write per line with O_APPEND, so that a page survives whatever happens to its writer and
several processes may share one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import redis

T = TypeVar("T")


class Page:
    """One file, open for appending."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **line: Any) -> None:
        """Append one line."""
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a page; none if it was never opened."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def client(url: str) -> redis.Redis:
    """A connection that nobody under test uses."""
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=None)


def persist(attempt: Callable[[], T], patience: float = 60.0) -> T:
    """Repeat *attempt* while Redis is away; only for what may safely be repeated."""
    give_up = time.monotonic() + patience
    while True:
        try:
            return attempt()
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def redis_ms(connection: redis.Redis) -> int:
    """Redis' own clock, in ms, rounded down."""
    seconds, micros = persist(connection.time)
    return int(seconds) * 1000 + int(micros) // 1000
