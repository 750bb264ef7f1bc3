"""SQL as the truth and Redis as its mirror: the rules of ``tests/model/backed_protocol.py``.

On each database and a real Redis.  A test bears the name of the rule that it shows; what the rules
forbid is done here by hand: requests that come late, beats that stall, a Redis that lost something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from celery_delay.audit.cold import SQLColdRows
from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.tables import metadata, payload
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.domain.backing import COLD, HOT, OVER, BackedRow, is_open
from celery_delay.domain.entries import PUBLISHED, Due, EntryId
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change, JournalPosition, StaleEpoch
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.domain.uniqueness import Keys, Unique
from celery_delay.exceptions import (
    AlreadyScheduled,
    AuditUnavailable,
    JournalFull,
    OutcomeUnknown,
    StoreUnavailable,
    UniqueConflict,
)
from celery_delay.services.amending import Amending
from celery_delay.services.relay import Relay
from celery_delay.services.setback import SetBack
from celery_delay.services.tiering import Tiering
from tests.contract.bench import NOW, TOMBSTONE, WINDOW, Bench, answers
from tests.shards import addition, shape
from tests.sql import migrated

ORDERS = shape("orders", PUBLISHED)
CANCELLED, TOO_LATE = CancelOutcome.CANCELLED, CancelOutcome.TOO_LATE
BY_ME: Mapping[str, object] = {"by": "me"}


class Both:
    """A row's two sides, and all who work on them; the clock is the bench's."""

    def __init__(self, bench: Bench, database: Database) -> None:
        self.bench, self.store = bench, bench.store
        self.log = SQLAuditLog(database)
        self.rows = SQLColdRows(database)
        settings = bench.store._settings
        self.callers = Amending([bench.store], self.rows, settings, bench.clock)
        self.relay = Relay(0, bench.store, self.rows, settings, bench.clock)
        self.handed: list[str] = []

    @property
    def epoch(self) -> int:
        return self.store.named()

    def commit(self, task_id: str = "a", delay_ms: int = 10_000, **options: Any) -> BackedRow:
        """A row that Redis has not heard of: its producer died right after the commit."""
        one = addition(task_id, at_ms=self.bench.now + delay_ms, **options)
        row = self.callers.row_of(one, 0, self.callers.moment(0))
        self.rows.insert([row])
        return row

    def new(self, task_id: str = "a", delay_ms: int = 10_000, **options: Any) -> BackedRow:
        """One that is in both."""
        one = addition(task_id, at_ms=self.bench.now + delay_ms, **options)
        [added] = self.callers.add([(0, one)])
        return self.row(added.entry_id.task_id)

    def row(self, task_id: str = "a") -> BackedRow:
        row = self.rows.read(task_id)
        assert row is not None
        return row

    def move(self) -> list[str]:
        """What is handed off now."""
        self.store.move()
        queue = [one["id"] for one in self.bench.queue()]
        self.bench.raw.delete("delay-queue")
        self.handed += queue
        return queue

    def drain(self) -> None:
        epoch = self.epoch
        for last_id, events in self.store.read_journal("0", 100) if epoch else ():
            position = self.log.position(0, epoch)
            self.log.take(position, events, last_id)
            self.store.trim_journal(JournalPosition(0, epoch, last_id), term=self.bench.term)

    def beat(self) -> None:
        """The auditor's thread, until it has nothing to do."""
        for _ in range(20):
            self.drain()
            if not self.relay.run_once(self.bench.term):
                return
        raise AssertionError("the relay comes to no end")

    def fail_over(self, keep: bool = False) -> None:
        """Another Redis: empty, or with what this one has."""
        if keep:
            self.bench.raw.hset(self.bench.keys.mark, "run_id", "another")
        else:
            lease = self.bench.raw.hgetall(self.bench.keys.lease)
            self.bench.raw.flushall()
            self.bench.raw.hset(self.bench.keys.lease, mapping=lease)
        self.store.compared()  # a new connection looks whom it leads to

    def live(self) -> dict[str, int]:
        """What waits in Redis, and until when."""
        found: dict[str, int] = {}
        for key in (self.bench.keys.schedule, self.bench.keys.outbound, self.bench.keys.held):
            found |= {
                one: int(at) for one, at in self.bench.raw.zrange(key, 0, -1, withscores=True)
            }
        return found

    def change(self, task_id: str = "a", **change: Any) -> str:
        steered = self.callers.change(0, task_id, Change(**change), BY_ME)
        assert steered is not None
        return steered.answer

    def cancel(self, task_id: str = "a") -> CancelOutcome:
        answer = self.callers.cancel(0, task_id, BY_ME)
        assert answer is not None
        return answer.outcome


