"""``app.delayed.import_``: what was exported, into this app's store.

Each line is a step of its own: stored whole, known to be there, or refused with a reason.  With the
entry a mark is written into Redis, in the same script; so the same file can be imported any number
of times, also after a crash, and also when what it brought has run since.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any

from kombu.exceptions import OperationalError

from celery_delay.domain.entries import Addition, EntryId
from celery_delay.domain.states import State
from celery_delay.exceptions import (
    DelayError,
    ExportUnreadable,
    ScheduleExists,
    StaticSchedule,
    StoreUnavailable,
)
from celery_delay.porting.arrival import Addressing, addressing
from celery_delay.porting.committing import commit
from celery_delay.porting.exporting import Exporting
from celery_delay.porting.format import (
    End,
    Header,
    PortedEntry,
    PortedKey,
    PortedPause,
    PortedSchedule,
)
from celery_delay.porting.outcomes import ImportOutcome
from celery_delay.porting.reading import LineError, lines, load, opened
from celery_delay.store.keys import shard_of
from celery_delay.store.porting import BATCH, Arrival, ImportMark

__all__ = ["OVERDUE", "REMEMBERED_MS", "Importing"]

#: For how long Redis remembers what came of an export, after the last import of it.
REMEMBERED_MS = 30 * 86_400_000
#: What becomes of entries that are overdue when they come.
OVERDUE = ("run", "hold", "skip")

_Line = tuple[int, PortedEntry | PortedKey]


class Importing(Exporting):
    """The part of ``app.delayed`` that takes in what was exported."""

    def import_(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        overdue: str = "run",
        dry_run: bool = False,
        force: bool = False,
        audit: bool = True,
        progress: Callable[[int, ImportOutcome], object] | None = None,
    ) -> ImportOutcome:
        """Store what :meth:`export` has written, here or elsewhere.

        Entries keep their id, run, eta, state, labels and keys; queues are those of the same names
        at this app's broker.  The same file may be imported again, whatever happened meanwhile:
        what is here, or was, is counted and left alone.  So a crash leaves nothing to mend, and
        the call is simply made again.

        Arguments:
            source: a path, or a file that is open for bytes.
            overdue: what becomes of entries whose eta has passed: ``run`` (at once), ``hold``, or
                ``skip``.
            dry_run: store nothing, and tell what would be.
            force: import also what has come of this export before and has left, what the audit
                says is over, and an export that is older than Redis' memory of imports (30 days).
            audit: ask the audit here, if there is one, which entries are over.
            progress: called now and then with the number of bytes that were read, and the outcome
                so far.

        Raises:
            ExportUnreadable: nothing was imported.
            StoreUnavailable, OutcomeUnknown, JournalFull, AuditUnavailable: it was given up in the
                middle; ``so_far`` of the exception is the outcome up to there.
            OSError, ValueError, InvalidSetting: see there.
        """
        if overdue not in OVERDUE:
            raise ValueError(f"overdue={overdue!r} must be one of {', '.join(OVERDUE)}")
        outcome = ImportOutcome(dry_run=dry_run)
        try:
            with opened(source) as file, addressing(self) as address:
                reading = _Reading(self, address, outcome, overdue, force, audit)
                for size, number, text in lines(file):
                    outcome.lines = number
                    if reading.take(number, text) and progress is not None:
                        progress(size, outcome)
                reading.store()
        except OperationalError as exc:
            failure = StoreUnavailable(f"cannot reach the broker: {exc}")
            failure.so_far = outcome  # type: ignore[attr-defined]
            raise failure from exc
        except (DelayError, KeyboardInterrupt) as exc:
            if not isinstance(exc, ExportUnreadable):
                exc.so_far = outcome  # type: ignore[union-attr]
            raise
        if not outcome.lines:
            raise ExportUnreadable("the file is empty")
        return outcome

    def has_audit(self) -> bool:
        """Whether there is an audit with tables.

        Raises:
            AuditUnavailable: it cannot be asked.
        """
        return self.settings.has_database and self.audit_queries().schema().state != "missing"


class _Reading:
    """One file on its way into the store."""

    def __init__(
        self,
        delayed: Importing,
        address: Addressing,
        outcome: ImportOutcome,
        overdue: str,
        force: bool,
        audit: bool,
    ) -> None:
        self._delayed = delayed
        self._address = address
        self._outcome = outcome
        self._overdue = overdue
        self._force = force
        self._audit = audit and not force and delayed.has_audit()
        self._mark: ImportMark | None = None
        self._waiting: list[_Line] = []

    def take(self, number: int, text: bytes) -> bool:
        """Look at one line; whether something was stored."""
        try:
            item = load(text, self._delayed.seal)
        except LineError as exc:
            if self._mark is None:
                raise ExportUnreadable(
                    f"line {number} is no first line of an export: {exc}"
                ) from exc
            self._outcome.refuse(number, exc)
            return False
        if isinstance(item, Header):
            self.store()
            self._begin(item)
        elif self._mark is None:
            raise ExportUnreadable(f"line {number}: the first line of the export is missing")
        elif isinstance(item, End):
            self._outcome.complete = True
        elif isinstance(item, (PortedEntry, PortedKey)):
            self._waiting.append((number, item))
            if len(self._waiting) < BATCH:
                return False
            self.store()
        else:
            self.store()
            try:
                if isinstance(item, PortedPause):
                    self._pause(item)
                else:
                    self._schedule(number, item)
            except (TypeError, ValueError) as exc:
                if isinstance(exc, DelayError):
                    raise
                self._outcome.refuse(number, exc)
        return True

    def _begin(self, header: Header) -> None:
        delayed = self._delayed
        known = any(one.remembers(header.export_id) for one in delayed.shards)
        age_ms = delayed.shards[0].time_ms() - header.created_ms
        if age_ms > REMEMBERED_MS and not known and not self._force:
            raise ExportUnreadable(
                f"the export is {age_ms // 86_400_000} days old, and Redis remembers imports for"
                f" {REMEMBERED_MS // 86_400_000}: if it was imported before, what has run since"
                " would run again.  If you know that it was not: force=True, --force"
            )
        dry = self._outcome.dry_run
        self._mark = ImportMark(header.export_id, REMEMBERED_MS, self._force, dry)
        # of several files in one, the last must be whole
        self._outcome.complete = False

    def store(self) -> None:
        """Store what has gathered, shard by shard."""
        taken, self._waiting = self._waiting, []
        if not taken:
            return
        assert self._mark is not None
        over = self._over(taken)
        now_ms = self._delayed.now_ms()
        steps: dict[int, list[tuple[_Line, Arrival]]] = {}
        for number, item in taken:
            if isinstance(item, PortedEntry):
                if item.entry_id in over:
                    self._outcome.over += 1
                    continue
                arrival = self._arrival(number, item, now_ms)
                if arrival is not None:
                    shard = self._shard_of(item.entry_id.task_id)
                    steps.setdefault(shard, []).append(((number, item), arrival))
                continue
            field, entry_id = item.key.field, item.key.entry_id
            shards = {self._shard_of(field[2:])}
            if field.startswith("i:"):
                # with a unique key beside it, it lives where that does: with the task
                shards.add(self._shard_of(entry_id.task_id))
            for shard in shards:
                steps.setdefault(shard, []).append(((number, item), Arrival(item.number, item.key)))
        for shard, some in steps.items():
            for start in range(0, len(some), BATCH):
                part = some[start : start + BATCH]
                verdicts = self._brought(shard, [one for _, one in part])
                for ((number, item), _), verdict in zip(part, verdicts, strict=True):
                    self._judge(number, item, verdict)

    def _brought(self, shard: int, arrivals: list[Arrival]) -> list[str]:
        """A verdict for each."""
        assert self._mark is not None
        store = self._delayed.shards[shard]
        if not self._delayed.settings.is_sync:
            return store.bring_in(arrivals, self._mark)
        entries = [one for one in arrivals if isinstance(one.what, Addition)]
        told = iter(commit(self._delayed, shard, entries, self._mark))
        keys = [one for one in arrivals if not isinstance(one.what, Addition)]
        more = iter(store.bring_in(keys, self._mark) if keys else ())
        return [next(told if isinstance(one.what, Addition) else more) for one in arrivals]

    def _shard_of(self, text: str) -> int:
        return shard_of(text, self._delayed.settings.shards)

    def _over(self, taken: list[_Line]) -> set[EntryId]:
        if not self._audit:
            return set()
        ids = [item.entry_id for _, item in taken if isinstance(item, PortedEntry)]
        return self._delayed.audit_queries().over(ids)

    def _arrival(self, number: int, item: PortedEntry, now_ms: int) -> Arrival | None:
        unique = item.labels.unique
        if unique is not None and self._shard_of(unique.key) != self._shard_of(
            item.entry_id.task_id
        ):
            self._outcome.refuse(
                number,
                f"the unique key {unique.key!r} and the task id lie in two shards here: import it"
                " where delay_shards is as it was at the export, or 1",
            )
            return None
        state = item.state
        if state is State.SCHEDULED and item.eta_ms <= now_ms:
            if self._overdue == "skip":
                self._outcome.skipped += 1
                return None
            state = State.HELD if self._overdue == "hold" else state
        try:
            addition = self._address.addition(item, item.eta_ms)
        except DelayError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            self._outcome.refuse(number, f"the message cannot be stored: {exc!r}")
            return None
        return Arrival(item.number, addition, state, item.why, item.silent)

    def _judge(self, number: int, item: PortedEntry | PortedKey, verdict: str) -> None:
        letter, _, about = verdict.partition(" ")
        outcome = self._outcome
        if isinstance(item, PortedKey):
            if letter == "A":
                outcome.keys += 1
            elif letter == "K":
                outcome.refuse(number, f"the task {about!r} has the key {item.key.field[2:]!r}")
        elif letter == "A":
            outcome.imported += 1
        elif letter == "D":
            outcome.present += 1
        elif letter in ("M", "G"):
            outcome.before += 1
        elif letter == "C" or (letter == "X" and int(about) > item.entry_id.run):
            outcome.over += 1
        elif letter == "X":
            outcome.refuse(number, f"another entry has the task id {item.entry_id.task_id!r}")
        else:
            unique = item.labels.unique
            outcome.refuse(
                number, f"the task {about!r} has the unique key {unique and unique.key!r}"
            )

    def _pause(self, item: PortedPause) -> None:
        kind, _, name = item.gate.partition(":")
        self._outcome.pauses += 1
        if not self._outcome.dry_run:
            given: dict[str, Any] = {kind: name} if name else {"all": True}
            self._delayed.pause(**given, reason=item.reason)

    def _schedule(self, number: int, item: PortedSchedule) -> None:
        schedules, facts = self._delayed.schedules, dict(item.facts)
        paused, times, options = facts.pop("paused"), facts.pop("times"), facts.pop("options")
        if self._outcome.dry_run:
            self._outcome.schedules += 1
            return
        try:
            schedules.add(item.name, schedule=times, **facts, **options)
        except (ScheduleExists, StaticSchedule):
            known = schedules.get(item.name)
            if paused is not None and known.enabled:
                self._outcome.refuse(
                    number, f"the schedule {item.name!r} is here and runs; the export has it paused"
                )
            return
        if paused is not None:
            schedules.pause(item.name, reason=paused.get("reason"))
        self._outcome.schedules += 1
