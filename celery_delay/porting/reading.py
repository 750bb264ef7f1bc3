"""What an import takes from the lines of an export.

Read with suspicion: a line comes from who knows where, and what is stored of it a worker will run.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any
from uuid import UUID

from celery_delay.domain.entries import EntryId
from celery_delay.domain.filters import LAST_MS
from celery_delay.domain.labels import Labels, labels_for
from celery_delay.domain.sealing import Seal
from celery_delay.domain.states import State
from celery_delay.domain.uniqueness import LONGEST_KEY, Unique
from celery_delay.exceptions import ExportUnreadable, PayloadUnreadable
from celery_delay.message.envelope import HEADER, check_task_id
from celery_delay.porting.format import (
    FORMAT,
    MADE,
    VERSION,
    End,
    Header,
    Item,
    PortedEntry,
    PortedKey,
    PortedPause,
    PortedSchedule,
)
from celery_delay.store.porting import KeptKey

__all__ = ["MOST_LINES", "LineError", "lines", "load", "opened"]

#: Things that one export has at most; an import keeps a bit for each.
MOST_LINES = 100_000_000
_STATES = {one.value: one for one in (State.SCHEDULED, State.HELD, State.QUARANTINED)}


class LineError(ValueError):
    """What is wrong with one line; the text is for whoever has the file."""


def lines(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Bytes up to its end, number and text of each line that is not blank."""
    size = 0
    for number, text in enumerate(file, 1):
        size += len(text)
        if text.strip():
            yield size, number, text