def at(instant: int) -> Any:
    return {"due": Due(instant, False)}


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('backed')}/audit.db"


@pytest.fixture
def both(make: Callable[..., Bench], sqlite: str) -> Iterator[Both]:
    """On SQLite: what a test shows is not a question of the database."""
    with migrated(sqlite) as database:
        yield made_ready(Both(make(audit="sync"), database))


@pytest.fixture
def everywhere(make: Callable[..., Bench], audit: Database) -> Both:
    """On each database."""
    return made_ready(Both(make(audit="sync"), audit))


def made_ready(both: Both) -> Both:
    both.fail_over()
    both.beat()
    return both


# --- the rules -----------------------------------------------------------------------------


@answers("add", "EPOCH now")
def test_add_epoch(both: Both) -> None:
    row = both.commit()
    both.fail_over()
    both.beat()
    seen = both.row()

    assert both.store.add_backed([row], row.epoch) is None
    values = {"window": WINDOW, "refuse_when_full": 0, "template_cap": 9, "template_count": 0}
    late = both.bench.script("add", **values, leader_grace=0, epoch=row.epoch)
    assert late[0] == b"EPOCH"
    assert (both.row(), seen.version) == (seen, 2)


def test_add_window(both: Both) -> None:
    row = both.commit()
    both.bench.now += WINDOW + 1

    assert both.store.add_backed([row], row.epoch) is None
    assert both.live() == {}


def test_higher_version(both: Both) -> None:
    old = both.new()
    assert both.change(**at(NOW + 70_000)) == "DONE"

    added = both.store.add_backed([old], old.epoch)
    assert added is not None
    assert added[0].code == "D"
    assert both.store.apply(old, old.epoch, {}) == "STALE 2"
    assert both.live() == {"a": NOW + 70_000}


def test_superseded_tombstone(both: Both) -> None:
    old = both.commit()
    new = old._replace(version=2, tier=COLD)

    assert both.store.apply(new, new.epoch, {}) == "ABSENT"
    added = both.store.add_backed([old], old.epoch)

    assert added is not None
    assert added[0].code == "S"
    assert both.live() == {}


def test_cancel_tombstone(both: Both) -> None:
    row = both.commit()
    assert both.cancel() is CANCELLED

    added = both.store.add_backed([row], row.epoch)

    assert added is not None
    assert added[0].code == "C"
    assert both.live() == {}


def test_gone_tombstone_for_all_versions(both: Both) -> None:
    row = both.new(delay_ms=0)
    assert both.move() == ["a"]

    for version in (1, 2):
        added = both.store.add_backed([row._replace(version=version)], row.epoch)
        assert added is not None
        assert added[0].code == "G"
    assert both.live() == {}


@answers("note_cold", "OK", "EPOCH")
def test_the_number_of_the_cold_is_noted(both: Both) -> None:
    row = both.new()
    both.rows.change([(row, row._replace(tier=COLD))])
    settings = replace(both.store._settings, audit="sync", hot_window=60.0)
    tiering = Tiering(0, both.store, both.rows, settings, both.bench.clock)

    both.beat()
    assert not tiering.run_once()

    assert both.bench.raw.hget(both.bench.keys.mark, "cold") == "1"
    link = both.bench.links.link()
    asked = {"epoch": both.epoch + 1, "number": 8}
    assert both.store._script(link, "note_cold", asked) == b"EPOCH"


@answers("compare_again", "OK", "EPOCH")
def test_a_history_is_compared_once_more(both: Both) -> None:
    both.new()
    both.beat()
    epoch = both.epoch

    assert both.store.compare_again(epoch)
    assert both.store.compared() == (epoch, False)
    link = both.bench.links.link()
    asked = {"epoch": epoch + 1, "sync": 0}
    assert both.store._script(link, "compare_again", asked) == b"EPOCH"

    both.beat()
    assert both.store.compared() == (epoch, True)


def test_every_comparison_begins_with_the_first_row(both: Both) -> None:
    both.new()
    for _ in range(2):
        # Given a Redis that has lost the task
        both.bench.raw.zrem(both.bench.keys.schedule, "a")
        both.bench.raw.hdel(both.bench.keys.entries, "a")
        assert both.live() == {}

        # When the same leader is asked to compare
        assert both.store.compare_again(both.epoch)
        both.beat()

        # Then it is there again, each time
        assert list(both.live()) == ["a"]


