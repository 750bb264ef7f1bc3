"""``app.delayed.export``: everything that waits, as lines of JSON.

Written in the order of the eta, page by page, so memory is that of a page, and an export that was
cut short goes on behind its last line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import IO, TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from celery_delay.delayed.pausing import Pausing
from celery_delay.delayed.steering import Parts
from celery_delay.delayed.sweeping import Sweeping
from celery_delay.domain.filters import FILTERS, STORED, Filter
from celery_delay.domain.sealing import SETTING, Seal
from celery_delay.domain.states import State
from celery_delay.exceptions import ExportUnreadable, InvalidSetting
from celery_delay.porting.format import End, Header, PortedEntry, dump, entry_line
from celery_delay.porting.outcomes import ExportOutcome
from celery_delay.porting.reading import LineError, load
from celery_delay.store.paging import Position

if TYPE_CHECKING:
    from celery_delay.message.redaction import Redactor
    from celery_delay.periodic.schedules import Schedules

__all__ = ["Exporting", "Standing"]

#: Entries between two words to whoever watches.
_TOLD = 500
#: Arguments of tasks are in the file: nobody else may read it.
_MODE = 0o600
_PROBE = b"celery-delay"


@dataclass
class _Writing:
    """An export on its way into a file."""

    file: IO[bytes] | None
    header: Header
    seal: Seal | None
    outcome: ExportOutcome
    #: Number of the last line, and behind which entry to go on.
    number: int = 0
    after: Position | None = None

    def put(self, line: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(dump(line, self.seal))

    def next(self) -> int:
        self.number += 1
        return self.number


class Standing(Parts, Protocol):
    """What else the composition root has, that an export or an import needs."""

    @property
    def schedules(self) -> Schedules: ...

    @property
    def redactor(self) -> Redactor: ...

    @property
    def backed_rows(self) -> Any: ...

    def moves(self) -> bool: ...

    def broker_database(self) -> int: ...


class Exporting(Sweeping, Pausing, Standing):
    """The part of ``app.delayed`` that writes down what waits."""

    @cached_property
    def seal(self) -> Seal:
        """What seals payloads outside Redis, as ``delay_payload_keys`` says.

        Raises:
            InvalidSetting: a key is not where the setting says that it is.
        """
        return Seal(self.settings.payload_keys)

    def export(
        self,
        target: str | os.PathLike[str] | IO[bytes] | None,
        *,
        resume: bool = False,
        encrypted: bool = False,
        with_schedules: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], object] | None = None,
        **filters: Any,
    ) -> ExportOutcome:
        """Write entries that are SCHEDULED, HELD or QUARANTINED, for :meth:`import_`.

        Nothing in the store changes.  What is there all the time, and keeps its eta, is written
        once.  What a beat is handing off meanwhile is not: for a move, stop the beats before.
        Without filters the keys go along that still count for calls to come.

        A crash leaves a file that ends in the middle; *resume* goes on with it.

        Arguments:
            target: a path, at which there is nothing yet, or a file that is open for bytes.  The
                file can be read by its owner only: arguments of tasks are in it.
            resume: go on with the file at that path: same filters, same encryption, which the file
                knows.
            encrypted: seal each line with the newest of ``delay_payload_keys``.
            with_schedules: also the pauses, and the periodic schedules that were added at run time.
            dry_run: write nothing, and count; *target* may be ``None``.
            progress: called now and then with the number of entries that were written.
            filters: which entries; see :class:`~celery_delay.delayed.searching.Searching`.

        Raises:
            FileExistsError: there is something at that path, and *resume* was not said.
            OSError: it cannot be written; what was written before stays.
            ExportUnreadable: the file that is to be resumed is no export.
            InvalidSetting: *encrypted* without a key.
            TypeError, ValueError, StoreUnavailable: see there.
        """
        if encrypted and not self.seal:
            raise InvalidSetting(f"an encrypted export needs a key: set {SETTING}")
        if target is None and not dry_run:
            raise ValueError("say where to: a path, or a file that is open for bytes")
        said = {name: filters[name] for name in FILTERS if filters.get(name) is not None}
        wanted = self._wanted_stored(filters)
        with _opened(target if not dry_run else None, resume) as (file, is_old):
            writing = self._continued(file, said) if is_old and file is not None else None
            if writing is None:
                writing = self._begun(file, encrypted, with_schedules, said)
                writing.outcome.dry_run = dry_run
            elif writing.header.filters is not None:
                wanted = self._wanted_stored(writing.header.filters)
            if writing.number >= 0:
                if writing.header.standing and writing.after is None:
                    self._write_standing(writing)
                self._write_entries(writing, wanted, progress)
                if writing.header.filters is None:
                    self._write_keys(writing)
                writing.put({"kind": "end", "entries": writing.outcome.entries})
                writing.outcome.in_flight = sum(one.sizes()["claimed"] for one in self.shards)
            return writing.outcome

    def _wanted_stored(self, filters: Mapping[str, Any]) -> Filter:
        wanted = self.wanted(filters)
        if filters.get("state") is None:
            wanted = wanted.only(*STORED)
        if over := wanted.states - STORED:
            told = ", ".join(sorted(one.value for one in over))
            raise ValueError(f"state: {told} is no state of what waits, and only that is exported")
        return wanted

    def _begun(
        self, file: IO[bytes] | None, encrypted: bool, standing: bool, said: Mapping[str, Any]
    ) -> _Writing:
        probe = self.seal.seal(_PROBE).decode() if encrypted else ""
        # instants are written as the numbers that they mean today
        facts = {name: value for name, value in said.items() if name not in ("after", "before")}
        if facts != said:
            meant = self.wanted(said)
            facts |= {"after_ms": meant.after_ms, "before_ms": meant.before_ms}
        now_ms, release = self.shards[0].time_ms(), version("celery-delay")
        header = Header(str(uuid4()), now_ms, facts or None, standing, probe, release)
        if file is not None:
            file.write(dump(header.line()))
        seal = self.seal if encrypted else None
        return _Writing(file, header, seal, ExportOutcome(header.export_id))

    def _continued(self, file: IO[bytes], said: Mapping[str, Any]) -> _Writing | None:
        """The export in *file*, cut behind its last entry; ``None`` if nothing was written yet.

        Its number is -1 if it is whole already.
        """
        file.seek(0)
        first = file.readline()
        if not first.endswith(b"\n"):
            file.seek(0)
            file.truncate()
            return None
        header = _read(first, self.seal)
        if not isinstance(header, Header):
            raise ExportUnreadable("the file that is to be resumed is no export")
        if said:
            raise ValueError("resume: the file has the filters it was begun with; give none")
        outcome = ExportOutcome(header.export_id)
        writing = _Writing(file, header, self.seal if header.seal else None, outcome)
        end = offset = len(first)
        for text in file:
            offset += len(text)
            one = _read(text, self.seal) if text.endswith(b"\n") else None
            if isinstance(one, End):
                writing.number = -1
                return writing
            if isinstance(one, PortedEntry):
                writing.number, end = one.number, offset
                writing.after = Position(one.eta_ms, one.entry_id.task_id.encode())
                outcome.entries += 1
        outcome.resumed = outcome.entries
        file.seek(end)
        file.truncate()
        return writing

    def _write_standing(self, writing: _Writing) -> None:
        for gate in self.pauses():
            if gate.status == "paused":
                facts = {"gate": gate.gate, "reason": gate.reason}
                writing.put({"n": writing.next(), "kind": "pause", **facts})
                writing.outcome.pauses += 1
        for one in self.schedules.list():
            if one.source != "dynamic":
                continue
            paused = {"reason": one.reason} if one.paused is not None else None
            writing.put(
                {
                    "n": writing.next(),
                    "kind": "schedule",
                    "name": one.name,
                    "task": one.task,
                    "times": one.times,
                    "args": one.args,
                    "kwargs": one.kwargs,
                    "options": one.options,
                    "misfire": one.misfire,
                    "grace": one.grace,
                    "paused": paused,
                }
            )
            writing.outcome.schedules += 1

    def _write_entries(
        self, writing: _Writing, wanted: Filter, progress: Callable[[int], object] | None
    ) -> None:
        outcome = writing.outcome
        for found in self.found(wanted, writing.after):
            entry = found.entry()
            if entry is None:
                outcome.skip(found.task_id)
                continue
            why, silent = "", 0
            if entry.state is State.QUARANTINED:
                why, silent = self._shard(found.task_id).parked_why(found.task_id)
            writing.put(entry_line(writing.next(), entry, why, silent))
            outcome.entries += 1
            if progress is not None and outcome.entries % _TOLD == 0:
                progress(outcome.entries)

    def _write_keys(self, writing: _Writing) -> None:
        for shard in self.shards:
            for key in shard.kept_keys():
                writing.put(
                    {
                        "n": writing.next(),
                        "kind": "key",
                        "key": key.field,
                        "task_id": key.entry_id.task_id,
                        "run": key.entry_id.run,
                        "eta_ms": key.eta_ms,
                        "ends_ms": key.ends_ms,
                    }
                )
                writing.outcome.keys += 1


def _read(text: bytes, seal: Seal) -> Any:
    try:
        return load(text, seal)
    except LineError as exc:
        raise ExportUnreadable(f"the file that is to be resumed is damaged: {exc}") from exc


@contextmanager
def _opened(
    target: str | os.PathLike[str] | IO[bytes] | None, resume: bool
) -> Iterator[tuple[IO[bytes] | None, bool]]:
    """The file, and whether there is something in it to go on with."""
    if target is None:
        yield None, False
        return
    if not isinstance(target, (str, os.PathLike)):
        if resume:
            raise ValueError("resume needs a path: what was written before must be read")
        yield target, False
        target.flush()
        return
    is_old = resume and os.path.exists(target)
    flags = os.O_RDWR | (0 if is_old else os.O_CREAT | os.O_EXCL)
    with os.fdopen(os.open(target, flags, _MODE), "r+b") as file:
        yield file, is_old
        file.flush()
        os.fsync(file.fileno())
