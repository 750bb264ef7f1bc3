"""Every pending entry of a shard, in small pages, while entries come and go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from celery_delay.domain.entries import Record, StoredEntry
from celery_delay.domain.states import State
from celery_delay.store.records import Records, decode

__all__ = ["PAGE", "Page", "Scanning"]

#: Entries that one command reads.  Messages can be large, and Redis serves nobody meanwhile.
PAGE = 100


class Page(NamedTuple):
    """What one look brought: entries, and the ids of those whose record cannot be read."""

    entries: list[StoredEntry]
    unreadable: list[str]


class Scanning(Records):
    """Reading all of a shard.  Nothing here changes anything."""

    def pages(self) -> Iterator[Page]:
        """All entries that are SCHEDULED, HELD or QUARANTINED, in no order.

        An entry that is there from the first page to the last is among them; it can come twice
        if Redis resizes its tables meanwhile.  One that is added, handed off, quarantined or
        released meanwhile may be missing.
        """
        templates: dict[str, bytes] = {}
        for fields in self._fields(self.keys.entries):
            yield self._live(fields, templates)
        yield from self.parked(templates)

    def parked(self, templates: dict[str, bytes] | None = None) -> Iterator[Page]:
        """All entries that are QUARANTINED, as :meth:`pages` has them."""
        known = {} if templates is None else templates
        for fields in self._fields(self.keys.quarantine):
            yield self._parked(fields, known)

    def parked_places(self) -> Iterator[tuple[int, str]]:
        """eta and id of each that is QUARANTINED, in no order; records are not looked into.

        The eta is 0 where it cannot be read.  For one that can come twice, see :meth:`pages`.
        """
        for fields in self._fields(self.keys.quarantine):
            for task_id, parked in fields:
                found = _unpacked(parked)
                yield (found[0] if found is not None else 0), task_id

    def parked_entries(self, task_ids: Sequence[str]) -> dict[str, StoredEntry | None]:
        """Those of *task_ids* that are QUARANTINED; ``None`` for one that cannot be read."""
        if not task_ids:
            return {}
        values = self._read("HMGET", self.keys.quarantine, *task_ids)
        there = [(one, parked) for one, parked in zip(task_ids, values, strict=True) if parked]
        entries: dict[str, StoredEntry | None] = {one: None for one, _ in there}
        entries |= {one.entry_id.task_id: one for one in self._parked(there, {}).entries}
        return entries

    def parked_entry(self, task_id: str) -> StoredEntry | None:
        """The entry of *task_id* that is QUARANTINED; ``None``, too, if it cannot be read."""
        return self.parked_entries([task_id]).get(task_id)

    def why_parked(self, task_ids: Sequence[str]) -> dict[str, str]:
        """Why those of *task_ids* that are QUARANTINED are so."""
        if not task_ids:
            return {}
        found = zip(task_ids, self._read("HMGET", self.keys.quarantine, *task_ids), strict=True)
        return {one: _reason(parked) for one, parked in found if parked is not None}

    def _fields(self, key: str) -> Iterator[list[tuple[str, bytes]]]:
        cursor = b"0"
        while True:
            cursor, flat = self._read("HSCAN", key, cursor, "COUNT", PAGE)
            # a small hash comes in one piece, whatever COUNT says; its values are small then
            if flat:
                ids = [one.decode() for one in flat[::2]]
                yield list(zip(ids, flat[1::2], strict=True))
            if cursor == b"0":
                return

    def _live(self, fields: Sequence[tuple[str, bytes]], templates: dict[str, bytes]) -> Page:
        ids = [task_id for task_id, _ in fields]
        places = self._places(None)
        scores = [self._read("ZMSCORE", key, *ids) for key in places]
        page = Page([], [])
        moving: list[str] = []
        for (task_id, record), *found in zip(fields, *scores, strict=True):
            at = next((n for n, one in enumerate(found) if one is not None), None)
            if at is None:
                moving.append(task_id)
                continue
            # the zset of those that are held is the last
            state = State.HELD if at == len(places) - 1 else State.SCHEDULED
            self._put(page, task_id, int(float(found[at])), record, state, templates)
        # from one place to another between two of our looks, or gone
        page.entries.extend(self._stored(moving))
        return page

    def _parked(self, fields: Sequence[tuple[str, bytes]], templates: dict[str, bytes]) -> Page:
        page = Page([], [])
        for task_id, parked in fields:
            found = _unpacked(parked)
            if found is None:
                page.unreadable.append(task_id)
            else:
                self._put(page, task_id, *found, State.QUARANTINED, templates)
        return page

    def _put(
        self,
        page: Page,
        task_id: str,
        eta_ms: int,
        record: bytes,
        state: State,
        templates: dict[str, bytes],
    ) -> None:
        """Decode one entry into *page*; *templates* keeps the templates that were read."""
        entry = None
        try:
            name = Record.decode(record.decode()).template
        except ValueError:
            pass
        else:
            text = b"" if name.startswith("=") else templates.get(name)
            if text is None:
                text = templates[name] = self._read("HGET", self.keys.templates, name) or b""
            entry = decode(task_id, eta_ms, record, text)
        if entry is None:
            page.unreadable.append(task_id)
        else:
            page.entries.append(entry._replace(state=state))


def _unpacked(parked: bytes) -> tuple[int, bytes] | None:
    """eta and record of what is in quarantine; ``None`` if they cannot be told."""
    try:
        _why, eta, record, *_ = json.loads(parked)
        return int(float(eta)), record.encode()
    except (ValueError, TypeError, AttributeError):
        return None


def _reason(parked: bytes) -> str:
    try:
        return str(json.loads(parked)[0])
    except (ValueError, IndexError, TypeError):
        return "unknown"