@answers("ready", "OK", "EPOCH")
def test_ready_gate(both: Both) -> None:
    both.new(delay_ms=0)
    both.fail_over()
    assert both.relay.run_once(both.bench.term)  # names it
    assert both.relay.run_once(both.bench.term)  # has looked for the row
    both.drain()
    epoch = both.epoch
    assert both.store._pinned("ready", {}, (), epoch) == b"OK"
    both.bench.raw.hset(both.bench.keys.mark, "unready", "1")
    assert both.store._script(both.bench.links.link(), "ready", {"epoch": epoch + 1}) == b"EPOCH"

    with pytest.raises(StaleEpoch):
        both.move()

    both.bench.raw.hdel(both.bench.keys.mark, "compared")
    both.beat()
    assert both.move() == ["a"]


def test_mark_of_server(both: Both) -> None:
    before = both.epoch
    both.fail_over(keep=True)

    assert both.store.compared() == (0, False)
    both.beat()
    assert both.store.compared() == (both.epoch, True)
    assert both.epoch > before


def test_each_change_is_a_compare_and_set(everywhere: Both) -> None:
    both = everywhere
    changes: dict[str, dict[str, Any]] = {
        "version": {"version": 2}, "state": {"state": State.HELD}, "tier": {"tier": COLD},
    }  # fmt: skip
    for what, change in changes.items():
        seen = both.commit(what)
        first = seen._replace(**change)
        assert both.rows.change([(seen, first)]) == [first]
        assert both.rows.change([(seen, seen._replace(version=9))]) == [], what
        assert both.row(what) == first


