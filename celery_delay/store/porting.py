"""What else an export needs beside the pages of entries, and the way in for what was exported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import uuid4

from celery_delay.domain.entries import Addition, EntryId, template_id
from celery_delay.domain.states import State
from celery_delay.exceptions import JournalFull
from celery_delay.store.additions import TEMPLATE_CAP, record_text
from celery_delay.store.scanning import Scanning

__all__ = ["BATCH", "Arrival", "ImportMark", "KeptKey", "Porting"]

#: Items that one script stores; above this Redis would be busy for too long.
BATCH = 200
_LETTERS = {State.SCHEDULED: "S", State.HELD: "H", State.QUARANTINED: "Q"}


class KeptKey(NamedTuple):
    """A key that counts until an instant, whether its entry is there or not.

    Attributes:
        field: ``i:`` and an idempotency key, or ``u:`` and a unique key that is leased.
        entry_id, eta_ms: whose it is.
        ends_ms: the instant.
    """

    field: str
    entry_id: EntryId
    eta_ms: int
    ends_ms: int


class Arrival(NamedTuple):
    """One thing on its way into the store.

    Attributes:
        number: its number in the export.
        what: an entry, or a key.
        state: of an entry: SCHEDULED, HELD or QUARANTINED.
        why, silent: of one in quarantine, the reason, and how many claims of it have ended
            without anybody's word.
    """

    number: int
    what: Addition | KeptKey
    state: State = State.SCHEDULED
    why: str = ""
    silent: int = 0


class ImportMark(NamedTuple):
    """How an import is remembered.

    Attributes:
        export_id: the export that it comes from.
        keep_ms: for how long after its last step.
        force: what has come before, and left, comes again.
        dry: nothing is stored, nor marked.
    """

    export_id: str
    keep_ms: int
    force: bool = False
    dry: bool = False


class Porting(Scanning):
    """Reading what is parked and which keys are kept; storing what was exported."""

    def parked_why(self, task_id: str) -> tuple[str, int]:
        """Why an entry is in quarantine, and how many claims of it ended without a word."""
        parked = self._read("HGET", self.keys.quarantine, task_id)
        try:
            why, _eta, _record, *silent = json.loads(parked or "[]")
            return str(why), int(silent[0]) if silent else 0
        except (ValueError, TypeError):
            return "", 0

    def kept_keys(self) -> Iterator[KeptKey]:
        """The keys that count until an instant to come, in no order."""
        for fields in self._fields(self.keys.uniques):
            for field, value in fields:
                ends, run, eta, task_id = value.decode().split(" ", 3)
                if int(ends) > self.now_ms():
                    yield KeptKey(field, EntryId(task_id, int(run)), int(eta), int(ends))

    def remembers(self, export_id: str) -> bool:
        """Whether something of that export has come in, not too long ago."""
        return bool(self._read("EXISTS", f"{self.keys.imports}:{export_id}"))

    def bring_in(self, arrivals: Sequence[Arrival], mark: ImportMark) -> list[str]:
        """Store *arrivals*, at most :data:`BATCH`, each for itself, and mark them as come.

        Returns:
            A verdict for each, as ``import.lua`` tells them.

        Raises:
            StoreUnavailable, JournalFull: nothing was stored.
            OutcomeUnknown: no answer came within ``delay_add_window``; calling again tells.
        """
        values = {
            "operation": uuid4().hex,
            "export_id": mark.export_id,
            "keep_ms": mark.keep_ms,
            "template_cap": TEMPLATE_CAP,
            "refuse_when_full": int(self._settings.journal_full == "refuse"),
            "force": int(mark.force),
            "dry": int(mark.dry),
        }
        texts = {
            template_id(one.what.template): one.what.template
            for one in arrivals
            if isinstance(one.what, Addition)
        }
        offered: list[str] = []
        inline = False
        while True:
            rest = [part for name in offered for part in (name, texts[name])]
            rest += [part for one in arrivals for part in _arguments(one, inline)]
            given = {**values, "template_count": len(offered)}
            status, _now, *more = self._insist(
                f"an import of {mark.export_id}", "import", given, rest
            )
            told = [one.decode() for one in more]
            if status == b"OK":
                return told
            if status == b"FULL":
                raise JournalFull("the journal is full; see `celery delay status`")
            offered, inline = ([], True) if status == b"INLINE" else (told, False)


def _arguments(one: Arrival, inline: bool) -> list[str]:
    if isinstance(one.what, KeptKey):
        field, entry_id, eta_ms, ends_ms = one.what
        last = [str(eta_ms), field, str(entry_id.run), str(ends_ms)]
        return [str(one.number), "K", entry_id.task_id, *last]
    record = record_text(one.what, 0, inline)
    head = [str(one.number), _LETTERS[one.state], one.what.entry_id.task_id]
    return [*head, str(one.what.due.ms), record, one.what.story, f"{one.silent} {one.why}"]
