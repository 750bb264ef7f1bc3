"""What an operator asks of a shard and its server.  Reads only; nothing is loaded or written.

The answers are those of a few commands one after the other, not of one instant: numbers of a
busy shard need not add up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoPermissionError

from celery_delay.domain.entries import CODEC, PUBLISHED, Record, Template
from celery_delay.domain.gates import Gate
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.connection import AnswerLost, Link
from celery_delay.store.keys import ShardKeys

__all__ = [
    "OVERDUE_MS",
    "ServerReport",
    "ShardReport",
    "due_between",
    "inspect_server",
    "inspect_shard",
    "memory_of",
]

#: An entry is overdue when it is due for longer than this; a busy leader is never so far behind.
OVERDUE_MS = 1_000
#: How many parked entries are looked at for their reasons.
SAMPLE = 500
#: How many members of a key are looked at for its memory.
MEMORY_SAMPLE = 50


class ServerReport(NamedTuple):
    """The Redis server."""

    version: str
    run_id: str
    uptime_s: int
    used_memory: int
    #: 0 for no limit.
    max_memory: int
    eviction: str
    #: whether acknowledged writes survive a crash, but for the last second.
    appends_to_file: bool


class ShardReport(NamedTuple):
    """One shard.  Instants are the store's, in ms; ``None`` where there is none."""

    shard: int
    now_ms: int
    #: Who has the lease ("" for nobody), its term, and the counter that each renewal raises.
    holder: str
    term: int
    seq: int
    #: Name of the Redis history, and the server's run id when it was named.
    epoch: int
    run_id: str
    #: When the leader last looked for due entries.
    progress_ms: int | None
    pending: int
    overdue: int
    next_due_ms: int | None
    blocked: int
    blocked_reasons: dict[str, int]
    quarantined: int
    #: reason → some of the task ids.
    quarantined_reasons: dict[str, list[str]]
    #: Journal entries that SQL has not taken, and when the oldest was written.
    journal: int
    journal_oldest_ms: int | None
    #: Transitions that a full journal had no room for, not yet written down.
    gap: int
    templates: int
    schedules: int
    #: uuid of the audit database that the shard belongs to.
    audit_id: str | None
    #: Entries that a beat is publishing now, and why the broker takes none ("" if it does).
    claimed: int = 0
    broker_failure: str = ""
    #: Entries that an operator keeps back.
    held: int = 0
    #: Due entries that wait at gates, and the gates.
    gated: int = 0
    gates: Sequence[Gate] = ()
    #: When the holder has taken the lease; ``None`` for nobody, or a beat of an older release.
    since_ms: int | None = None

    @property
    def drain_lag_ms(self) -> int:
        """For how long the oldest transition that SQL has not taken has waited; 0 for none.

        All that is older is in SQL.
        """
        if self.journal_oldest_ms is None:
            return 0
        return max(0, self.now_ms - self.journal_oldest_ms)


