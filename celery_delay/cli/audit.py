"""The audit as the verbs use it: SQLAlchemy is imported when one of them asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_delay.domain.spans import span
from celery_delay.store.inspection import ShardReport

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.audit.queries import AuditQueries

__all__ = ["audit_lag", "lag_text", "open_audit", "shard_reports"]


def open_audit(delayed: CeleryDelay) -> AuditQueries:
    """Questions to the project's audit; InvalidSetting if it keeps none."""
    return delayed.audit_queries()


def shard_reports(delayed: CeleryDelay) -> list[ShardReport]:
    """Every shard as it is now; StoreUnavailable if Redis is away."""
    return delayed.inspect_shards()


def audit_lag(delayed: CeleryDelay) -> int | None:
    """How old the audit's answers may be, in ms; ``None`` if Redis cannot tell."""
    return delayed.audit_lag_ms()


def lag_text(lag_ms: int | None) -> str:
    """The same for people."""
    if lag_ms is None:
        return "from the audit; how far it lags is unknown, since Redis cannot be reached"
    if not lag_ms:
        return "from the audit, which is up to date"
    return f"from the audit, which lags {span(lag_ms)} behind"
