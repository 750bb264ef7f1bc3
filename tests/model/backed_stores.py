"""SQL as the truth and Redis as its mirror: the steps of ``backed_protocol.py``, and the ledger.

Every public method of ``Mirror`` is one script, every one of ``Truth`` one transaction.  ``Ledger``
stands outside: it is told what really happened, and raises when a promise is broken.
"""

from __future__ import annotations

import copy
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .ledger import Broken

__all__ = ["ABSENT", "CANCELLED", "COLD", "DISPATCHED", "DONE", "EPOCH", "GONE", "HOT", "LATE"]
__all__ += ["OK", "REFUSED", "SCHEDULED", "TOO_LATE", "UNKNOWN", "WINDOW", "Ledger", "Mirror"]
__all__ += ["Row", "Truth"]

WINDOW, GRACE, BATCH, REMEMBERED = 3_000, 1_000, 3, 8
SCHEDULED, CANCELLED, DISPATCHED = "SCHEDULED", "CANCELLED", "DISPATCHED"
HOT, COLD = "hot", "cold"
OK, GONE, LATE, EPOCH, REFUSED, ABSENT = "OK", "GONE", "LATE", "EPOCH", "REFUSED", "ABSENT"
DONE, TOO_LATE, UNKNOWN = "DONE", "TOO_LATE", "UNKNOWN"
_RANK = {SCHEDULED: 0, CANCELLED: 1, DISPATCHED: 2}


class Row(NamedTuple):
    """What SQL knows of an entry.

    ``deadline``: until when this version's add may arrive, in the one ``epoch`` where it counts.
    """

    state: str
    version: int
    tier: str
    eta: int
    deadline: int
    epoch: int


class Entry(NamedTuple):
    version: int
    eta: int
    deadline: int


class Event(NamedTuple):
    epoch: int
    number: int
    state: str
    id: str
    version: int


class Tombstone(NamedTuple):
    kind: str  # gone: of that version; cancelled: of every version; superseded: of lower ones
    version: int
    until: int

    def refuses(self, version: int) -> bool:
        """Whether an add of *version* must not come any more, though it was not handed off."""
        return self.kind == "cancelled" or (self.kind == "superseded" and version < self.version)


class Ledger:
    """What really happened, and what was promised."""

    def __init__(self) -> None:
        self.committed: set[str] = set()
        self.etas: dict[tuple[str, int], int] = {}
        self.floor: Counter[str] = Counter()  # the version of the last answered reschedule
        self.handed: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.cancel_calls: set[str] = set()
        self.too_late: set[str] = set()

    def handed_off(self, id: str, entry: Entry, now: int) -> None:
        self.handed[id] += 1
        if id not in self.committed:
            raise Broken(f"{id} was never committed, and was handed off")
        if id in self.cancelled:
            raise Broken(f"{id} was answered CANCELLED, and was handed off")
        if entry.version < self.floor[id]:
            raise Broken(f"{id} was handed off as it was before an answered reschedule")
        if now < self.etas[id, entry.version]:
            raise Broken(f"{id} was handed off early")
        if self.handed[id] > 1 + self.excused[id]:
            raise Broken(f"{id} was handed off {self.handed[id]} times")

    def cancel_answered(self, id: str) -> None:
        self.cancelled.add(id)
        if self.handed[id] > self.excused[id]:
            raise Broken(f"{id} was handed off, and then answered CANCELLED")

    def lost(self, known: set[str]) -> None:
        """Redis lost writes; *known*: the ids of whose hand-off SQL or the journal still tells."""
        for id, times in self.handed.items():
            if id not in known and times > self.excused[id]:
                self.excused[id] = times

    def settled(self, rows: dict[str, Row], left: set[str]) -> None:
        for id in self.committed:
            state, handed = rows[id].state, self.handed[id]
            if state == DISPATCHED and not handed:
                raise Broken(f"{id} is DISPATCHED, and was never handed off")
            if state == CANCELLED and handed > self.excused[id]:
                raise Broken(f"{id} is CANCELLED, and was handed off")
            if state == CANCELLED and id not in self.cancel_calls:
                raise Broken(f"{id} is CANCELLED, and nobody asked for it")
            if state != CANCELLED and not handed:
                raise Broken(f"{id} was lost")
            if id in self.too_late and not handed and state != CANCELLED:
                raise Broken(f"{id} was answered TOO_LATE, and waits")
        if left - self.committed:
            raise Broken(f"{left - self.committed} were never committed")


