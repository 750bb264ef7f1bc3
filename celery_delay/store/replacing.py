"""Another message for an entry that waits.

The message is built outside of Redis, out of the one that is stored.  So it is put in only where
that one is still there: what others have done to the entry's eta or place meanwhile stays, and
so does a message that somebody else has put in first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple
from uuid import uuid4

from celery_delay.domain.entries import Addition, Record, StoredEntry
from celery_delay.domain.states import State
from celery_delay.store import additions
from celery_delay.store.records import Records, decode

__all__ = ["Replaceable", "Replacing"]


class Replaceable(NamedTuple):
    """An entry whose message can be replaced, and by what the scripts know that message."""

    entry: StoredEntry
    digest: str


class Replacing(Records):
    """Reading an entry, and putting another message in."""

    def replaceable(self, task_id: str) -> Replaceable | None:
        """The entry of *task_id* that is SCHEDULED, HELD or QUARANTINED.

        ``None``: there is none, its record cannot be read, or it was just changing its place.
        """
        record = self._read("HGET", self.keys.entries, task_id)
        if record is None:
            return self._parked_one(task_id)
        places = self._places(None)
        for place in places:
            at = self._read("ZSCORE", place, task_id)
            if at is not None:
                # the zset of those that are held is the last
                state = State.HELD if place == places[-1] else State.SCHEDULED
                return self._readable(task_id, int(float(at)), record, state)
        return None

    def replace(self, before: Replaceable, addition: Addition, data: Mapping[str, object]) -> str:
        """Put the message of *addition* in the place of that in *before*.

        Arguments:
            addition: of the same entry; its eta is not looked at.
            data: the new story, who and why; goes to the journal.

        Returns:
            ``DONE``, or why nothing has changed: TOO_LATE, NOT_FOUND, DAMAGED, or STALE, where
            the entry has got another message meanwhile.

        Raises:
            StoreUnavailable: nothing has changed.
            OutcomeUnknown: no answer came within ``delay_add_window``.
        """
        entry_id = before.entry.entry_id
        values = {
            "operation": uuid4().hex,
            "task_id": entry_id.task_id,
            "digest": before.digest,
            "data": json.dumps(data),
            "template_cap": additions.TEMPLATE_CAP,
        }
        template, inline = "", False
        while True:
            record = additions.record_text(addition, 0, inline)
            given = {**values, "record": record, "template": template}
            answer: str = self._insist(entry_id, "replace", given)[0].decode()
            if answer == "TEMPLATE":
                template = addition.template
            elif answer == "INLINE":
                template, inline = "", True
            else:
                return answer

    def _parked_one(self, task_id: str) -> Replaceable | None:
        parked = self._read("HGET", self.keys.quarantine, task_id)
        if parked is None:
            return None
        try:
            _why, at, record, *_ = json.loads(parked)
            eta_ms, text = int(float(at)), record.encode()
        except (ValueError, TypeError, AttributeError):
            return None
        return self._readable(task_id, eta_ms, text, State.QUARANTINED)

    def _readable(
        self, task_id: str, eta_ms: int, record: bytes, state: State
    ) -> Replaceable | None:
        try:
            name = Record.decode(record.decode()).template
        except ValueError:
            return None
        text = b"" if name.startswith("=") else self._read("HGET", self.keys.templates, name)
        entry = decode(task_id, eta_ms, record, text or b"")
        if entry is None:
            return None
        digest = record.partition(b"\n")[0].split(b" ")[1].decode()
        return Replaceable(entry._replace(state=state), digest)
