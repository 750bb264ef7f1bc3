"""What was taken off its queue has never been with a worker and never will, whatever comes between.

A real store under random sequences of adds, moves, beats that publish and may die before they
ack, workers that take, give back and retry, and chases with lost answers.  They are drawn here,
not by Hypothesis: what breaks the promise takes some steps in a row, and many sequences.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
import redis

from celery_delay.domain.entries import Template
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import AlreadyScheduled
from tests.shards import FaultyLinks, SetClock, addition, lead, shard, to_links

TASKS = ["a", "ab"]
QUEUES = ["delay-q", "delay-q\x06\x163"]
NOW = 1_700_000_000_000
RUNS, STEPS = 60, 60
#: What happens, and how often beside the others.
WEIGHTS = {
    "add": 6, "move": 4, "publish": 3, "come_back": 3, "wait": 1,
    "take": 4, "give_back": 2, "retry": 2, "end": 2, "chase": 8,
}  # fmt: skip


def shape(queue: str) -> str:
    """The text of a template like kombu's envelopes, which mentions another task's id."""
    own = '{"task_id":"\1i","run":\1r,"eta_ms":\1d}'
    text = (
        f'{{"body":\1A,"headers":{{"id":"\1i","task":"note","parent_id":"a","celery_delay":{own}}},'
        '"properties":{"delivery_tag":"\1i.\1r.\1n","delivery_info":{}}}'
    )
    return Template(0, queue, "note", queue, 0, (), text).encode()


def whose(message: Any) -> tuple[str, int]:
    return message["headers"]["id"], message["headers"]["celery_delay"]["run"]


class World:
    """The store, its queues, and all who work on them; *draw* decides what they do."""

    def __init__(self, server: EmbeddedRedis, draw: random.Random) -> None:
        self.draw = draw
        self.raw = redis.Redis(unix_socket_path=str(server.socket), decode_responses=True)
        self.raw.flushall()
        self.now = NOW
        #: The messages that workers hold, and how often each run has been with one.
        self.held: list[tuple[str, Any]] = []
        self.had: Counter[tuple[str, int]] = Counter()
        self.promised: set[tuple[str, int]] = set()
        self.chased = ""
        self.told: list[tuple[str, int]] = []
        self.links = FaultyLinks(to_links(server.url))
        self.links.ran = self._ran
        self.store = shard(self.links, lambda: self.now, clock=SetClock(), batch_size=3)
        lead(self.store)

    def run(self) -> None:
        for step in self.draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            getattr(self, step)()
        for _ in range(RUNS):
            self.come_back()
            self.take()

    def close(self) -> None:
        self.store.close()
        self.raw.flushall()
        self.raw.close()

    def _ran(self, command: Sequence[Any], answer: Any) -> None:
        if self.chased and isinstance(answer, list) and answer[0] == b"TAKEN":
            entry = (self.chased, int(answer[2]))
            if answer[3]:
                assert self.had[entry] == 0, f"a worker has had {entry}"
                self.promised.add(entry)
            self.told.append(entry)

    # -- producers and beats ----------------------------------------------------------------

    def add(self, task: str = "", run: int = 0) -> None:
        self.now += 1
        queue = self.draw.choice(QUEUES)
        with suppress(AlreadyScheduled):
            given = addition(task or self.draw.choice(TASKS), run=run, template=shape(queue))
            self.store.add([given])

    def move(self) -> None:
        self.store.move()

    def publish(self) -> None:
        """A beat that believes that no move is possible; it may die at any moment."""
        token = self._random()
        taken = self.store.claim(token=token, limit=3, ttl_ms=1_000, source="schedule").taken
        published = taken[: self.draw.randint(0, 3)]
        for one in published:
            message = json.loads(json.dumps(one.envelope))
            message["properties"]["delivery_tag"] = self._random()
            self.raw.lpush(QUEUES[0], json.dumps(message))
        if self.draw.random() < 0.5:
            self.store.ack(token, [one.entry_id.task_id for one in published])

    def come_back(self) -> None:
        """What was claimed in vain goes back into its schedule, and out by the move."""
        self.now += 1_001
        self.store.rescue()
        self.move()

    def wait(self) -> None:
        self.now += 5_000

    def _random(self) -> str:
        return str(UUID(int=self.draw.getrandbits(128)))

    # -- workers ----------------------------------------------------------------------------

    def take(self) -> None:
        text = self.raw.rpop(self.draw.choice(QUEUES))
        if text is not None:
            message = json.loads(text)
            self.held.append((self.draw.choice(QUEUES), message))
            self.had[whose(message)] += 1
            assert whose(message) not in self.promised, f"{whose(message)} was never to run"

    def give_back(self) -> None:
        """As kombu does it."""
        if self.held:
            queue, message = self.held.pop()
            message["headers"]["redelivered"] = True
            message["properties"]["delivery_info"]["redelivered"] = True
            push = self.draw.choice([self.raw.lpush, self.raw.rpush])
            push(queue, json.dumps(message))

    def retry(self) -> None:
        """A run sends the next one, and is over.

        One that came again and retried again would send the same run once more, also after a
        plain cancel of it: that is between Celery and its broker.
        """
        if self.held:
            task, run = whose(self.held.pop()[1])
            self.add(task, run + 1)

    def end(self) -> None:
        if self.held:
            self.held.pop()

    # -- callers ----------------------------------------------------------------------------

    def chase(self) -> None:
        task = self.chased = self.draw.choice(TASKS)
        runs = [run for one, run in self.promised | self.had.keys() if one == task]
        run = max(runs) if runs and self.draw.random() < 0.3 else 0
        places = [(0, one) for one in QUEUES] if self.draw.random() < 0.5 else []
        self.links.plan = self.draw.choices(["ok", "answer", "request"], [8, 1, 1], k=2)
        self.told = []
        taken = self.store.take_off(task, run=run, queues=places)
        self.links.plan, self.chased = [], ""
        if taken.is_taken:
            assert self.told
            assert set(self.told) <= self.promised
            assert taken.entry is None or taken.entry.entry_id in self.promised


@pytest.mark.redis62
@pytest.mark.timeout(300)
def test_what_was_taken_off_has_never_run_and_never_does(redis_server: EmbeddedRedis) -> None:
    promised = consumed = 0
    for seed in range(RUNS):
        world = World(redis_server, random.Random(seed))
        try:
            world.run()
        except AssertionError as exc:
            raise AssertionError(f"with the seed {seed}: {exc}") from exc
        finally:
            world.close()
        promised += len(world.promised)
        consumed += len(world.had)

    # sequences in which little happens prove little
    assert promised > RUNS
    assert consumed > RUNS