@dataclass
class _History:
    """What a Redis that fails over may lose the end of."""

    entries: dict[str, Entry] = field(default_factory=dict)
    tombstones: dict[str, list[Tombstone]] = field(default_factory=dict)
    journal: list[Event] = field(default_factory=list)
    last: int = 0
    epoch: int = 0
    named_for: int = 0
    is_ready: bool = False


class Mirror:
    """Redis.  Each public method is one script."""

    def __init__(self, ledger: Ledger, broken: frozenset[str]) -> None:
        self.ledger, self.broken, self.now = ledger, broken, 1_000_000
        self.server, self.has = 1, _History()
        self.before: deque[_History] = deque(maxlen=REMEMBERED)

    def fail_over(self, known: set[str], *, back: int) -> None:
        """The last writes are lost; with *back* 0, all of them."""
        self.server += 1
        self.has = copy.deepcopy(self.before[-back]) if back else _History()
        self.before.clear()
        self.ledger.lost(known | {one.id for one in self.has.journal if one.state == DISPATCHED})

    def _writes(self) -> None:
        self.before.append(copy.deepcopy(self.has))

    def _append(self, state: str, id: str, version: int) -> None:
        self.has.last += 1
        self.has.journal.append(Event(self.has.epoch, self.has.last, state, id, version))

    def _bury(self, id: str, kind: str, version: int) -> None:
        one = Tombstone(kind, version, self.now + WINDOW + GRACE)
        self.has.tombstones.setdefault(id, []).append(one)

    def _standing(self, id: str) -> list[Tombstone]:
        return [one for one in self.has.tombstones.get(id, ()) if one.until >= self.now]

    def _is_gone(self, id: str, version: int) -> bool:
        lowest = version if "gone_for_all" in self.broken else 0
        return any(one.kind == "gone" and one.version >= lowest for one in self._standing(id))

    def add(self, id: str, entry: Entry, epoch: int) -> str:
        if not self._is_in(epoch) and "add_epoch" not in self.broken:
            return EPOCH
        if self.now > entry.deadline and "add_window" not in self.broken:
            return LATE
        if any(one.refuses(entry.version) for one in self._standing(id)):
            return REFUSED
        live = self.has.entries.get(id)
        if live and live.version >= entry.version:
            return OK
        if not live and self._is_gone(id, entry.version):
            return GONE
        self._writes()
        self.has.entries[id] = entry
        return OK

    def apply(self, id: str, entry: Entry, epoch: int) -> str:
        """Bring a live entry to a higher version; one that is absent keeps lower ones out."""
        if not self._is_in(epoch):
            return EPOCH
        live = self.has.entries.get(id)
        if live:
            self._writes()
            if live.version < entry.version or "higher_version" in self.broken:
                self.has.entries[id] = entry
            return OK
        return self._keep_out(id, entry.version)

    def withdraw(self, id: str, version: int, epoch: int) -> str:
        """Take lower versions out: the entry is cold from *version* on."""
        if not self._is_in(epoch):
            return EPOCH
        live = self.has.entries.get(id)
        if live and live.version >= version:
            return OK
        answer = self._keep_out(id, version)
        if live:
            del self.has.entries[id]
            return OK
        return answer

    def _keep_out(self, id: str, version: int) -> str:
        if any(one.kind == "gone" for one in self._standing(id)):
            return GONE
        self._writes()
        if "superseded_tombstone" not in self.broken:
            self._bury(id, "superseded", version)
        return ABSENT

    def cancel(self, id: str, epoch: int) -> str:
        if not self._is_in(epoch):
            return EPOCH
        live = self.has.entries.get(id)
        if not live and any(one.kind == "gone" for one in self._standing(id)):
            return GONE
        self._writes()
        if "cancel_tombstone" not in self.broken:
            self._bury(id, "cancelled", 0)
        if not live:
            return ABSENT
        del self.has.entries[id]
        self._append(CANCELLED, id, live.version)
        return CANCELLED

    def look(self, id: str, epoch: int) -> Any:
        """The live version (0: none), and what of the entry is in the journal."""
        if not self._is_in(epoch):
            return EPOCH
        live = self.has.entries.get(id)
        told = {one.state for one in self.has.journal if one.id == id}
        return (live.version if live else 0), told

    def move(self, epoch: int) -> int | str:
        if not self._is_in(epoch):
            return EPOCH
        if not self.has.is_ready and "ready_gate" not in self.broken:
            return 0
        due = sorted((one.eta, id) for id, one in self.has.entries.items() if one.eta <= self.now)
        for _, id in due[:BATCH]:
            self._writes()
            entry = self.has.entries.pop(id)
            if self.now <= entry.deadline and "gone_tombstone" not in self.broken:
                self._bury(id, "gone", entry.version)
            self._append(DISPATCHED, id, entry.version)
            self.ledger.handed_off(id, entry, self.now)
        return len(due[:BATCH])

    def begin(self, epoch: int) -> None:
        if epoch > self.has.epoch:
            self._writes()
            self.has.epoch, self.has.named_for, self.has.is_ready = epoch, self.server, False

    def ready(self, epoch: int) -> None:
        if self._is_in(epoch):
            self._writes()
            self.has.is_ready = True

    def mark(self) -> tuple[int, bool]:
        """The epoch, 0 if this server's history has none yet; and whether it is ready."""
        if not self._is_in(self.has.epoch):
            return 0, False
        return self.has.epoch, self.has.is_ready

    def _is_in(self, epoch: int) -> bool:
        """Whether a connection that has learnt *epoch* still leads to that history.

        No connection outlives the server that it leads to, and a new one compares the server with
        the mark.
        """
        named = self.has.named_for == self.server or "mark_of_server" in self.broken
        return named and epoch == self.has.epoch

    def live(self, epoch: int) -> dict[str, int]:
        if not self._is_in(epoch):
            return {}
        return {id: one.version for id, one in self.has.entries.items()}

    def drop(self, id: str, version: int, epoch: int) -> None:
        live = self.has.entries.get(id)
        if self._is_in(epoch) and live and live.version <= version:
            self._writes()
            del self.has.entries[id]

    def read(self, epoch: int) -> list[Event]:
        return self.has.journal[: BATCH * 2] if self._is_in(epoch) else []

    def trim(self, epoch: int, taken: list[Event]) -> None:
        if self._is_in(epoch):
            self._writes()
            self.has.journal = [one for one in self.has.journal if one not in taken]


