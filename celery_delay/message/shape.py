"""An envelope split in two: what differs from message to message, and the literal rest.

The names of the fields that differ are all that is written down of an envelope's layout.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, MutableMapping
from string import ascii_uppercase
from typing import Any, NamedTuple
from uuid import uuid4

from celery_delay.domain.entries import SLOT, Template
from celery_delay.telemetry.headers import CONTEXT, ENQUEUED, SPANS

__all__ = ["EMBED", "HEADER", "TAILS", "Place", "Shape", "at", "shape_of"]

#: Name of our message header: a mapping of task_id, run, eta_ms, and labels if there are any.
HEADER = "celery_delay"

#: Stands for a slot until the JSON text is made.  No user data can contain it.
_MARK = uuid4().hex

#: How the body of a message without callbacks, chain and chord ends.
EMBED = ', {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
#: The same in base64, which has three for one end: by how many bytes of it stand in the last group
#: of three that has something else in it.
TAILS = tuple(b64encode(EMBED[lead:].encode()).decode() for lead in range(3))

_BODY = ("body",)
#: What differs from message to message, as paths into the envelope.
_VARIABLE = (
    _BODY,
    ("headers", "argsrepr"),
    ("headers", "kwargsrepr"),
    ("headers", "root_id"),
    ("headers", "parent_id"),
    ("headers", "group"),
    ("headers", "group_index"),
    ("headers", "expires"),
    ("headers", "eta"),
    ("headers", "origin"),
    *(("headers", one) for one in SPANS),
    ("properties", "correlation_id"),
    ("properties", "reply_to"),
    ("properties", "expiration"),
)


class Shape(NamedTuple):
    """A template's text, and which of the envelope's fields its values are, in order.

    ``tail`` is the end of the body that the template has, "" for none.
    """

    template: str
    paths: tuple[tuple[str, ...], ...]
    plain_id: bool
    tail: str = ""

    def values(self, envelope: Mapping[str, Any]) -> tuple[str, ...]:
        """The values that *envelope* brings, as the slots take them."""
        texts = [json.dumps(at(envelope, path)) for path in self.paths]
        if self.tail:
            place = self.paths.index(_BODY)
            texts[place] = texts[place][: -len(self.tail) - 1]
        return tuple(texts)

    def templates(self) -> tuple[str, ...]:
        """The templates of messages that differ in the body's length, by the tail they have."""
        slot = SLOT + ascii_uppercase[self.paths.index(_BODY)]
        mine = f'{slot}{self.tail}"'
        return tuple(self.template.replace(mine, f'{slot}{one}"') for one in TAILS)


class Place(NamedTuple):
    """Where messages go; see :class:`~celery_delay.domain.entries.Template`."""

    database: int
    key: str
    name: str
    expires_ms: int = 0
    expiring: tuple[str, ...] = ()


def shape_of(envelope: MutableMapping[str, Any], place: Place, *, labelled: bool) -> Shape:
    """Split *envelope* into its template and the paths of its values.

    Arguments:
        labelled: whether the entries have labels, which then travel in our header.
    """
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
    tail = _tail_of(envelope.get("body"))
    for path in (("headers", "id"), *_VARIABLE):
        value = at(envelope, path)
        if value is None:
            continue
        if plain_id and value == task_id:
            put(path, "i")
        else:
            for one in _twins(envelope, path):
                put(one, ascii_uppercase[len(paths)])
            paths.append(path)
    for path in ENQUEUED:
        if at(envelope, path) is not None:
            put(path, "t")
    if plain_id:
        # one push of an entry is one delivery: run and epoch make the tag new each time
        put(("properties", "delivery_tag"), "tag")
    else:
        put(("properties", "delivery_tag"), ascii_uppercase[len(paths)])
        paths.append(("properties", "delivery_tag"))
    copy["headers"][HEADER] = _own_header(copy["headers"], labelled)
    text = _with_slots(json.dumps(copy), {*slots, "r", "d", "l"})
    if tail:
        slot = SLOT + ascii_uppercase[paths.index(_BODY)]
        text = text.replace(f'"body": {slot}', f'"body": {slot}{tail}"', 1)
    template = Template(
        place.database,
        place.key,
        envelope["headers"]["task"],
        place.name,
        place.expires_ms,
        place.expiring,
        text,
    )
    return Shape(template.encode(), tuple(paths), plain_id, tail)


def _tail_of(body: Any) -> str:
    """The end of *body* that its template can have; "" for none."""
    if not isinstance(body, str):
        return ""
    return next((one for one in TAILS if body.endswith(one)), "")


def _own_header(headers: dict[str, Any], labelled: bool) -> dict[str, Any]:
    own = {"task_id": headers["id"], "run": f"{_MARK}r", "eta_ms": f"{_MARK}d"}
    # here they are no parent of the run's span: see tracing.py
    own |= {one: headers.pop(one) for one in CONTEXT if one in headers}
    return {**own, "labels": f"{_MARK}l"} if labelled else own


def _with_slots(text: str, slots: set[str]) -> str:
    filled = {"i": f'"{SLOT}i"', "tag": f'"{SLOT}i.{SLOT}r.{SLOT}n"'}
    for slot in slots:
        text = text.replace(f'"{_MARK}{slot}"', filled.get(slot, SLOT + slot))
    return text


def _twins(envelope: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    """*path*, and where the same is written once more."""
    inner = ("headers", "headers", path[-1])
    again = path[-1] in SPANS and at(envelope, inner) == at(envelope, path)
    return [path, inner] if again else [path]


def at(envelope: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What stands at *path*; ``None`` for nothing."""
    value: Any = envelope
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
