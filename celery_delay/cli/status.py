"""``status`` and ``leader``: is it all right, and if not, what now?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery_delay.cli.output import Output
from celery_delay.cli.pausing import gate_document
from celery_delay.cli.times import fields, local, relative, span
from celery_delay.cli.verb import NO, YES, verb
from celery_delay.delayed.findings import Diagnosis, Leader, Leading, Situation, findings
from celery_delay.delayed.supervision import leader_of
from celery_delay.store.inspection import ServerReport, ShardReport

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["leader_command", "status_command"]

# --- leader ------------------------------------------------------------------------------


def _leader_document(one: Leader) -> dict[str, Any]:
    return {
        "shard": one.shard,
        "status": one.status,
        "holder": one.holder,
        "term": one.term,
        **fields("since", one.since_ms),
        "epoch": one.epoch,
        **fields("progress", one.progress_ms),
        "idle_ms": one.idle_ms,
    }


@verb("leader")
def leader_command(delayed: CeleryDelay, out: Output) -> int:
    """Tell which beat leads, shard by shard.

    The holder is host:pid:id of the beat process.  The term grows with each change of the
    leader; the epoch names one history of Redis, and changes when that is restarted.

    \b
    leading   it looks for due tasks, at least once a second
    stuck     it renews its lease, but does not look for due tasks
    gone      it has stopped, and no other beat has taken over
    nobody    no beat has the lease

    \b
    Examples:
      celery -A proj delay leader
      celery -A proj delay leader --json | jq -r '.shards[0].holder'

    The exit code is 0 if each shard is led, else 1.
    """
    rows = [_leader_document(one) for one in delayed.leader()]
    led = all(one["status"] == Leading.LEADING for one in rows)
    if out.as_json:
        out.document({"led": led, "shards": rows})
    else:
        out.table(
            ["shard", "leader", "status", "term", "since", "epoch", "last looked"],
            [
                [
                    one["shard"],
                    one["holder"],
                    one["status"],
                    one["term"],
                    local(one["since_ms"]),
                    one["epoch"],
                    f"{span(one['idle_ms'])} ago" if one["idle_ms"] is not None else "never",
                ]
                for one in rows
            ],
            styles=_STYLES,
        )
    return YES if led else NO


_STYLES = {"leading": "green", "stuck": "red", "gone": "red", "nobody": "red"}

# --- status ------------------------------------------------------------------------------


@verb("status")
def status_command(delayed: CeleryDelay, out: Output) -> int:
    """Tell how it stands, and what to do about what is wrong.

    For each shard: who leads; how many tasks wait and how many are overdue (due for more than a
    second); held ones (kept back by `hold`); blocked ones (set aside, tried again each second) and
    quarantined ones (parked for good), with the reasons; those at gates, and what is
    paused; how many transitions wait for the audit and for how long.

    \b
    Examples:
      celery -A proj delay status
      celery -A proj delay status --json | jq '.findings[].code'
      celery -A proj delay status --json | jq '.shards[] | [.pending, .overdue, .drain_lag_ms]'

    The exit code is 0 if there is no problem, 1 if there is one, 69 if Redis is away (then tasks
    wait in it, and beats go on trying by themselves).
    """
    situation = delayed.situation()
    found = findings(situation)
    healthy = not any(one.level == "problem" for one in found)
    document = _status_document(situation, found, healthy)
    if out.as_json:
        out.document(document)
    else:
        _print(out, situation, found)
    return YES if healthy else NO


def _status_document(seen: Situation, found: Sequence[Diagnosis], healthy: bool) -> dict[str, Any]:
    server: ServerReport = seen.server
    return {
        "healthy": healthy,
        **fields("now", seen.shards[0].now_ms),
        "redis": {
            "version": server.version,
            "run_id": server.run_id,
            "uptime_s": server.uptime_s,
            "used_memory": server.used_memory,
            "maxmemory": server.max_memory,
            "maxmemory_policy": server.eviction,
            "appendonly": server.appends_to_file,
        },
        "audit": _audit(seen),
        "shards": [
            {
                **_leader_document(leader_of(one, leading)),
                "pending": one.pending,
                "overdue": one.overdue,
                **fields("next_due", one.next_due_ms),
                "claimed": one.claimed,
                "broker_failure": one.broker_failure,
                "held": one.held,
                "blocked": one.blocked,
                "blocked_reasons": one.blocked_reasons,
                "gated": one.gated,
                "gates": [gate_document(gate) for gate in one.gates],
                "quarantined": one.quarantined,
                "quarantined_reasons": one.quarantined_reasons,
                "journal": one.journal,
                "drain_lag_ms": one.drain_lag_ms,
                "gap": one.gap,
                "templates": one.templates,
                "schedules": one.schedules,
            }
            for one, leading in zip(seen.shards, seen.leading, strict=True)
        ],
        "findings": [one._asdict() for one in found],
    }


def _audit(seen: Situation) -> dict[str, Any]:
    known = seen.audit._asdict()
    oldest_ms = known.pop("oldest_ms")
    return {**known, **fields("oldest", oldest_ms)}


def _print(out: Output, seen: Situation, found: Sequence[Diagnosis]) -> None:
    server, audit = seen.server, seen.audit
    out.facts(
        [
            ("Redis", f"{server.version}, up for {span(server.uptime_s * 1000)}"),
            ("audit", f"{audit.state} {audit.database or ''}".strip()),
            ("oldest in it", local(audit.oldest_ms) if audit.oldest_ms is not None else None),
        ]
    )
    for shard, leading in zip(seen.shards, seen.leading, strict=True):
        out.line()
        out.facts(_shard_facts(shard, leading))
    out.line()
    if not found:
        out.line("all is well; if tasks that were due do not run, look at the workers:", "green")
        out.line("  celery -A proj inspect active_queues")
    for one in found:
        out.line(f"{one.level}: {one.text}", "bold red" if one.level == "problem" else "yellow")
        out.line(f"  -> {one.remedy}")


def _shard_facts(one: ShardReport, leading: str) -> list[tuple[str, object]]:
    next_due = one.next_due_ms
    facts: Mapping[str, object] = {
        "shard": one.shard,
        "leader": f"{one.holder or 'nobody'} ({leading})" if one.holder else "nobody",
        "term, epoch": f"{one.term}, {one.epoch}",
        "pending": one.pending,
        "overdue": one.overdue,
        "next due": f"{local(next_due)} ({relative(next_due, one.now_ms)})" if next_due else "-",
        "being published": one.claimed,
        "held": one.held,
        "blocked": one.blocked,
        "at gates": one.gated,
        "quarantined": one.quarantined,
        "journal": f"{one.journal} entries, {span(one.drain_lag_ms)} behind",
        "templates": one.templates,
        "schedules": one.schedules,
    }
    return list(facts.items())