@contextmanager
def opened(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """*source* to read from; a path is opened, and closed again."""
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            yield file
    else:
        yield source


def load(text: bytes, seal: Seal) -> Header | Item:
    """What a line has.

    Raises:
        LineError: it is nothing that an import could take.
        ExportUnreadable: it is the first line of a file that cannot be imported here.
    """
    found = _object(text)
    if "sealed" in found:
        try:
            found = _object(seal.open(str(found["sealed"]).encode()))
        except PayloadUnreadable as exc:
            raise LineError(str(exc)) from exc
    if "format" in found:
        return _header(found, seal)
    reader = _READERS.get(found.get("kind"))
    if reader is None:
        raise LineError(f"kind={found.get('kind')!r} is none of {', '.join(_READERS)}")
    try:
        return reader(found)
    except LineError:
        raise
    except KeyError as exc:
        raise LineError(f"{exc.args[0]} is missing") from exc
    except (TypeError, ValueError, AttributeError) as exc:
        raise LineError(str(exc)) from exc


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise LineError(f"no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise LineError("not a JSON object")
    return found


def _header(found: Mapping[str, Any], seal: Seal) -> Header:
    version = found.get("version")
    if found["format"] != FORMAT or not isinstance(version, int):
        raise ExportUnreadable("this is no export of celery-delay")
    if version > VERSION:
        raise ExportUnreadable(
            f"the export has the format version {version}, and this release knows {VERSION}:"
            f" upgrade celery-delay here (it was written by {found.get('release') or 'another'})"
        )
    try:
        export_id = str(UUID(found["export_id"]))
        created_ms = _number(found, "created_ms")
    except (KeyError, ValueError, TypeError, AttributeError) as exc:
        raise ExportUnreadable(f"the first line of the export is damaged: {exc}") from exc
    sealed = str(found.get("seal") or "")
    if sealed:
        try:
            seal.open(sealed.encode())
        except PayloadUnreadable as exc:
            raise ExportUnreadable(f"the export is encrypted: {exc}") from exc
    filters = found.get("filters")
    return Header(
        export_id,
        created_ms,
        filters if isinstance(filters, dict) else None,
        bool(found.get("with_schedules")),
        sealed,
        str(found.get("release") or ""),
    )


def _entry(found: Mapping[str, Any]) -> PortedEntry:
    check_task_id(found["task_id"])
    if found["task_id"] is None:
        raise LineError("task_id is missing")
    state = _STATES.get(found["state"])
    if state is None:
        raise LineError(f"state={found['state']!r} is none of {', '.join(_STATES)}")
    entry_id = EntryId(found["task_id"], _number(found, "run", low=1))
    version, eta_ms = _number(found, "version", low=1), _number(found, "eta_ms")
    labels = _labels(found)
    message = _message(found, entry_id.task_id)
    queue = _text(found, "queue", optional=True)
    why = " ".join(_text(found, "why", optional=True).split()) or "quarantined before the export"
    silent = _number(found, "silent") if found.get("silent") is not None else 0
    return PortedEntry(
        _place(found), entry_id, version, state, eta_ms, labels, queue, message, why, silent
    )


def _labels(found: Mapping[str, Any]) -> Labels:
    labels = labels_for(found.get("namespace"), found.get("tags") or ())
    given = found.get("unique")
    if given is None:
        return labels
    unique = Unique.read([given["key"], given["until"], given["for_ms"]])
    if unique is None:
        raise LineError(f"unique={given!r} is no unique key")
    _check_key(unique.key)
    return labels._replace(unique=unique)


def _message(found: Mapping[str, Any], task_id: str) -> dict[str, Any]:
    message = found["message"]
    headers, properties = message["headers"], message["properties"]
    if not isinstance(headers, dict) or not isinstance(properties, dict):
        raise LineError("message: headers and properties must be objects")
    if headers.get("id") != task_id:
        raise LineError(f"message: the header id is {headers.get('id')!r}, not the task_id")
    if not isinstance(headers.get("task"), str) or not headers["task"]:
        raise LineError("message: the header task is missing")
    if found.get("task") not in (None, headers["task"]):
        raise LineError(f"task={found['task']!r} and the header task={headers['task']!r} differ")
    if properties.get("correlation_id") is None:
        raise LineError("message: the property correlation_id is missing")
    way = properties.get("delivery_info")
    if not isinstance(way, dict) or not {"exchange", "routing_key"} <= way.keys():
        raise LineError("message: the property delivery_info needs exchange and routing_key")
    if properties.get("body_encoding") != "base64":
        raise LineError("message: the property body_encoding must be base64")
    try:
        base64.b64decode(message["body"], validate=True)
    except (binascii.Error, ValueError, TypeError) as exc:
        raise LineError(f"message: the body is not base64: {exc}") from exc
    return {
        "body": message["body"],
        "content-type": message.get("content-type"),
        "content-encoding": message.get("content-encoding"),
        "headers": {name: value for name, value in headers.items() if name != HEADER},
        "properties": {name: value for name, value in properties.items() if name not in MADE},
    }


def _key(found: Mapping[str, Any]) -> PortedKey:
    field = _text(found, "key")
    kind, _, key = field.partition(":")
    if kind not in ("i", "u"):
        raise LineError(f"key={field!r} must begin with i: or u:")
    _check_key(key)
    check_task_id(found["task_id"])
    entry_id = EntryId(_text(found, "task_id"), _number(found, "run"))
    kept = KeptKey(field, entry_id, _number(found, "eta_ms"), _number(found, "ends_ms"))
    return PortedKey(_place(found), kept)


def _check_key(key: str) -> None:
    if not key or len(key) > LONGEST_KEY or not key.isprintable():
        raise LineError(f"{key!r} is no key: 1 to {LONGEST_KEY} printable characters")


def _pause(found: Mapping[str, Any]) -> PortedPause:
    gate = _text(found, "gate")
    kind, _, name = gate.partition(":")
    if gate != "all" and (kind not in ("task", "queue", "namespace") or not name):
        raise LineError(f"gate={gate!r} is nothing that can be paused")
    return PortedPause(_place(found), gate, _text(found, "reason", optional=True) or None)


def _schedule(found: Mapping[str, Any]) -> PortedSchedule:
    for name, kind in (("times", dict), ("args", list), ("kwargs", dict), ("options", dict)):
        if not isinstance(found[name], kind):
            raise LineError(f"{name} is no {'list' if kind is list else 'object'}")
    facts = {name: found[name] for name in (*_SCHEDULE, "paused")}
    return PortedSchedule(_place(found), _text(found, "name"), facts)


_SCHEDULE = ("task", "times", "args", "kwargs", "options", "misfire", "grace")


def _end(found: Mapping[str, Any]) -> End:
    return End(_number(found, "entries"))


_READERS: Mapping[Any, Callable[[Mapping[str, Any]], Item]] = {
    "entry": _entry, "key": _key, "pause": _pause, "schedule": _schedule, "end": _end,
}  # fmt: skip


def _place(found: Mapping[str, Any]) -> int:
    return _number(found, "n", low=1, high=MOST_LINES)


def _number(found: Mapping[str, Any], name: str, low: int = 0, high: int = LAST_MS) -> int:
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise LineError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def _text(found: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    value = found.get(name) if optional else found[name]
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise LineError(f"{name} must be a text, not {value!r}")
    return value
