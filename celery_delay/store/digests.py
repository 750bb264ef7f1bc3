"""Stretches of a shard's entries by number and digest, to compare with what SQL has.

Only a digest leaves Redis for each stretch of a thousand entries, so a million of them are
compared in a second or two, and nobody else waits for long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from celery_delay.domain.entries import EntryId
from celery_delay.store.journal import Journal
from celery_delay.store.paging import Paging, Position

__all__ = ["STRETCH", "Digesting", "Line", "Stretch", "digest"]

#: Entries of one stretch.
STRETCH = 1_000


class Line(NamedTuple):
    """What is compared of an entry; of one that cannot be read, run and version are "?"."""

    task_id: str
    run: str
    version: str
    eta_ms: int
    is_held: bool


class Stretch(NamedTuple):
    """Entries behind *after*, up to and with *until*; ``None`` there: all that follow."""

    after: Position
    until: Position | None
    number: int
    digest: str


def digest(lines: Iterable[Line]) -> str:
    """What ``digest.lua`` makes of entries, in their order."""
    text = "".join(
        f"{one.task_id}\t{one.run}\t{one.version}\t{one.eta_ms}\t{'H' if one.is_held else 'S'}\n"
        for one in lines
    )
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Digesting(Paging, Journal):
    """Reading a shard to compare it.  Nothing here changes anything."""

    def stretches(self, before_ms: int) -> Iterator[Stretch]:
        """The whole shard up to an eta, stretch by stretch, each as of its own instant."""
        after, more = Position(0), True
        while more:
            values = {
                "now": self._given_now(),
                "after_ms": after.eta_ms,
                "after_id": after.task_id,
                "before_ms": before_ms,
                "limit": STRETCH,
                "state": "",
            }
            status, _now, count, digested, *last = self._ask("digest", values)
            more = status == b"MORE"
            until = Position(int(last[0]), last[1]) if more else None
            yield Stretch(after, until, int(count), digested.decode())
            after = until or after

    def told(self, entry_ids: Collection[EntryId]) -> set[EntryId]:
        """Those of *entry_ids* that the journal tells of, in one pass over what is left of it."""
        wanted = set(entry_ids)
        return {one.entry_id for one in self.journalled() if one.entry_id in wanted}
