"""``list``: what waits, by Redis; what was, by the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.audit import audit_lag, lag_text, open_audit
from celery_delay.cli.output import STATE_STYLES, Output
from celery_delay.cli.times import INSTANT, fields, local, relative
from celery_delay.cli.verb import YES, option, queue_of, verb
from celery_delay.entries import Due, StoredEntry
from celery_delay.states import State

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.audit.queries import TaskRow

__all__ = ["list_command"]

#: What Redis knows of; the audit knows of all.
_WAITING = (State.SCHEDULED.value, State.HELD.value)


@verb("list")
@option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True,
        help="How many at most.")  # fmt: skip
@option("--after", type=INSTANT, help="Only with an eta from then on.")
@option("--before", type=INSTANT, help="Only with an eta up to then.")
@option("--task", help="Only of this registered name.")
@option("--queue", help="Only for this queue.")
@option("--state", "states", multiple=True, default=_WAITING, show_default=True,
        type=click.Choice([one.value for one in State], case_sensitive=False),
        help="Only in this state; may be repeated.")  # fmt: skip
def list_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    limit: int,
    after: Due | None,
    before: Due | None,
    task: str | None,
    queue: str | None,
    states: Sequence[str],
) -> int:
    """List delayed tasks by eta.

    What waits is read from Redis, as of now, the earliest first.  Other states, and filters by
    name and queue, are answered from the audit, which lags behind by what the last line says;
    what it calls SCHEDULED is checked in Redis once more.  Past states come latest first.

    \b
    Examples:
      celery -A proj delay list
      celery -A proj delay list --before 1h
      celery -A proj delay list --after 2030-01-31T09:00 --before 2030-02-01
      celery -A proj delay list --state FAILED --after -1d --task shop.pay
      celery -A proj delay list --task shop.remind --json | jq -r '.tasks[].task_id'

    Instants without an offset are local time, as in the table.  The exit code is 0, also for an
    empty list.
    """
    states = list(dict.fromkeys(one.upper() for one in states))
    waiting = set(states) <= set(_WAITING)
    asks_redis = bool(set(states) & set(_WAITING)) or any(
        one and one.is_delay for one in (after, before)
    )
    now_ms = delayed.now_ms() if asks_redis else None
    bounds = _bounds(now_ms or 0, after_ms=after, before_ms=before)
    if waiting and task is None and queue is None:
        state = states[0] if len(states) == 1 else None
        found_now = delayed.list(limit=limit, state=state, **bounds)
        rows = [_stored_row(one, now_ms) for one in found_now]
        document = _document("store", rows, now_ms, total=delayed.count(state=state, **bounds))
    else:
        lag_ms = audit_lag(delayed)  # before the rows: they are at least that fresh
        found = open_audit(delayed).tasks(
            states=states, name=task, queue=queue, limit=limit,
            latest_first=not set(states) & set(_WAITING), **bounds,
        )  # fmt: skip
        rows = [
            row for one in found if (row := _checked_row(delayed, one, now_ms, states)) is not None
        ]
        document = _document("audit", rows, now_ms, lag_ms=lag_ms)
    if out.as_json:
        out.document(document)
    else:
        _print(out, document)
    return YES


def _bounds(now_ms: int, **given: Due | None) -> dict[str, int]:
    return {
        name: one.ms + (now_ms if one.is_delay else 0)
        for name, one in given.items()
        if one is not None
    }


def _document(
    source: str,
    rows: list[dict[str, Any]],
    now_ms: int | None,
    *,
    total: int | None = None,
    lag_ms: int | None = None,
) -> dict[str, Any]:
    return {
        "source": source,
        "audit_lag_ms": lag_ms,
        "total": total,
        **fields("now", now_ms),
        "tasks": rows,
    }


def _stored_row(one: StoredEntry, now_ms: int | None) -> dict[str, Any]:
    task_id, run = one.entry_id
    return _row(task_id, run, one.state.value, one.task, one.queue, one.eta_ms, now_ms)


def _checked_row(
    delayed: CeleryDelay, one: TaskRow, now_ms: int | None, states: Sequence[str]
) -> dict[str, Any] | None:
    """The audit's row; ``None`` when Redis knows that it waits no more, or not in that state."""
    if one.state in _WAITING:
        entry = delayed.get(one.task_id)
        if entry is None or entry.state.value not in states:
            return None
        return _stored_row(entry, now_ms)
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
        "queue": queue_of(queue),
        **fields("eta", eta_ms),
        "due_in_ms": None if eta_ms is None or now_ms is None else eta_ms - now_ms,
    }


def _print(out: Output, document: Mapping[str, Any]) -> None:
    rows, total, now_ms = document["tasks"], document["total"], document["now_ms"]
    # mostly all are SCHEDULED, which need not be said
    state = ["state"] if any(one["state"] != _WAITING[0] for one in rows) else []
    due = ["due"] if now_ms is not None else []
    if rows:
        out.table(
            ["task id", *state, "task", "queue", "eta", *due],
            [
                [
                    one["task_id"],
                    *(one[name] for name in state),
                    one["task"],
                    one["queue"],
                    local(one["eta_ms"]),
                    *(relative(one["eta_ms"], now_ms) for _ in due),
                ]
                for one in rows
            ],
            styles=STATE_STYLES,
        )
    if total is None:
        out.line(f"tasks: {len(rows)}, {lag_text(document['audit_lag_ms'])}", "dim")
    else:
        out.line(f"{len(rows)} of {total} waiting tasks" if total else "nothing waits", "dim")
