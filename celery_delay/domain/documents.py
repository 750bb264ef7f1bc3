"""What JSON documents have in common, whoever writes them: how instants and runs are told."""

from __future__ import annotations

from typing import Any

from celery_delay.domain.answers import RunRow
from celery_delay.domain.clock import from_ms

__all__ = ["fields", "iso", "run_document"]


def iso(ms: int | None) -> str | None:
    """The instant in UTC for programs."""
    if ms is None:
        return None
    try:
        return from_ms(ms).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"
    except OverflowError:
        return None


def fields(name: str, ms: int | None) -> dict[str, object]:
    """An instant in a JSON document: *name* in ISO 8601 and *name*_ms."""
    return {name: iso(ms), f"{name}_ms": ms}


def run_document(one: RunRow) -> dict[str, Any]:
    """One run of a task."""
    return {
        "run": one.run,
        "version": one.version,
        "state": one.state,
        **fields("eta", one.eta_ms),
        **fields("scheduled", one.scheduled_ms),
        **fields("dispatched", one.dispatched_ms),
        **fields("started", one.started_ms),
        **fields("ended", one.ended_ms),
        "lag_ms": one.lag_ms,
        "worker": one.worker,
        "error": one.error,
    }
