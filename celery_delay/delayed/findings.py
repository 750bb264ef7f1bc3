"""What is wrong, and what to do about it: the numbers of the shards, judged.

Written for whoever is woken up by a queue that stands still: each finding says what is the
case, what it means for tasks, and the next step.  Pure: numbers in, findings out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from celery_delay.domain.gates import told
from celery_delay.domain.settings import Settings
from celery_delay.domain.spans import span
from celery_delay.store.inspection import ServerReport, ShardReport

__all__ = [
    "AuditReport",
    "Diagnosis",
    "Health",
    "Leader",
    "Leading",
    "Situation",
    "audit_findings",
    "findings",
]

#: A leader looks for due entries at least once a second; after this long it has stopped.
STALE_MS = 3_000
#: Longer drain lags are worth a word, and a problem.
LAG_NOTED_MS, LAG_PROBLEM_MS = 10_000, 60_000
#: For longer overdue than this, a leader that works is not keeping up.
OVERDUE_PROBLEM_MS = 5_000
#: A journal filled above this share of ``delay_journal_max`` is a problem.
JOURNAL_SHARE = 0.8

_BEAT = "celery -A proj beat -S celery_delay.Scheduler"


class Leading:
    """How a shard is led; stable names for JSON."""

    #: The holder of the lease looks for due entries.
    LEADING = "leading"
    #: The holder renews its lease, but does not look.
    STUCK = "stuck"
    #: The holder has stopped, and nobody has taken over.
    GONE = "gone"
    #: Nobody has the lease.
    NOBODY = "nobody"


class Leader(NamedTuple):
    """How one shard is led.  Instants are ms, UTC, by the store's clock.

    Attributes:
        status: ``leading``; ``stuck``: it renews its lease, but does not look for due tasks;
            ``gone``: it has stopped, and nobody has taken over; ``nobody`` has the lease.
        holder: ``host:pid:id`` of the beat; ``None`` for nobody.
        term: grows with each change of the leader.
        since_ms: when its term began; ``None`` if that is not known.
        epoch: names one history of Redis.
        progress_ms: when a leader last looked for due tasks; *idle_ms* is how long ago that is.
    """

    shard: int
    status: str
    holder: str | None
    term: int
    since_ms: int | None
    epoch: int
    progress_ms: int | None
    idle_ms: int | None


class AuditReport(NamedTuple):
    """The audit database.

    ``state``: off, current, outdated, missing, newer, or unavailable with an ``error``.
    """

    state: str
    database: str | None = None
    uuid: str | None = None
    error: str | None = None
    #: The oldest transition that it has.
    oldest_ms: int | None = None


class Diagnosis(NamedTuple):
    """``level`` is problem (tasks or their story suffer) or note; ``code`` is stable."""

    level: str
    code: str
    shard: int | None
    text: str
    remedy: str


class Health(NamedTuple):
    """``ok``: there is no problem.  ``findings``: problems first, then notes."""

    ok: bool
    findings: Sequence[Diagnosis]


@dataclass(frozen=True)
class Situation:
    """All that is judged.  ``leading`` is by shard number."""

    settings: Settings
    server: ServerReport
    shards: Sequence[ShardReport]
    leading: Sequence[str]
    audit: AuditReport = field(default=AuditReport("off"))


def findings(seen: Situation) -> list[Diagnosis]:
    """What is not as it should be: problems first, in the order of their weight."""
    found: list[Diagnosis] = []
    for shard, leading in zip(seen.shards, seen.leading, strict=True):
        found += _leadership(seen, shard, leading)
        found += _entries(shard, leading)
        found += _journal(seen, shard)
    found += audit_findings(seen.audit, [one.audit_id for one in seen.shards])
    found += _server(seen)
    return sorted(found, key=lambda one: one.level != "problem")


def _leadership(seen: Situation, shard: ShardReport, leading: str) -> Iterator[Diagnosis]:
    number = shard.shard
    if leading == Leading.NOBODY:
        yield Diagnosis(
            "problem", "no_leader", number,
            f"nobody leads shard {number}: nothing is handed to its queue",
            f"no beat runs, or none reaches this Redis; start one (or two): {_BEAT}",
        )  # fmt: skip
    elif leading == Leading.GONE:
        yield Diagnosis(
            "problem", "leader_gone", number,
            f"{shard.holder} led shard {number} and has stopped; no other beat takes over, and"
            " nothing is handed to its queue",
            f"see why that process or host is gone, and start a beat: {_BEAT}",
        )  # fmt: skip
    elif leading == Leading.STUCK:
        yield Diagnosis(
            "problem", "leader_stuck", number,
            f"{shard.holder} leads shard {number} but hands nothing to its queues",
            "its log says why (a thread that crashes, an answer that Redis refuses); end that"
            " process, and another beat leads at once",
        )  # fmt: skip
    elif shard.run_id != seen.server.run_id:
        yield Diagnosis(
            "problem", "history_unnamed", number,
            f"Redis has restarted, and no leader has taken shard {number} on yet",
            "takes a second; if it stays, see the log of beat"
            f" {shard.holder} (event epoch_began)",
        )  # fmt: skip


def _entries(shard: ShardReport, leading: str) -> Iterator[Diagnosis]:
    number = shard.shard
    late = shard.now_ms - (shard.next_due_ms or shard.now_ms)
    if shard.overdue:
        led = leading == Leading.LEADING
        yield Diagnosis(
            "problem" if late > OVERDUE_PROBLEM_MS or not led else "note", "overdue", number,
            f"{shard.overdue} tasks of shard {number} are overdue, the oldest by {span(late)}",
            "the leader is at work: look again, the number must fall; if it does not, its log"
            " tells of a Redis that is slow or whose clock has jumped (event clock_stepped)"
            if led else "they go out as soon as a beat leads",
        )  # fmt: skip
    if shard.broker_failure:
        yield Diagnosis(
            "problem", "broker", number,
            f"the leader of shard {number} cannot publish to the broker: {shard.broker_failure}",
            "mend the broker; due tasks wait here meanwhile (they can be listed and cancelled) and"
            " go out within a second or two of its return",
        )  # fmt: skip
    if shard.blocked:
        yield Diagnosis(
            "problem", "blocked", number,
            f"{shard.blocked} due tasks of shard {number} are set aside: "
            + _listed(f"{why} ({count})" for why, count in shard.blocked_reasons.items()),
            "they are tried again each second and go out once that is mended: a key that is not"
            " a list stands where the queue should be (rename or delete it); a record of an"
            " unknown version needs beats of the newer release",
        )  # fmt: skip
    for gate in shard.gates:
        yield Diagnosis("note", gate.status, number, *told(gate, number, shard.now_ms))
    if shard.held:
        yield Diagnosis(
            "note", "held", number,
            f"{shard.held} tasks of shard {number} are held: they do not run, whatever their eta",
            "see which: `list --state HELD`; who held them and why: `history ID`; let them go:"
            " `release ID…`",
        )  # fmt: skip
    if shard.quarantined:
        yield Diagnosis(
            "problem", "quarantined", number,
            f"{shard.quarantined} tasks of shard {number} cannot be handed off and are parked: "
            + _listed(f"{why} ({_listed(ids)})" for why, ids in shard.quarantined_reasons.items()),
            "they do not run by themselves: `history ID` tells what they were. Where a queue or"
            " exchange was missing, make it and send them again: `release ID…` or `release --all"
            " --state QUARANTINED`; `cancel ID` clears them away. A damaged record cannot be sent:"
            " schedule the task anew, and ask who else writes to this Redis (another program, an"
            " eviction)",
        )  # fmt: skip


def _journal(seen: Situation, shard: ShardReport) -> Iterator[Diagnosis]:
    number, limit, lag = shard.shard, seen.settings.journal_max, shard.drain_lag_ms
    if shard.gap:
        yield Diagnosis(
            "problem", "journal_gap", number,
            f"the journal of shard {number} was full: {shard.gap} transitions are missing from"
            " the audit",
            "tasks run all the same; let the audit drain (below), or raise delay_journal_max",
        )  # fmt: skip
    if shard.journal >= JOURNAL_SHARE * limit:
        effect = (
            "then new tasks are refused (delay_journal_full = 'refuse')"
            if seen.settings.journal_full == "refuse"
            else "then transitions are left out of the audit"
        )
        yield Diagnosis(
            "problem", "journal_filling", number,
            f"the journal of shard {number} holds {shard.journal} of {limit} entries; {effect}",
            "the audit does not drain: mend the audit database or the leader (see the others here)",
        )  # fmt: skip
    elif lag > LAG_NOTED_MS:
        yield Diagnosis(
            "problem" if lag > LAG_PROBLEM_MS else "note", "drain_lag", number,
            f"the audit of shard {number} lags {span(lag)} behind ({shard.journal} journal"
            " entries); tasks are not affected",
            "the leader's log says why it does not drain; usually the audit database is away,"
            " locked, slow, or needs `migrate`",
        )  # fmt: skip


def audit_findings(audit: AuditReport, audit_ids: Sequence[str | None]) -> Iterator[Diagnosis]:
    """What is wrong with the audit database.

    Arguments:
        audit_ids: the uuids of the databases that the shards belong to, as far as known.
    """
    untouched = "tasks are not affected, their story waits in the journal"
    migrate = "celery -A proj delay migrate"
    if audit.state == "unavailable":
        yield Diagnosis(
            "problem", "audit_unavailable", None,
            f"the audit database cannot be used: {audit.error}",
            f"mend it; {untouched}, and nothing is lost while that has room",
        )  # fmt: skip
    elif audit.state in ("missing", "outdated"):
        what = "do not exist yet" if audit.state == "missing" else "are of an older release"
        yield Diagnosis(
            "problem", f"schema_{audit.state}", None,
            f"the audit tables in {audit.database} {what}; {untouched}",
            f"run: {migrate}",
        )  # fmt: skip
    elif audit.state == "newer":
        yield Diagnosis(
            "problem", "schema_newer", None,
            f"the audit tables in {audit.database} are of a newer release than this one",
            "upgrade celery-delay here, and in the beats",
        )  # fmt: skip
    elif any(one not in (None, audit.uuid) for one in audit_ids) and audit.uuid:
        yield Diagnosis(
            "problem", "foreign_database", None,
            f"the audit database {audit.database} belongs to another Redis; {untouched}",
            "check delay_database_url and delay_redis_url; if this database is the right one"
            f" (after a restore, say): {migrate} --adopt",
        )  # fmt: skip


def _server(seen: Situation) -> Iterator[Diagnosis]:
    server = seen.server
    if tuple(int(one) for one in server.version.split(".")[:2]) < (6, 2):
        yield Diagnosis(
            "problem", "redis_version", None,
            f"Redis {server.version} is too old", "celery-delay needs Redis 6.2 or newer",
        )  # fmt: skip
    if server.max_memory and server.eviction != "noeviction":
        yield Diagnosis(
            "problem", "eviction", None,
            f"Redis may throw delayed tasks away when its memory is full ({server.eviction})",
            "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
        )  # fmt: skip
    if server.max_memory and server.used_memory > 0.9 * server.max_memory:
        yield Diagnosis(
            "problem", "memory", None,
            f"Redis uses {server.used_memory * 100 // server.max_memory} % of its maxmemory; when"
            " it is full, new tasks are refused (those that wait still go out)",
            "raise maxmemory, or find out what fills it: redis-cli --bigkeys",
        )  # fmt: skip
    if not server.appends_to_file:
        yield Diagnosis(
            "note", "not_persistent", None,
            "Redis keeps no append-only file: a crash of it loses the tasks added since its last"
            " snapshot",
            "CONFIG SET appendonly yes, and in its configuration file",
        )  # fmt: skip


def _listed(parts: object) -> str:
    return ", ".join(map(str, parts)) if isinstance(parts, (list, Iterator)) else str(parts)
