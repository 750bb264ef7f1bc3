"""What waits in SQL alone, read in the store's order from each kind of database."""

from __future__ import annotations

from typing import Any

import pytest

from celery_delay.audit.backed import SQLBackedRows
from celery_delay.audit.cold import SQLColdRows
from celery_delay.audit.database import Database
from celery_delay.delayed import cold
from celery_delay.domain.backing import COLD, HOT, OVER, BackedRow, pack
from celery_delay.domain.entries import EntryId
from celery_delay.domain.filters import WAITING, Filter
from celery_delay.domain.states import State
from celery_delay.store import paging
from celery_delay.store.paging import Position
from tests.shards import addition, shape

T0 = 2_000_000_000_000
LAST = 253_402_300_800_000


@pytest.fixture
def rows(audit: Database) -> SQLBackedRows:
    return SQLBackedRows(audit)


@pytest.fixture
def waiting(audit: Database) -> SQLColdRows:
    return SQLColdRows(audit)


def row(task_id: str, seconds: int = 0, **changes: Any) -> BackedRow:
    kind = changes.pop("task", "shop.pay")
    made = BackedRow(
        EntryId(task_id, 1), 0, 1, 0, State.SCHEDULED, COLD, T0 + seconds * 1000, 0, 0,
        T0 - 3_600_000, pack(addition(task_id, template=shape(task=kind))),
    )  # fmt: skip
    return made._replace(**changes)


def ids(found: Any) -> list[str]:
    return [getattr(one, "task_id", None) or one.entry_id.task_id for one in found]


def test_pages_are_in_the_order_of_redis(rows: SQLBackedRows, waiting: SQLColdRows) -> None:
    # ids of one eta by their bytes, whatever the database's collation says
    rows.insert([row(one) for one in ("b", "a", "B", "é", "_", "Z", "a b")])
    rows.insert([row("early", -5), row("late", 5)])
    page: dict[str, Any] = {"before_ms": LAST, "limit": 4}

    first = waiting.page(0, WAITING, after=(0, ""), **page)
    second = waiting.page(0, WAITING, after=(T0, ids(first)[-1]), **page)
    third = waiting.page(0, WAITING, after=(T0, ids(second)[-1]), **page)

    middle = sorted(["b", "a", "B", "é", "_", "Z", "a b"], key=lambda one: one.encode())
    assert ids(first + second + third) == ["early", *middle, "late"]


def test_what_waits_for_certain(rows: SQLBackedRows, waiting: SQLColdRows) -> None:
    rows.insert([row("cold", -5), row("held", -5, tier=HOT, state=State.HELD)])
    rows.insert([row("hot", 5, tier=HOT), row("due", -5, tier=HOT), row("other", 5)])
    rows.insert([row("over", 5, tier=OVER, state=State.CANCELLED)])

    asked = ["cold", "held", "hot", "due", "over", "nobody"]

    assert sorted(ids(waiting.waiting(asked, T0))) == ["cold", "held", "hot"]


def test_only_what_is_asked_for(rows: SQLBackedRows, waiting: SQLColdRows) -> None:
    rows.insert([row("here"), row("held", 1, state=State.HELD), row("hot", 2, tier=HOT)])
    rows.insert([row("far", 900), row("elsewhere", 3, shard=1)])

    def found(*states: State, after: int = 0, before: int = 60) -> list[str]:
        bounds: dict[str, Any] = {"after": (T0 + after * 1000, ""), "before_ms": T0 + before * 1000}
        return ids(waiting.page(0, states, limit=10, **bounds))

    assert found(*WAITING) == ["here", "held"]
    assert found(State.HELD) == ["held"]
    assert found(*WAITING, after=1) == ["held"]
    assert found(*WAITING, before=900) == ["here", "held", "far"]
    assert waiting.count(0, WAITING, 0, LAST) == 3
    assert waiting.count(0, [State.SCHEDULED], T0, T0 + 60_000) == 1
    assert waiting.count(1, WAITING, 0, LAST) == 1


def test_they_are_counted_between_bounds(rows: SQLBackedRows, waiting: SQLColdRows) -> None:
    rows.insert([row(f"t{one}", one) for one in range(10)])
    rows.insert([row("held", 4, state=State.HELD)])
    bounds = [T0 + 1_000, T0 + 3_000, T0 + 8_000]

    assert waiting.due_between(0, bounds) == [1, 2, 5, 2]
    # more periods than a statement has columns
    assert sum(waiting.due_between(0, range(T0, T0 + 400_000, 1_000))) == 10


def test_what_has_not_come_to_redis_yet_is_among_them(
    rows: SQLBackedRows, waiting: SQLColdRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE", 2)
    monkeypatch.setattr(cold, "PAGE", 2)
    rows.insert([row(f"cold{one}", one * 10) for one in range(5)])
    rows.insert([row(f"coming{one}", one * 10 + 5, tier=HOT) for one in range(5)])
    rows.insert([row("there", 7, tier=HOT, look_ms=None), row("due", -5, tier=HOT)])

    found = list(cold.walk(waiting, 0, Filter(), None, T0))

    assert ids(found) == [f"{kind}{n}" for n in range(5) for kind in ("cold", "coming")]
    behind = Position(T0 + 20_000, b"cold2")
    assert ids(cold.walk(waiting, 0, Filter(), behind, T0)) == ids(found)[5:]
    assert ids(cold.walk(waiting, 0, Filter(before_ms=T0 + 15_000), None, T0)) == ids(found)[:4]


def test_filters_look_into_the_record(rows: SQLBackedRows, waiting: SQLColdRows) -> None:
    rows.insert([row("a"), row("b", 1, task="mail.send"), row("broken", 2, record=b"1 {}")])

    assert ids(cold.walk(waiting, 0, Filter(task="mail.*"), None, T0)) == ["b"]
    assert ids(cold.walk(waiting, 0, Filter(), None, T0)) == ["a", "b", "broken"]
    [entry] = [one.entry() for one in cold.walk(waiting, 0, Filter(task="mail.*"), None, T0)]
    assert entry is not None
    assert (entry.entry_id, entry.eta_ms) == (EntryId("b", 1), T0 + 1_000)
    assert entry.envelope["value"] == "v"


def test_one_that_both_tell_of_is_told_once() -> None:
    def at(eta: int, task_id: bytes, state: State) -> paging.Found:
        return paging.Found(Position(eta, task_id), state, b"", b"")

    merged = [
        at(1, b"a", State.SCHEDULED),
        at(1, b"a", State.HELD),
        at(1, b"b", State.SCHEDULED),
        at(2, b"b", State.SCHEDULED),
    ]

    assert list(cold.once(merged)) == merged[1:]
