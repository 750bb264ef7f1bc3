"""What the journal says of entries that SQL backs, written into their rows with it.

It is done in the transaction that takes the events, so a row is never behind the audit: who has
drained the journal and reads a row that is still open knows that the entry has not left before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, select, update

from celery_delay.audit.lists import parts
from celery_delay.audit.merge import Row, fit_id
from celery_delay.audit.tables import payload
from celery_delay.domain.backing import COLD, HOT, OVER, forget_at
from celery_delay.domain.events import Event
from celery_delay.domain.states import State

__all__ = ["settle"]

_STATES = {one.value: one for one in State}
# what a task carries is never read here, and goes when the task is over
_NAMES = ("version", "seen", "state", "tier", "eta_ms", "look_ms")
_KEY = and_(payload.c.task_id == bindparam("key_task_id"), payload.c.run == bindparam("key_run"))
_UPDATE = update(payload).where(_KEY).values({one: bindparam(f"new_{one}") for one in _NAMES})
_END = _UPDATE.values(record=b"")


def settle(connection: Connection, events: Sequence[Event]) -> None:
    """Bring the rows of the entries in *events* to what these say; costs little without any."""
    if not events or connection.scalar(select(payload.c.task_id).limit(1)) is None:
        return
    ids = sorted({fit_id(one.entry_id.task_id) for one in events})
    rows: dict[tuple[str, int], Row] = {}
    for some in parts(ids):
        columns = [payload.c[name] for name in ("task_id", "run", *_NAMES)]
        chosen = select(*columns).where(payload.c.task_id.in_(some), payload.c.tier != OVER)
        ordered = chosen.order_by(payload.c.task_id, payload.c.run).with_for_update()
        for one in connection.execute(ordered):
            rows[one.task_id, one.run] = dict(one._mapping)
    given: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for key in sorted(set(_told(rows, events))):
        row = rows[key]
        new = {f"new_{name}": row[name] for name in _NAMES}
        given[row["tier"] == OVER].append({"key_task_id": key[0], "key_run": key[1], **new})
    for is_over, statement in ((False, _UPDATE), (True, _END)):
        if given[is_over]:
            connection.execute(statement, given[is_over])


def _told(rows: dict[tuple[str, int], Row], events: Iterable[Event]) -> Iterator[tuple[str, int]]:
    """Fold *events* into *rows*; yields the keys of those that change."""
    for event in events:
        key = fit_id(event.entry_id.task_id), event.entry_id.run
        row, state = rows.get(key), _STATES.get(event.state)
        if row is None or state is None or row["tier"] == OVER:
            continue
        if state in (State.SCHEDULED, State.HELD, State.QUARANTINED):
            yield from _here(key, row, state, event)
        elif state is State.LOST or (state is State.CANCELLED and event.version < row["version"]):
            continue  # of what SQL has changed, or taken back, since
        else:
            look = forget_at(event.at_ms)
            row.update(state=state.value, tier=OVER, look_ms=look)
            yield key


def _here(key: tuple[str, int], row: Row, state: State, event: Event) -> Iterator[tuple[str, int]]:
    """Redis has this version, or had it at that moment; or it is SQL's own, of a cold row."""
    if row["tier"] == COLD and event.version == row["version"]:
        return
    if event.version > row["version"]:
        # what Redis has decided by itself: a unique key's holder was extended, say
        row["version"] = event.version
        if state is not State.QUARANTINED:
            row["state"] = state.value
        if event.eta_ms is not None:
            row["eta_ms"] = event.eta_ms
    if event.version > row["seen"]:
        row["seen"] = event.version
        if event.version >= row["version"] and row["tier"] == HOT:
            row["look_ms"] = None
        yield key
