"""``show`` and ``history``: all that is known of one task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.audit import audit_lag, lag_text, open_audit
from celery_delay.cli.completion import waiting_ids
from celery_delay.cli.output import STATE_STYLES, Output
from celery_delay.cli.times import fields, local, relative, span
from celery_delay.cli.verb import NO, YES, say_error, verb
from celery_delay.domain.documents import run_document
from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.queues import queue_of
from celery_delay.exceptions import DelayError, StoreUnavailable

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.audit.queries import TaskRow
    from celery_delay.domain.events import Event

__all__ = ["history_command", "show_command"]

# --- show --------------------------------------------------------------------------------


@verb("show")
@click.argument("task_id", metavar="ID", shell_complete=waiting_ids)
def show_command(delayed: CeleryDelay, out: Output, *, task_id: str) -> int:
    """Show all that is known of one task.

    What waits in Redis (eta, queue, message headers, arguments as text), what the audit says of
    each run, and the state in the result backend.

    \b
    Examples:
      celery -A proj delay show 5f0c6c2e-…
      celery -A proj delay show 5f0c6c2e-… --json | jq .stored.eta

    The exit code is 1 if nobody knows the task.
    """
    stored = delayed.get(task_id)
    now_ms = delayed.now_ms()
    seen = delayed.results.seen(task_id)
    audited, audit_error = _audited(delayed, task_id)
    document = {
        "task_id": task_id,
        **fields("now", now_ms),
        "stored": _stored_document(stored, now_ms) if stored is not None else None,
        "audit": audited,
        "audit_lag_ms": audit_lag(delayed) if audited else None,
        "audit_error": audit_error,
        "result": {"state": seen.value if seen is not None else None},
    }
    known = bool(stored or audited or seen)
    if out.as_json:
        out.document(document)
    elif known:
        _show_table(out, document, now_ms)
    if not known:
        say_error(f"nobody knows the task {task_id!r}")
        if audit_error:
            say_error(f"but the audit could not be asked: {audit_error}")
    return YES if known else NO


def _audited(delayed: CeleryDelay, task_id: str) -> tuple[dict[str, Any] | None, str | None]:
    """The audit's document, or why there is none."""
    if not delayed.settings.has_database:
        return None, None
    try:
        queries = open_audit(delayed)
        task = queries.task(task_id)
        runs = queries.runs(task_id) if task is not None else []
    except DelayError as exc:
        # Redis has answered: half of the truth is better than none
        return None, str(exc)
    if task is None:
        return None, None
    return {**_task_document(task), "runs": [run_document(one) for one in runs]}, None


def _stored_document(one: StoredEntry, now_ms: int) -> dict[str, Any]:
    return {
        "state": one.state.value,
        "task": one.task,
        "run": one.entry_id.run,
        "version": one.version,
        "queue": queue_of(one.queue) if one.queue is not None else None,
        **fields("eta", one.eta_ms),
        "due_in_ms": one.eta_ms - now_ms,
        "gate": one.gate or None,
        **fields("expires", one.expires_ms or None),
        "args": one.headers.get("argsrepr"),
        "kwargs": one.headers.get("kwargsrepr"),
        "headers": one.headers,
    }


def _task_document(one: TaskRow) -> dict[str, Any]:
    return {
        "state": one.state,
        "run": one.run,
        "version": one.version,
        "task": one.name,
        "queue": queue_of(one.queue) if one.queue is not None else None,
        **fields("eta", one.eta_ms),
        **fields("created", one.created_ms),
        **fields("updated", one.updated_ms),
        "args": one.args,
        "kwargs": one.kwargs,
        "root_id": one.root_id,
        "parent_id": one.parent_id,
        "group_id": one.group_id,
        "result": one.result,
        "error": one.error,
    }


