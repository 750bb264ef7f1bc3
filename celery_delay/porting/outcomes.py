"""What became of an export, and of an import."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ExportOutcome", "ImportOutcome"]

#: Refusals, and ids, that are remembered.
_MOST = 1_000


@dataclass
class ExportOutcome:
    """What was exported.

    Attributes:
        export_id: names the export; an import remembers it.
        entries, keys, pauses, schedules: how many lines of each kind the file has.
        unreadable: ids of entries whose record cannot be read, 1 000 at most, and their number.
            They are not in the file.
        in_flight: how many entries beats were publishing at the end; they are not in the file.
        resumed: how many entries the file had before.
        dry_run: whether nothing was written.
    """

    export_id: str
    entries: int = 0
    keys: int = 0
    pauses: int = 0
    schedules: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    in_flight: int = 0
    resumed: int = 0
    dry_run: bool = False

    def skip(self, task_id: str) -> None:
        """Count one that cannot be read."""
        self.unreadable_count += 1
        if len(self.unreadable) < _MOST:
            self.unreadable.append(task_id)

    def __bool__(self) -> bool:
        """Whether everything that was meant, and not in flight, is in the file."""
        return not self.dry_run and not self.unreadable_count


@dataclass
class ImportOutcome:
    """What became of the lines.

    Attributes:
        imported: entries that were stored.
        present: entries that wait here already.
        before: entries that came of this export before, and have left since: they were handed
            off, cancelled, or have expired.
        over: entries that are over by what the store or the audit here knows, or have been
            followed by a later run.
        skipped: overdue ones, with ``overdue="skip"``.
        keys, pauses, schedules: how many of these were stored.
        refused: (line, reason) of what could not be imported, 1 000 at most, and their number.
        lines: how many lines were read.
        complete: whether the file has the last line of an export.
        dry_run: whether nothing was stored.
    """

    imported: int = 0
    present: int = 0
    before: int = 0
    over: int = 0
    skipped: int = 0
    keys: int = 0
    pauses: int = 0
    schedules: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    refused_count: int = 0
    lines: int = 0
    complete: bool = False
    dry_run: bool = False

    def __bool__(self) -> bool:
        """Whether the file was whole, and nothing was refused."""
        return self.complete and not self.refused_count

    def refuse(self, line: int, reason: object) -> None:
        """Count one line that cannot be imported."""
        self.refused_count += 1
        if len(self.refused) < _MOST:
            self.refused.append((line, " ".join(str(reason).split())))
