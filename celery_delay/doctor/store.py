"""The shards and the audit: what ``status`` finds, or that there is nothing; the tables' upkeep."""

from __future__ import annotations

from collections.abc import Iterator

from celery_delay.delayed.findings import Diagnosis, Situation, audit_findings, findings
from celery_delay.doctor.checks import NOTE, OK, Check
from celery_delay.doctor.visit import Visit
from celery_delay.domain.spans import span

__all__ = ["audit", "autovacuum", "shards"]

#: check → the codes of the findings that belong to it.
_AREAS = {
    "leader": {"no_leader", "leader_gone", "leader_stuck", "history_unnamed"},
    "backlog": {"overdue"},
    "publishing": {"broker"},
    "blocked": {"blocked"},
    "gates": {"paused", "releasing", "limited", "full"},
    "held": {"held"},
    "quarantine": {"quarantined"},
    "journal": {"journal_gap", "journal_filling", "drain_lag"},
    "audit": {
        "audit_unavailable", "schema_missing", "schema_outdated", "schema_newer",
        "foreign_database",
    },
}  # fmt: skip
#: What other checks say more exactly.
_ELSEWHERE = {"redis_version", "eviction", "memory", "not_persistent", "store_unavailable"}


def shards(visit: Visit) -> Iterator[Check]:
    """Who leads, what is overdue or kept from its queue, how far the journal is drained."""
    seen = visit.situation
    found = [one for one in findings(seen) if one.code not in _ELSEWHERE]
    for area, codes in _AREAS.items():
        if area != "audit":
            yield from _area(area, [one for one in found if one.code in codes], _fine(area, seen))
    known = set().union(*_AREAS.values())
    for one in found:
        if one.code not in known:
            yield _check(one.code, one)


def audit(visit: Visit) -> Iterator[Check]:
    """The audit database and its tables; told also while Redis is away."""
    delayed = visit.delayed
    if not delayed.settings.audited:
        yield Check("audit", OK, "none is kept: delay_database_url is not set, or delay_audit off")
        return
    report = delayed.audit_report()
    known = visit.__dict__.get("situation")
    ids = [one.audit_id for one in known.shards] if known is not None else []
    found = list(audit_findings(report, ids))
    yield from _area("audit", found, f"{report.database}, tables current, uuid {report.uuid}")


def autovacuum(visit: Visit) -> Iterator[Check]:
    """Nothing of ours removes what PostgreSQL's rows leave behind, or counts them for its plans."""
    if not visit.delayed.settings.has_database:
        return
    is_on = visit.delayed.audit_queries().autovacuum()
    if is_on:
        yield Check("autovacuum", OK, "PostgreSQL tidies its tables by itself")
    elif is_on is not None:
        yield Check(
            "autovacuum", NOTE,
            "autovacuum is off in PostgreSQL: the audit's tables keep all their dead rows, and"
            " without statistics counts and lists of millions of tasks take seconds",
            "set autovacuum = on, or let a job run VACUUM ANALYZE on the celery_delay tables",
        )  # fmt: skip


def _area(area: str, found: list[Diagnosis], fine: str) -> Iterator[Check]:
    if not found:
        yield Check(area, OK, fine)
    for one in found:
        yield _check(area, one)


def _check(name: str, one: Diagnosis) -> Check:
    return Check(name, one.level, one.text, one.remedy)


def _fine(area: str, seen: Situation) -> str:
    shards = seen.shards
    waiting = sum(one.pending for one in shards)
    if area == "leader":
        holders = sorted({one.holder for one in shards})
        return f"{', '.join(holders)} at work"
    if area == "backlog":
        return f"{waiting} tasks wait for their eta, none is overdue"
    if area == "publishing":
        return "the leader knows of no broker that declines"
    if area == "journal":
        if not seen.settings.audited:
            return "none, for no audit is kept"
        lag = max(one.drain_lag_ms for one in shards)
        return f"{sum(one.journal for one in shards)} entries, {span(lag)} behind"
    return "none"