def _show_table(out: Output, document: Mapping[str, Any], now_ms: int) -> None:
    stored, audited = document["stored"], document["audit"]
    known = stored or audited or {}
    state = stored["state"] if stored else audited["state"] if audited else None
    eta_ms = known.get("eta_ms")
    facts = [
        ("task id", document["task_id"]),
        ("task", known.get("task")),
        ("state", state),
        ("queue", known.get("queue")),
        ("eta", f"{local(eta_ms)} ({relative(eta_ms, now_ms)})" if eta_ms else None),
        ("expires", local(stored["expires_ms"]) if stored and stored["expires_ms"] else None),
        ("run", known.get("run")),
        ("args", known.get("args")),
        ("kwargs", known.get("kwargs")),
        ("error", audited["error"] if audited else None),
        ("result backend", document["result"]["state"] or "knows nothing of it"),
    ]
    if stored:
        facts.append(("headers", json.dumps(stored["headers"], ensure_ascii=False)))
    out.facts(facts)
    if audited:
        out.line()
        out.table(
            ["run", "state", "eta", "dispatched", "lag", "started", "ended", "worker", "error"],
            [
                [
                    one["run"],
                    one["state"],
                    local(one["eta_ms"]),
                    local(one["dispatched_ms"]),
                    span(one["lag_ms"]),
                    local(one["started_ms"]),
                    local(one["ended_ms"]),
                    one["worker"],
                    one["error"],
                ]
                for one in audited["runs"]
            ],
            styles=STATE_STYLES,
        )
        out.line(lag_text(document["audit_lag_ms"]), "dim")
    elif document["audit_error"]:
        out.line(f"the audit could not be asked: {document['audit_error']}", "red")


# --- history -----------------------------------------------------------------------------


@verb("history")
@click.argument("task_id", metavar="ID", shell_complete=waiting_ids)
def history_command(delayed: CeleryDelay, out: Output, *, task_id: str) -> int:
    """Tell all that happened to one task, in order, with all its runs.

    A retry is a run of its own.  The instants are those of Redis' clock; "lag" is how long
    after its eta the task was handed to its queue.

    \b
    Examples:
      celery -A proj delay history 5f0c6c2e-…
      celery -A proj delay history 5f0c6c2e-… --json | jq '.events[] | [.state, .at]'

    The exit code is 1 if the audit has nothing of the task (yet).
    """
    events = open_audit(delayed).events(task_id)
    lag_ms = audit_lag(delayed)
    rows = [_event_row(one) for one in events]
    if out.as_json:
        out.document({"task_id": task_id, "audit_lag_ms": lag_ms, "events": rows})
    elif rows:
        out.table(
            ["when", "run", "state", "lag", "worker", "what else"],
            [
                [
                    local(one["at_ms"], "milliseconds"),
                    one["run"],
                    one["state"],
                    span(one["lag_ms"]),
                    one["worker"],
                    _details(one["data"]),
                ]
                for one in rows
            ],
            styles=STATE_STYLES,
        )
        out.line(f"transitions: {len(rows)}, {lag_text(lag_ms)}", "dim")
    if not rows:
        say_error(f"no history of {task_id!r}{_waiting(delayed, task_id)} ({lag_text(lag_ms)})")
    return YES if rows else NO


def _waiting(delayed: CeleryDelay, task_id: str) -> str:
    try:
        return ", but it waits in Redis" if delayed.get(task_id) is not None else ""
    except StoreUnavailable:
        return ""


def _event_row(one: Event) -> dict[str, Any]:
    return {
        "state": one.state,
        "run": one.entry_id.run,
        "version": one.version,
        **fields("at", one.at_ms),
        **fields("eta", one.eta_ms),
        "lag_ms": one.data.get("lag_ms"),
        "worker": one.data.get("worker"),
        "data": one.data,
    }


#: Shown in a column of their own, or too long for a table; JSON has them.
_NOT_DETAILS = frozenset({"lag_ms", "worker", "chord"})


def _details(data: Mapping[str, Any]) -> str:
    told = [(name, value) for name, value in data.items() if name not in _NOT_DETAILS]
    return ", ".join(f"{name}={value}" for name, value in told)
