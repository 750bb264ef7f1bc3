"""``GET /api/delayed``: a page of what waits, of what is parked, or of what was.

No request reads more of the store than :data:`MOST_LOOKED_AT` records.  Where that is not enough
to fill a page it is shorter, even empty, and tells where to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_delay.delayed.past import AUDIT
from celery_delay.domain.cursors import Cursor
from celery_delay.domain.documents import fields
from celery_delay.domain.filters import STORED, Filter
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable
from celery_delay.flower.asking import FILTERS, Asked, query
from celery_delay.flower.documents import audited_row, bare_row, stored_row, why_parked
from celery_delay.flower.guarding import JsonHandler
from celery_delay.store.paging import PAGE, Found, Position

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["ARGUMENTS", "MOST_LOOKED_AT", "ListHandler", "found_rows"]

#: Longest page, and entries that one request looks at.
LONGEST_PAGE, MOST_LOOKED_AT = 1_000, 10_000
ARGUMENTS = (*FILTERS, "limit", "cursor", "id", "search", "sort", "source")
_STORE = "store"
_PARKED = frozenset({State.QUARANTINED})


class ListHandler(JsonHandler):
    """Tasks, the earliest eta first; past ones the latest first."""

    async def get(self) -> None:
        """A page."""
        asked = query(self, *ARGUMENTS)
        self.answer(await self.ask(_listed, self.delayed, asked))


class _Page(NamedTuple):
    """Which page is asked for."""

    delayed: CeleryDelay
    filters: Mapping[str, Any]
    wanted: Filter
    search: str
    limit: int
    cursor: str | None
    now_ms: int

    def takes(self, one: Found) -> bool:
        """Whether *one* is to be on it, by its filter and by its names; not by state and eta."""
        known = one.names()
        if known is None or not self.wanted.fits(*known):
            return False
        labels = known.labels
        names = (one.task_id, known.task, known.queue, labels.namespace, *labels.tags)
        return any(self.search in one.casefold() for one in names if one)

    def document(self, entries: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The answer."""
        return {
            **fields("now", self.now_ms),
            "source": _STORE,
            "audit_lag_ms": None,
            "total": None,
            "total_is_exact": False,
            "next": None,
            "entries": entries,
            **more,
        }


def _listed(delayed: CeleryDelay, asked: Asked) -> dict[str, Any]:
    asked.choice("sort", "eta", "eta")
    may_ask_audit = asked.choice("source", "auto", "auto", _STORE) == "auto"
    filters = asked.filters(delayed)
    page = _Page(
        delayed,
        filters,
        delayed.wanted(filters),
        (asked.text("search") or "").casefold(),
        asked.number("limit", 100, 1, LONGEST_PAGE),
        asked.text("cursor"),
        delayed.now_ms(),
    )
    if (task_id := asked.text("id")) is not None:
        return _one(page, task_id)
    if page.wanted.states - STORED:
        return _past(page)
    after = Cursor.read(page.cursor, _STORE, AUDIT)
    if after is not None:
        is_audited = after.source == AUDIT
    else:
        suits = may_ask_audit and not page.search and _suits_audit(page.wanted)
        is_audited = suits and delayed.fresh_audit()
    if is_audited:
        try:
            return _audited(page)
        except AuditUnavailable:
            # it was there a moment ago: slow, say, or on its way down
            if after is not None:
                raise
    return _stored(page, after)


def _suits_audit(wanted: Filter) -> bool:
    """Whether the audit finds quicker, by its indexes, what the store would have to look for."""
    return wanted.needs_record and wanted.unique_key is None and not wanted.states & _PARKED


def _one(page: _Page, task_id: str) -> dict[str, Any]:
    rows = found_rows(page.delayed, task_id, page.now_ms)
    return page.document(rows, total=len(rows), total_is_exact=True)


def found_rows(delayed: CeleryDelay, task_id: str, now_ms: int) -> list[dict[str, Any]]:
    """The live entry of *task_id*, or the one in quarantine; none or one."""
    entry = delayed.get(task_id)
    if entry is not None:
        return [stored_row(delayed, entry, now_ms)]
    why = why_parked(delayed, [task_id]).get(task_id)
    if why is None:
        return []
    for shard in delayed.shards:
        if (parked := shard.parked_entry(task_id)) is not None:
            return [{**stored_row(delayed, parked, now_ms), "reason": why}]
    return [{**bare_row(task_id, State.QUARANTINED.value, None, now_ms), "reason": why}]


def _past(page: _Page) -> dict[str, Any]:
    found = page.delayed.past(limit=page.limit, cursor=page.cursor, **page.filters)
    labels = page.delayed.audit_queries().labels([one.task_id for one in found])
    rows = [audited_row(one, labels.get(one.task_id, (None, [])), page.now_ms) for one in found]
    return page.document(rows, source=AUDIT, audit_lag_ms=found.lag_ms, next=found.next)


def _audited(page: _Page) -> dict[str, Any]:
    delayed = page.delayed
    found = delayed.list(limit=page.limit, cursor=page.cursor, source=AUDIT, **page.filters)
    return page.document(
        [stored_row(delayed, one, page.now_ms) for one in found],
        source=AUDIT,
        audit_lag_ms=found.lag_ms,
        total=int(delayed.count(source=AUDIT, **page.filters)),
        next=found.next,
    )


def _stored(page: _Page, after: Cursor | None) -> dict[str, Any]:
    """What fits among the next entries of the store."""
    wanted = page.wanted
    place = Position(after.eta_ms, after.task_id.encode()) if after is not None else None
    is_indexed = not wanted.needs_record and not page.search
    # by state and eta alone, so that each that is looked at counts; a key names its entry
    index = Filter(states=wanted.states, after_ms=wanted.after_ms, before_ms=wanted.before_ms,
                   unique_key=wanted.unique_key)  # fmt: skip
    rows: list[dict[str, Any]] = []
    last: Found | None = None
    following = page.delayed.found(index, place, min(page.limit + 1, PAGE) if is_indexed else PAGE)
    for looked_at, one in enumerate(following):
        if last is not None and (len(rows) == page.limit or looked_at == MOST_LOOKED_AT):
            break
        last = one
        if is_indexed or page.takes(one):
            rows.append(_row(page, one))
    else:
        last = None
    parked = [one["task_id"] for one in rows if one["state"] == State.QUARANTINED]
    reasons = why_parked(page.delayed, parked)
    for row in rows:
        row["reason"] = reasons.get(row["task_id"])
    total = _number(page) if is_indexed else None
    return page.document(
        rows, total=total, total_is_exact=total is not None, next=_behind(last) if last else None
    )


def _row(page: _Page, one: Found) -> dict[str, Any]:
    entry = one.entry()
    if entry is None:
        eta_ms = one.position.eta_ms or None
        return bare_row(one.task_id, one.state.value, eta_ms, page.now_ms)
    return stored_row(page.delayed, entry._replace(state=one.state), page.now_ms)


def _number(page: _Page) -> int:
    """How many there are, by state and eta."""
    if page.wanted == Filter().only(*_PARKED):
        return sum(one.sizes()["quarantined"] for one in page.delayed.shards)
    return int(page.delayed.count(**page.filters))


def _behind(last: Found) -> str:
    return Cursor(_STORE, last.position.eta_ms, last.task_id).encode()
