"""Entries that wait in SQL, as the store would tell of them.

SQL has those whose time is far (``delay_hot_window``), and for a moment those that have just been
committed.  Readers merge them with Redis' by position; whoever reads SQL first and Redis after it
misses none that is paged in meanwhile, and sees it twice at one position at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from celery_delay.domain.backing import BackedRow, stored, unpack
from celery_delay.domain.entries import StoredEntry, Template
from celery_delay.domain.filters import WAITING, Filter
from celery_delay.domain.states import State
from celery_delay.store.additions import record_text
from celery_delay.store.paging import PAGE, Found, Position

if TYPE_CHECKING:
    from celery_delay.audit.cold import SQLColdRows

__all__ = ["once", "readable", "walk"]


def walk(
    rows: SQLColdRows, shard: int, wanted: Filter, after: Position | None, now_ms: int
) -> Iterator[Found]:
    """The entries that wait in SQL and that *wanted* means, behind *after*, in order.

    Memory is that of a page, and of the few that are on their way to Redis.

    Raises:
        AuditUnavailable: SQL cannot be asked.
    """
    states = wanted.states & WAITING
    if not states:
        return
    place = max(after or Position(0), Position(wanted.after_ms))
    coming = [
        one
        for one in rows.unconfirmed(shard, states, now_ms)
        if _position(one) > place and one.eta_ms <= wanted.before_ms
    ]
    while True:
        page = rows.page(
            shard,
            states,
            after=(place.eta_ms, place.task_id.decode()),
            before_ms=wanted.before_ms,
            limit=PAGE,
        )
        is_last = len(page) < PAGE
        place = _position(page[-1]) if page else place
        ready = [one for one in coming if is_last or _position(one) <= place]
        coming = coming[len(ready) :]
        for row in sorted([*page, *ready], key=_position):
            if _fits(row, wanted):
                yield _found(row)
        if is_last:
            return


def readable(rows: Iterable[BackedRow]) -> Iterator[StoredEntry]:
    """The entries of *rows*, without those whose record cannot be read."""
    for one in rows:
        with contextlib.suppress(ValueError, KeyError):
            yield stored(one)


def once(found: Iterable[Found]) -> Iterator[Found]:
    """*found* without those that the next one at the same position tells of again."""
    kept: Found | None = None
    for one in found:
        if kept is not None and kept.position != one.position:
            yield kept
        kept = one
    if kept is not None:
        yield kept


def _position(row: BackedRow) -> Position:
    return Position(row.eta_ms, row.entry_id.task_id.encode())


def _fits(row: BackedRow, wanted: Filter) -> bool:
    if not wanted.needs_record:
        return True
    try:
        addition = unpack(row)
        template = Template.decode(addition.template)
    except ValueError:
        return False
    return wanted.fits(template.task, template.queue_name, addition.labels)


def _found(row: BackedRow) -> Found:
    state = State.HELD if row.state is State.HELD else State.SCHEDULED
    try:
        addition = unpack(row)
    except ValueError:
        return Found(_position(row), state, b"", b"")
    record = record_text(addition, row.deadline_ms, False).encode()
    return Found(_position(row), state, record, addition.template.encode())
