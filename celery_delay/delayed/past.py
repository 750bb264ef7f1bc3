"""Tasks by what the audit knows of them: those that are over, and those that wait by filters.

The audit is as old as its last drain, and says so.  What it believes to wait is asked for in
the store by id before it is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery_delay.delayed.cold import readable
from celery_delay.delayed.overview import Overview
from celery_delay.domain.cursors import Cursor
from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.filters import WAITING, Filter, filter_of
from celery_delay.domain.states import State
from celery_delay.exceptions import DelayError
from celery_delay.message.instants import instant_of
from celery_delay.store.keys import shard_of

if TYPE_CHECKING:
    from celery_delay.audit.queries import TaskRow

__all__ = ["AUDIT", "LARGEST_PAGE", "PAST", "EntryPage", "Past", "TaskPage", "check_limit"]

#: Entries that one call of ``list`` returns at most: it has them all in memory.
LARGEST_PAGE = 10_000
#: Rows that one statement reads.
_PAGE = 500
#: An audit that lags by more, in ms, is not asked for what waits unless it is named.
_LATE_MS = 10_000

#: Who told a cursor: the audit of what waits; the audit of anything.
AUDIT, PAST = "audit", "past"


class EntryPage(list[StoredEntry]):
    """Some entries, the earliest eta first, and where the others begin.

    Attributes:
        next: cursor of the page that follows: a text without a meaning of its own, which stays
            valid.  ``None`` if there was nothing more.
        source: ``store`` or ``audit``: who has answered.
        lag_ms: how old the audit's answer may be, in ms; ``None`` for the store's, which is of
            now, and where Redis cannot tell.
    """

    def __init__(
        self,
        entries: list[StoredEntry],
        next: str | None = None,
        source: str = "store",
        lag_ms: int | None = None,
    ) -> None:
        super().__init__(entries)
        self.next = next
        self.source = source
        self.lag_ms = lag_ms


class TaskPage(list["TaskRow"]):
    """Some tasks as the audit tells them, and where the others begin; see :class:`EntryPage`."""

    def __init__(self, rows: list[TaskRow], next: str | None, lag_ms: int | None) -> None:
        super().__init__(rows)
        self.next = next
        self.lag_ms = lag_ms


class Past(Overview):
    """The part of ``app.delayed`` that asks the audit for tasks."""

    def past(self, *, limit: int = 100, cursor: str | None = None, **filters: Any) -> TaskPage:
        """Tasks by the audit, in whatever state: the latest eta first.

        With ``state="SCHEDULED"`` or ``"HELD"`` among the states, the earliest first.  A task of
        which no eta is known is left out.

        Arguments:
            limit, cursor: as for :meth:`list`.
            filters: which; see :class:`~celery_delay.delayed.searching.Searching`.  Without
                ``state``, those that do not wait any more.

        Raises:
            TypeError, ValueError: about the argument they name.
            InvalidSetting: the project keeps no audit.
            AuditUnavailable: its database cannot be asked.
        """
        wanted = self.wanted(filters)
        if wanted.unique_key is not None:
            raise ValueError("unique_key: the audit does not know it; list() finds what waits")
        if filters.get("state") is None:
            wanted = wanted.only(*(set(State) - WAITING))
        check_limit(limit)
        after = Cursor.read(cursor, PAST)
        rows: list[TaskRow] = []
        latest_first = not wanted.states & WAITING
        lag_ms = self.audit_lag_ms()  # before the rows: they are at least that fresh
        for row in self._rows(wanted, after, latest_first, min(limit + 1, _PAGE)):
            if len(rows) == limit:
                return TaskPage(rows, _behind(PAST, rows[-1]).encode(), lag_ms)
            rows.append(row)
        return TaskPage(rows, None, lag_ms)

    # -- for other parts ------------------------------------------------------------------

    def wanted(self, filters: Mapping[str, Any]) -> Filter:
        """The filter that *filters* make; TypeError or ValueError about one of them."""
        given = dict(filters)
        for name in ("after", "before"):
            if (instant := given.pop(name, None)) is None:
                continue
            if given.get(f"{name}_ms") is not None:
                raise ValueError(f"{name} and {name}_ms were both given: give one of them")
            try:
                given[f"{name}_ms"] = instant_of(
                    instant,
                    app_timezone=self.app.timezone,
                    naive_eta=self.settings.naive_eta,
                )
            except (TypeError, ValueError) as exc:
                raise type(exc)(f"{name}: {exc}") from None
        return filter_of(given)

    def fresh_audit(self) -> bool:
        """Whether there is an audit that can be asked and does not lag far behind."""
        if not (self.settings.audited and self.settings.has_database):
            return False
        try:
            lag_ms = self.audit_lag_ms()
            return (
                lag_ms is not None
                and lag_ms <= _LATE_MS
                and self.audit_queries().schema().state == "current"
            )
        except DelayError:
            return False

    def list_audited(self, wanted: Filter, limit: int, after: Cursor | None) -> EntryPage:
        """A page of what waits: found in the audit, and as the store has it now."""
        lag_ms = self.audit_lag_ms()
        entries: list[StoredEntry] = []
        rows = self._rows(wanted.only(*WAITING), after, False, min(limit + 1, _PAGE))
        place = after
        while some := _take(rows, min(limit - len(entries) + 1, _PAGE)):
            known = self._stored([one.task_id for one in some])
            for row in some:
                if len(entries) == limit and place is not None:
                    return EntryPage(entries, place.encode(), AUDIT, lag_ms)
                place = _behind(AUDIT, row)
                entry = known.get(row.task_id)
                if entry is not None and wanted.takes(entry):
                    entries.append(entry)
        return EntryPage(entries, None, AUDIT, lag_ms)

    def count_audited(self, wanted: Filter) -> int:
        """How many the audit believes to wait."""
        if not wanted.has_pattern:
            return self.audit_queries().number(**_asked(wanted))
        counts = self.audit_queries().numbers(**_asked(wanted))
        return sum(number for name, number in counts if wanted.fits_task(name or ""))

    def _stored(self, task_ids: list[str]) -> dict[str, StoredEntry]:
        mine: dict[int, list[str]] = {}
        for one in task_ids:
            mine.setdefault(shard_of(one, self.settings.shards), []).append(one)
        found = {
            one.entry_id.task_id: one
            for number, some in mine.items()
            for one in self.shards[number].some(some)
        }
        if self.settings.is_backed and (absent := [one for one in task_ids if one not in found]):
            # after Redis: one that is on its way there is still told of by SQL
            cold = self.cold_rows.waiting(absent, self.shards[0].now_ms())
            found |= {one.entry_id.task_id: one for one in readable(cold)}
        return found

    def _rows(
        self, wanted: Filter, after: Cursor | None, latest_first: bool, page: int
    ) -> Iterator[TaskRow]:
        queries = self.audit_queries()
        behind = (after.eta_ms, after.task_id) if after is not None else None
        asked = _asked(wanted)
        while True:
            some = queries.tasks(**asked, latest_first=latest_first, limit=page, behind=behind)
            yield from (one for one in some if wanted.fits_task(one.name or ""))
            if len(some) < page:
                return
            behind, page = (some[-1].eta_ms or 0, some[-1].task_id), _PAGE


def check_limit(limit: Any) -> None:
    """Raise TypeError or ValueError for what is no length of a page."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number, not {limit!r}")
    if not 1 <= limit <= LARGEST_PAGE:
        raise ValueError(f"limit={limit} must be from 1 to {LARGEST_PAGE}; or take iterate()")


def _asked(wanted: Filter) -> dict[str, Any]:
    name = "pattern" if wanted.has_pattern else "name"
    return {
        "states": sorted(one.value for one in wanted.states),
        name: wanted.task,
        "queue": wanted.queue,
        "namespace": wanted.namespace,
        "tags": wanted.tags,
        # always, as a task without an eta has no place in the order
        "after_ms": wanted.after_ms,
        "before_ms": wanted.before_ms,
    }


def _behind(source: str, row: TaskRow) -> Cursor:
    return Cursor(source, row.eta_ms or 0, row.task_id)


def _take(rows: Iterator[TaskRow], number: int) -> list[TaskRow]:
    return list(islice(rows, number))