class Truth:
    """SQL.  Each public method is one transaction."""

    def __init__(self, mirror: Mirror, ledger: Ledger, broken: frozenset[str]) -> None:
        self.mirror, self.ledger, self.broken = mirror, ledger, broken
        self.rows: dict[str, Row] = {}
        self.epochs, self.up = 0, True

    def _write(self, id: str, row: Row) -> Row:
        row = row._replace(deadline=self.mirror.now + WINDOW)
        self.rows[id] = row
        self.ledger.etas[id, row.version] = row.eta
        return row

    def insert(self, id: str, tier: str, eta: int, epoch: int) -> Row:
        self.ledger.committed.add(id)
        return self._write(id, Row(SCHEDULED, 1, tier, eta, 0, epoch))

    def read(self, id: str) -> Row | None:
        return self.rows.get(id)

    def _is_still(self, id: str, seen: Row, rule: str) -> bool:
        now = self.rows[id]
        return rule in self.broken or (
            now.state == SCHEDULED and (now.version, now.tier) == (seen.version, seen.tier)
        )

    def cancel(self, id: str, seen: Row) -> bool:
        if self.rows[id].state == CANCELLED:
            return True
        if not self._is_still(id, seen, "cancel_cas"):
            return False
        self.rows[id] = self.rows[id]._replace(state=CANCELLED)
        return True

    def reschedule(self, id: str, seen: Row, tier: str, eta: int, epoch: int) -> Row | None:
        if not self._is_still(id, seen, "reschedule_cas"):
            return None
        return self._write(id, Row(SCHEDULED, self.rows[id].version + 1, tier, eta, 0, epoch))

    def page_in(self, id: str, seen: Row, epoch: int) -> Row | None:
        if not self._is_still(id, seen, "page_in_cas"):
            return None
        version = self.rows[id].version + ("page_in_version" not in self.broken)
        row = self.rows[id]._replace(state=SCHEDULED, version=version, tier=HOT, epoch=epoch)
        return self._write(id, row)

    def take_back(self, id: str, seen: Row, epoch: int) -> Row | None:
        if not self._is_still(id, seen, "take_back_cas"):
            return None
        version = self.rows[id].version + 1
        return self._write(
            id, self.rows[id]._replace(state=SCHEDULED, version=version, epoch=epoch)
        )

    def open(self) -> dict[str, Row]:
        return {id: row for id, row in self.rows.items() if row.state == SCHEDULED}

    def begin_epoch(self) -> int:
        self.epochs += 1
        return self.epochs

    def commit(self, events: list[Event]) -> None:
        for one in events:
            row = self.rows[one.id]
            is_stale = one.state == CANCELLED and one.version != row.version
            if is_stale and "stale_cancel_event" not in self.broken:
                continue
            if _RANK[one.state] > _RANK[row.state]:
                self.rows[one.id] = row._replace(state=one.state)
