"""Entries that SQL backs: what a row says of one.

With ``delay_audit = "sync"``, in the caller's own transaction, and for what is not due for long,
SQL is the truth and Redis its mirror.  All of them are the same rows, changed and mirrored by
the same rules (``docs/adr/0033-backed-protocol.rst``, ``tests/model/backed_protocol.py``):

* SQL commits first, with the version raised; Redis applies only higher versions.
* A version's add counts in the one Redis history (*epoch*) in which it was decided, and until its
  deadline.  Within both anybody may repeat it; after that only the next version is added.
* What is absent in Redis is acted on only after its journal was looked at, and by compare-and-set.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from celery_delay.domain.entries import (
    Addition,
    Due,
    EntryId,
    Record,
    StoredEntry,
    Template,
)
from celery_delay.domain.labels import Labels
from celery_delay.domain.states import State
from celery_delay.domain.uniqueness import FOLLOW, Keys

__all__ = ["COLD", "HOT", "KEPT_MS", "OVER", "OVER_MS", "UNREADABLE", "BackedRow"]
__all__ += ["forget_at", "has_key", "is_open", "pack", "placed", "stored", "unpack"]

#: Where a row's entry belongs: in Redis; in SQL only, its time being far; nowhere any more.
HOT, COLD, OVER = "hot", "cold", "over"
#: How long the row of an entry that is over is kept, in ms: Redis may come back from a backup.
KEPT_MS = 86_400_000
#: Added to the ``look_ms`` of those, which are so behind all that somebody waits for: as many as
#: ended in one minute of yesterday are to be forgotten in one of today.
OVER_MS = 10**15
#: Begins a record that cannot be opened; the rest says why.  Such a row is left as it is.
UNREADABLE = b"!"
#: Version of the format of a row's record.
_FORMAT = "1"


class BackedRow(NamedTuple):
    """What SQL knows of an entry.  Instants are in ms, on the store's clock.

    Attributes:
        version: grows with each change that Redis is to hear of.
        seen: the highest version that Redis was seen to have; 0 for none.
        state: SCHEDULED or HELD; else how it has ended, so that nothing follows.
        tier: :data:`HOT`, :data:`COLD` or :data:`OVER`.
        epoch: the Redis history in which the version may be added; 0: in none.
        deadline_ms: until when that add may arrive there.
        look_ms: when the relay looks at the row; ``None``: there is nothing to be done.  Of one
            that is over, :func:`forget_at`.
        record: all that an addition needs beside these, as :func:`pack` has it; empty when over.
    """

    entry_id: EntryId
    shard: int
    version: int
    seen: int
    state: State
    tier: str
    eta_ms: int
    epoch: int
    deadline_ms: int
    look_ms: int | None
    record: bytes

    def is_same(self, other: BackedRow | None) -> bool:
        """Whether nothing was decided about the entry between the two looks at its row."""
        return other is not None and _decided(self) == _decided(other)


def _decided(row: BackedRow) -> tuple[object, ...]:
    return row.version, row.state, row.tier, row.epoch, row.deadline_ms


def forget_at(ended_ms: int) -> int:
    """The ``look_ms`` of a row whose entry ended then."""
    return OVER_MS + ended_ms + KEPT_MS


def is_open(row: BackedRow | None) -> bool:
    """Whether the entry is still to be handed off."""
    return row is not None and row.state in (State.SCHEDULED, State.HELD)


def placed(row: BackedRow, now_ms: int, hot_window_ms: int, look_ms: int) -> BackedRow:
    """*row* in the tier that its eta asks for.

    What has a unique key, or is to have one, stays in Redis, which alone can tell who has it.

    Arguments:
        hot_window_ms: how long before its eta an entry comes to Redis; 0: at once.
        look_ms: when the relay looks at it; at one that Redis does not know, as it comes there.
    """
    ahead_ms = row.eta_ms - hot_window_ms
    if not hot_window_ms or ahead_ms <= now_ms or has_key(row):
        return row._replace(tier=HOT, look_ms=look_ms)
    return row._replace(tier=COLD, look_ms=ahead_ms if row.tier == COLD else look_ms)


def has_key(row: BackedRow) -> bool:
    """Whether the entry has a unique key, or is to have one; or nobody can tell."""
    try:
        addition = unpack(row)
    except ValueError:
        return True
    return addition.keys is not None or addition.labels.unique is not None


def pack(addition: Addition) -> bytes:
    """The record of a row."""
    said = {
        "template": addition.template,
        "values": addition.values,
        "expires": addition.expires_ms,
        "story": addition.story,
        "labels": addition.labels.encode(),
        "keys": addition.keys,
    }
    return f"{_FORMAT} {json.dumps(said, separators=(',', ':'))}".encode()


def unpack(row: BackedRow) -> Addition:
    """The addition that a row stands for, in its present version.

    A unique key is decided once, by the first version that reaches Redis; later ones take it
    over, or do without.

    Raises:
        ValueError: the record is damaged, or of a newer release.
    """
    if row.record.startswith(UNREADABLE):
        raise ValueError(row.record[len(UNREADABLE) :].decode())
    version, _, text = row.record.decode().partition(" ")
    if version != _FORMAT:
        raise ValueError(f"the record of {row.entry_id} has the unknown version {version[:20]!r}")
    try:
        said = json.loads(text)
        labels = Labels.read(json.loads(said["labels"] or "null"))
        keys = Keys(*said["keys"]) if said["keys"] is not None else None
        return Addition(
            row.entry_id,
            Due(row.eta_ms, False),
            said["template"],
            tuple(said["values"]),
            said["expires"],
            said["story"],
            row.version,
            labels,
            FOLLOW if row.seen and labels.unique is not None else None if row.seen else keys,
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"the record of {row.entry_id} is damaged: {exc!r}") from exc


def stored(row: BackedRow) -> StoredEntry:
    """An open row as the store would tell its entry.

    Raises:
        ValueError: as :func:`unpack`.
    """
    addition = unpack(row)
    task_id, run = row.entry_id
    labels = addition.labels.encode()
    head = (run, row.version, row.deadline_ms, addition.expires_ms)
    record = Record(*head, "", addition.values, labels)
    template = Template.decode(addition.template)
    envelope = json.loads(template.fill(record.slots(task_id, row.eta_ms)))
    return StoredEntry(
        row.entry_id,
        row.version,
        row.eta_ms,
        addition.expires_ms,
        envelope["headers"],
        template.queue,
        envelope,
        row.state,
        template.queue_name,
        addition.labels,
    )
