"""A shard of the store as tests use it: clocks that they set, links that lose answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from celery import Celery
from redis.exceptions import NoScriptError

from celery_delay.domain.clock import SystemClock
from celery_delay.domain.entries import Addition, Due, EntryId, Template
from celery_delay.domain.settings import Settings
from celery_delay.store import scripts
from celery_delay.store.connection import AnswerLost, Link, Links
from celery_delay.store.keys import ShardKeys
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore
from celery_delay.store.wire import Opening

__all__ = [
    "PREFIX",
    "SETTINGS",
    "FaultyLinks",
    "SetClock",
    "addition",
    "lead",
    "park",
    "shape",
    "shard",
    "to_links",
]

PREFIX = "test-delay:"
SETTINGS = Settings(database_url="sqlite:////nowhere", redis_timeout=1.0)


class SetClock:
    """A clock that stands still but for :meth:`sleep`; ``asleep`` is called for each."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.asleep: Callable[[float], None] = lambda seconds: None

    def wall(self) -> float:
        return self.now

    def boot(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.asleep(seconds)


class FaultyLinks(Links):
    """Links whose scripts' answers can get lost: ``plan`` has a word for each call to come.

    ``ok``; ``answer``: it runs, and its answer is lost; ``request``: it never runs.  After
    the plan's end all is ``ok``.  ``ran`` is called with the command and the answer of each
    script that the server has run.
    """

    def __init__(self, like: Links) -> None:
        super().__init__(like._class, like._options, like._options["socket_timeout"])
        self.plan: list[str] = []
        self.lost: list[tuple[Any, ...]] = []
        self.ran: Callable[[Sequence[Any], Any], None] = lambda command, answer: None

    def link(self) -> Link:
        return _FaultyLink(self._class(**self._options), self)


class _FaultyLink(Link):
    def __init__(self, connection: Any, links: FaultyLinks) -> None:
        super().__init__(connection)
        self._links = links

    def call(self, *command: object) -> Any:
        if isinstance(command[0], Opening):
            command = (*command[0].words, *command[1:])
        if command[0] not in ("EVALSHA", "EVAL"):
            return super().call(*command)
        fault = self._links.plan.pop(0) if self._links.plan else "ok"
        if fault == "request":
            self._links.lost.append(command)
            raise AnswerLost("the request was lost")
        try:
            answer = super().call(*command)
        except NoScriptError:
            self._links.plan.insert(0, fault)  # the EVAL that follows is the same call
            raise
        self._links.ran(command, answer)
        if fault == "answer":
            raise AnswerLost("the answer was lost")
        return answer


def to_links(url: str, timeout: float = 1.0) -> Links:
    """Links to a server by its URL."""
    return Links.from_url(url, timeout)


def shard(where: Links | str, now: Callable[[], int] | None = None, **options: Any) -> RedisStore:
    """A store on *where*; ``clock``, ``prefix`` and any setting can be given."""
    links = to_links(where) if isinstance(where, str) else where
    clock = options.pop("clock", None) or SystemClock()
    keys = ShardKeys(options.pop("prefix", PREFIX), 0)
    return RedisStore(links, keys, replace(SETTINGS, **options), clock, now)


def lead(store: RedisStore, holder: str = "me") -> int:
    """Take the lease and name the history; returns the term."""
    lease = RedisLease(store._links.link(), store.keys, holder)
    try:
        seen = lease.elect(seen=None, may_take=False)
        if seen.holder != holder:
            seen = lease.elect(seen=seen, may_take=True)
    finally:
        lease.close()
    assert store.begin_epoch(term=seen.term, known_epoch=0)
    return seen.term


def shape(queue: str = "delay-queue", database: int = 0, body: str = "", **more: Any) -> str:
    """The text of a template; its messages have the entry's id, run, eta, epoch and a value."""
    text = '{"id":"\1i","run":\1r,"eta":\1d,"epoch":\1n,"headers":{},"value":\1A,"body":"%s"}'
    return Template(
        database,
        queue,
        more.get("task", "shop.pay"),
        more.get("queue_name", queue),
        more.get("expires_ms", 0),
        more.get("expiring", ()),
        text % body,
    ).encode()


def addition(task_id: str, delay_ms: int = 0, **options: Any) -> Addition:
    """An addition; ``at_ms`` for an instant instead of a delay, ``run``, ``template``…"""
    at_ms = options.pop("at_ms", None)
    due = Due(delay_ms, True) if at_ms is None else Due(at_ms, False)
    return Addition(
        EntryId(task_id, options.pop("run", 0)),
        due,
        options.pop("template", None) or shape(),
        options.pop("values", ('"v"',)),
        **options,
    )


def run(store: RedisStore, name: str, rest: Sequence[object] = (), /, **values: object) -> Any:
    """Run a script as it is, past the store's methods."""
    with store._link() as link:
        return scripts.run(link, scripts.load(name), store.keys, values, rest)


def park(app: Celery, task_id: str) -> None:
    """As a publisher's refusal leaves an entry."""
    shard = app.delayed._shard(task_id)
    with shard._link() as link:
        record = link.call("HGET", shard.keys.entries, task_id)
        eta = link.call("ZSCORE", shard.keys.schedule, task_id)
        parked = json.dumps(["refused", float(eta), record.decode()])
        link.call("HSET", shard.keys.quarantine, task_id, parked)
        link.call("HDEL", shard.keys.entries, task_id)
        link.call("ZREM", shard.keys.schedule, task_id)
