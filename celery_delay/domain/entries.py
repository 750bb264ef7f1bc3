"""What is stored: an entry's identity, its record, its template.

An entry is one delayed *run* of a task.  Celery gives a retry the task id of the run
before it, and a fast worker can retry while the first hand-off is still being written
down; so the identity is (task id, run).

A record does not hold the message that goes onto the queue but only what differs from
task to task.  The literal rest is a *template*, stored once per shape and addressed by
its content.  ``move.lua`` joins the two, so the formats below are shared with the Lua
files: change them only together, and raise :data:`CODEC`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, NamedTuple

from celery_delay.domain.labels import NO_LABELS, Labels
from celery_delay.domain.states import State
from celery_delay.domain.uniqueness import Keys

__all__ = [
    "CODEC",
    "PUBLISHED",
    "Added",
    "Addition",
    "Claimed",
    "Due",
    "EntryId",
    "Record",
    "StoredEntry",
    "Template",
    "template_id",
]

#: Version of the record and template formats.
CODEC = "1"

#: In place of a queue's DB number: no move reaches it, so a beat publishes the message.
PUBLISHED = -1

#: Begins the line of a record that has its labels.  No JSON text begins with it.
_LABELS = "~"
#: Separates the lines of a record.  JSON and base64 text never contain it raw.
_LINE = "\n"
#: Marks a slot in a template; the byte after it names the slot.  JSON text never
#: contains it raw.
SLOT = "\x01"


class EntryId(NamedTuple):
    """Identity of an entry."""

    task_id: str
    #: A new task's run is the store's clock at the call, in milliseconds; a retry, or any
    #: message for the same task id sent from inside a run, has that run's number + 1.
    run: int

    def __str__(self) -> str:
        return f"{self.task_id}/{self.run}"


class Due(NamedTuple):
    """When an entry is due: at an instant, or after a delay counted by Redis' clock."""

    #: Milliseconds since the epoch, or of delay.
    ms: int
    is_delay: bool


@dataclass(frozen=True)
class Template:
    """The literal part of a shape of messages, and where they go.

    Attributes:
        database: number of the Redis DB in which the queue lives, or :data:`PUBLISHED`.
        queue: the list's key, with the broker's prefix and the priority's suffix; the queue's
            name, or the routing key, where a beat publishes.
        task: the task's registered name.
        queue_name: the queue as people call it: without prefix and suffix.
        expires_ms: time to live of the queue's lists (``x-expires``); 0 for none.
        expiring: the keys that this time to live is set on.
        body: the envelope's JSON text, with slots.
    """

    database: int
    queue: str
    task: str
    queue_name: str
    expires_ms: int
    expiring: tuple[str, ...]
    body: str

    def encode(self) -> str:
        """The text stored in Redis."""
        return _LINE.join(
            [
                CODEC,
                str(self.database),
                self.queue,
                self.task,
                self.queue_name,
                str(self.expires_ms),
                str(len(self.expiring)),
                *self.expiring,
                self.body,
            ]
        )

    @classmethod
    def decode(cls, text: str) -> Template:
        """The reverse of :meth:`encode`; ``ValueError`` for another codec version."""
        codec, database, queue, task, name, expires_ms, count, rest = text.split(_LINE, 7)
        if codec != CODEC:
            raise ValueError(f"template of unknown version {codec!r}")
        *expiring, body = rest.split(_LINE, int(count))
        return cls(int(database), queue, task, name, int(expires_ms), tuple(expiring), body)

    def fill(self, slots: Mapping[str, str]) -> str:
        """The envelope's JSON text with *slots* put in; ``move.lua`` does the same."""
        head, *rest = self.body.split(SLOT)
        return head + "".join(slots[part[0]] + part[1:] for part in rest)


def template_id(text: str) -> str:
    """Content address of an encoded template.

    A ``p`` before it tells the scripts that a beat publishes these messages.
    """
    published = text.startswith(f"{CODEC}{_LINE}{PUBLISHED}{_LINE}")
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]
    return f"p{digest}" if published else digest


