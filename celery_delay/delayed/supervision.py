"""Who leads, and whether all is well: the numbers of a few looks, judged by ``findings``."""

from __future__ import annotations

from collections.abc import Sequence

from celery_delay.delayed.findings import (
    STALE_MS,
    AuditReport,
    Diagnosis,
    Health,
    Leader,
    Leading,
    Situation,
    findings,
)
from celery_delay.delayed.overview import Overview
from celery_delay.exceptions import DelayError, StoreUnavailable
from celery_delay.store.inspection import ServerReport, ShardReport, inspect_server

__all__ = ["Supervision", "leader_of", "store_away"]


class Supervision(Overview):
    """The part of ``app.delayed`` that judges."""

    def leader(self) -> list[Leader]:
        """Which beat leads, shard by shard.

        A leader that works says so each second.  Where one does not, its lease is watched for
        ``delay_lease`` seconds, as a standby watches it.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        shards = self.inspect_shards()
        return [leader_of(*one) for one in zip(shards, self.leading(shards), strict=True)]

    def health(self) -> Health:
        """Whether tasks are handed off and their story is kept, and if not, what to do.

        For a health check, and for whoever is woken up by one: the same findings as ``celery
        delay status`` tells.  Never raises because something is away: that is a finding.  It
        takes a few commands to Redis and one query; ``delay_lease`` seconds more if no leader
        is at work.
        """
        try:
            found = findings(self.situation())
        except StoreUnavailable as exc:
            found = [store_away(exc)]
        return Health(not any(one.level == "problem" for one in found), found)

    # -- for the command line ---------------------------------------------------------------

    def situation(self) -> Situation:
        """All that is judged.

        Raises:
            StoreUnavailable: Redis could not be reached.
        """
        server = self.inspect_server()
        shards = self.inspect_shards()
        leading = self.leading(shards)
        return Situation(self.settings, server, shards, leading, self.audit_report())

    def inspect_server(self) -> ServerReport:
        """The Redis server; raises StoreUnavailable."""
        link = self.links().link()
        try:
            return inspect_server(link)
        finally:
            link.close()

    def audit_report(self) -> AuditReport:
        """The audit database; never raises because it is away."""
        if not self.settings.audited:
            return AuditReport("off")
        try:
            audit = self.audit_queries()
            state, uuid = audit.schema()
            oldest = audit.oldest_ms(self.settings.shards) if state == "current" else None
        except DelayError as exc:
            return AuditReport("unavailable", error=str(exc))
        return AuditReport(state, str(audit.database), uuid, oldest_ms=oldest)

    def leading(self, shards: Sequence[ShardReport]) -> list[str]:
        """How each of *shards* is led; takes ``delay_lease`` seconds if one may have nobody."""
        states = [_at_a_glance(one) for one in shards]
        if Leading.GONE in states:
            self.clock.sleep(self.settings.lease)
            for position, (before, after) in enumerate(
                zip(shards, self.inspect_shards(), strict=True)
            ):
                if states[position] == Leading.GONE and after.holder:
                    if _at_a_glance(after) == Leading.LEADING:
                        states[position] = Leading.LEADING
                    elif (before.term, before.seq) != (after.term, after.seq):
                        states[position] = Leading.STUCK
        return states


def store_away(error: Exception) -> Diagnosis:
    """That Redis cannot be reached."""
    return Diagnosis(
        "problem", "store_unavailable", None,
        f"Redis cannot be reached: {error}",
        "start it, or mend the way to it (delay_redis_url, else broker_url); what waits in it is"
        " handed off within a second of its return, and beats go on trying by themselves",
    )  # fmt: skip


def _at_a_glance(shard: ShardReport) -> str:
    if not shard.holder:
        return Leading.NOBODY
    if shard.progress_ms is not None and shard.now_ms - shard.progress_ms <= STALE_MS:
        return Leading.LEADING
    return Leading.GONE


def leader_of(shard: ShardReport, status: str) -> Leader:
    """How the shard is led."""
    idle = None if shard.progress_ms is None else shard.now_ms - shard.progress_ms
    return Leader(
        shard=shard.shard,
        status=status,
        holder=shard.holder or None,
        term=shard.term,
        since_ms=shard.since_ms,
        epoch=shard.epoch,
        progress_ms=shard.progress_ms,
        idle_ms=idle,
    )
