"""Entries, and what is told of them, as JSON documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_delay.delayed.searching import Searching
from celery_delay.domain.documents import fields
from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.queues import queue_of
from celery_delay.flower.shown import shown
from celery_delay.store.keys import shard_of

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.audit.queries import TaskRow

__all__ = ["audited_row", "bare_row", "stored_row", "why_parked"]

_EMPTY: Mapping[str, Any] = {
    "task_id": None,
    "run": None,
    "version": None,
    "state": None,
    "task": None,
    "queue": None,
    **fields("eta", None),
    "due_in_ms": None,
    **fields("expires", None),
    "gate": None,
    "reason": None,
    "namespace": None,
    "tags": [],
    "unique_key": None,
    "args": None,
    "kwargs": None,
    "error": None,
}


def stored_row(delayed: CeleryDelay, one: StoredEntry, now_ms: int) -> dict[str, Any]:
    """An entry of the store."""
    args, kwargs = shown(delayed, one)
    labels = one.labels
    return {
        **_EMPTY,
        "task_id": one.entry_id.task_id,
        "run": one.entry_id.run,
        "version": one.version,
        "state": one.state.value,
        "task": one.task,
        "queue": one.queue_name or queue_of(one.queue),
        **fields("eta", one.eta_ms),
        "due_in_ms": one.eta_ms - now_ms,
        **fields("expires", one.expires_ms or None),
        "gate": one.gate or None,
        "namespace": labels.namespace,
        "tags": list(labels.tags),
        "unique_key": labels.unique.key if labels.unique is not None else None,
        "args": args,
        "kwargs": kwargs,
    }


def bare_row(task_id: str, state: str, eta_ms: int | None, now_ms: int) -> dict[str, Any]:
    """An entry whose record cannot be read."""
    return {
        **_EMPTY,
        "task_id": task_id,
        "state": state,
        **fields("eta", eta_ms),
        "due_in_ms": None if eta_ms is None else eta_ms - now_ms,
        "error": "its record is damaged, or of a newer release",
    }


def audited_row(one: TaskRow, labels: tuple[str | None, list[str]], now_ms: int) -> dict[str, Any]:
    """A task as the audit has it; *labels* are its namespace and its tags."""
    namespace, tags = labels
    return {
        **_EMPTY,
        "task_id": one.task_id,
        "run": one.run,
        "version": one.version,
        "state": one.state,
        "task": one.name,
        "queue": queue_of(one.queue) if one.queue is not None else None,
        **fields("eta", one.eta_ms),
        "due_in_ms": one.eta_ms - now_ms if one.eta_ms is not None else None,
        "namespace": namespace,
        "tags": tags,
        "args": one.args,
        "kwargs": one.kwargs,
        "error": one.error,
    }


def why_parked(delayed: Searching, task_ids: list[str]) -> dict[str, str]:
    """Why those of *task_ids* that are QUARANTINED are so."""
    shards = delayed.settings.shards
    told: dict[str, str] = {}
    for number, shard in enumerate(delayed.shards):
        told |= shard.why_parked([one for one in task_ids if shard_of(one, shards) == number])
    return told
