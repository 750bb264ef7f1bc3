"""The lines of an export: what is in them.

The first line says what the file is; each further one has one thing, with its number in the export,
by which an import knows it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import EntryId, StoredEntry
from celery_delay.domain.labels import Labels
from celery_delay.domain.sealing import Seal
from celery_delay.domain.states import State
from celery_delay.message.envelope import HEADER
from celery_delay.store.porting import KeptKey

__all__ = [
    "FORMAT",
    "MADE",
    "VERSION",
    "End",
    "Header",
    "Item",
    "PortedEntry",
    "PortedKey",
    "PortedPause",
    "PortedSchedule",
    "dump",
    "entry_line",
]

FORMAT, VERSION = "celery-delay-export", 1
#: Properties that are made anew for each message that is sent.
MADE = ("delivery_tag",)


class Header(NamedTuple):
    """The first line.

    Attributes:
        export_id: names the export, also where it was continued.
        created_ms: when it was begun, by the store's clock.
        filters: which entries were asked for; ``None``: all.
        standing: whether pauses and schedules were asked for.
        seal: text that opens with the keys that the lines need; "": they are plain.
        release: the version of celery-delay that wrote it.
    """

    export_id: str
    created_ms: int
    filters: Mapping[str, Any] | None = None
    standing: bool = False
    seal: str = ""
    release: str = ""

    def line(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "release": self.release,
            "export_id": self.export_id,
            "created": from_ms(self.created_ms).isoformat(),
            "created_ms": self.created_ms,
            "filters": self.filters,
            "with_schedules": self.standing,
            "seal": self.seal or None,
        }


class PortedEntry(NamedTuple):
    """An entry; ``message`` is its envelope as kombu has it, the body in base64."""

    number: int
    entry_id: EntryId
    version: int
    state: State
    eta_ms: int
    labels: Labels
    queue: str
    message: dict[str, Any]
    why: str = ""
    silent: int = 0


class PortedKey(NamedTuple):
    """A key that counts until an instant."""

    number: int
    key: KeptKey


class PortedPause(NamedTuple):
    """A pause, by its gate's name."""

    number: int
    gate: str
    reason: str | None


class PortedSchedule(NamedTuple):
    """A schedule that was added at run time, in the words of ``schedules.add``."""

    number: int
    name: str
    facts: dict[str, Any]


class End(NamedTuple):
    """The last line: the file is whole."""

    entries: int


Item = PortedEntry | PortedKey | PortedPause | PortedSchedule | End


def entry_line(number: int, entry: StoredEntry, why: str = "", silent: int = 0) -> dict[str, Any]:
    """What is written of *entry*."""
    envelope: Mapping[str, Any] = entry.envelope
    unique = entry.labels.unique
    line = {
        "n": number,
        "kind": "entry",
        "task_id": entry.entry_id.task_id,
        "run": entry.entry_id.run,
        "version": entry.version,
        "state": entry.state.value,
        "eta": from_ms(entry.eta_ms).isoformat(),
        "eta_ms": entry.eta_ms,
        "task": entry.task,
        "queue": entry.queue_name,
        "namespace": entry.labels.namespace,
        "tags": list(entry.labels.tags),
        "unique": unique and {"key": unique.key, "until": unique.until, "for_ms": unique.for_ms},
        "message": {
            "body": envelope["body"],
            "content-type": envelope.get("content-type"),
            "content-encoding": envelope.get("content-encoding"),
            "headers": {k: v for k, v in entry.headers.items() if k != HEADER},
            "properties": {k: v for k, v in envelope["properties"].items() if k not in MADE},
        },
    }
    if entry.state is State.QUARANTINED:
        line |= {"why": why, "silent": silent}
    return line


def dump(line: Mapping[str, Any], seal: Seal | None = None) -> bytes:
    """A line as bytes, with its end; sealed if there is a *seal*."""
    text = json.dumps(line, separators=(",", ":")).encode()
    if seal is not None:
        text = json.dumps({"sealed": seal.seal(text).decode()}, separators=(",", ":")).encode()
    return text + b"\n"
