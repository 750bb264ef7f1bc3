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

from celery_delay.domain.entries import Template
from tests.properties.gate_model import GateModel

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

    def readable(self) -> bool:
        return self.damage not in ("missing", "head")

    def published(self) -> bool:
        return self.template[0] == "p" or self.record.split("\n")[5].startswith("=1\2-1\2")

    def line(self, task_id: str, at: int, told: Any = None) -> tuple[Any, ...]:
        known = (self.run, self.version) if self.readable() else (0, 0)
        return (task_id, *known, at, told)


@dataclass
class Claim:
    """An entry that a beat has taken out."""

    token: str
    until: int
    attempt: int
    due: int
    entry: Entry


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
    published: int = 0
    merged: int = 0
    gap: int = 0
    schedule: dict[str, int] = field(default_factory=dict)
    outbound: dict[str, int] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)  # of the parked entries
    blocked: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    gates: GateModel = field(default_factory=GateModel)
    entries: dict[str, Entry] = field(default_factory=dict)
    parked: dict[str, Entry] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    gone: dict[tuple[str, int], list[Mark]] = field(default_factory=dict)
    told: dict[tuple[str, int], list[Mark]] = field(default_factory=dict)
    cancels: dict[str, list[Mark]] = field(default_factory=dict)
    done: dict[str, list[bytes]] = field(default_factory=dict)  # operation -> answer
    journal: list[tuple[str, int, list[tuple[Any, ...]]]] = field(default_factory=list)
    queues: dict[str, list[tuple[str, int, int, str]]] = field(default_factory=dict)
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

    def _way(self, entry: Entry) -> dict[str, int]:
        return self.outbound if entry.readable() and entry.published() else self.schedule

    def waiting(self) -> dict[str, int]:
        return self.schedule | self.outbound

    def places(self) -> dict[str, int]:
        """Each live entry and its eta, wherever it is."""
        return self.waiting() | self.blocked | self.gates.gated | self.held

    def _take_away(self, task_id: str) -> None:
        for place in (self.schedule, self.outbound, self.blocked, self.held):
            place.pop(task_id, None)
        self.gates.leave(task_id)

    def _raise_version(self, entry: Entry) -> None:
        entry.version += 1
        text = entry.record.split("\n")
        entry.record = "\n".join([*text[:2], str(entry.version), *text[3:]])

    def _unused(self, entry: Entry) -> None:
        if entry.whole() and entry.template != "=":
            self.uses[entry.template] -= 1

    # -- add ------------------------------------------------------------------------------

    def add(self, given: dict[str, str], rest: list[str], answer: list[bytes], grew: bool) -> None:
        """*grew*: whether this script has added to the journal; read where it cannot be known."""
        status = answer[0].decode()
        new = [self._parse(rest[i : i + 5]) for i in range(0, len(rest), 5)]
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
        scheduled, refused, published = [], [], []
        codes = answer[2].decode()
        for (task_id, entry, line), may, code, due in zip(
            new, allowed, codes, answer[4:], strict=True
        ):
            assert code in may, (task_id, code, may)
            if code == "D":
                assert int(due) == self.places()[task_id]
                continue
            assert int(due) == entry.due
            line = (task_id, entry.run, entry.version, entry.due, line)
            if code == "C":
                refused += self._refuse(task_id, entry, line, grew)
            elif code == "A":
                out = self._out(task_id, entry)
                if out is not None:
                    published.append(self._hand_off(task_id, *out))
                self._put(task_id, entry, given)
                scheduled.append(line)
        assert len(self.templates) <= CAP
        self._write("DISPATCHED", published)
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
        if before is not None:
            self._unused(before)
        self._take_away(task_id)
        self._way(entry)[task_id], self.entries[task_id] = entry.due, entry

    def _out(self, task_id: str, entry: Entry) -> tuple[Entry, int] | None:
        """The run of the task that *entry* proves to have been published, and its eta."""
        claim, live = self.claims.get(task_id), self.entries.get(task_id)
        if claim is not None:
            out, due = claim.entry, claim.due
        elif live is not None and live.damage != "missing":
            if not live.readable() or task_id not in self.attempts:
                return None
            out, due = live, self.places()[task_id]
        elif task_id in self.parked and self.parked[task_id].readable():
            out = self.parked[task_id]
            due = out.due
        else:
            return None
        drawn = entry.deadline - entry.run == WINDOW
        return (out, due) if out.run + 1 == entry.run and not drawn else None

    def _hand_off(self, task_id: str, entry: Entry, due: int) -> tuple[Any, ...]:
        """The broker has it; its journal line."""
        for place in (self.claims, self.entries, self.attempts, self.parked, self.silent):
            place.pop(task_id, None)  # type: ignore[attr-defined]
        self._unused(entry)
        return entry.line(task_id, due)

    def _refuse(self, task_id: str, entry: Entry, line: Any, grew: bool) -> list[Any]:
        told = self.told.get((task_id, entry.run), [])
        if self._sure(told) or (told and not grew):
            return []
        self.told.setdefault((task_id, entry.run), []).append(self._mark())
        # of a mark that may be gone it is not known whether it is made anew
        highest = max([entry.run, *(one.run for one in self._sure(self.cancels[task_id]))])
        self.cancels[task_id].append(self._mark(found=True, run=highest))
        return [line]

    def _parse(self, parts: list[str]) -> tuple[str, Entry, Any]:
        task_id, due, record, story, _keys = parts
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
        if self._out(task_id, entry) is not None:
            return {"A"}
        live, claim = self.entries.get(task_id), self.claims.get(task_id)
        if claim is not None:
            return {"G"} if claim.entry.run == entry.run else {"CONFLICT"}
        waits = live is not None and live.damage != "missing"
        parked = self.parked.get(task_id)
        if parked is not None and not waits and parked.readable():
            return {"G"} if parked.run == entry.run else {"CONFLICT"}
        if live is not None and waits:
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
        live, parked = self.entries.get(task_id), self.parked.get(task_id)
        silent = live is not None and live.damage != "missing" and task_id in self.attempts
        if task_id in self.claims or silent:
            assert status == "TOO_LATE"
            return
        before = self.cancels.get(task_id, [])
        refused = max([self.now, run, *(m.run for m in self._sure(before))])
        if live is not None or parked is not None:
            known = live is None and parked is not None and parked.readable()
            silent = known and self.silent[task_id] > 0
            refused = self._take_out(task_id, live, parked, refused)
            assert status == ("TOO_LATE" if silent else "CANCELLED")
            if silent:
                mark = self._mark(version=parked.version)
                self.gone.setdefault((task_id, parked.run), []).append(mark)
                return
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
            due = self.places()[task_id]
            self._take_away(task_id)
            del self.entries[task_id]
        else:
            due = entry.due
            del self.parked[task_id], self.silent[task_id]
        self._unused(entry)
        self._write("CANCELLED", [entry.line(task_id, due, "cancel")])
        if not entry.readable():
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
        assert status == "OK"
        openable, waited = self.gates.openable(), len(self.gates.gated)
        fit, counts = self._take(self.schedule, self.now - hold - steal, self.unusable)
        assert answer[9:] == [len(self.gates.gated) - waited, int(openable)]
        moved, lag = [], 0
        for at, task_id, entry, queue in fit:
            self._unused(entry)
            self.attempts.pop(task_id, None)
            assert at <= self.now, "early"
            lag = max(lag, self.now - at)
            moved.append(entry.line(task_id, at))
            self.queues.setdefault(queue, []).append((task_id, entry.run, at, entry.values[0]))
        counts = [len(moved), lag, *counts]
        assert [int(one) for one in answer[3:8]] == counts, (answer, counts)
        assert int(float(answer[2])) == min(self.schedule.values(), default=-1)
        assert bool(answer[8]) == bool(counts[-1])
        self._write("DISPATCHED", moved)

    def _take(
        self, source: dict[str, int], before: int, unusable: set[str]
    ) -> tuple[list[tuple[int, str, Entry, str]], list[int]]:
        """What of a batch is fit to go; and how many expired, were bad, are stuck."""
        due = sorted((at, one.encode()) for one, at in source.items() if at <= before)
        batch: list[tuple[int, str]] = []
        fit, expired, bad, stuck = [], [], [], 0
        for at, task_id in [(at, one.decode()) for at, one in due]:
            if len(batch) >= BATCH:  # who is kept back at a gate does not count
                break
            del source[task_id]
            entry = self.entries[task_id]
            where = self._fate(entry)
            gate = self._gate(entry, where)
            if gate is not None:
                self.gates.keep(task_id, at, gate)
                continue
            batch.append((at, task_id))
            if where == "blocked" or where in unusable:
                self.blocked[task_id] = at
                stuck += 1
                continue
            del self.entries[task_id]
            if entry.readable() and entry.deadline >= self.now:
                mark = self._mark(version=entry.version)
                self.gone.setdefault((task_id, entry.run), []).append(mark)
            if where == "parked":
                self._park(task_id, entry, at)
                bad.append(entry.line(task_id, at))
            elif where == "expired":
                self._unused(entry)
                self.attempts.pop(task_id, None)
                expired.append(entry.line(task_id, at))
            else:
                fit.append((at, task_id, entry, where))
        for one in [name for name, text in self.templates.items() if not _fits(name, text)]:
            if any(self._used(task_id, one) for _, task_id in batch):
                del self.templates[one]
        self._write("EXPIRED", expired)
        self._write("QUARANTINED", bad)
        return fit, [len(expired), len(bad), stuck]

    def _gate(self, entry: Entry, where: str) -> str | None:
        """The gate that keeps one back that could go otherwise."""
        if "/" not in where:
            return None
        template = Template.decode(self._text(entry))
        labels = entry.record.split("\n")[-1]
        namespace = json.loads(labels[1:])["namespace"] if labels.startswith("~") else None
        return self.gates.stops(template.task, template.queue_name, namespace)

    def _park(self, task_id: str, entry: Entry, at: int) -> None:
        entry.due = at
        self.parked[task_id] = entry
        self.silent[task_id] = self.attempts.pop(task_id, 0)

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
        text = self._text(entry)
        if entry.template != "=" and not _fits(entry.template, text):
            return "parked"
        template = Template.decode(text)
        return f"{template.database}/{template.queue}"

    def _text(self, entry: Entry) -> str:
        if entry.template == "=":
            return entry.record.split("\n")[5][1:].replace("\2", "\n")
        return self.templates.get(entry.template, "")

    # -- the claim path -------------------------------------------------------------------

    def claim(self, given: dict[str, str], answer: list[Any]) -> None:
        status = answer[0].decode()
        hold, steal = int(given["hold_ms"]), int(given["steal_ms"])
        if int(given["epoch"]) != self.epoch:
            assert status == "EPOCH"
            return
        if steal and self.now - self.published <= steal:
            assert status == "STANDBY"
            return
        if not steal:
            self.published = self.now
        assert status == "OK"
        waited = len(self.gates.gated)
        fit, counts = self._take(self.outbound, self.now - hold - steal, set())
        assert answer[7] == len(self.gates.gated) - waited
        told = []
        for at, task_id, entry, _ in fit:
            assert at <= self.now, "early"
            attempt = self.attempts.get(task_id, 0)
            until = self.now + int(given["ttl"])
            self.claims[task_id] = Claim(given["token"], until, attempt, at, entry)
            told.append((task_id, entry.run, entry.version, at, attempt))
        heard = [answer[i : i + 5] for i in range(8, len(answer), 6)]
        assert [(one.decode(), *map(int, rest)) for one, *rest in heard] == told
        assert [int(one) for one in answer[3:6]] == counts, (answer, counts)
        assert int(float(answer[2])) == min(self.outbound.values(), default=-1)

    def ack(self, token: str, rest: list[str], answer: int) -> None:
        mine = [one for one in rest if one in self.claims and self.claims[one].token == token]
        lines = []
        for one in mine:
            claim = self.claims[one]
            lines.append(self._hand_off(one, claim.entry, claim.due))
        assert answer == len(mine)
        self._write("DISPATCHED", lines)

    def give_back(self, token: str, rest: list[str], answer: int) -> None:
        count, lines = 0, []
        for task_id, where in zip(rest[::3], rest[1::3], strict=True):
            if task_id not in self.claims or self.claims[task_id].token != token:
                continue
            count += 1
            claim = self.claims.pop(task_id)
            if where == "Q":
                self._park(task_id, claim.entry, claim.due)
                lines.append(claim.entry.line(task_id, claim.due))
                continue
            place = self.blocked if where == "B" else self._way(claim.entry)
            place[task_id], self.entries[task_id] = claim.due, claim.entry
        assert answer == count
        self._write("QUARANTINED", lines)

    def rescue(self, answer: int) -> list[str]:
        over = [one for one, claim in self.claims.items() if claim.until <= self.now]
        for task_id in over:
            claim = self.claims.pop(task_id)
            self._way(claim.entry)[task_id] = claim.due
            self.entries[task_id] = claim.entry
            self.attempts[task_id] = self.attempts.get(task_id, 0) + 1
        assert answer == len(over)
        return over

    # -- changes of one entry -------------------------------------------------------------

    def _refuses(self, given: dict[str, str], status: bytes) -> bool:
        """Whether the call is another history's, or late; then so must be its answer."""
        if int(given["epoch"]) not in (0, self.epoch):
            assert status == b"EPOCH"
            return True
        if self.now > int(given["deadline"]):
            assert status == b"LATE"
            return True
        return False

    def send_again(self, given: dict[str, str], rest: list[str], answer: bytes) -> None:
        if self._refuses(given, answer):
            return
        if given["operation"] in self.done:
            assert [answer] == self.done[given["operation"]]
            return
        codes, lines = "", []
        for task_id in rest:
            held = task_id in self.held
            entry = self.entries[task_id] if held else self.parked.get(task_id)
            if entry is None:
                codes += "N"
            elif entry.damage or not (entry.template == "=" or entry.template in self.templates):
                codes += "D"
            elif not held and (task_id in self.entries or task_id in self.claims):
                codes += "L"
            else:
                codes += "S"
                due = self.held.pop(task_id) if held else entry.due
                if not held:
                    del self.parked[task_id]
                self._raise_version(entry)
                self._way(entry)[task_id], self.entries[task_id] = due, entry
                if not held and (silent := self.silent.pop(task_id)):
                    self.attempts[task_id] = silent
                lines.append(entry.line(task_id, due))
        assert answer.decode() == codes
        if lines:
            self.done[given["operation"]] = [answer]
        self._write("SCHEDULED", lines)

    def steer(self, given: dict[str, str], answer: list[bytes]) -> None:
        status, task_id = answer[0], given["task_id"]
        if self._refuses(given, status):
            return
        if given["operation"] in self.done:
            assert [status, *answer[2:]] == [b"DONE", *self.done[given["operation"]]]
            return
        live = self.entries.get(task_id)
        silent = live is not None and live.damage != "missing" and task_id in self.attempts
        if task_id in self.claims or silent:
            assert status == b"TOO_LATE"
        elif live is None:
            left = self.gone.get((task_id, int(given["run"])), [])
            if task_id in self.parked:
                allowed = {b"QUARANTINED"}
            elif self._sure(left):
                allowed = {b"TOO_LATE"}
            else:
                allowed = {b"NOT_FOUND", b"TOO_LATE"} if left else {b"NOT_FOUND"}
            assert status in allowed
        elif live.damage:
            assert status == b"DAMAGED"
        else:
            assert status == b"DONE"
            told = self._change(task_id, live, given)
            assert [int(one) for one in answer[2:]] == told

    def _change(self, task_id: str, entry: Entry, given: dict[str, str]) -> list[int]:
        """Its new eta, and when it expires."""
        before, was_held = self.places()[task_id], task_id in self.held
        at, hold, due = before, was_held, given["due"]
        if due.startswith("~"):
            at = max(0, before + int(due[1:]))
        elif due.startswith("@"):
            at = int(due[1:])
        elif due:
            at = self.now + 1 + int(due[1:]) if int(due[1:]) else self.now
        if given["hold"]:
            hold = given["hold"] == "1"
        told = [at, entry.expires]
        if due or hold != was_held:
            self._take_away(task_id)
            self._raise_version(entry)
            (self.held if hold else self._way(entry))[task_id] = at
            call = json.loads(given["data"]).get("call")
            self._write("HELD" if hold else "SCHEDULED", [entry.line(task_id, at, call)])
            self.done[given["operation"]] = [str(one).encode() for one in told]
        return told

    # -- gates ----------------------------------------------------------------------------

    def pause(self, given: dict[str, str], answer: list[bytes]) -> None:
        if self.now > int(given["deadline"]):
            assert answer[0] == b"LATE"
            return
        known = self.gates.is_closed(given["gate"])
        self.gates.pause(given["gate"])
        assert answer[0] == b"PAUSED"
        assert known or json.loads(answer[2]) == {**json.loads(given["facts"]), "since": self.now}

    def resume(self, given: dict[str, str], answer: list[bytes]) -> None:
        if self.now > int(given["deadline"]):
            assert answer[0] == b"LATE"
            return
        operation = given["operation"]
        if operation not in self.done:
            waiting = self.gates.resume(given["gate"], int(given["over"]), self.now)
            if waiting is None:
                assert answer[0] == b"NOT_PAUSED"
                return
            self.done[operation] = [str(waiting).encode()]
        assert [answer[0], *answer[2:]] == [b"RESUMED", *self.done[operation]]

    def open_gates(self, answer: list[bytes]) -> None:
        ways = {"schedule": self.schedule, "outbound": self.outbound}
        due = {name: sum(at <= self.now for at in way.values()) for name, way in ways.items()}
        room = {name: BATCH if not n else int(n < BATCH) for name, n in due.items()}

        def way_of(task_id: str) -> str:
            return "outbound" if self._way(self.entries[task_id]) is self.outbound else "schedule"

        passed = self.gates.let(BATCH, self.now, room, way_of)
        for task_id, at in passed.items():
            ways[way_of(task_id)][task_id] = at
        assert int(answer[1]) == len(passed)
        assert (answer[2] == b"-1") == (not self.gates.openable())

    # -- another message ------------------------------------------------------------------

    def replace(self, given: dict[str, str], answer: list[bytes]) -> None:
        status, task_id = answer[0], given["task_id"]
        if self._refuses(given, status):
            return
        if given["operation"] in self.done:
            assert [status, *answer[2:]] == [b"DONE", *self.done[given["operation"]]]
            return
        head, run, *_ = given["record"].split("\n")
        live, waits = self.entries.get(task_id), task_id in self.places()
        old = live if waits else self.parked.get(task_id)
        # its message may be on its queue
        silent = live is not None and live.damage != "missing" and task_id in self.attempts
        silent = silent or (not waits and bool(self.silent.get(task_id)))
        if task_id in self.claims or silent:
            assert status == b"TOO_LATE"
        elif old is None:
            left = self.gone.get((task_id, int(run)), [])
            allowed = {b"TOO_LATE"} if left else {b"NOT_FOUND"}
            assert status in (allowed if self._sure(left) else allowed | {b"NOT_FOUND"})
        elif old.damage:
            assert status == b"DAMAGED"
        elif old.run != int(run) or old.record.split("\n")[0].split()[1] != given["digest"]:
            assert status == b"STALE"
        else:
            self._put_in(task_id, old, head, given, answer)

    def _put_in(
        self, task_id: str, old: Entry, head: str, given: dict[str, str], answer: list[bytes]
    ) -> None:
        expires, template, *values = given["record"].split("\n")[4:]
        name = "=" if template[0] == "=" else template
        if name != "=" and name not in self.templates:
            if not given["template"]:
                assert answer[0] == b"TEMPLATE"
                return
            if len(self.templates) >= CAP:
                for one in [one for one in self.templates if self.uses[one] == 0]:
                    del self.templates[one]
                    self.uses.pop(one, None)
            if len(self.templates) >= CAP:
                assert answer[0] == b"INLINE"
                return
            self.templates[name] = given["template"]
        assert answer[0] == b"DONE", answer
        assert int(answer[2]) == old.version + 1
        self.done[given["operation"]] = [answer[2]]
        if name != "=":
            self.uses[name] += 1
        self._unused(old)
        lines = [head, old.run, old.version + 1, old.deadline, expires, template, *values]
        new = Entry(
            old.run, old.version + 1, old.due, old.deadline, int(expires), name,
            "\n".join(map(str, lines)), tuple(values),
        )  # fmt: skip
        if task_id in self.places():
            at, state = self.places()[task_id], "HELD" if task_id in self.held else "SCHEDULED"
            self.entries[task_id] = new
            if task_id not in self.blocked and task_id not in self.held:
                # one that waits at a gate may have none any more
                self._take_away(task_id)
                self._way(new)[task_id] = at
        else:
            at, state = old.due, "QUARANTINED"
            self.parked[task_id] = new
        self._write(state, [new.line(task_id, at, json.loads(given["data"])["call"])])

    # -- the rest -------------------------------------------------------------------------

    def merge_back(self, answer: Any) -> None:
        waiting = sorted((at, one.encode()) for one, at in self.blocked.items())
        batch = waiting[self.merged : self.merged + BATCH]
        if not batch and self.merged:
            self.merged, batch = 0, waiting[:BATCH]
        self.merged += len(batch)
        for at, one in batch:
            del self.blocked[one.decode()]
            self._way(self.entries[one.decode()])[one.decode()] = at
        assert answer == len(batch)

    def wipe(self) -> None:
        """All data of the server is gone."""
        fresh = Model(self.refuse, self.journal_max, self.now, self.boot)
        self.__dict__.update(fresh.__dict__)


def _fits(name: str, text: str) -> bool:
    return hashlib.sha1(text.encode()).hexdigest()[:16] == name.removeprefix("p")
