"""From the message that Celery built to the entry that is stored.

kombu hands over its final Redis commands (its publish-batch hook); nothing about the
envelope's layout is written down here but the names of those fields that differ from task
to task.  They become the entry's values, the rest becomes its template.
"""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from string import ascii_uppercase
from typing import Any, NamedTuple
from uuid import uuid4

from kombu.utils.json import dumps

from celery_delay.clock import Clock, to_ms
from celery_delay.entries import PUBLISHED, SLOT, Addition, Due, EntryId, Template
from celery_delay.settings import Settings

__all__ = [
    "HEADER",
    "Commands",
    "Shape",
    "Story",
    "check_size",
    "check_task_id",
    "expiry_ms",
    "moved",
    "published",
    "shape_of",
    "warn_if_dead_on_arrival",
    "warn_if_expired",
]

logger = logging.getLogger(__name__)

#: Name of our message header: a mapping of task_id, run and eta_ms.
HEADER = "celery_delay"

#: Stands for a slot until the JSON text is made; no user data can contain it.
_MARK = uuid4().hex

#: What differs from message to message, as paths into the envelope.
_VARIABLE = (
    ("body",),
    ("headers", "argsrepr"),
    ("headers", "kwargsrepr"),
    ("headers", "root_id"),
    ("headers", "parent_id"),
    ("headers", "group"),
    ("headers", "group_index"),
    ("headers", "expires"),
    ("headers", "eta"),
    ("headers", "origin"),
    ("properties", "correlation_id"),
    ("properties", "reply_to"),
    ("properties", "expiration"),
)


class Shape(NamedTuple):
    """A template's text, and which of the envelope's fields its values are, in order."""

    template: str
    paths: tuple[tuple[str, ...], ...]
    plain_id: bool


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
    or ``None``.
    """

    due: Due
    run: int
    chord: Any


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
    envelope = json.loads(text)
    shape = shape_of(
        envelope,
        database=database,
        queue=prefix + queue,
        expires_ms=expiries[0][2] if expiries else 0,
        expiring=tuple(prefix + one[1] for one in expiries),
    )
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
    envelope = json.loads(dumps(whole))
    shown = queue or routing_key or exchange
    shape = shape_of(envelope, database=PUBLISHED, queue=shown, expires_ms=0, expiring=())
    return _addition(envelope, shape, shown, story), shape


def _addition(envelope: Mapping[str, Any], shape: Shape, queue: str, story: Story) -> Addition:
    headers = envelope["headers"]
    check_task_id(headers["id"])
    return Addition(
        EntryId(headers["id"], story.run),
        story.due,
        shape.template,
        tuple(json.dumps(_at(envelope, path)) for path in shape.paths),
        expiry_ms(headers),
        story_of(headers, queue, story.chord),
    )


def expiry_ms(headers: Mapping[str, Any]) -> int:
    """The instant, in ms, after which a message's task must not run; 0 for never."""
    expires = headers.get("expires")
    return to_ms(datetime.fromisoformat(expires)) if expires else 0


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


def warn_if_dead_on_arrival(addition: Addition, clock: Clock) -> None:
    """Log that *addition* expires before it is due."""
    due_ms = addition.due.ms + (clock.wall() * 1000 if addition.due.is_delay else 0)
    warn_if_expired(addition.entry_id.task_id, addition.expires_ms, due_ms)


def warn_if_expired(task_id: str, expires_ms: int, due_ms: float) -> None:
    """Log that a task expires before it is due; *expires_ms* is 0 for never."""
    if 0 < expires_ms <= due_ms:
        logger.warning(
            "%s expires before it is due: `expires` counts from the call, not from the eta",
            task_id,
            extra={"event": "expires_before_eta", "task_id": task_id},
        )


def story_of(headers: Mapping[str, Any], queue: str, chord: Any) -> str:
    """What the audit keeps of a message, as JSON without empty parts."""
    story = {
        "name": headers["task"],
        "queue": queue,
        "args": headers.get("argsrepr"),
        "kwargs": headers.get("kwargsrepr"),
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "group": headers.get("group"),
        "group_index": headers.get("group_index"),
        "chord": chord,
        "ignore_result": headers.get("ignore_result"),
        "retries": headers.get("retries"),
        "periodic": headers.get("periodic_task_name"),
    }
    return json.dumps({name: value for name, value in story.items() if value not in (None, False)})


def shape_of(
    envelope: MutableMapping[str, Any],
    *,
    database: int,
    queue: str,
    expires_ms: int,
    expiring: tuple[str, ...],
) -> Shape:
    """Split *envelope* into its template and the paths of its values."""
    task_id = envelope["headers"]["id"]
    # an id that JSON has to escape cannot be filled in by Lua, which knows it unescaped
    plain_id = json.dumps(task_id)[1:-1] == task_id
    copy = json.loads(json.dumps(envelope))
    slots: set[str] = set()

    def put(path: tuple[str, ...], slot: str) -> None:
        holder = copy
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = f"{_MARK}{slot}"
        slots.add(slot)

    paths: list[tuple[str, ...]] = []
    for path in (("headers", "id"), *_VARIABLE):
        value = _at(envelope, path)
        if value is None:
            continue
        if plain_id and value == task_id:
            put(path, "i")
        else:
            put(path, ascii_uppercase[len(paths)])
            paths.append(path)
    if plain_id:
        # one push of an entry is one delivery: run and epoch make the tag new each time
        put(("properties", "delivery_tag"), "tag")
    else:
        put(("properties", "delivery_tag"), ascii_uppercase[len(paths)])
        paths.append(("properties", "delivery_tag"))
    own = copy["headers"][HEADER] = {"task_id": None, "run": f"{_MARK}r", "eta_ms": f"{_MARK}d"}
    own["task_id"] = copy["headers"]["id"]
    text = json.dumps(copy)
    filled = {"i": f'"{SLOT}i"', "tag": f'"{SLOT}i.{SLOT}r.{SLOT}n"'}
    for slot in {*slots, "r", "d"}:
        text = text.replace(f'"{_MARK}{slot}"', filled.get(slot, SLOT + slot))
    template = Template(database, queue, expires_ms, expiring, text)
    return Shape(template.encode(), tuple(paths), plain_id)


def _at(envelope: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = envelope
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
