"""``GET /api/delayed/overview``: how it stands, who leads, how the last hour went."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from celery_delay.delayed.supervision import leader_of
from celery_delay.domain.documents import fields
from celery_delay.flower.beats import beats_of
from celery_delay.flower.guarding import JsonHandler, token_of, why_read_only
from celery_delay.flower.lately import Lately

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.domain.answers import RecentPast
    from celery_delay.domain.gates import Gate
    from celery_delay.store.inspection import ShardReport

__all__ = ["OverviewHandler"]

#: For how long an answer is good, in seconds: of the store, and of the beats and the audit.
_STORE, _OTHERS = 0.5, 5.0
_HOUR_MS = 3_600_000
_SUMS = ("pending", "overdue", "held", "blocked", "gated", "quarantined", "claimed", "journal")


class OverviewHandler(JsonHandler):
    """Numbers, who leads, what is paused."""

    def initialize(self, known: dict[str, Any]) -> None:
        """*known* keeps what was told before, for all requests."""
        self._known = known

    async def get(self) -> None:
        """All of it, and a token for the page that asks."""
        why = why_read_only(self)
        told = await self.ask(self._told, self.delayed)
        who = {"read_only": why is not None, "read_only_why": why, "csrf": token_of(self)}
        self.answer({**told, **who})

    def _told(self, delayed: CeleryDelay) -> dict[str, Any]:
        if not self._known:
            clock = delayed.clock
            self._known |= {
                "store": Lately(clock, _STORE),
                "beats": Lately(clock, _OTHERS),
                "past": Lately(clock, _OTHERS),
            }
        known = self._known
        return {
            **known["store"].get(lambda: _store(delayed)),
            "beats": known["beats"].get(lambda: beats_of(delayed)),
            **known["past"].get(lambda: _past(delayed)),
        }


def _store(delayed: CeleryDelay) -> dict[str, Any]:
    shards = delayed.inspect_shards()
    dues = [one.next_due_ms for one in shards if one.next_due_ms is not None]
    return {
        "version": version("celery-delay"),
        **fields("now", shards[0].now_ms),
        **{name: sum(getattr(one, name) for one in shards) for name in _SUMS},
        **fields("next_due", min(dues, default=None)),
        "drain_lag_ms": max(one.drain_lag_ms for one in shards),
        "schedules": sum(one.schedules for one in shards),
        "broker_failure": next((one.broker_failure for one in shards if one.broker_failure), None),
        "shards": [
            _shard(one, status) for one, status in zip(shards, delayed.leading(shards), strict=True)
        ],
        "gates": [_gate(one) for one in delayed.gates()],
    }


def _shard(one: ShardReport, status: str) -> dict[str, Any]:
    leader = leader_of(one, status)
    return {
        "shard": leader.shard,
        "status": leader.status,
        "holder": leader.holder,
        "term": leader.term,
        **fields("since", leader.since_ms),
        **fields("progress", leader.progress_ms),
        "idle_ms": leader.idle_ms,
        "pending": one.pending,
        "overdue": one.overdue,
    }


def _gate(one: Gate) -> dict[str, Any]:
    return {
        "gate": one.gate,
        "status": one.status,
        **fields("since", one.since_ms),
        "by": one.by or None,
        "reason": one.reason,
        "waiting": one.waiting,
    }


def _past(delayed: CeleryDelay) -> dict[str, Any]:
    past, why = delayed.recent(delayed.now_ms() - _HOUR_MS)
    return {"past": _past_document(past) if past is not None else None, "past_error": why or None}


def _past_document(past: RecentPast) -> dict[str, Any]:
    return {
        **fields("since", past.since_ms),
        "reached": dict(past.reached),
        "lag": past.lag._asdict() if past.lag is not None else None,
        "lag_histogram": [{"le_ms": bound, "count": count} for bound, count in past.lags],
    }
