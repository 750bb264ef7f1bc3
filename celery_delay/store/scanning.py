"""Every pending entry of a shard, in small pages, while entries come and go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from celery_delay.entries import Record, StoredEntry
from celery_delay.states import State
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
        for fields in self._fields(self.keys.quarantine):
            yield self._parked(fields, templates)

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
            try:
                _why, eta, record, *_ = json.loads(parked)
                due_ms = int(float(eta))
                text = record.encode()
            except (ValueError, TypeError, AttributeError):
                page.unreadable.append(task_id)
                continue
            self._put(page, task_id, due_ms, text, State.QUARANTINED, templates)
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