def inspect_server(link: Link) -> ServerReport:
    """The server behind *link*; StoreUnavailable if it cannot be asked."""
    info: dict[str, str] = {}
    for section in ("server", "memory", "persistence"):
        text = _read(link, "INFO", section).decode(errors="replace")
        info.update(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return ServerReport(
        info["redis_version"],
        info["run_id"],
        int(info.get("uptime_in_seconds", 0)),
        int(info.get("used_memory", 0)),
        int(info.get("maxmemory", 0)),
        info.get("maxmemory_policy", ""),
        info.get("aof_enabled") == "1",
    )


def inspect_shard(link: Link, keys: ShardKeys) -> ShardReport:
    """The shard of *keys*; StoreUnavailable if Redis cannot be asked."""
    seconds, micros = _read(link, "TIME")
    now = int(seconds) * 1000 + int(micros) // 1000
    holder, term, seq, since = _read(link, "HMGET", keys.lease, "holder", "term", "seq", "since")
    epoch, run_id, progress, gap, audit_id, failure = _read(
        link, "HMGET", keys.mark, *"epoch run_id progress gap audit_id broker_failure".split()
    )
    schedules = (keys.schedule, keys.outbound)
    heads = [_read(link, "ZRANGE", one, 0, 0, "WITHSCORES") for one in schedules]
    dues = [int(float(head[1])) for head in heads if head]
    oldest = _read(link, "XRANGE", keys.journal, "-", "+", "COUNT", 1)
    blocked = _read(link, "ZCARD", keys.blocked)
    quarantined = _read(link, "HLEN", keys.quarantine)
    return ShardReport(
        shard=keys.shard,
        now_ms=now,
        holder=_text(holder),
        term=int(term or 0),
        seq=int(seq or 0),
        epoch=int(epoch or 0),
        run_id=_text(run_id),
        progress_ms=int(progress) if progress else None,
        pending=sum(_read(link, "ZCARD", one) for one in schedules),
        overdue=sum(_read(link, "ZCOUNT", one, "-inf", now - OVERDUE_MS) for one in schedules),
        next_due_ms=min(dues, default=None),
        blocked=blocked,
        blocked_reasons=_why_blocked(link, keys) if blocked else {},
        quarantined=quarantined,
        quarantined_reasons=_why_quarantined(link, keys) if quarantined else {},
        journal=_read(link, "XLEN", keys.journal),
        # the stream id's first half is Redis' clock at the writing
        journal_oldest_ms=int(oldest[0][0].partition(b"-")[0]) if oldest else None,
        gap=int(gap or 0),
        templates=_read(link, "HLEN", keys.templates),
        schedules=_read(link, "ZCARD", keys.occurrences),
        audit_id=_text(audit_id) or None,
        claimed=_read(link, "ZCARD", keys.claims),
        broker_failure=_text(failure),
        held=_read(link, "ZCARD", keys.held),
        gated=_read(link, "ZCARD", keys.gated),
        gates=_gates(link, keys),
        since_ms=int(since) if holder and since else None,
    )


def due_between(link: Link, keys: ShardKeys, bounds: Sequence[int]) -> list[int]:
    """How many entries of the shard are due before, between and from *bounds* on, in ms.

    One more number than there are bounds.  Each is a ZCOUNT, quick on however many entries.
    """
    edges = ["-inf", *(f"({one}" for one in bounds), "+inf"]
    lows = ["-inf", *bounds]
    return [
        sum(_read(link, "ZCOUNT", one, low, high) for one in (keys.schedule, keys.outbound))
        for low, high in zip(lows, edges[1:], strict=True)
    ]


def memory_of(link: Link, keys: ShardKeys) -> int | None:
    """Bytes of all keys of the shard but the journal, estimated from a few members of each.

    ``None`` where the user may not ask.
    """
    try:
        return sum(
            _read(link, "MEMORY", "USAGE", key, "SAMPLES", MEMORY_SAMPLE) or 0
            for key in keys.all()
            if key != keys.journal
        )
    except StoreUnavailable as exc:
        if isinstance(exc.__cause__, NoPermissionError):
            return None
        raise


def _gates(link: Link, keys: ShardKeys) -> list[Gate]:
    known = _read(link, "HGETALL", keys.gates)
    names = [_text(one) for one in known[::2]]
    return [
        Gate.read(gate, _text(value), _read(link, "ZCARD", f"{keys.gated}:{gate}"))
        for gate, value in sorted(zip(names, known[1::2], strict=True))
    ]


def _why_blocked(link: Link, keys: ShardKeys) -> dict[str, int]:
    """The reasons of the first entries that were set aside, each with their number."""
    ids = _read(link, "ZRANGE", keys.blocked, 0, SAMPLE - 1)
    records = _read(link, "HMGET", keys.entries, *ids) if ids else []
    return dict(Counter(_why(link, keys, _text(record)) for record in records).most_common())


def _why(link: Link, keys: ShardKeys, record: str) -> str:
    codec = record.partition(" ")[0]
    if codec != CODEC:
        return f"the record has the unknown version {codec[:20] or '(none)'}"
    try:
        name = Record.decode(record).template
        text = name[1:].replace("\x02", "\n")
        if not name.startswith("="):
            text = _text(_read(link, "HGET", keys.templates, name))
        template = Template.decode(text)
        if template.database == PUBLISHED:
            return f"the broker declines it: {template.queue} is full, or cannot be written"
        return f"the key {template.queue} is not a list"
    except ValueError:
        return "the record cannot be read"


def _why_quarantined(link: Link, keys: ShardKeys) -> dict[str, list[str]]:
    """The reasons of some quarantined entries, each with a few task ids."""
    reasons: dict[str, list[str]] = {}
    cursor, seen = b"0", 0
    while seen < SAMPLE:
        # not HGETALL: a whole deployment's tasks may be in here
        cursor, flat = _read(link, "HSCAN", keys.quarantine, cursor, "COUNT", 100)
        for task_id, parked in zip(flat[::2], flat[1::2], strict=True):
            seen += 1
            ids = reasons.setdefault(_reason(parked), [])
            if len(ids) < 5:
                ids.append(_text(task_id))
        if cursor == b"0":
            break
    return reasons


def _reason(parked: bytes) -> str:
    try:
        return str(json.loads(parked)[0])
    except (ValueError, IndexError, TypeError):
        return "unknown"


def _read(link: Link, *command: object) -> Any:
    try:
        return link.call(*command)
    except AnswerLost:
        try:
            return link.call(*command)
        except AnswerLost as exc:
            raise StoreUnavailable(f"lost the answer of {command[0]}: {exc}") from exc


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
