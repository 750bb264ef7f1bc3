"""From the message that Celery built to the entry that is stored.

kombu hands over its final Redis commands (its publish-batch hook).  What differs from task to
task in its envelope becomes the entry's values, the rest becomes its template (``shape.py``).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kombu.utils.json import dumps

from celery_delay.domain.entries import PUBLISHED, Addition, Due, EntryId
from celery_delay.domain.labels import NO_LABELS, Labels
from celery_delay.domain.queues import queue_of
from celery_delay.domain.settings import Settings
from celery_delay.message.expiry import expiry_ms
from celery_delay.message.shape import HEADER, Place, Shape, shape_of
from celery_delay.telemetry.headers import CONTEXT

__all__ = [
    "HEADER",
    "Commands",
    "Shape",
    "Story",
    "check_size",
    "check_task_id",
    "moved",
    "published",
]


class Commands:
    """Stands in for kombu's publish batch and keeps what would be sent to Redis."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []

    def add(self, name: str, *args: Any) -> None:
        """One Redis command; kombu calls this."""
        self.taken.append((name, *args))

    @property
    def is_one_push(self) -> bool:
        """Whether the message goes to exactly one list, so that a move can put it there."""
        names = [one[0] for one in self.taken]
        return names.count("lpush") == 1 and set(names) <= {"lpush", "pexpire"}


class Story(NamedTuple):
    """What an entry needs to know beside its message.

    ``run`` 0 lets the store draw it; ``chord`` is the chord that the task is a part of, JSON-able,
    or ``None``; ``shown`` makes of the message's headers what the audit is told of the arguments;
    ``span`` is the context of the present span, for a message without one.
    """

    due: Due
    run: int
    chord: Any
    labels: Labels = NO_LABELS
    shown: Callable[[Mapping[str, Any]], tuple[str | None, str | None]] = lambda _: (None, None)
    span: Mapping[str, str] = {}

    def spanned(self, envelope: dict[str, Any]) -> dict[str, Any]:
        """*envelope*, of which a span is told."""
        if self.span and CONTEXT[0] not in envelope["headers"]:
            envelope["headers"] |= self.span
        return envelope


def moved(
    commands: Commands, story: Story, *, database: int, prefix: str
) -> tuple[Addition, Shape]:
    """The entry for the one message in *commands*, for the move to push.

    Arguments:
        database: the DB in which the broker's queues live.
        prefix: the broker's ``global_keyprefix``, which kombu adds later than here.

    Raises:
        TypeError, ValueError: the task id is none that can be stored.
    """
    [push] = [one for one in commands.taken if one[0] == "lpush"]
    expiries = [one for one in commands.taken if one[0] == "pexpire"]
    _, queue, text = push
    envelope = story.spanned(json.loads(text))
    place = Place(
        database,
        prefix + queue,
        queue_of(queue),
        expiries[0][2] if expiries else 0,
        tuple(prefix + one[1] for one in expiries),
    )
    shape = shape_of(envelope, place, labelled=bool(any(story.labels)))
    return _addition(envelope, shape, queue, story), shape


def published(
    message: Mapping[str, Any], story: Story, *, exchange: str, routing_key: str, queue: str | None
) -> tuple[Addition, Shape]:
    """The entry for *message*, for a beat to publish.

    Arguments:
        message: as kombu's virtual transports have it, its body not encoded yet.
        queue: the queue's name, where it is known; it is declared before publishing.

    Raises:
        TypeError, ValueError: the task id is none that can be stored, or a header or property
            is not JSON.
    """
    body = message["body"]
    raw = body if isinstance(body, bytes) else str(body).encode()
    properties = {
        **message["properties"],
        "body_encoding": "base64",
        "delivery_tag": "",
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
    }
    whole = {**message, "body": b64encode(raw).decode(), "properties": properties, "queue": queue}
    envelope = story.spanned(json.loads(dumps(whole)))
    shown = queue or routing_key or exchange
    place = Place(PUBLISHED, shown, shown)
    shape = shape_of(envelope, place, labelled=bool(any(story.labels)))
    return _addition(envelope, shape, shown, story), shape


def _addition(envelope: Mapping[str, Any], shape: Shape, queue: str, story: Story) -> Addition:
    headers = envelope["headers"]
    check_task_id(headers["id"])
    if "\n" in headers["task"]:
        raise ValueError(f"the task's name {headers['task']!r} cannot be stored")
    return Addition(
        EntryId(headers["id"], story.run),
        story.due,
        shape.template,
        shape.values(envelope),
        expiry_ms(headers),
        story_of(headers, queue, story),
        labels=story.labels,
    )


def check_task_id(task_id: Any) -> None:
    """Refuse ids that the store, SQL or a log line could not hold.

    Raises:
        TypeError, ValueError: *task_id* is no text of 1 to 255 printable characters.
    """
    if task_id is None:
        return
    if not isinstance(task_id, str):
        raise TypeError(f"task_id must be a text, not {task_id!r}")
    if not task_id or len(task_id) > 255 or not task_id.isprintable():
        raise ValueError(
            f"task_id={task_id!r} must have 1 to 255 characters, and no control characters"
        )


def check_size(size: int, settings: Settings) -> None:
    """Refuse a message whose body has more than ``delay_max_payload`` bytes.

    Raises:
        ValueError: it has.
    """
    if size > settings.max_payload:
        raise ValueError(
            f"the message's body has {size} bytes, more than delay_max_payload"
            f" ({settings.max_payload}): pass a reference instead"
        )


def story_of(headers: Mapping[str, Any], queue: str, known: Story) -> str:
    """What the audit keeps of a message, as JSON without empty parts."""
    args, kwargs = known.shown(headers)
    story = {
        "name": headers["task"],
        "queue": queue,
        "args": args,
        "kwargs": kwargs,
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "group": headers.get("group"),
        "group_index": headers.get("group_index"),
        "chord": known.chord,
        "ignore_result": headers.get("ignore_result"),
        "retries": headers.get("retries"),
        "periodic": headers.get("periodic_task_name"),
        "namespace": known.labels.namespace,
        "tags": known.labels.tags or None,
        "unique": known.labels.unique,
    }
    return json.dumps({name: value for name, value in story.items() if value not in (None, False)})
