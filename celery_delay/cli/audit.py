"""The audit as the verbs use it: SQLAlchemy is imported when one of them asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_delay.exceptions import InvalidSetting, StoreUnavailable
from celery_delay.store.inspection import ShardReport, inspect_shard

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.audit.queries import AuditQueries

__all__ = ["audit_lag", "drain_lag", "lag_text", "open_audit", "shard_reports"]


def open_audit(delayed: CeleryDelay) -> AuditQueries:
    """Questions to the project's audit.

    Raises:
        InvalidSetting: the project keeps none.
    """
    from celery_delay.audit.queries import AuditQueries

    if not delayed.settings.has_database:
        raise InvalidSetting(
            "this needs the audit, and delay_database_url is not set"
            " (without it: `list` for what waits, `show ID` for one task)"
        )
    return AuditQueries(delayed.audit_log.database)


def shard_reports(delayed: CeleryDelay) -> list[ShardReport]:
    """Every shard as it is now; StoreUnavailable if Redis is away."""
    link = delayed.links().link()
    try:
        return [inspect_shard(link, keys) for keys in delayed.shard_keys]
    finally:
        link.close()


def drain_lag(report: ShardReport) -> int:
    """For how long, in ms, the shard's oldest undrained transition has waited; 0 for none.

    All that is older is in SQL.
    """
    if report.journal_oldest_ms is None:
        return 0
    return max(0, report.now_ms - report.journal_oldest_ms)


def audit_lag(delayed: CeleryDelay) -> int | None:
    """How old the audit's answers may be, in ms; ``None`` if Redis cannot tell."""
    try:
        return max(map(drain_lag, shard_reports(delayed)))
    except StoreUnavailable:
        return None


def lag_text(lag_ms: int | None) -> str:
    """The same for people."""
    from celery_delay.cli.times import span

    if lag_ms is None:
        return "from the audit; how far it lags is unknown, since Redis cannot be reached"
    if not lag_ms:
        return "from the audit, which is up to date"
    return f"from the audit, which lags {span(lag_ms)} behind"
