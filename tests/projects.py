"""What tests do with an app of their own: make it, hand off what is due, look at its queues."""

from __future__ import annotations

import json
from typing import Any

from celery import Celery

from celery_delay import CeleryDelay
from celery_delay.broker.publisher import BrokerPublisher
from celery_delay.services.handoff import Handoff
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore

__all__ = ["close", "hand_off", "make_app", "messages", "publish"]


def make_app(url: str, **conf: Any) -> Celery:
    """An app with celery-delay on the Redis at *url*, not the current one."""
    backend = conf.pop("result_backend", url)
    app = Celery("project", broker=url, backend=backend, set_as_current=False)
    app.conf.update(conf)
    CeleryDelay(app)
    return app


def close(app: Celery) -> None:
    """Close *app* and what it has connected to."""
    made = vars(app.delayed)
    for shard in made.get("shards", ()):
        shard.close()
    if "audit_log" in made:
        made["audit_log"].close()
    app.close()


def hand_off(app: Celery, until: Any = None) -> int:
    """Hand off all that is due, as a leading beat does; how many entries left.

    Arguments:
        until: the store's clock is taken to stand at this result's eta (or at this instant
            in ms); ``None``: at Redis' own time.
    """
    due = getattr(until, "_eta_ms", until)
    moved = 0
    for shard, keys in zip(app.delayed.shards, app.delayed.shard_keys, strict=True):
        links = app.delayed.links()
        lease = RedisLease(links.link(), keys, "test")
        try:
            seen = lease.elect(seen=None, may_take=False)
            if seen.holder != "test":
                seen = lease.elect(seen=seen, may_take=True)
            store = RedisStore(
                links,
                keys,
                app.delayed.settings,
                app.delayed.clock,
                test_now=(lambda: max(due, shard.now_ms())) if due is not None else None,  # noqa: B023
            )
            store.begin_epoch(term=seen.term, known_epoch=0)
            answer = store.move()
            assert not answer.failure, answer
            moved += answer.moved
        finally:
            lease.close()
            links.close()
    return moved


def publish(app: Celery, until: Any = None, *, publisher: Any = None) -> None:
    """Publish all that is due, as a leading beat does where no move reaches the broker.

    Arguments:
        until: as for :func:`hand_off`.
        publisher: to be used instead of a new one, and not closed.
    """
    delayed = app.delayed
    due = getattr(until, "_eta_ms", until)
    ours = publisher or BrokerPublisher(app, delayed.settings, delayed.clock)
    for shard, keys in zip(delayed.shards, delayed.shard_keys, strict=True):
        links = delayed.links()
        lease = RedisLease(links.link(), keys, "test")
        try:
            seen = lease.elect(seen=None, may_take=False)
            if seen.holder != "test":
                seen = lease.elect(seen=seen, may_take=True)
            store = RedisStore(
                links,
                keys,
                delayed.settings,
                delayed.clock,
                test_now=(lambda: max(due, shard.now_ms())) if due is not None else None,  # noqa: B023
            )
            store.begin_epoch(term=seen.term, known_epoch=0)
            store.merge_back(term=seen.term)
            Handoff(
                store, ours, delayed.settings, delayed.clock, ("outbound", "schedule")
            ).run_once(lambda: seen.term)  # noqa: B023
        finally:
            lease.close()
            links.close()
    if publisher is None:
        ours.close()


def messages(app: Celery, queue: str = "celery") -> list[dict[str, Any]]:
    """The messages on a queue, the oldest first; they stay there."""
    with app.connection_for_read() as connection:
        client = connection.channel().client
        return [json.loads(text) for text in reversed(client.lrange(queue, 0, -1))]