class Record(NamedTuple):
    """What Redis keeps of one entry beside its eta.

    Attributes:
        run: see :class:`EntryId`.
        version: 1 at first; every later write of the entry has a higher one.
        deadline_ms: until when, on the store's clock, the add may be repeated.
        expires_ms: after this instant the entry is EXPIRED instead of moved; 0 for never.
        template: id of the template, or ``=`` with the template's text as the last value.
        values: the slots' texts, in the order of the slots' letters.
        labels: what the caller wrote on it, as JSON; "" for nothing.
    """

    run: int
    version: int
    deadline_ms: int
    expires_ms: int
    template: str
    values: tuple[str, ...]
    labels: str = ""

    def encode(self) -> str:
        """The text stored in Redis: six lines of head, then one line per value, then the labels.

        The head's first line has the codec's version and a digest over template and
        values, which ``move.lua`` checks before a hand-off.
        """
        labels = (_LABELS + self.labels,) if self.labels else ()
        payload = _LINE.join((self.template, *self.values, *labels))
        digest = hashlib.sha1(payload.encode(), usedforsecurity=False).hexdigest()[:10]
        return (
            f"{CODEC} {digest}\n{self.run}\n{self.version}\n{self.deadline_ms}\n"
            f"{self.expires_ms}\n{payload}"
        )

    @classmethod
    def decode(cls, text: str) -> Record:
        """The reverse of :meth:`encode`.

        Raises:
            ValueError: the text is no record of a known version.
        """
        first, run, version, deadline, expires, template, *values = text.split(_LINE)
        if first.partition(" ")[0] != CODEC:
            raise ValueError(f"record of unknown version {first!r}")
        labels = values.pop()[1:] if values and values[-1].startswith(_LABELS) else ""
        head = (int(run), int(version), int(deadline), int(expires))
        return cls(*head, template, tuple(values), labels)

    def slots(self, task_id: str, eta_ms: int) -> dict[str, str]:
        """What fills the template, as ``due.lua`` has it; no epoch has the number 0."""
        values = dict(zip(ascii_uppercase, self.values, strict=False))
        general = {"i": task_id, "r": str(self.run), "d": str(eta_ms), "n": "0"}
        general["t"] = f"{eta_ms / 1000:.3f}"  # of the hand-off, which is yet to come
        return {**general, "l": self.labels or "null", **values}


class Addition(NamedTuple):
    """One entry on its way into the store.

    Attributes:
        entry_id: its identity; run 0 lets the store draw one, once.
        due: when it is due.
        template: the shape's text.
        values: the slots' texts for this entry.
        expires_ms: instant after which it must not run; 0 for never.
        story: what the audit keeps beside the states (task name, queue, arguments as text,
            parents, chord), as JSON.
        labels: what the caller wrote on it.
        keys: what to do about its unique key, or an idempotency key; ``None`` without, or for
            a later run, which takes the unique key of the run before over.
    """

    entry_id: EntryId
    due: Due
    template: str
    values: tuple[str, ...]
    expires_ms: int = 0
    story: str = "{}"
    version: int = 1
    labels: Labels = NO_LABELS
    keys: Keys | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """The story, as the mapping that it is."""
        facts: Mapping[str, Any] = json.loads(self.story)
        return facts


class StoredEntry(NamedTuple):
    """A live entry as the store tells it.

    ``eta_ms`` and ``expires_ms`` (0 for never) are UTC; ``envelope`` is the message as it would be
    put onto the key ``queue``, ``headers`` are its headers; ``queue_name`` is the queue as people
    call it; ``state`` is SCHEDULED or HELD; ``gate`` is what keeps a due one back, "" for nothing:
    see ``celery_delay/domain/gates.py``.
    """

    entry_id: EntryId
    version: int
    eta_ms: int
    expires_ms: int
    headers: Mapping[str, object]
    queue: str
    envelope: Mapping[str, object]
    state: State = State.SCHEDULED
    queue_name: str = ""
    labels: Labels = NO_LABELS
    gate: str = ""

    @property
    def task(self) -> str:
        """The task's registered name."""
        return str(self.headers.get("task", ""))

    @property
    def chord(self) -> Mapping[str, Any] | None:
        """The chord that the task is a part of, where its body can be read."""
        return self.embed.get("chord")

    @property
    def embed(self) -> Mapping[str, Any]:
        """The body's third part (chain, chord, callbacks) where that is JSON; never unpickled."""
        is_json = self.envelope.get("content-type") == "application/json"
        if not is_json or self.headers.get("compression"):
            return {}
        try:
            _args, _kwargs, embed = json.loads(base64.b64decode(str(self.envelope["body"])))
        except (KeyError, TypeError, ValueError):
            return {}
        return embed or {}


class Claimed(NamedTuple):
    """An entry that a beat has taken out to publish it.

    ``attempt`` counts the claims before this one that ended without anybody's word: the
    message may be on its queue already.  ``envelope`` as in :class:`StoredEntry`.
    """

    entry_id: EntryId
    version: int
    eta_ms: int
    attempt: int
    envelope: Mapping[str, Any]

    @property
    def route(self) -> tuple[str, str]:
        """Its task's name, and that of the queue, or else the routing key."""
        where = self.envelope["properties"]["delivery_info"]
        queue = self.envelope.get("queue") or where["routing_key"]
        return str(self.envelope["headers"].get("task")), str(queue)


class Added(NamedTuple):
    """Answer to one addition.

    ``code``: ``A`` stored now, ``D`` it was stored by an earlier attempt, ``G`` so it was and
    has been handed off since, ``C`` it was cancelled before it came; ``K`` it was not stored,
    since another entry has its key, ``E`` that one's eta was moved instead.  ``entry_id`` and
    ``due_ms`` are then that one's.  ``replaced`` is the entry that had to go for it.
    """

    entry_id: EntryId
    code: str
    due_ms: int
    replaced: StoredEntry | None = None

    @property
    def is_other(self) -> bool:
        """Whether this is another entry than the one to be added."""
        return self.code in ("K", "E")
