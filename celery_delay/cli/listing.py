"""``list`` and ``count``: what waits, by Redis; what was, by the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.audit import lag_text
from celery_delay.cli.filtering import filter_options, filters_of, meant
from celery_delay.cli.output import STATE_STYLES, Output
from celery_delay.cli.times import fields, local, relative
from celery_delay.cli.verb import YES, option, verb
from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.filters import STORED
from celery_delay.domain.queues import queue_of
from celery_delay.domain.states import State

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.audit.queries import TaskRow

__all__ = ["count_command", "list_command", "row_table", "stored_row"]

#: What Redis knows of; the audit knows of all.
_WAITING = (State.SCHEDULED.value, State.HELD.value)
_STORED = {one.value for one in STORED}
#: Tasks that --all reads at a time.
_PAGE = 1_000
_SOURCES = ("auto", "store", "audit")


def source_option(function: Any) -> Any:
    """Give a verb the option to say who is to answer."""
    return option(
        "--source", type=click.Choice(_SOURCES), default="auto", show_default=True,
        help="Who answers what waits: Redis (exact), or the audit (quicker for filters).",
    )(function)  # fmt: skip


@verb("list")
@filter_options
@option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True,
        help="How many at most.")  # fmt: skip
@option("--cursor", help="Go on from there: the last line of the page before tells it.")
@option("--all", "everything", is_flag=True, help="All pages.")
@source_option
@option("--watch", type=click.FloatRange(0.2, 3_600), is_flag=False, flag_value=2.0,
        metavar="[SECONDS]",
        help="Show it anew every 2 seconds, or so many, until Ctrl-C.")  # fmt: skip
def list_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    limit: int,
    cursor: str | None,
    everything: bool,
    source: str,
    watch: float | None,
    **given: Any,
) -> int:
    """List delayed tasks by eta.

    What waits comes from Redis, as of now, the earliest first.  For filters other than --state
    and the eta it is found by the audit, where there is one that lags by 10 s at most, and
    checked in Redis; the last line tells the lag.  --source store reads Redis for them too.
    Past states come from the audit, the latest first.

    \b
    Examples:
      celery -A proj delay list
      celery -A proj delay list --before 1h
      celery -A proj delay list --task 'shop.*' --namespace acme
      celery -A proj delay list --after 2030-01-31T09:00 --before 2030-02-01
      celery -A proj delay list --state FAILED --after -1d --task shop.pay
      celery -A proj delay list --tag order-42 --json | jq -r '.tasks[].task_id'
      celery -A proj delay list --limit 20 --watch

    Instants without an offset are local time, as in the table.  The exit code is 0, also for an
    empty list.
    """
    if everything and (cursor is not None or watch is not None):
        raise click.UsageError("--all shows all pages: leave --cursor and --watch out")
    if watch is not None and out.as_json:
        raise click.UsageError("--watch is for people: with --json call it again instead")
    look = _Look(delayed, given, source)
    if watch is not None:
        return _watch(out, look, limit, cursor, watch)
    document = look.page(_PAGE if everything else limit, cursor)
    if everything and not out.as_json:
        while document["next"] is not None:
            row_table(out, document["tasks"], document["now_ms"])
            document = look.page(_PAGE, document["next"])
    while everything and document["next"] is not None:
        more = look.page(_PAGE, document["next"])
        document = {**more, "tasks": document["tasks"] + more["tasks"]}
    if out.as_json:
        out.document(document)
    else:
        _print(out, document)
    return YES


@verb("count")
@filter_options
@source_option
def count_command(delayed: CeleryDelay, out: Output, *, source: str, **given: Any) -> int:
    """Count the tasks that wait.

    By --state and the eta Redis answers at once.  Other filters are counted by the audit, where
    there is one that lags by 10 s at most, else, and with --source store, by reading Redis: that
    takes some 1.5 s for 100 000 tasks.

    \b
    Examples:
      celery -A proj delay count
      celery -A proj delay count --before 1h
      celery -A proj delay count --tag reminder --source store

    The exit code is 0, also if there is none.
    """
    with meant():
        number = delayed.count(source=source, **filters_of(delayed, given))
    if out.as_json:
        out.document({"count": int(number), "source": number.source, "audit_lag_ms": number.lag_ms})
    else:
        out.line(str(int(number)))
        if number.source != "store":
            out.line(lag_text(number.lag_ms), "dim")
    return YES


class _Look:
    """One list, asked for as often as need be."""

    def __init__(self, delayed: CeleryDelay, given: Mapping[str, Any], source: str) -> None:
        self._delayed = delayed
        self._given = given
        self._source = source
        self._states = [one.upper() for one in given["states"]] or list(_WAITING)

    def page(self, limit: int, cursor: str | None) -> dict[str, Any]:
        """The document of a page; UsageError for a filter or a cursor that cannot be meant."""
        with meant():
            if set(self._states) <= _STORED:
                return self._waiting(limit, cursor)
            return self._past(limit, cursor)

    def sleep(self, seconds: float) -> None:
        """Wait until the next look."""
        self._delayed.clock.sleep(seconds)

    def _waiting(self, limit: int, cursor: str | None) -> dict[str, Any]:
        delayed = self._delayed
        now_ms = delayed.now_ms()
        filters = filters_of(delayed, self._given, now_ms)
        page = delayed.list(limit=limit, cursor=cursor, source=self._source, **filters)
        rows = [stored_row(one, now_ms) for one in page]
        by_index = not delayed.wanted(filters).needs_record
        total = int(delayed.count(**filters)) if by_index else None
        return {
            "source": page.source,
            "audit_lag_ms": page.lag_ms,
            "total": total,
            **fields("now", now_ms),
            "next": page.next,
            "tasks": rows,
        }

    def _past(self, limit: int, cursor: str | None) -> dict[str, Any]:
        delayed = self._delayed
        asks_redis = bool(set(self._states) & set(_WAITING)) or any(
            one is not None and one.is_delay
            for one in (self._given["after"], self._given["before"])
        )
        now_ms = delayed.now_ms() if asks_redis else None
        page = delayed.past(limit=limit, cursor=cursor, **filters_of(delayed, self._given, now_ms))
        checked = (_checked_row(delayed, one, now_ms, self._states) for one in page)
        return {
            "source": "audit",
            "audit_lag_ms": page.lag_ms,
            "total": None,
            **fields("now", now_ms),
            "next": page.next,
            "tasks": [row for row in checked if row is not None],
        }


def _watch(out: Output, look: _Look, limit: int, cursor: str | None, seconds: float) -> int:
    """Show a page again and again; where that is no terminal, one after the other."""
    try:
        with out.live() as shown:
            while True:
                document = {**look.page(limit, cursor), "next": None}
                shown(lambda: _print(out, document))  # noqa: B023 - called at once
                look.sleep(seconds)
    except KeyboardInterrupt:
        return YES


def stored_row(one: StoredEntry, now_ms: int | None) -> dict[str, Any]:
    """The document of an entry."""
    task_id, run = one.entry_id
    row = _row(task_id, run, one.state.value, one.task, one.queue, one.eta_ms, now_ms)
    return {**row, "gate": one.gate or None}


def _checked_row(
    delayed: CeleryDelay, one: TaskRow, now_ms: int | None, states: Sequence[str]
) -> dict[str, Any] | None:
    """The audit's row; ``None`` when Redis knows that it waits no more, or not in that state."""
    if one.state in _WAITING:
        entry = delayed.get(one.task_id)
        if entry is None or entry.state.value not in states:
            return None
        return stored_row(entry, now_ms)
    return _row(one.task_id, one.run, one.state, one.name, one.queue, one.eta_ms, now_ms)


