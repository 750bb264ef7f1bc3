"""Folding events into rows.

Events come in the journal's order, which is not always the order in which things
happened: a fast worker may report STARTED before the hand-off is written down.  So a row
is never overwritten but merged.  The rule is the same within a batch (in Python,
:func:`fold`) and against what the table has (in SQL, :func:`merging`), so that it does not
matter how events fall into batches:

* facts (instants, worker, lag, story) fill their columns, whenever they come; of several
  the last one told stands;
* the state, with its error and result, is that of the highest :attr:`State.rank`; but
  among states before the hand-off a higher version comes first, as when an entry that was
  quarantined is stored again;
* a task has the state of its latest run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha1
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, case, func, literal_column, or_

from celery_delay.audit.tables import (
    ID_LENGTH,
    NAME_LENGTH,
    TAG_LENGTH,
    TEXT_LENGTH,
    entry,
    task,
)
from celery_delay.domain.events import Event
from celery_delay.domain.states import State

__all__ = [
    "Row",
    "event_row",
    "fit_id",
    "fold",
    "is_storable",
    "merging",
    "stream_numbers",
    "tags",
]

Row = dict[str, Any]

_dump = json.JSONEncoder(separators=(",", ":")).encode

# by their names, which are what events bear: a member's attributes cost as much as the rest of fold
_RANKS = {one.value: one.rank for one in State}
_FINAL = frozenset(one.value for one in State if one.is_final)
_SCHEDULED, _DISPATCHED, _STARTED = (
    State.SCHEDULED.value,
    State.DISPATCHED.value,
    State.STARTED.value,
)
_HANDED_OFF = State.DISPATCHED.rank
#: States that an entry with a new message can stay in; they tell the new story then.
_UPDATED = (State.HELD.value, State.QUARANTINED.value)
_MAX_INT, _MAX_BIGINT = 2**31 - 1, 2**63 - 1

#: Columns that follow the state.
_WITH_STATE = ("state", "error", "result")
#: Columns that the first event to tell them fixes.
_FIRST = ("scheduled_ms", "created_ms")
#: Columns that order two states.  A merge writes them last and in this order: MySQL sees
#: what a statement has already assigned, and the comparison must come out the same.
_ORDER = ("state_rank", "version", "run")


def stream_numbers(stream_id: str) -> tuple[int, int]:
    """A stream id as numbers that compare in the stream's order."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def fit_id(text: str) -> str:
    """*text* as an id column takes it: a longer one keeps its start and a digest."""
    if len(text) <= ID_LENGTH and text.isascii() and "\0" not in text:
        return text
    text = _clean(text)
    if len(text) <= ID_LENGTH:
        return text
    return text[: ID_LENGTH - 41] + "~" + sha1(text.encode(), usedforsecurity=False).hexdigest()


def is_storable(event: Event) -> bool:
    """Whether the columns take its numbers; a message's header, which bears the run, may lie."""
    _, _, _, _, _, (_, run), version, at_ms, eta_ms, _ = event
    return (
        0 <= version <= _MAX_INT
        and 0 <= run <= _MAX_BIGINT
        and 0 <= at_ms <= _MAX_BIGINT
        and (eta_ms is None or 0 <= eta_ms <= _MAX_BIGINT)
    )


def event_row(event: Event) -> Row:
    """The row of table ``event``."""
    shard, epoch, stream_id, position, state, (task_id, run), version, at_ms, eta_ms, data = event
    stream_ms, stream_seq = stream_numbers(stream_id)
    return {
        "shard": shard,
        "epoch": epoch,
        "stream_ms": stream_ms,
        "stream_seq": stream_seq,
        "position": position,
        "state": state[:16],
        "task_id": fit_id(task_id),
        "run": run,
        "version": version,
        "at_ms": at_ms,
        "eta_ms": eta_ms,
        "data": _dump(data) if data else "{}",
    }


def _unknown(table: Table, without: Iterable[str]) -> Row:
    row: Row = dict.fromkeys(name for name in (one.name for one in table.c) if name not in without)
    return row | {"state_rank": -1, "version": 0}


