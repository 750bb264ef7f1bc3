"""What the store's scripts promise, on dicts: the answers that each may give.

The model is told each script that the server has run, with its answer, and says whether
the answer and what was written are right.  Tombstones live for at least their time and then
for some more; within that more, either answer is right, and the model follows the store.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from celery_delay.entries import Template

WINDOW, TOMBSTONE = 3_000, 4_000
CAP, BATCH = 4, 3


@dataclass
class Entry:
    """A stored entry, and what has been done to its record."""

    run: int
    version: int
    due: int
    deadline: int
    expires: int
    template: str  # an id, or "=" for inline
    record: str
    values: tuple[str, ...]
    damage: str = ""  # "", head, payload, missing, codec

    def whole(self) -> bool:
        return self.damage in ("", "codec")


@dataclass
class Mark:
    """A tombstone; ``until`` is on the boot clock, after which it may be gone."""

    until: int
    found: bool = False
    run: int = 0
    version: int = 0


@dataclass
class Model:
    """The state of one shard, and the two clocks, in ms."""

    refuse: bool
    journal_max: int
    now: int = 1_700_000_000_000
    boot: int = 0
    epoch: int = 0
    progress: int = 0
    merged: int = 0
    gap: int = 0
    schedule: dict[str, int] = field(default_factory=dict)
    blocked: dict[str, int] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    parked: dict[str, Entry] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    gone: dict[tuple[str, int], list[Mark]] = field(default_factory=dict)
    told: dict[tuple[str, int], list[Mark]] = field(default_factory=dict)
    cancels: dict[str, list[Mark]] = field(default_factory=dict)
    journal: list[tuple[str, int, list[tuple[Any, ...]]]] = field(default_factory=list)
    queues: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)

    # -- parts ----------------------------------------------------------------------------

    def _mark(self, **facts: Any) -> Mark:
        return Mark(self.boot + TOMBSTONE, **facts)

    def _sure(self, marks: list[Mark]) -> list[Mark]:
        return [one for one in marks if one.until >= self.boot]

    def _write(self, state: str, lines: list[tuple[Any, ...]]) -> None:
        if not lines:
            return
        if len(self.journal) >= self.journal_max:
            self.gap += len(lines)
            return
        if self.gap:
            self.journal.append(("GAP", self.epoch, [("-", 0, 0, "", self.gap)]))
            self.gap = 0
        self.journal.append((state, self.epoch, lines))

    def next_due(self) -> int | None:
        return min(self.schedule.values(), default=None)

    # -- add ------------------------------------------------------------------------------

    def add(self, given: dict[str, str], rest: list[str], answer: list[bytes], grew: bool) -> None:
        """*grew*: whether this script has added to the journal; read where it cannot be known."""
        status = answer[0].decode()
        new = [self._parse(rest[i : i + 4]) for i in range(0, len(rest), 4)]
        if any(self.now > entry.deadline for _, entry, _ in new):
            assert status == "LATE"
            return
        allowed = [self._codes(task_id, entry) for task_id, entry, _ in new]
        if any(codes == {"CONFLICT"} for codes in allowed):
            assert status == "CONFLICT"
            return
        # where tombstones may be gone, only the answer tells which entries would be added
        may_add = [t for (t, _, _), codes in zip(new, allowed, strict=True) if "A" in codes]
        must_add = [t for (t, _, _), codes in zip(new, allowed, strict=True) if codes == {"A"}]
        if self.refuse and len(self.journal) >= self.journal_max and may_add:
            assert status == "FULL" or not must_add
        if status == "FULL":
            assert self.refuse
            assert len(self.journal) >= self.journal_max
            return
        wanted = {e.template for t, e, _ in new if t in may_add and e.template != "="}
        if status == "TEMPLATE":
            missing = {one.decode() for one in answer[2:]}
            assert missing
            assert missing <= wanted
            assert not missing & (self.templates.keys() | given.keys())
            return
        fresh = {one for one in wanted if one in given and one not in self.templates}
        if len(self.templates) + len(fresh) > CAP and may_add:
            for one in [t for t in self.templates if self.uses[t] == 0 and t not in wanted]:
                del self.templates[one]
                self.uses.pop(one, None)
        if status == "INLINE":
            assert len(self.templates) + len(fresh) > CAP
            return
        assert status == "OK", answer
        self._store(new, allowed, given, answer, grew)

    def _store(
        self, new: Any, allowed: Any, given: dict[str, str], answer: list[bytes], grew: bool
    ) -> None:
        scheduled, refused = [], []
        codes = answer[2].decode()
        for (task_id, entry, line), may, code, due in zip(
            new, allowed, codes, answer[4:], strict=True
        ):
            assert code in may, (task_id, code, may)
            if code == "D":
                live = self.schedule.get(task_id, self.blocked.get(task_id))
                assert int(due) == live
                continue
            assert int(due) == entry.due
            line = (task_id, entry.run, entry.version, entry.due, line)
            if code == "C":
                refused += self._refuse(task_id, entry, line, grew)
            elif code == "A":
                self._put(task_id, entry, given)
                scheduled.append(line)
        assert len(self.templates) <= CAP
        self._write("SCHEDULED", scheduled)
        self._write("SCHEDULED", refused)
        self._write("CANCELLED", refused)

    def _put(self, task_id: str, entry: Entry, given: dict[str, str]) -> None:
        if entry.template != "=":
            if entry.template in given:
                self.templates.setdefault(entry.template, given[entry.template])
            assert entry.template in self.templates
            self.uses[entry.template] += 1
        before = self.entries.pop(task_id, None)
        if before is not None and before.whole() and before.template != "=":
            self.uses[before.template] -= 1
        self.blocked.pop(task_id, None)
        self.schedule[task_id], self.entries[task_id] = entry.due, entry

    def _refuse(self, task_id: str, entry: Entry, line: Any, grew: bool) -> list[Any]:
        told = self.told.get((task_id, entry.run), [])
        if self._sure(told) or (told and not grew):
            return []
        self.told.setdefault((task_id, entry.run), []).append(self._mark())
        highest = max(one.run for one in self.cancels[task_id])
        self.cancels[task_id].append(self._mark(found=True, run=highest))
        return [line]

    def _parse(self, parts: list[str]) -> tuple[str, Entry, Any]:
        task_id, due, record, story = parts
        _, run, version, deadline, expires, template, *values = record.split("\n")
        ms = int(due[1:])
        if due[0] == "+":
            ms = self.now + 1 + ms if ms else self.now
        entry = Entry(
            int(run), int(version), ms, int(deadline), int(expires),
            "=" if template[0] == "=" else template, record, tuple(values),
        )  # fmt: skip
        return task_id, entry, json.loads(story).get("call")

    def _codes(self, task_id: str, entry: Entry) -> set[str]:
        live = self.entries.get(task_id)
        if live is not None and live.damage != "missing":
            drawn = entry.deadline - entry.run == WINDOW
            if live.damage == "head" or live.run != entry.run:
                return {"CONFLICT"}
            if drawn and live.version == entry.version and live.record != entry.record:
                return {"CONFLICT"}
            return {"D"} if live.version >= entry.version else {"A"}
        codes = set()
        left = [m for m in self.gone.get((task_id, entry.run), []) if m.version >= entry.version]
        if left:
            codes.add("G")
            if self._sure(left):
                return codes
        refused = [m for m in self.cancels.get(task_id, []) if entry.run <= m.run]
        if refused:
            codes.add("C")
            if self._sure(refused):
                return codes
        return codes | {"A"}

    # -- cancel ---------------------------------------------------------------------------

    def cancel(
        self, epoch: int, deadline: int, task_id: str, run: int, answer: list[bytes]
    ) -> None:
        status = answer[0].decode()
        if epoch and epoch != self.epoch:
            assert status == "EPOCH"
            return
        if self.now > deadline:
            assert status == "LATE"
            return
        before = self.cancels.get(task_id, [])
        refused = max([self.now, run, *(m.run for m in self._sure(before))])
        live, parked = self.entries.get(task_id), self.parked.get(task_id)
        if live is not None or parked is not None:
            assert status == "CANCELLED"
            refused = self._take_out(task_id, live, parked, refused)
            self.cancels.setdefault(task_id, []).append(self._mark(found=True, run=refused))
            return
        left = self.gone.get((task_id, run), []) if run else []
        allowed = set()
        if left:
            allowed.add("TOO_LATE")
        if not self._sure(left):
            found = [m for m in before if m.found]
            allowed |= {"CANCELLED"} if found else set()
            allowed |= set() if self._sure(found) else {"NOT_FOUND"}
        assert status in allowed
        if status != "TOO_LATE":
            mark = self._mark(found=status == "CANCELLED", run=refused)
            self.cancels.setdefault(task_id, []).append(mark)

    def _take_out(
        self, task_id: str, live: Entry | None, parked: Entry | None, refused: int
    ) -> int:
        entry = live or parked
        assert entry is not None
        if live is not None:
            due = self.schedule.pop(task_id, None) or self.blocked.pop(task_id)
            del self.entries[task_id]
        else:
            due = entry.due
            del self.parked[task_id]
        if entry.whole() and entry.template != "=":
            self.uses[entry.template] -= 1
        readable = entry.damage not in ("missing", "head")
        line = (task_id, entry.run, entry.version) if readable else (task_id, 0, 0)
        self._write("CANCELLED", [(*line, due, "cancel")])
        if not readable:
            return refused
        self.told.setdefault((task_id, entry.run), []).append(self._mark())
        return max(refused, entry.run)

    # -- move -----------------------------------------------------------------------------

    def move(self, epoch: int, hold: int, steal: int, answer: list[Any]) -> None:
        status = answer[0].decode()
        if epoch != self.epoch:
            assert status == "EPOCH"
            return
        if steal and self.now - self.progress <= steal:
            assert status == "STANDBY"
            return
        if not steal:
            self.progress = self.now
        due = sorted((at, one.encode()) for one, at in self.schedule.items())
        batch = [(at, one.decode()) for at, one in due if at <= self.now - hold - steal][:BATCH]
        assert status == "OK"
        moved, expired, bad, stuck, lag = [], [], [], [], 0
        for at, task_id in batch:
            del self.schedule[task_id]
            entry = self.entries[task_id]
            where = self._fate(entry)
            readable = entry.damage not in ("missing", "head")
            line = (task_id, entry.run, entry.version) if readable else (task_id, 0, 0)
            if where == "blocked":
                self.blocked[task_id] = at
                stuck.append(task_id)
                continue
            del self.entries[task_id]
            if readable and entry.deadline >= self.now:
                mark = self._mark(version=entry.version)
                self.gone.setdefault((task_id, entry.run), []).append(mark)
            if where == "parked":
                self.parked[task_id] = entry
                bad.append((*line, at, None))
                continue
            if entry.template != "=":
                self.uses[entry.template] -= 1
            if where == "expired":
                expired.append((*line, at, None))
                continue
            assert at <= self.now, "early"
            lag = max(lag, self.now - at)
            moved.append((*line, at, None))
            self.queues.setdefault(where, []).append((task_id, entry.run, at))
        for one in [name for name, text in self.templates.items() if _id(text) != name]:
            if any(self._used(task_id, one) for _, task_id in batch):
                del self.templates[one]
        counts = [len(moved), lag, len(expired), len(bad), len(stuck)]
        assert [int(one) for one in answer[3:8]] == counts, (answer, counts)
        assert int(float(answer[2])) == (-1 if self.next_due() is None else self.next_due())
        assert bool(answer[8]) == bool(stuck)
        self._write("DISPATCHED", moved)
        self._write("EXPIRED", expired)
        self._write("QUARANTINED", bad)

    def _used(self, task_id: str, template: str) -> bool:
        # an entry that was parked just now has looked its template up
        entry = self.parked.get(task_id)
        return entry is not None and entry.damage == "" and entry.template == template

    def _fate(self, entry: Entry) -> str:
        if entry.damage == "codec":
            return "blocked"
        if entry.damage:
            return "parked"
        if 0 < entry.expires <= self.now:
            return "expired"
        if entry.template == "=":
            text = entry.record.split("\n")[5][1:].replace("\2", "\n")
        else:
            text = self.templates.get(entry.template, "")
            if _id(text) != entry.template:
                return "parked"
        template = Template.decode(text)
        queue = f"{template.database}/{template.queue}"
        return "blocked" if queue in self.unusable else queue

    # -- the rest -------------------------------------------------------------------------

    def merge_back(self, answer: Any) -> None:
        waiting = sorted((at, one.encode()) for one, at in self.blocked.items())
        batch = waiting[self.merged : self.merged + BATCH]
        if not batch and self.merged:
            self.merged, batch = 0, waiting[:BATCH]
        self.merged += len(batch)
        for at, one in batch:
            del self.blocked[one.decode()]
            self.schedule[one.decode()] = at
        assert answer == len(batch)

    def wipe(self) -> None:
        """All data of the server is gone."""
        fresh = Model(self.refuse, self.journal_max, self.now, self.boot)
        self.__dict__.update(fresh.__dict__)


def _id(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:16]