def _row(
    task_id: str,
    run: int,
    state: str,
    task: str | None,
    queue: str | None,
    eta_ms: int | None,
    now_ms: int | None,
) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "run": run,
        "state": state,
        "task": task,
        "queue": queue_of(queue) if queue is not None else None,
        **fields("eta", eta_ms),
        "due_in_ms": None if eta_ms is None or now_ms is None else eta_ms - now_ms,
        "gate": None,
    }


def row_table(out: Output, rows: Sequence[Mapping[str, Any]], now_ms: int | None) -> None:
    """Documents of tasks as a table."""
    # mostly all are SCHEDULED, which need not be said
    state = ["state"] if any(one["state"] != _WAITING[0] for one in rows) else []
    due = ["due"] if now_ms is not None else []
    gate = ["gate"] if any(one["gate"] for one in rows) else []
    out.table(
        ["task id", *state, "task", "queue", "eta", *due, *gate],
        [
            [
                one["task_id"],
                *(one[name] for name in state),
                one["task"],
                one["queue"],
                local(one["eta_ms"]),
                *(relative(one["eta_ms"], now_ms or 0) for _ in due),
                *(one[name] or "-" for name in gate),
            ]
            for one in rows
        ],
        styles=STATE_STYLES,
        spare=("queue", "eta") if due else ("queue",),
        cut=("task", "queue"),
    )


def _print(out: Output, document: Mapping[str, Any]) -> None:
    rows, total = document["tasks"], document["total"]
    if rows:
        row_table(out, rows, document["now_ms"])
    if document["source"] == "audit":
        out.line(f"tasks: {len(rows)}, {lag_text(document['audit_lag_ms'])}", "dim")
    elif total is None:
        out.line(f"tasks: {len(rows)}", "dim")
    else:
        out.line(f"{len(rows)} of {total} waiting tasks" if total else "nothing waits", "dim")
    if document["next"] is not None:
        out.line(f"go on with --cursor {document['next']}", "dim")