def fold(events: Iterable[Event], runs: Mapping[str, int]) -> tuple[list[Row], list[Row]]:
    """The rows of ``entry`` and ``task`` that *events* make, each row once.

    A row has all columns, or all but the story's.

    Events in unknown states (a gap, a newer release's) make none.

    Arguments:
        runs: the run in the table by task id, for events that could not name theirs (the
            record was unreadable) and bear 0.
    """
    entries: dict[tuple[str, int], Row] = {}
    tasks: dict[str, Row] = {}
    for _, _, _, _, state, (told_id, told_run), told_version, at_ms, eta_ms, facts in events:
        rank = _RANKS.get(state)
        if rank is None:
            continue
        data: Mapping[str, Any] = facts if isinstance(facts, Mapping) else {}
        task_id = fit_id(told_id)
        whole = tasks.get(task_id)
        run = told_run or (whole["run"] if whole else 0) or runs.get(task_id, 0)
        if whole is None:
            whole = tasks[task_id] = _NEW_TASK | {
                "task_id": task_id, "run": run, "created_ms": at_ms,
            }  # fmt: skip
        here = entries.get((task_id, run))
        if here is None:
            here = entries[task_id, run] = _NEW_ENTRY | {"task_id": task_id, "run": run}
        if run > whole["run"]:
            whole.update(run=run, state_rank=-1, version=0)

        # 0: unknown, since the record was unreadable; it is that of the entry as it is
        version = told_version or here["version"]
        # why an entry was given another eta is no error of its
        error = None
        if data and state != _SCHEDULED:
            error = _text(data.get("error", data.get("reason")))
        _advance(here, state, rank, version, error)
        if run == whole["run"] and _advance(whole, state, rank, version, error):
            whole["result"] = _text(data.get("result")) if data else None
        if at_ms > whole["updated_ms"]:
            whole["updated_ms"] = at_ms
        if eta_ms is not None:
            here["eta_ms"] = whole["eta_ms"] = eta_ms
        if state == _SCHEDULED or (state in _UPDATED and "name" in data):
            story = _story(data, at_ms)
            _tell(whole, _STORY_OF_TASK, story)
            _tell(here, _STORY_OF_ENTRY, story)
            if data.get("namespace") is not None:
                whole["namespace"] = _text(data["namespace"], NAME_LENGTH)
        elif state == _DISPATCHED:
            here["dispatched_ms"] = at_ms
            here["lag_ms"] = _number(data.get("lag_ms"), or_else=here["lag_ms"])
        elif state == _STARTED:
            here["started_ms"] = at_ms
            here["worker"] = _text(data.get("worker"), NAME_LENGTH) or here["worker"]
        elif state in _FINAL:
            here["ended_ms"] = at_ms
    return list(entries.values()), list(tasks.values())


def tags(events: Iterable[Event]) -> list[Row]:
    """The rows of ``tag`` that *events* make, each once; mostly none."""
    found: set[tuple[str, str]] = set()
    for event in events:
        told = event.data.get("tags") if event.data and isinstance(event.data, Mapping) else None
        if isinstance(told, (list, tuple)):
            task_id = fit_id(event.entry_id.task_id)
            found.update((_text(one, TAG_LENGTH) or "", task_id) for one in told)
    # in one order, so that two who write the same rows do not wait for each other
    return [{"tag": tag, "task_id": task_id} for tag, task_id in sorted(found)]


# A story's columns are in a row only when an event has told them: most events do not, and a short
# row is written in half the time.
_STORY_OF_TASK = (
    "name", "queue", "argsrepr", "kwargsrepr", "root_id", "parent_id", "group_id",
)  # fmt: skip
#: So is this one, and only by an event that has one.
_RARE = ("namespace",)
_STORY_OF_ENTRY = ("group_id", "group_index", "chord", "ignore_result", "scheduled_ms")
_NEW_TASK = _unknown(task, (*_STORY_OF_TASK, *_RARE))
_NEW_TASK["updated_ms"] = 0
_NEW_ENTRY = _unknown(entry, _STORY_OF_ENTRY)


