"""What was exported into a shard on a real Redis, 7 and 6.2: each answer, and its promise.

As in ``test_store.py``, ``@answers`` names what a test shows of a Lua file's answers.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from celery_delay.domain.entries import PUBLISHED, EntryId
from celery_delay.domain.labels import Labels
from celery_delay.domain.states import State
from celery_delay.domain.uniqueness import Keys, Unique
from celery_delay.exceptions import JournalFull
from celery_delay.store import porting
from celery_delay.store.porting import Arrival, ImportMark, KeptKey
from tests.contract.bench import NOW, TOMBSTONE, WINDOW, Bench, answers
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

RUN, DUE = NOW - 5_000, NOW + 60_000
OTHER = shape("elsewhere", PUBLISHED)
MARK = ImportMark("00000000-0000-4000-8000-000000000001", 1_000_000)


def arrival(number: int, task_id: str, state: State = State.SCHEDULED, **options: Any) -> Arrival:
    more = {name: options.pop(name) for name in ("why", "silent") if name in options}
    options = {"run": RUN, "at_ms": DUE, "version": 2, **options}
    return Arrival(number, addition(task_id, **options), state, **more)


def bring(bench: Bench, *arrivals: Arrival, mark: ImportMark = MARK) -> list[str]:
    return bench.store.bring_in(arrivals, mark)


def raw(bench: Bench, *arrivals: Arrival, **given: Any) -> list[str]:
    """The script as it is, past the store's repeats and its templates."""
    values = {
        "epoch": 0, "deadline": NOW + WINDOW, "operation": uuid4().hex, "template_cap": 100,
        "export_id": MARK.export_id, "keep_ms": MARK.keep_ms, "template_count": 0,
        "refuse_when_full": 0, "force": 0, "dry": 0, **given,
    }  # fmt: skip
    rest = [part for one in arrivals for part in porting._arguments(one, inline=False)]
    return [one.decode() for one in bench.script("import", *rest, **values)]


def uses(bench: Bench) -> int:
    return sum(map(int, bench.raw.hvals(bench.keys.template_uses)))


@answers("import", "OK now verdict…", "TEMPLATE now id…")
def test_each_gets_its_place_and_keeps_its_identity(bench: Bench) -> None:
    arrivals = [
        arrival(1, "a"),
        arrival(2, "b", State.HELD, template=OTHER),
        arrival(3, "c", State.QUARANTINED, why="refused", silent=2),
        arrival(4, "d", template=OTHER),
    ]
    assert raw(bench, *arrivals)[0] == "TEMPLATE"

    assert bring(bench, *arrivals) == ["A", "A", "A", "A"]

    places = [bench.keys.schedule, bench.keys.held, bench.keys.outbound]
    assert [bench.raw.zrange(one, 0, -1, withscores=True) for one in places] == [
        [("a", DUE)], [("b", DUE)], [("d", DUE)],
    ]  # fmt: skip
    assert bench.store.parked_why("c") == ("refused", 2)
    entry = bench.store.get("a")
    assert entry is not None
    assert (entry.entry_id, entry.version, entry.eta_ms) == (EntryId("a", RUN), 2, DUE)
    assert uses(bench) == 4
    assert set(bench.states()) == {
        *(("SCHEDULED", one) for one in "abcd"), ("HELD", "b"), ("QUARANTINED", "c"),
    }  # fmt: skip
    assert bench.raw.llen(bench.keys.wake) == 1


def test_what_is_here_stays_as_it_is(bench: Bench) -> None:
    bench.store.add([addition("a", 1_000), addition("b", 2_000)])
    [a, b] = bench.store.some(["a", "b"])
    journal = bench.journal()

    verdicts = bring(
        bench,
        arrival(1, "a", run=a.entry_id.run, version=9),
        arrival(2, "b", run=b.entry_id.run + 7),
        arrival(3, "b", run=b.entry_id.run - 7),
    )

    run = str(b.entry_id.run)
    assert verdicts == ["D", f"X {run}", f"X {run}"]
    assert bench.store.some(["a", "b"]) == [a, b]
    assert bench.journal() == journal
    assert uses(bench) == 2


def test_what_came_before_and_has_left_does_not_come_again(bench: Bench) -> None:
    arrivals = [arrival(1, "a"), arrival(2, "b"), arrival(3, "c")]
    bring(bench, *arrivals)
    bench.now = DUE
    bench.store.move()
    assert bring(bench, *arrivals) == ["M", "M", "M"]
    bench.now += 10 * TOMBSTONE

    assert bring(bench, *arrivals, arrival(4, "d")) == ["M", "M", "M", "A"]
    assert len(bench.queue()) == 3
    assert bench.store.remembers(MARK.export_id)
    assert 0 < bench.raw.pttl(f"{bench.keys.imports}:{MARK.export_id}") <= MARK.keep_ms
    # another export is not known, and somebody may insist
    assert bring(bench, arrival(1, "a"), mark=MARK._replace(export_id="x")) == ["A"]
    assert bring(bench, arrival(2, "b"), mark=MARK._replace(force=True)) == ["A"]


