"""A shard on a real Redis, with what its tests look at; and which answers they have shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, TypeVar

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from tests.shards import FaultyLinks, SetClock, lead, run, shard, to_links

__all__ = ["LUA", "NOW", "TOMBSTONE", "WINDOW", "Bench", "answers", "bench", "make", "shown"]

NOW = 1_700_000_000_000
WINDOW, TOMBSTONE = 3_000, 4_000
LUA = files("celery_delay.store").joinpath("lua")

Test = TypeVar("Test", bound=Callable[..., None])
shown: set[tuple[str, str]] = set()


def answers(script: str, *alternatives: str) -> Callable[[Test], Test]:
    shown.update((script, one) for one in alternatives)
    return lambda test: test


class Bench:
    """A store whose clock is set, a leader in it, and a look at Redis itself."""

    def __init__(self, server: EmbeddedRedis, **options: Any) -> None:
        self.now = NOW
        self.raw = redis.Redis(unix_socket_path=str(server.socket), decode_responses=True)
        self.clock = SetClock()
        self.links = FaultyLinks(to_links(server.url))
        self.store = shard(self.links, lambda: self.now, clock=self.clock, **options)
        self.keys = self.store.keys
        self.term = lead(self.store)
        self.epoch = self.store.leader()[2]

    def script(self, name: str, /, *rest: object, **values: object) -> Any:
        given = {"now": self.now, "journal_max": 1_000, "tombstone_ms": TOMBSTONE, **values}
        wanted = _arguments(name)
        return run(self.store, name, rest, **{k: v for k, v in given.items() if k in wanted})

    def queue(self, key: str = "delay-queue") -> list[dict[str, Any]]:
        """What is on the queue, the message that a worker takes first in front."""
        return [json.loads(one) for one in reversed(self.raw.lrange(key, 0, -1))]

    def journal(self) -> list[tuple[str, str, int]]:
        """(state, task id, run) of each event."""
        read = self.store.read_journal("0", 100)
        return [(one.state, *one.entry_id) for _, events in read for one in events]

    def states(self) -> list[tuple[str, str]]:
        return [(state, task_id) for state, task_id, _ in self.journal()]


def _arguments(name: str) -> set[str]:
    header = re.search(r"^-- ARGV: (.*)$", LUA.joinpath(f"{name}.lua").read_text(), re.MULTILINE)
    assert header
    return {one.split(":")[0] for one in header[1].split()}


@pytest.fixture
def make(redis_server: EmbeddedRedis) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(redis_server, **options))
        return made[-1]

    yield make
    for one in made:
        one.store.close()
        one.raw.close()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()
