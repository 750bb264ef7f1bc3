"""Whether the move makes what kombu makes: tried out before a beat relies on it.

One message goes each way to a queue of its own, once published by kombu and once scheduled and
moved in a shard of its own, and the two are compared as they lie on the queue.  That finds a
Redis that does not let a script reach the queues' keys, a proxy, a server that is only like
Redis, an ACL that forbids it, and an envelope of kombu's that we do not know.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Due
from celery_delay.domain.ports import StaleEpoch
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import DelayError, OutcomeUnknown, StoreUnavailable
from celery_delay.message.capture import capturing
from celery_delay.message.envelope import HEADER, Commands, Story, moved
from celery_delay.store.connection import AnswerLost, Links
from celery_delay.store.keys import ShardKeys
from celery_delay.store.lease import RedisLease
from celery_delay.store.redis import RedisStore

__all__ = ["difference"]


class _Collect:
    """Stands in for kombu's batch state and only notes the commands of a publish."""

    def __init__(self) -> None:
        self.commands = Commands()

    def publish(self, channel: Any, outgoing: dict[str, Any], **publish: Any) -> None:
        """kombu calls this in place of ``channel.basic_publish``."""
        where = {one: publish[one] for one in ("exchange", "routing_key")}
        channel.basic_publish(outgoing, _publish_batch=self.commands, **where)


def difference(
    app: Any, store: Links, broker: Links, settings: Settings, clock: Clock, space: str
) -> str:
    """In what the two ways differ; "" if they do not.

    Arguments:
        store, broker: connections to the store's DB and to the queues'.
        space: the broker's ``global_keyprefix``.

    Leaves nothing behind; a crash in the middle leaves a few keys with ``probe-`` in their name.

    Raises:
        StoreUnavailable: Redis cannot be reached now.
    """
    name = uuid.uuid4().hex
    queue = f"celery-delay.probe-{name}"
    keys = ShardKeys(f"{settings.key_prefix}probe-{name}:", 0, space)
    try:
        by_kombu, commands = _published(app, queue, broker, space)
        if not commands.is_one_push:
            return "kombu does not push a message onto one list"
        # no transition of the probe is for SQL, and so nothing may wait there
        alone = replace(settings, audit="off", hot_window=0, hot_max=0)
        by_move = _moved(commands, keys, store, broker, alone, clock)
    except StoreUnavailable as exc:
        if "permission" in str(exc):  # that is no state of the world that passes
            return str(exc)
        raise
    except StaleEpoch as exc:
        raise StoreUnavailable("Redis was restarted while the move was tried out") from exc
    except OutcomeUnknown as exc:
        # silence says nothing of the move; and what a beat publishes instead nobody watches
        raise StoreUnavailable(f"Redis was silent while the move was tried out: {exc}") from exc
    except DelayError as exc:
        return str(exc)
    finally:
        _forget(store, keys.all())
        _forget(broker, [space + queue])
    if by_kombu != by_move:
        return f"the move makes {by_move}, and kombu {by_kombu}"
    return ""


def _published(app: Any, queue: str, broker: Links, space: str) -> tuple[Any, Commands]:
    """The message as kombu puts it onto the queue, and the commands that it would use."""
    collect = _Collect()
    with app.connection_for_write() as connection:
        try:
            producer = connection.Producer(connection.channel(), auto_declare=False)
            for collecting in (False, True):
                message: dict[str, Any] = {
                    "body": [[], {}, {}],
                    "routing_key": queue,
                    "exchange": "",
                    "serializer": "json",
                    "headers": {"task": "celery-delay.probe", "id": queue, "expires": None},
                    "correlation_id": queue,
                    "delivery_mode": 2,
                }
                if collecting:
                    with capturing(producer, collect):
                        producer.publish(**message)
                else:
                    producer.publish(**message)
        except (*connection.connection_errors, *connection.channel_errors) as exc:
            raise StoreUnavailable(f"the broker cannot be asked: {exc}") from exc
    return _taken(broker, space + queue), collect.commands


def _moved(
    commands: Commands,
    keys: ShardKeys,
    store: Links,
    broker: Links,
    settings: Settings,
    clock: Clock,
) -> Any:
    """The message as the move puts it onto the queue."""
    prefix = keys.space
    addition, _ = moved(
        commands, Story(Due(0, True), 0, None), database=broker.database, prefix=prefix
    )
    shard = RedisStore(store, keys, settings, clock)
    lease = RedisLease(store.link(), keys, "probe")
    try:
        term = lease.elect(seen=None, may_take=False).term
    finally:
        lease.close()
    shard.begin_epoch(term=term, known_epoch=0)
    shard.add([addition])
    answer = shard.move()
    if answer.moved != 1:
        return answer.failure or "nothing"
    [queue] = [one[1] for one in commands.taken if one[0] == "lpush"]
    return _taken(broker, prefix + queue)


def _taken(broker: Links, key: str) -> Any:
    """The message on the queue, without what differs from message to message."""
    link = broker.take()
    try:
        text = link.call("RPOP", key)
    except AnswerLost as exc:
        raise StoreUnavailable(f"lost the answer of RPOP: {exc}") from exc
    finally:
        broker.give(link)
    envelope = json.loads(text) if text else None
    if isinstance(envelope, Mapping):
        envelope["headers"].pop(HEADER, None)
        envelope["properties"].pop("delivery_tag", None)
    return envelope


def _forget(links: Links, keys: list[str]) -> None:
    link = links.take()
    try:
        link.call("DEL", *keys)
    except (AnswerLost, DelayError):
        pass  # named so that whoever finds it knows what it was
    finally:
        links.give(link)
