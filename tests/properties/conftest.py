"""What the properties of messages share: a Redis, and a process with stock Celery beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_delay.embedded import EmbeddedRedis
from tests.servers import RedisServers, wipe
from tests.stock import Stock


@pytest.fixture(scope="module")
def server(redis_servers: RedisServers) -> EmbeddedRedis:
    found = redis_servers.get()
    wipe(found)
    return found


@pytest.fixture(scope="module")
def stock(server: EmbeddedRedis) -> Iterator[Stock]:
    process = Stock(server.tcp_url, 8)
    yield process
    process.close()
