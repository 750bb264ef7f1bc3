"""Entries by what they have in common: listed by pages, one after the other, counted.

The store answers exactly, as of now, in the order of the eta; no read of it is longer than a
page.  What Redis has no index of is told by the audit and checked in the store, or looked for
in its records, page by page.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import islice
from operator import attrgetter
from typing import Any

from celery_delay.delayed.cold import once, walk
from celery_delay.delayed.past import AUDIT, EntryPage, Past, check_limit
from celery_delay.domain.cursors import Cursor
from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.filters import LAST_MS, STORED, WAITING, Filter
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable
from celery_delay.store.keys import shard_of
from celery_delay.store.paging import PAGE, Found, Known, Position
from celery_delay.store.redis import RedisStore

__all__ = ["EntryCount", "Searching"]

_STORE, _SOURCES = "store", ("auto", "store", "audit")


class EntryCount(int):
    """A number of entries: an int that knows who has counted.

    Attributes:
        source, lag_ms: as those of an :class:`~celery_delay.delayed.past.EntryPage`.
    """

    source: str = _STORE
    lag_ms: int | None = None


class Searching(Past):
    """The part of ``app.delayed`` that finds entries.

    The filters of all its methods, and of those that change many entries:

    ``task``
        registered name, or a shell pattern of it: ``"shop.*"``.
    ``queue``
        name of the queue.
    ``namespace``, ``tag``
        what was written on it; several tags as a list, all of which it has.
    ``unique_key``
        the unique key that it has: one entry at most.
    ``state``
        ``"SCHEDULED"``, ``"HELD"`` or ``"QUARANTINED"``, or a list of them; without it the
        first two.
    ``after``, ``before``
        bounds of the eta, included: datetimes or ISO 8601 texts, read as ``eta=`` of
        ``apply_delayed`` is.  ``after_ms`` and ``before_ms`` are the same in ms.

    An entry has to fit all of them.  Every method may raise TypeError or ValueError about the
    argument it names, and StoreUnavailable.
    """

    def list(
        self, *, limit: int = 100, cursor: str | None = None, source: str = "auto", **filters: Any
    ) -> EntryPage:
        """Entries that wait, the earliest eta first; those of one eta by their id.

        Pages are stable: an entry that is there from the first page to the last, and keeps its
        eta, is on exactly one of them, whatever comes and goes.

        Arguments:
            limit: how many at most, up to 10 000.
            cursor: ``next`` of the page before, with the same filters; ``None`` for the first
                page.  The page comes from the same source.
            source: ``"store"``: exact, as of now.  ``"audit"``: found there, and as the store
                has it now; what came since the last drain is missing, and what the audit's
                ``lag_ms`` tells.  ``"auto"``: the audit for filters other than ``state`` and
                the eta, if there is one that can be asked and lags by 10 s at most.
            filters: which; see :class:`Searching`.

        Raises:
            InvalidSetting, AuditUnavailable: for ``source="audit"``.
        """
        wanted = self._waiting(filters)
        check_limit(limit)
        after = Cursor.read(cursor, _STORE, AUDIT)
        if after is not None and source not in ("auto", after.source):
            raise ValueError(f"cursor is of source={after.source!r}, not {source!r}")
        if (after.source if after is not None else self._source(source, wanted)) == AUDIT:
            try:
                return self.list_audited(wanted, limit, after)
            except AuditUnavailable:
                # it was there a moment ago: slow, say, or on its way down
                if source == AUDIT or after is not None:
                    raise
        return self._list_stored(wanted, limit, after)

    def iterate(self, **filters: Any) -> Iterator[StoredEntry]:
        """All entries that wait, one after the other, as :meth:`list` has them.

        Memory is that of a page, however many there are.  What is added meanwhile behind the
        present position comes too; an entry that is put off meanwhile may come again.

        Arguments:
            filters: which; see :class:`Searching`.
        """
        found = self.found(self._waiting(filters))
        return (entry for one in found if (entry := one.entry()) is not None)

    def count(self, *, source: str = "auto", **filters: Any) -> EntryCount:
        """How many entries wait.

        By state and eta Redis answers at once.  With any other filter the store reads all
        records in between, which takes some 1.5 s for 100 000; the audit counts at once, but
        what it believes to wait.

        Arguments:
            source: as for :meth:`list`.
            filters: which; see :class:`Searching`.

        Raises:
            InvalidSetting, AuditUnavailable: for ``source="audit"``.
        """
        wanted = self._waiting(filters)
        if self._source(source, wanted) == AUDIT:
            try:
                return self._count_audited(wanted)
            except AuditUnavailable:
                if source == AUDIT:
                    raise
        if wanted.needs_record:
            return EntryCount(sum(1 for _ in self.found(wanted)))
        waiting = wanted.states & WAITING
        states = [None] if waiting == WAITING else waiting
        bounds = {"after_ms": wanted.after_ms, "before_ms": wanted.before_ms}
        number = sum(one.count(**bounds, state=state) for one in self.shards for state in states)
        if self.settings.is_backed and waiting:
            bounds_ms = wanted.after_ms, wanted.before_ms
            for one in range(self.settings.shards):
                number += self.cold_rows.count(one, waiting, *bounds_ms)
        if State.QUARANTINED in wanted.states:
            number += sum(_parked_number(one, wanted) for one in self.shards)
        return EntryCount(number)

    # -- for the command line and for other parts -----------------------------------------

    def found(
        self, wanted: Filter, after: Position | None = None, page: int = PAGE
    ) -> Iterator[Found]:
        """What *wanted* means, in order over all shards, behind *after*."""
        if wanted.unique_key is not None:
            return self._with_key(wanted, wanted.unique_key, after)
        walks = [
            *self._in_sql(wanted, after),
            *(one.walk(wanted, after, page) for one in self.shards),
        ]
        if State.QUARANTINED in wanted.states:
            walks += [_parked(one, wanted, after, page) for one in self.shards]
        found = heapq.merge(*walks, key=attrgetter("position"))
        return once(found) if self.settings.is_backed else found

    def _in_sql(self, wanted: Filter, after: Position | None) -> Iterator[Iterator[Found]]:
        """What waits in SQL, shard by shard; to be read before Redis."""
        if self.settings.is_backed:
            now_ms = self.shards[0].now_ms()
            for one in range(self.settings.shards):
                yield walk(self.cold_rows, one, wanted, after, now_ms)

    def _count_audited(self, wanted: Filter) -> EntryCount:
        lag_ms = self.audit_lag_ms()
        number = EntryCount(self.count_audited(wanted))
        number.source, number.lag_ms = AUDIT, lag_ms
        return number

    def _with_key(self, wanted: Filter, unique_key: str, after: Position | None) -> Iterator[Found]:
        """The one that has the key: Redis knows it at once."""
        shard = self.shards[shard_of(unique_key, self.settings.shards)]
        holder = shard.holder_of(unique_key)
        entry = shard.get(holder.entry_id.task_id) if holder is not None else None
        if entry is None and holder is not None and State.QUARANTINED in wanted.states:
            entry = shard.parked_entry(holder.entry_id.task_id)
        if entry is not None and wanted.takes(entry):
            found = Known.of(entry)
            if after is None or found.position > after:
                yield found

    def _waiting(self, filters: Mapping[str, Any]) -> Filter:
        wanted = self.wanted(filters)
        if over := wanted.states - STORED:
            told = ", ".join(sorted(one.value for one in over))
            raise ValueError(f"state: {told} is no state of what waits; past() has the others")
        return wanted

    def _source(self, source: str, wanted: Filter) -> str:
        if source not in _SOURCES:
            raise ValueError(f"source={source!r} must be one of {', '.join(_SOURCES)}")
        if wanted.unique_key is not None or State.QUARANTINED in wanted.states:
            if source == AUDIT:
                what = "unique keys" if wanted.unique_key is not None else "what is QUARANTINED"
                raise ValueError(f"source='audit' does not know {what}: leave it out")
            return _STORE
        if source != "auto":
            return source
        return AUDIT if wanted.needs_record and self.fresh_audit() else _STORE

    def _list_stored(self, wanted: Filter, limit: int, after: Cursor | None) -> EntryPage:
        # with an index, one more tells whether there is a page behind this one; to look for
        # one more without could mean to read all the rest
        exact = not wanted.needs_record or wanted.unique_key is not None
        place = Position(after.eta_ms, after.task_id.encode()) if after is not None else None
        page = min(limit + 1, PAGE) if exact else PAGE
        found = list(islice(self.found(wanted, place, page), limit + exact))
        more = len(found) > limit if exact else len(found) == limit
        entries = [entry for one in found[:limit] if (entry := one.entry()) is not None]
        if not more:
            return EntryPage(entries)
        last = found[limit - 1].position
        return EntryPage(entries, Cursor(_STORE, last.eta_ms, last.task_id.decode()).encode())


def _parked(
    shard: RedisStore, wanted: Filter, after: Position | None, page: int
) -> Iterator[Found]:
    """Those in quarantine, which has no order: the places of all are looked at.

    Records are read as they are needed, *page* at a time, so memory is that of the places.
    Those that cannot be read are at their eta, or at 0 where that cannot be read either.
    """
    places = sorted(
        place
        for place in {Position(eta, one.encode()) for eta, one in shard.parked_places()}
        if wanted.after_ms <= place.eta_ms <= wanted.before_ms and (after is None or place > after)
    )
    for first in range(0, len(places), page):
        batch = {one.task_id.decode(): one for one in places[first : first + page]}
        known = shard.parked_entries(list(batch))
        for task_id, place in batch.items():
            if task_id not in known:  # gone meanwhile
                continue
            entry = known[task_id]
            if not wanted.needs_record if entry is None else wanted.takes(entry):
                yield Known(place, State.QUARANTINED, b"", b"", known=entry)


def _parked_number(shard: RedisStore, wanted: Filter) -> int:
    """How many are in quarantine, by their eta."""
    if (wanted.after_ms, wanted.before_ms) == (0, LAST_MS):
        return shard.sizes()["quarantined"]
    return sum(
        wanted.after_ms <= eta_ms <= wanted.before_ms for eta_ms, _ in set(shard.parked_places())
    )
