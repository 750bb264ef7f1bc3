"""Entries as they are stored: read back, one by one or by their eta."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from celery_delay.domain.entries import EntryId, Record, StoredEntry, Template
from celery_delay.domain.labels import Labels
from celery_delay.domain.states import State
from celery_delay.store.shard import Shard

__all__ = ["Records", "decode"]


class Records(Shard):
    """Reading a shard's live entries.  Nothing here changes anything."""

    def get(self, task_id: str) -> StoredEntry | None:
        """The live entry of *task_id*."""
        return next(iter(self._stored([task_id])), None)

    def some(self, task_ids: Sequence[str]) -> list[StoredEntry]:
        """The live entries of those of *task_ids* that have one."""
        return list(self._stored(task_ids))

    def between(
        self,
        *,
        after_ms: int,
        before_ms: int,
        limit: int,
        offset: int,
        state: State | None = None,
    ) -> list[StoredEntry]:
        """Live entries with ``after_ms <= eta <= before_ms``, the earliest first.

        Arguments:
            state: only those that are SCHEDULED, or only those that are HELD.
        """
        found: list[tuple[float, bytes]] = []
        for key in self._places(state):
            bounds = (after_ms, before_ms, "BYSCORE", "LIMIT", 0, offset + limit, "WITHSCORES")
            pairs = self._read("ZRANGE", key, *bounds)
            found += zip(map(float, pairs[1::2]), pairs[::2], strict=True)
        ids = [task_id.decode() for _, task_id in sorted(found)[offset : offset + limit]]
        return list(self._stored(ids))

    def count(self, *, after_ms: int, before_ms: int, state: State | None = None) -> int:
        """How many live entries have ``after_ms <= eta <= before_ms``; *state* as in between."""
        return sum(
            int(self._read("ZCOUNT", key, after_ms, before_ms)) for key in self._places(state)
        )

    def _places(self, state: State | None) -> tuple[str, ...]:
        """The zsets of live entries; those that are held in the last."""
        keys = self.keys
        places = (keys.schedule, keys.outbound, keys.blocked, keys.gated, keys.held)
        if state is None:
            return places
        return {State.SCHEDULED: places[:-1], State.HELD: places[-1:]}.get(state, ())

    def sizes(self) -> dict[str, int]:
        """Numbers of what the shard holds: pending, claimed, blocked, quarantined, …"""
        return {
            "pending": sum(
                self._read("ZCARD", key) for key in (self.keys.schedule, self.keys.outbound)
            ),
            "claimed": self._read("ZCARD", self.keys.claims),
            "blocked": self._read("ZCARD", self.keys.blocked),
            "gated": self._read("ZCARD", self.keys.gated),
            "held": self._read("ZCARD", self.keys.held),
            "quarantined": self._read("HLEN", self.keys.quarantine),
            "journal": self._read("XLEN", self.keys.journal),
            "templates": self._read("HLEN", self.keys.templates),
        }

    def _gate_of(self, task_id: str) -> str:
        """The gate at which an entry waits; "" if it has just passed it."""
        return (self._read("HGET", self.keys.gate_of, task_id) or b"").decode()

    def quarantined(self) -> dict[str, str]:
        """Task id → why, of what could not be handed off."""
        parked = self._read("HGETALL", self.keys.quarantine)
        return {
            task_id.decode(): json.loads(parked[i + 1].decode(errors="replace"))[0]
            for i, task_id in enumerate(parked)
            if i % 2 == 0
        }

    def _stored(self, task_ids: Sequence[str], again: bool = True) -> Iterator[StoredEntry]:
        if not task_ids:
            return
        records = self._read("HMGET", self.keys.entries, *task_ids)
        scores = [self._read("ZMSCORE", key, *task_ids) for key in self._places(None)]
        between: list[str] = []
        texts: dict[str, bytes] = {}
        for task_id, record, *found in zip(task_ids, records, *scores, strict=True):
            place, due = next(
                ((n, one) for n, one in enumerate(found) if one is not None), (0, None)
            )
            if record is None:
                continue
            if due is None:
                between.append(task_id)
                continue
            try:
                name = Record.decode(record.decode()).template
            except ValueError:
                continue
            if name not in texts:
                texts[name] = self._read("HGET", self.keys.templates, name) or b""
            entry = decode(task_id, int(float(due)), record, texts[name])
            if entry is not None:
                if place == len(found) - 1:
                    entry = entry._replace(state=State.HELD)
                elif place == len(found) - 2:
                    entry = entry._replace(gate=self._gate_of(task_id))
                yield entry
        if between and again:
            # from one place to another, between two of our looks
            yield from self._stored(between, again=False)


def decode(task_id: str, eta_ms: int, stored: bytes, template_text: bytes) -> StoredEntry | None:
    """The entry of a stored record; ``None`` if the record or its template cannot be read."""
    try:
        record = Record.decode(stored.decode())
        text = template_text.decode()
        if record.template.startswith("="):
            text = record.template[1:].replace("\x02", "\n")
        template = Template.decode(text)
        envelope = json.loads(template.fill(record.slots(task_id, eta_ms)))
        labels = Labels.read(json.loads(record.labels or "null"))
    except (KeyError, ValueError):
        return None
    return StoredEntry(
        EntryId(task_id, record.run),
        record.version,
        eta_ms,
        record.expires_ms,
        envelope["headers"],
        template.queue,
        envelope,
        queue_name=template.queue_name,
        labels=labels,
    )