def _story(data: Mapping[str, Any], at_ms: int) -> Row:
    chord = data.get("chord")
    return {
        "name": _text(data.get("name"), NAME_LENGTH),
        "queue": _text(data.get("queue"), NAME_LENGTH),
        "argsrepr": _text(data.get("args")),
        "kwargsrepr": _text(data.get("kwargs")),
        "root_id": _id(data.get("root_id")),
        "parent_id": _id(data.get("parent_id")),
        "group_id": _id(data.get("group")),
        "group_index": _number(data.get("group_index"), _MAX_INT),
        "chord": _dump(chord) if isinstance(chord, Mapping) else None,
        # not told again when an entry leaves the quarantine: None keeps what is known
        "ignore_result": bool(data["ignore_result"]) if "ignore_result" in data else None,
        "scheduled_ms": at_ms,
    }


def _tell(row: Row, names: Iterable[str], story: Row) -> None:
    for name in names:
        known = row.get(name)
        if known is None or (name not in _FIRST and story[name] is not None):
            row[name] = story[name]


def _seniority(rank: int, version: int) -> int:
    """Of two the greater is ahead: before the hand-off the version counts first."""
    return rank << 40 if rank >= _HANDED_OFF else version * 100 + rank


def _advance(row: Row, state: str, rank: int, version: int, error: str | None) -> bool:
    known = row["version"]
    ahead = _seniority(rank, version) >= _seniority(row["state_rank"], known)
    if ahead:
        row["state"], row["state_rank"], row["error"] = state, rank, error
    if version > known:
        row["version"] = version
    return ahead


def merging(
    old: Table, given: Mapping[str, ColumnElement[Any]]
) -> list[tuple[str, ColumnElement[Any]]]:
    """What an upsert sets, in the order in which MySQL must set it.

    Arguments:
        old: the table, ``task`` or ``entry``; its columns are the row that is there.
        given: those of the row that is being merged into it.
    """
    columns = [name for name in given if not old.c[name].primary_key]
    # a literal: PyMySQL batches an upsert only if no parameter comes behind VALUES
    handed_off: ColumnElement[int] = literal_column(str(_HANDED_OFF))
    newer = given["version"] > old.c.version
    same = or_(given["version"] == old.c.version, given["version"] == literal_column("0"))
    ahead = or_(
        and_(given["state_rank"] >= handed_off, given["state_rank"] >= old.c.state_rank),
        and_(
            given["state_rank"] < handed_off,
            old.c.state_rank < handed_off,
            or_(newer, and_(same, given["state_rank"] >= old.c.state_rank)),
        ),
    )
    if "run" in columns:
        later, latest = given["run"] > old.c.run, given["run"] == old.c.run
        ahead, newer = or_(later, and_(latest, ahead)), or_(later, and_(latest, newer))

    def merged(name: str) -> ColumnElement[Any]:
        new, kept = given[name], old.c[name]
        if name == "version":
            return case((newer, new), else_=kept)
        if name in _WITH_STATE or name in _ORDER:
            return case((ahead, new), else_=kept)
        if name == "updated_ms":
            return case((new > kept, new), else_=kept)
        if name in _FIRST:
            return func.coalesce(kept, new)
        return func.coalesce(new, kept)

    ordered = [name for name in columns if name not in _ORDER]
    ordered += [name for name in _ORDER if name in columns]
    return [(name, merged(name)) for name in ordered]


def _clean(text: str) -> str:
    # PostgreSQL takes no NUL, and no driver a lone surrogate; one such text must not
    # keep the whole journal from being drained
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _text(value: object, length: int = TEXT_LENGTH) -> str | None:
    if value is None:
        return None
    text = _clean(str(value))
    return text if len(text) <= length else text[: length - 1] + "…"


def _id(value: object) -> str | None:
    return None if value is None else fit_id(str(value))


def _number(value: object, largest: int = _MAX_BIGINT, or_else: int | None = None) -> int | None:
    if isinstance(value, (int, float)) and abs(value) <= largest:
        return int(value)
    return or_else
