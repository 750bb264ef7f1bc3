"""Journal events: the transitions of entries, as the scripts and the workers write them down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from celery_delay.domain.entries import EntryId
from celery_delay.domain.retention import GAP

__all__ = ["DROPPED", "GAP", "GAP_ID", "Event", "decode_lines", "encode_lines"]

#: The task id of a GAP event, which belongs to none.
GAP_ID = "-"
#: State of the event that tells of a copy that the guard dropped: the entry stands where it stood.
DROPPED = "DROPPED"
#: How much of an unreadable journal line the audit is told.
_LONGEST_UNREADABLE = 200
#: Separates the lines of a journal entry.  JSON text never contains it raw.
_LINE = "\n"


class Event(NamedTuple):
    """One transition, as the journal has it.

    ``(shard, epoch, stream_id, position)`` is unique and stays the same when the event is
    read again.

    Attributes:
        epoch: the Redis history in which it was written.
        position: its place inside its journal entry (a move journals a whole batch at once).
        state: name of the :class:`~celery_delay.domain.states.State` reached, ``GAP`` or
            ``DROPPED``.
        at_ms: instant on the store's clock.
        data: what is known at that moment: the story at SCHEDULED, the lag at DISPATCHED,
            error and result texts later.
    """

    shard: int
    epoch: int
    stream_id: str
    position: int
    state: str
    entry_id: EntryId
    version: int
    at_ms: int
    eta_ms: int | None
    data: Mapping[str, object]


def encode_lines(events: Sequence[tuple[EntryId, int, int | None, Mapping[str, object]]]) -> str:
    """The journal's text for several transitions into one state: a line each."""
    return _LINE.join(
        f"{one.task_id}\t{one.run}\t{version}\t{'' if eta is None else eta}\t"
        f"{json.dumps(data, separators=(',', ':')) if data else '{}'}"
        for one, version, eta, data in events
    )


def decode_lines(
    shard: int, epoch: int, stream_id: str, state: str, at_ms: int, text: str
) -> list[Event]:
    """The events of one journal entry, one a line.

    A line that cannot be read makes an event in the state :data:`GAP`, so that the history
    shows that something is missing in it.
    """
    events = []
    for position, line in enumerate(text.split(_LINE)):
        key = (shard, epoch, stream_id, position)
        try:
            task_id, run, version, eta, data = line.split("\t", 4)
            facts = {} if data == "{}" else json.loads(data)
            entry_id = EntryId(task_id, int(run))
            event = Event(
                *key, state, entry_id, int(version), at_ms, int(eta) if eta else None, facts
            )
        except ValueError:
            told = {"missing": 1, "unreadable": f"{state} {line}"[:_LONGEST_UNREADABLE]}
            event = Event(*key, GAP, EntryId(GAP_ID, 0), 0, at_ms, None, told)
        events.append(event)
    return events