def test_cancel_cas(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    both.new()
    cancel = both.store.cancel_backed

    def overtaken(*args: Any) -> Any:
        monkeypatch.undo()
        both.change(**at(NOW + 90_000))
        both.drain()
        return cancel(*args)

    monkeypatch.setattr(both.store, "cancel_backed", overtaken)
    assert both.cancel() is CANCELLED
    assert (both.row().state, both.row().version, both.live()) == (State.CANCELLED, 2, {})


def test_take_back_waits(both: Both) -> None:
    # Given a look before the deadline, by a beat that then stalls beyond it
    both.commit()
    both.bench.now += 200
    assert both.relay.run_once(both.bench.term)
    both.bench.now += WINDOW

    # Then what it takes up is the add of the same version, which comes too late
    both.drain()
    both.relay.run_once(both.bench.term)
    assert (both.row().version, both.live()) == (1, {})

    # And only a look after the deadline raises it
    both.beat()
    assert (both.row().version, both.live()) == (2, {"a": NOW + 10_000})


def test_take_back_journal(everywhere: Both) -> None:
    both = everywhere
    # Given a hand-off that only the journal tells of, and no tombstone any more
    both.new(delay_ms=0)
    row = both.row()
    both.rows.look_again([row._replace(look_ms=NOW)])
    assert both.move() == ["a"]
    both.bench.now += 3 * TOMBSTONE

    both.beat()

    assert both.live() == {}
    assert (both.row().state, both.row().record) == (State.DISPATCHED, b"")
    assert both.move() == []


def test_take_back_cas(everywhere: Both) -> None:
    both = everywhere
    both.commit()
    both.bench.now += 200 + WINDOW
    assert both.relay.run_once(both.bench.term)
    assert both.cancel() is CANCELLED
    both.bench.now += 3 * TOMBSTONE

    both.beat()
    assert (both.live(), both.row().state) == ({}, State.CANCELLED)


@pytest.mark.parametrize("call", ["cancel", "reschedule"])
def test_cancel_and_reschedule_journal(both: Both, call: str) -> None:
    both.new(delay_ms=0)
    both.move()
    both.bench.now += 3 * TOMBSTONE

    if call == "cancel":
        assert both.cancel() is TOO_LATE
    else:
        assert both.change(**at(NOW + 90_000)) == "TOO_LATE"
    assert both.live() == {}


def test_cancel_confirm(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a Redis that is replaced between its decision and SQL's
    row = both.new()
    change = both.rows.change

    def replaced(pairs: Any) -> Any:
        monkeypatch.undo()
        done = change(pairs)
        both.fail_over()
        both.beat()
        return done

    monkeypatch.setattr(both.rows, "change", replaced)
    assert both.cancel() is CANCELLED

    # Then it was decided in the new one too
    added = both.store.add_backed([row._replace(epoch=both.epoch)], both.epoch)
    assert added is not None
    assert added[0].code == "C"


def test_repeat_rereads(both: Both) -> None:
    # Given a look that found nothing, and a change of which Redis has not heard yet
    row = both.commit()
    both.bench.now += 200
    assert both.relay.run_once(both.bench.term)
    both.rows.change([(row, row._replace(version=2, state=State.HELD))])

    # Then the add of what the row was is not repeated
    both.drain()
    both.relay.run_once(both.bench.term)
    assert both.live() == {}
    both.beat()
    assert both.bench.raw.zrange(both.bench.keys.held, 0, -1) == ["a"]


def test_repeat_in_window(both: Both) -> None:
    both.commit("soon")
    both.bench.now += 200
    both.beat()
    assert (both.row("soon").version, both.live()) == (1, {"soon": NOW + 10_000})

    both.commit("late")
    both.bench.now += WINDOW + 1
    both.beat()
    assert both.row("late").version == 2
    assert sorted(both.live()) == ["late", "soon"]


def test_rebuild_versions(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a Redis that has lost the last change, but not the entry
    both.new()
    monkeypatch.setattr(both.store, "apply", lambda *_, **__: "OK")
    assert both.change(**at(NOW + 90_000)) == "DONE"
    monkeypatch.undo()
    both.fail_over(keep=True)
    assert both.live() == {"a": NOW + 10_000}

    both.beat()
    assert both.live() == {"a": NOW + 90_000}


@answers("drop", "EPOCH", "number")
def test_rebuild_drops(everywhere: Both) -> None:
    both = everywhere
    # Given a Redis that has lost a cancel and a hand-off, and knows the entries still
    both.new("cancelled")
    both.new("handed-off", 0)
    both.new("waits")
    uses = both.bench.raw.hgetall(both.bench.keys.template_uses)
    records = both.bench.raw.hgetall(both.bench.keys.entries)
    both.cancel("cancelled")
    both.move()
    both.drain()
    both.bench.raw.hset(both.bench.keys.entries, mapping=records)
    both.bench.raw.hset(both.bench.keys.template_uses, mapping=uses)
    for one in records:
        both.bench.raw.zadd(both.bench.keys.schedule, {one: NOW})
    both.fail_over(keep=True)
    assert both.bench.script("drop", "a", "1", "1", epoch=1) == b"EPOCH"

    both.beat()

    assert list(both.live()) == ["waits"]
    assert list(both.bench.raw.hgetall(both.bench.keys.entries)) == ["waits"]
    assert set(both.bench.raw.hgetall(both.bench.keys.template_uses).values()) == {"1"}


def test_stale_cancel_event(both: Both) -> None:
    row = both.new()
    both.change(**at(NOW + 90_000))
    both.bench.script("record", "CANCELLED", f"a\t{row.entry_id.run}\t1\t\t{{}}", missing=0)

    both.drain()
    assert is_open(both.row())


def test_what_no_rule_allows_to_be_lost_is_not_lost(both: Both) -> None:
    """The reconciler leaves alone what the relay brings back."""
    row = both.new()
    both.drain()
    waiting = SQLWaitingEntries(both.rows.database)

    assert waiting.still_waiting([row.entry_id]) == []
    both.rows.forget([both.row()])
    assert waiting.still_waiting([row.entry_id]) == [row.entry_id]


# --- apply and look ------------------------------------------------------------------------


@answers("apply", "EPOCH now", "GONE now", "GOING now", "STALE now version", "OK now", "ABSENT")
def test_what_apply_answers(both: Both) -> None:
    row = both.new("a")
    both.new("gone", 0)
    both.new("going", 0, template=ORDERS)
    both.move()
    both.store.claim(token="me", limit=9, ttl_ms=3_000)

    def apply(task_id: str, **changes: Any) -> str:
        one = both.row(task_id)
        return both.store.apply(one._replace(version=5, **changes), one.epoch, {})

    assert apply("gone") == "GONE"
    assert apply("going") == "GOING"
    assert apply("a", eta_ms=NOW + 5) == "OK"
    assert apply("a", eta_ms=NOW + 5) == "OK"
    assert apply("a", eta_ms=NOW + 6) == "STALE 5"
    assert both.store.apply(row, row.epoch + 1, {}) == "EPOCH"
    values = {"task_id": "a", "due": "@0", "cold": 1, "record": "", "template": "",
              "template_cap": 1, "release": 0, "data": "{}", "epoch": row.epoch + 1}  # fmt: skip
    assert both.bench.script("apply", **values)[0] == b"EPOCH"


@answers("apply", "TEMPLATE now", "INLINE now")
def test_apply_brings_a_template_along(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    row = both.new()
    other = addition("a", template=shape("delay-other"))

    assert both.callers.replace(0, row, other, BY_ME) == "DONE"
    monkeypatch.setattr("celery_delay.store.backed.TEMPLATE_CAP", 1)
    third = addition("a", template=shape("delay-third"))
    assert both.callers.replace(0, both.row(), third, BY_ME) == "DONE"

    entry = both.store.get("a")
    assert entry is not None
    assert entry.queue == "delay-third"


@answers("look", "EPOCH now", "OK now")
def test_where_entries_are(both: Both) -> None:
    both.new("live")
    both.new("going", 0, template=ORDERS)
    both.store.claim(token="me", limit=9, ttl_ms=3_000)
    both.new("parked", 0, template=shape(database=99))
    both.store.move()
    both.bench.raw.hset(both.bench.keys.quarantine, "x", "[]")
    ids = [both.row(one).entry_id for one in ("live", "going")]

    looked = both.store.look([*ids, EntryId("live", 1), EntryId("none", 1)], both.epoch)

    assert looked is not None
    assert looked.places == [("L", 1), ("C", 1), ("-", 0), ("-", 0)]
    assert both.store.look(ids, both.epoch + 1) is None
    assert both.bench.script("look", epoch=1)[0] == b"EPOCH"


# --- callers -------------------------------------------------------------------------------


def test_redis_may_be_away_once_sql_has_committed(both: Both) -> None:
    both.bench.links.plan = ["request", "request"]
    row = both.new()
    assert (both.live(), is_open(row)) == ({}, True)

    both.bench.now += 200
    both.beat()
    assert both.live() == {"a": NOW + 10_000}


def test_a_lost_answer_is_no_second_task(both: Both) -> None:
    both.bench.links.plan = ["answer", "ok"]
    both.new()
    assert len(both.live()) == 1


def test_without_sql_nothing_is_scheduled(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise AuditUnavailable("away")

    monkeypatch.setattr(both.rows, "insert", away)
    with pytest.raises(AuditUnavailable):
        both.new()
    assert both.live() == {}


def test_a_connection_that_breaks_amid_the_commit(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(connection: Any, rows: Any) -> None:
        insert(connection, rows)
        if is_kept:
            connection.commit()
        raise DBAPIError("COMMIT", {}, Exception("gone"), connection_invalidated=True)

    def away(*_: Any) -> None:
        raise AuditUnavailable("away")

    insert, is_kept = both.rows.insert_by, True
    monkeypatch.setattr(both.rows, "insert_by", broken)
    both.new("kept")
    is_kept = False
    with pytest.raises(AuditUnavailable):
        both.new("not")
    monkeypatch.setattr(both.rows, "some", away)
    with pytest.raises(OutcomeUnknown):
        both.new("who-knows")
    assert list(both.live()) == ["kept"]


def test_a_retry_that_is_sent_again_is_the_same(both: Both) -> None:
    retry = addition("a", at_ms=NOW + 500, run=7)
    for code in ("A", "D"):
        [added] = both.callers.add([(0, retry)])
        assert added.code == code
    both.bench.now += 500
    both.move()
    both.drain()
    [added] = both.callers.add([(0, retry)])
    assert added.code == "G"
    assert both.live() == {}


def test_what_redis_refuses_leaves_no_row(everywhere: Both) -> None:
    both = everywhere
    both.new()
    both.bench.now += 5
    with pytest.raises(AlreadyScheduled):
        both.new()
    first = both.new("first", labels=Labels(unique=Unique("k")), keys=Keys("error"))
    with pytest.raises(UniqueConflict):
        both.new("second", labels=Labels(unique=Unique("k")), keys=Keys("error"))
    [kept] = both.callers.add([(0, addition("third", labels=Labels(unique=Unique("k")),
                                            keys=Keys("keep")))])  # fmt: skip
    assert kept.entry_id == first.entry_id
    assert [both.rows.read(one) for one in ("second", "third")] == [None, None]
    assert both.row().entry_id.run == NOW


def test_who_is_replaced_is_cancelled_in_sql_too(both: Both) -> None:
    unique = {"labels": Labels(unique=Unique("k")), "keys": Keys("replace")}
    both.new("first", **unique)
    both.new("second", **unique)

    assert both.row("first").state is State.CANCELLED
    assert list(both.live()) == ["second"]


def test_a_holder_that_redis_has_extended_keeps_its_eta(everywhere: Both) -> None:
    both = everywhere
    unique = {"labels": Labels(unique=Unique("k")), "keys": Keys("extend")}
    both.new("first", **unique)
    both.callers.add([(0, addition("second", 50_000, **unique))])
    assert both.change("first", hold=True) == "DONE"  # above the version that Redis gave it
    assert both.bench.raw.zrange(both.bench.keys.held, 0, -1) == ["first"]
    both.change("first", hold=False)
    both.drain()
    both.callers.add([(0, addition("third", 70_000, **unique))])
    both.drain()

    row = both.row("first")
    assert row.eta_ms > NOW + 70_000
    both.fail_over()
    both.beat()
    assert both.live() == {"first": row.eta_ms}


def test_a_full_journal_refuses_instead_of_leaving_out(
    make: Callable[..., Bench], sqlite: str
) -> None:
    with migrated(sqlite) as database:
        both = made_ready(Both(make(audit="sync", journal_max=1_000), database))
        both.new(delay_ms=0)
        with both.bench.raw.pipeline() as pipeline:
            for _ in range(1_000):
                pipeline.xadd(both.bench.keys.journal, {"s": "GAP", "d": ""})
            pipeline.execute()
        with pytest.raises(JournalFull):
            both.new("b")
        assert both.rows.read("b") is None

        both.move()
        [(_, [last])] = both.store.read_journal("0", 2_000)[-1:]
        assert (last.state, last.entry_id.task_id) == ("DISPATCHED", "a")


def test_changes_count_from_what_sql_has(everywhere: Both) -> None:
    both = everywhere
    both.new()
    assert both.change(shift_ms=500) == "DONE"
    assert both.change(hold=True) == "DONE"
    assert (both.row().state, both.row().eta_ms) == (State.HELD, NOW + 10_500)
    both.bench.now += 20_000
    assert both.move() == []

    both.fail_over()
    both.beat()
    assert both.live() == {"a": NOW + 10_500}
    assert both.move() == []  # held still
    assert both.callers.release(0, "a", BY_ME) is True
    assert both.callers.release(0, "a", BY_ME) is False
    assert both.move() == ["a"]
    both.drain()
    assert both.change(hold=True) == "TOO_LATE"
    assert both.callers.change(0, "unknown", Change(hold=True), BY_ME) is None


def test_a_change_of_what_redis_has_not_yet_adds_it(both: Both) -> None:
    both.commit()
    assert both.change(**at(NOW + 500)) == "DONE"
    assert both.live() == {"a": NOW + 500}


def test_a_change_that_redis_did_not_answer_is_made_by_the_relay(both: Both) -> None:
    both.new()
    both.bench.links.plan = ["ok", "request", "request"]
    with pytest.raises(OutcomeUnknown):
        both.change(**at(NOW + 500))

    both.bench.now += 200
    both.beat()
    assert both.live() == {"a": NOW + 500}


def test_what_is_parked_is_released_through_sql(both: Both) -> None:
    both.new(delay_ms=0)
    both.bench.raw.hset(both.bench.keys.entries, "a", "1 0000000000\n1\n1\n1\n0\nx")
    both.bench.raw.hset("x", "y", "z")
    both.bench.raw.delete("x")
    row = both.row()
    both.bench.raw.hset(both.bench.keys.entries, "a", f"1 00\n{row.entry_id.run}\n1\n1\n0\nbroken")
    assert both.move() == []
    assert both.change(hold=True) == "QUARANTINED"

    assert both.callers.release(0, "a", BY_ME) is True
    assert both.move() == ["a"]


def test_a_new_history_without_a_name_takes_no_change(both: Both) -> None:
    both.new()
    both.fail_over()
    with pytest.raises(StoreUnavailable, match="call again"):
        both.cancel()


def test_rows_that_are_over_are_forgotten_a_day_later(both: Both) -> None:
    both.new(delay_ms=0)
    both.move()
    both.drain()
    assert both.row().tier == OVER
    both.bench.now += 86_400_000 + WINDOW
    both.beat()
    assert both.rows.read("a") is None


def test_what_an_async_store_has_is_left_alone(both: Both) -> None:
    both.store.add([addition("plain")])
    both.fail_over(keep=True)
    both.beat()
    assert list(both.live()) == ["plain"]


def test_many_are_brought_back_page_by_page(
    everywhere: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = everywhere
    monkeypatch.setattr("celery_delay.services.relay.PAGE", 7)
    both.callers.add([(0, addition(f"t{number}", 5_000)) for number in range(20)])
    both.fail_over()
    both.beat()
    assert len(both.live()) == 20
    assert {row.tier for row in both.rows.hot(0, None, 50)} == {HOT}


# --- what one row must not do to the others -------------------------------------------------


def keyless(both: Both, *task_ids: str) -> Callable[[], None]:
    """Let the key of those rows be lost; what is returned puts it back."""
    mine = payload.c.task_id.in_(task_ids)

    def put_back() -> None:
        for one in before:
            key = (payload.c.task_id == one.task_id, payload.c.run == one.run)
            with both.rows.database.writing() as connection:
                connection.execute(update(payload).where(*key).values(record=one.record))

    with both.rows.database.writing() as connection:
        before = connection.execute(select(payload).where(mine)).all()
        connection.execute(update(payload).where(mine).values(record=b"d1:dead:beef"))
    return put_back


def test_rows_that_nobody_can_read_keep_no_other_waiting(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given more rows whose key is lost than one look takes, and one behind them
    monkeypatch.setattr("celery_delay.services.relay.PAGE", 5)
    lost = [f"t{number}" for number in range(12)]
    for one in lost:
        both.commit(one)
    put_back = keyless(both, *lost)
    both.bench.now += 5
    both.commit("behind", 1_000)
    both.bench.now += 200

    # Then that one comes to Redis
    both.beat()
    assert list(both.live()) == ["behind"]
    assert caplog.text.count("cannot be read") == len(lost)

    # and the others do when the key is put back, though Redis was made anew without it
    both.fail_over()
    both.beat()
    put_back()
    both.bench.now += 60_000
    both.beat()
    assert set(both.live()) == {*lost, "behind"}


def test_what_cannot_be_read_is_cancelled_and_not_changed(both: Both) -> None:
    both.new("there")
    both.commit("absent")
    keyless(both, "there", "absent")

    for one in ("there", "absent"):
        with pytest.raises(AuditUnavailable, match="cannot be read"):
            both.change(one, **at(NOW + 500))
        assert both.row(one).version == 1
        assert both.cancel(one) is CANCELLED
    assert both.live() == {}


@pytest.mark.parametrize("fails", ["some", "change"])
def test_a_page_of_a_rebuild_is_not_passed_over(
    both: Both, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    # Given a Redis that has lost a task
    both.new("a")
    both.drain()
    assert both.row().look_ms is None
    both.fail_over()
    both.drain()
    while both.relay._suspects == ():
        assert both.relay.run_once(both.bench.term)
    # When SQL is away at the moment when it is to be added
    with monkeypatch.context() as patched:

        def away(*_: Any) -> Any:
            raise AuditUnavailable("away")

        patched.setattr(both.rows, fails, away)
        with pytest.raises(AuditUnavailable):
            both.relay.run_once(both.bench.term)
    # Then it is added when SQL is back
    both.beat()
    assert list(both.live()) == ["a"]


def test_what_is_committed_is_not_given_up_for_a_full_journal(
    make: Callable[..., Bench], sqlite: str
) -> None:
    with migrated(sqlite) as database:
        both = made_ready(Both(make(audit="sync", journal_max=1_000), database))
        both.commit()
        both.bench.now += 200
        both.drain()
        assert both.relay.run_once(both.bench.term)
        # somebody else fills the journal in this very moment
        with both.bench.raw.pipeline() as pipeline:
            for _ in range(1_000):
                pipeline.xadd(both.bench.keys.journal, {"s": "GAP", "d": ""})
            pipeline.execute()
        with pytest.raises(JournalFull):
            both.relay.run_once(both.bench.term)

        both.bench.raw.delete(both.bench.keys.journal)
        both.beat()
        assert list(both.live()) == ["a"]


def test_what_is_committed_waits_for_who_has_its_key_and_holds_nobody_up(both: Both) -> None:
    # Given a row that is to replace a task that is being published right now
    unique = {"labels": Labels(unique=Unique("k")), "keys": Keys("replace")}
    both.new("first", 0, **unique)
    both.store.claim(token="t", limit=10, ttl_ms=60_000, source="schedule")
    both.commit("second", **unique)
    both.commit("other")
    both.bench.now += 200

    both.beat()
    assert "other" in both.live()
    assert both.row("second").tier == HOT

    both.store.ack("t", ["first"])
    both.bench.now += 1_100
    both.beat()
    assert "second" in both.live()


def test_tasks_with_keys_keep_no_others_from_going_cold(
    make: Callable[..., Bench], sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_delay.services.tiering.PAGE", 3)
    with migrated(sqlite) as database:
        both = made_ready(Both(make(audit="sync", hot_max=1_000), database))
        tiering = Tiering(0, both.store, both.rows, both.store._settings, both.bench.clock)
        tiering._most = 2
        for number in range(4):
            both.new(f"plain{number}", 1_000_000 + number)
        for number in range(7):
            unique = {"labels": Labels(unique=Unique(f"k{number}")), "keys": Keys("keep")}
            both.new(f"keyed{number}", 2_000_000, **unique)
        both.new("lost", 3_000_000)
        both.drain()
        keyless(both, "lost")
        for _ in range(20):
            tiering.run_once()
        assert {one for one in both.live() if one.startswith("plain")} == set()


def test_yesterdays_tasks_keep_none_of_today_waiting(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more rows that are to be forgotten than one look takes
    for number in range(12):
        both.new(f"t{number}", 0)
    both.move()
    both.drain()
    monkeypatch.setattr("celery_delay.services.relay.PAGE", 5)
    both.bench.now += 86_400_000 + WINDOW
    both.commit("today", 0)
    both.bench.now += 200

    # Then the first looks are for what is waited for
    both.drain()
    assert both.relay.run_once(both.bench.term)
    assert both.rows.read("t0") is not None
    both.drain()
    both.relay.run_once(both.bench.term)
    assert list(both.live()) == ["today"]
    both.beat()
    assert both.rows.read("t0") is None


# --- a database that was set back -----------------------------------------------------------


def backup(both: Both) -> Callable[[], None]:
    """All that SQL has now; what is returned brings it back."""
    tables = metadata.sorted_tables
    with both.rows.database.reading() as connection:
        kept = [[dict(one._mapping) for one in connection.execute(select(t))] for t in tables]

    def restore() -> None:
        with both.rows.database.writing() as connection:
            for table, rows in zip(tables, kept, strict=True):
                connection.execute(delete(table))
                if rows:
                    connection.execute(insert(table), rows)

    return restore


def settle(both: Both) -> None:
    """As the auditor does that finds a hole."""
    database, settings = both.rows.database, both.store._settings
    log, rows = SQLWaitingEntries(database), SQLColdRows(database)
    SetBack(0, both.store, log, rows, settings).settle(both.bench.now)
    both.beat()


@pytest.mark.parametrize("keeps", [True, False], ids=["restarted", "emptied"])
def test_what_left_while_sql_had_it_otherwise_is_not_handed_off_again(
    everywhere: Both, keeps: bool
) -> None:
    # Given a backup, after which one was handed off, one cancelled, one added and one put off
    both = everywhere
    both.store.reconciled(both.epoch)
    for name in ("sent", "cancelled", "waits", "moved", "parked"):
        both.new(name, 1_000)
    both.drain()
    restore = backup(both)
    both.cancel("cancelled")
    both.change("moved", **at(NOW + 50_000))
    both.change("waits", **at(NOW + 40_000))
    both.change("parked", hold=True)
    both.drain()
    both.bench.now += 2_000
    assert both.move() == ["sent"]
    both.drain()

    # When it is restored, and Redis comes back without anything, or as it was
    restore()
    settle(both)
    settle(both)
    assert {one: both.row(one).state for one in ("sent", "cancelled")} == {
        "sent": State.DISPATCHED, "cancelled": State.DISPATCHED,
    }  # fmt: skip
    both.fail_over(keep=keeps)
    both.beat()

    # Then what had left stays away
    both.bench.now += 100_000
    assert not {"sent", "cancelled"} & set(both.move())


def test_what_may_have_been_paged_in_and_handed_off_is_held(
    make: Callable[..., Bench], sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    with migrated(sqlite) as database:
        both = made_ready(Both(make(audit="sync", hot_window=60), database))
        both.store.reconciled(both.epoch)
        both.new("sent", 100_000)
        both.new("far", 900_000)
        both.drain()
        restore = backup(both)
        both.bench.now += 50_000
        both.beat()  # it comes to Redis
        both.bench.now += 60_000
        assert both.move() == ["sent"]
        both.drain()

        restore()
        settle(both)
        both.bench.now += 5_000
        both.beat()
        assert both.move() == []
        assert (both.row("sent").state, both.row("far").state) == (State.HELD, State.SCHEDULED)
        assert "HELD" in caplog.text
        assert both.callers.release(0, "sent", BY_ME) is True
        assert both.move() == ["sent"]


def test_in_a_history_that_was_not_compared_nothing_is_settled(both: Both) -> None:
    both.store.reconciled(both.epoch)
    both.new("waits")
    both.drain()
    both.fail_over()
    rows = SQLColdRows(both.rows.database)
    log = SQLWaitingEntries(both.rows.database)
    SetBack(0, both.store, log, rows, both.store._settings).settle(both.bench.now + 99_000)
    both.beat()
    assert list(both.live()) == ["waits"]


def test_what_the_audit_hears_of_a_cold_task_says_nothing_of_redis(
    make: Callable[..., Bench], sqlite: str
) -> None:
    # Given a task of which the journal tells that is not in Redis
    with migrated(sqlite) as database:
        both = made_ready(Both(make(audit="sync", hot_window=60), database))
        both.new(delay_ms=3_600_000)
        before = both.row()
        assert (before.tier, before.seen) == (COLD, 0)

        both.drain()

        assert both.row() == before
        assert both.row().record
