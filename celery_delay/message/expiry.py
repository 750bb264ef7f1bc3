"""The instant after which a task must not run, and tasks that pass it before they are due."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery_delay.domain.clock import Clock, to_ms
from celery_delay.domain.entries import Addition

__all__ = ["expiry_ms", "warn_if_dead_on_arrival", "warn_if_expired"]

logger = logging.getLogger(__name__)


def expiry_ms(headers: Mapping[str, Any]) -> int:
    """The instant, in ms, after which a message's task must not run; 0 for never."""
    expires = headers.get("expires")
    return to_ms(datetime.fromisoformat(expires)) if expires else 0


def warn_if_dead_on_arrival(addition: Addition, clock: Clock) -> None:
    """Log that *addition* expires before it is due."""
    if not addition.expires_ms:
        return
    due_ms = addition.due.ms + (clock.wall() * 1000 if addition.due.is_delay else 0)
    warn_if_expired(addition.entry_id.task_id, addition.expires_ms, due_ms)


def warn_if_expired(task_id: str, expires_ms: int, due_ms: float) -> None:
    """Log that a task expires before it is due; *expires_ms* is 0 for never."""
    if 0 < expires_ms <= due_ms:
        logger.warning(
            "%s expires before it is due: `expires` counts from the call, not from the eta",
            task_id,
            extra={"event": "expires_before_eta", "task_id": task_id},
        )
