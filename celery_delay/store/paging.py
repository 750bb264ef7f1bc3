"""Entries in the order of their eta, page by page, from any position on.

A position is an eta and a task id, and need not be that of an entry.  So pages do not shift
while entries come and go: one that is there all the time, and keeps its eta, is read once.
Each page is one script, which sees all places where an entry can be at one instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from redis.exceptions import ResponseError

from celery_delay.domain.entries import Record, StoredEntry, Template
from celery_delay.domain.filters import WAITING, Filter
from celery_delay.domain.labels import Labels
from celery_delay.domain.states import State
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store import scripts
from celery_delay.store.connection import AnswerLost
from celery_delay.store.records import Records, decode

__all__ = ["PAGE", "Found", "Known", "Names", "Paging", "Position"]

#: Entries, and bytes of their records, that one script reads: Redis serves nobody meanwhile.
PAGE, PAGE_BYTES = 200, 512 * 1024

_LETTERS = {b"S": State.SCHEDULED, b"G": State.SCHEDULED, b"H": State.HELD}


class Position(NamedTuple):
    """A place in the order of all entries.  Ids of one eta are in the order of their bytes."""

    eta_ms: int
    #: In UTF-8; b"": before all entries of this eta.
    task_id: bytes = b""


class Names(NamedTuple):
    """What an entry can be found by: its task's name, its queue as people call it, its labels."""

    task: str
    queue: str
    labels: Labels


@dataclass(frozen=True)
class Found:
    """One entry as a page has it; what its message says is decoded when it is asked for."""

    position: Position
    state: State
    record: bytes
    template: bytes
    gate: str = ""

    @property
    def task_id(self) -> str:
        """Its task id."""
        return self.position.task_id.decode()

    @property
    def run(self) -> int:
        """Its run; 0 if its record cannot be read."""
        try:
            return Record.decode(self.record.decode()).run
        except ValueError:
            return 0

    def names(self) -> Names | None:
        """What it can be found by, without its message; ``None`` if that cannot be read.

        Twenty times as quick as :meth:`entry`.
        """
        try:
            labels = Labels.read(json.loads(Record.decode(self.record.decode()).labels or "null"))
        except ValueError:
            return None
        shape = _shape(self.template)
        return Names(shape.task, shape.queue, labels) if shape.task is not None else None

    def entry(self) -> StoredEntry | None:
        """All of it; ``None`` if its record or its template cannot be read."""
        entry = decode(self.task_id, self.position.eta_ms, self.record, self.template)
        return entry and entry._replace(state=self.state, gate=self.gate)


@dataclass(frozen=True)
class Known(Found):
    """An entry that was read by its id."""

    known: StoredEntry | None = None

    @classmethod
    def of(cls, entry: StoredEntry) -> Known:
        """*entry* as a page has it."""
        position = Position(entry.eta_ms, entry.entry_id.task_id.encode())
        return cls(position, entry.state, b"", b"", known=entry)

    @property
    def run(self) -> int:
        """Its run."""
        return self.known.entry_id.run if self.known is not None else 0

    def names(self) -> Names | None:
        """What it can be found by."""
        known = self.known
        return Names(known.task, known.queue_name, known.labels) if known is not None else None

    def entry(self) -> StoredEntry | None:
        """All of it."""
        return self.known


class _Shape(NamedTuple):
    """What a template says of its entries; ``None`` where it cannot be read."""

    text: bytes
    task: str | None = None
    queue: str = ""

    def fits(self, wanted: Filter, labels: Labels) -> bool:
        return self.task is not None and wanted.fits(self.task, self.queue, labels)


class Paging(Records):
    """Reading a shard in order.  Nothing here changes anything."""

    def walk(
        self, wanted: Filter, after: Position | None = None, page: int = PAGE
    ) -> Iterator[Found]:
        """The entries that *wanted* means, behind *after*.

        Memory is that of one page.  Entries whose record cannot be read are among them where
        the filter is about their state and eta alone.

        Arguments:
            page: how many one script reads, whether the filter means them or not.
        """
        states = wanted.states & WAITING
        if not states:
            return
        letter = "" if states == WAITING else ("H" if State.HELD in states else "S")
        shapes: dict[str, _Shape] = {}
        more, after = True, after or Position(0)
        if after.eta_ms < wanted.after_ms:
            after = Position(wanted.after_ms)
        while more:
            more, rows = self._page(after, wanted.before_ms, max(1, min(page, PAGE)), letter)
            for one in rows:
                if (found := self._look(one, wanted, shapes)) is not None:
                    yield found
            if rows:
                after = rows[-1].position

    def _page(
        self, after: Position, before_ms: int, limit: int, letter: str
    ) -> tuple[bool, list[Found]]:
        values = {
            "now": self._given_now(),
            "after_ms": after.eta_ms,
            "after_id": after.task_id,
            "before_ms": before_ms,
            "limit": limit,
            "bytes": PAGE_BYTES,
            "state": letter,
        }
        status, _now, *flat = self._ask("page", values)
        rows = [
            Found(Position(int(eta), task_id), _LETTERS[state[:1]], record, b"", state[1:].decode())
            for state, task_id, eta, record in zip(
                flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True
            )
        ]
        return status == b"MORE", rows

    def _ask(self, name: str, values: dict[str, object]) -> list[bytes]:
        """Run a script that changes nothing; once more if its answer was lost."""
        with self._link() as link:
            try:
                try:
                    answer: list[bytes] = self._script(link, name, values)
                except AnswerLost:
                    answer = self._script(link, name, values)
            except (AnswerLost, ResponseError) as exc:
                scripts.server_of(link)  # which has a better word for a server that is none
                raise StoreUnavailable(f"no usable answer of {name}: {exc}") from exc
        return answer

    def _look(
        self, row: Found, wanted: Filter, shapes: dict[str, _Shape], again: bool = True
    ) -> Found | None:
        """*row* with its template, if the filter means it.

        That is told by record and template: to fill in the message takes twenty times as long.
        """
        try:
            record = Record.decode(row.record.decode())
            labels = Labels.read(json.loads(record.labels or "null"))
        except ValueError:
            return None if wanted.needs_record else row
        name = record.template
        if name.startswith("="):
            shape = _shape(name[1:].replace("\x02", "\n").encode())
        elif name in shapes:
            shape = shapes[name]
        else:
            text = self._read("HGET", self.keys.templates, name)
            if text is None and again:
                # handed off since, and the last one of its shape; or changed, and has another
                newer = self._read("HGET", self.keys.entries, row.position.task_id)
                found = replace(row, record=newer or b"")
                return newer and self._look(found, wanted, shapes, again=False)
            shape = shapes[name] = _shape(text or b"")
        if wanted.needs_record and not shape.fits(wanted, labels):
            return None
        return replace(row, template=shape.text)


@lru_cache(maxsize=512)  # many entries have one
def _shape(text: bytes) -> _Shape:
    try:
        template = Template.decode(text.decode())
    except ValueError:
        return _Shape(text)
    return _Shape(text, template.task, template.queue_name)