def test_what_has_just_left_does_not_come(bench: Bench) -> None:
    bench.store.add([addition("a"), addition("b", 5_000)])
    [b] = bench.store.some(["b"])
    run = bench.store.now_ms()
    bench.store.move()
    bench.store.cancel("b", data={})

    verdicts = bring(bench, arrival(1, "a", run=run), arrival(2, "b", run=b.entry_id.run))

    assert verdicts == ["G", "C"]
    bench.now += 10 * TOMBSTONE
    assert bring(bench, arrival(1, "a", run=run)) == ["M"]


def test_a_unique_key_is_one_entry_s(bench: Bench) -> None:
    labels = Labels(unique=Unique("k"))
    bench.store.add([addition("a", 9_000, labels=labels, keys=Keys())])

    assert bring(bench, arrival(1, "b", labels=labels)) == ["K a"]
    bench.store.cancel("a", data={})
    assert bring(bench, arrival(1, "b", labels=labels), arrival(2, "c", labels=labels)) == [
        "A", "K b",
    ]  # fmt: skip
    holder = bench.store.holder_of("k")
    assert holder is not None
    assert holder.entry_id == EntryId("b", RUN)


def test_keys_that_count_come_and_others_do_not(bench: Bench) -> None:
    def key(number: int, field: str, task_id: str = "a", ends_ms: int = DUE) -> Arrival:
        return Arrival(number, KeptKey(field, EntryId(task_id, RUN), NOW, ends_ms))

    three = [key(1, "i:x"), key(2, "u:y"), key(3, "i:old", ends_ms=NOW)]
    assert bring(bench, *three) == ["A", "A", "O"]
    assert bring(bench, *three) == ["D", "D", "O"]
    assert bring(bench, key(4, "i:x", "b"), key(5, "u:y", "b")) == ["K a", "K a"]
    assert [one.field for one in bench.store.kept_keys()] == ["i:x", "u:y"]
    # one that was given back meanwhile is not taken again
    bench.store.let_go("y", EntryId("a", RUN))
    assert bring(bench, three[1]) == ["M"]


@answers("import", "LATE now", "EPOCH now", "FULL now", "INLINE now")
def test_what_comes_too_late_or_finds_no_room_does_nothing(
    bench: Bench, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = arrival(1, "a")
    assert raw(bench, one, deadline=NOW - 1)[0] == "LATE"
    assert raw(bench, one, epoch=bench.epoch + 1)[0] == "EPOCH"
    assert raw(bench, one, journal_max=1, refuse_when_full=1)[0] in ("FULL", "TEMPLATE")
    bench.store.add([addition("z", 1_000)])
    assert raw(bench, one, template_cap=0)[0] == "INLINE"
    assert raw(bench, one, journal_max=1, refuse_when_full=1)[0] == "FULL"
    assert bench.store.get("a") is None
    assert not bench.store.remembers(MARK.export_id)
    monkeypatch.setattr(porting, "TEMPLATE_CAP", 1)
    assert bring(bench, arrival(2, "b", template=OTHER)) == ["A"]
    found = bench.store.get("b")
    assert found is not None
    assert found.queue == "elsewhere"


def test_a_journal_that_is_full_is_told(make: Any) -> None:
    bench = make(journal_max=1_000, journal_full="refuse")
    for number in range(1_000):
        bench.raw.xadd(bench.keys.journal, {"s": "X", "n": number})
    with pytest.raises(JournalFull):
        bring(bench, arrival(1, "a"))


def test_a_repeat_after_a_lost_answer_gets_the_first_one(bench: Bench) -> None:
    bring(bench, arrival(9, "z"))  # the template is known now
    once = raw(bench, arrival(1, "a"), arrival(2, "b"), operation="op")
    again = raw(bench, arrival(1, "a"), arrival(2, "b"), operation="op")

    assert once == again == ["OK", str(NOW), "A", "A"]
    assert uses(bench) == 3


def test_a_dry_run_writes_nothing(bench: Bench) -> None:
    before = bench.raw.keys("*")

    assert bring(bench, arrival(1, "a"), mark=MARK._replace(dry=True)) == ["A"]

    assert bench.raw.keys("*") == before
