"""The drain, dying at each of its steps: nothing is missing, nothing is there twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.ports import Ending, JournalPosition
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable, ForeignDatabase, StoreUnavailable
from celery_delay.services.auditor import Auditor
from tests.fakes import FakeClock

SETTINGS = Settings(drain_batch=100)
EPOCH = 1_700_000_000_000


class World:
    """A shard's journal, SQL and the result backend; ``steps`` is what happened, in order.

    ``fails`` names the step at which the process dies or the other side is away, and the
    error; the step has had its effect if the name ends in "!".
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, list[Event]]] = []
        self.epoch = EPOCH
        self.term = 1
        self.store_uuid: str | None = None
        self.sql_uuid = "sql"
        self.sql: dict[tuple[int, str, int], Event] = {}
        self.cursor = JournalPosition(0, 0, "0")
        self.ended: list[EntryId] = []
        self.steps: list[str] = []
        self.fails: dict[str, Exception] = {}
        self._written = 0
        self.forgotten: JournalPosition | None = None

    def write(self, state: State, *task_ids: str) -> None:
        """One journal entry with an event per task."""
        self._written += 1
        stream_id = f"{self._written}-0"
        events = [
            Event(
                0, self.epoch, stream_id, index, state.value, EntryId(task_id, 1), 1,
                self._written, None, {},
            )
            for index, task_id in enumerate(task_ids)
        ]  # fmt: skip
        self.entries.append((stream_id, events))

    def told(self) -> list[str]:
        """Task ids in SQL, in order."""
        return [one.entry_id.task_id for one in self.sql.values()]

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name in self.fails:
            raise self.fails.pop(name)

    # JournalStore

    def leader(self) -> tuple[str, int, int]:
        self._step("leader")
        return "me", self.term, self.epoch

    def audit_id(self, proposed: str | None = None) -> str | None:
        self.store_uuid = self.store_uuid or proposed
        return self.store_uuid

    def read_journal(self, after: str, limit: int) -> list[tuple[str, list[Event]]]:
        self._step("read")
        found, events = [], 0
        for one in self.entries:
            if number(one[0]) > number(after) and events < limit:
                found.append(one)
                events += len(one[1])
        return found

    def trim_journal(self, position: JournalPosition, *, term: int) -> int:
        self._step("trim")
        if (term, position.epoch) != (self.term, self.epoch):
            return 0
        self.forgotten = position
        before = len(self.entries)
        self.entries = [one for one in self.entries if number(one[0]) > number(position.last_id)]
        self._step("trim!")
        return before - len(self.entries)

    def trimmed(self) -> JournalPosition | None:
        return self.forgotten

    # AuditLog

    def prepare(self) -> str:
        self._step("prepare")
        return self.sql_uuid

    def position(self, shard: int, epoch: int) -> JournalPosition:
        self._step("position")
        return self.cursor if self.cursor.epoch >= epoch else JournalPosition(shard, epoch, "0")

    def take(
        self, expected: JournalPosition, events: Sequence[Event], last_id: str
    ) -> list[Ending] | None:
        self._step("take")
        here = expected == self.cursor or (
            expected.last_id == "0" and expected.epoch > self.cursor.epoch
        )
        if not here:
            return None
        self.cursor = max(
            expected, expected._replace(last_id=last_id), key=lambda one: number(one.last_id)
        )
        for one in events:
            self.sql.setdefault((one.epoch, one.stream_id, one.position), one)
        self._step("take!")
        return [
            Ending(one.entry_id, State(one.state), "task", None, None, None, False, "")
            for one in events
            if one.state != "GAP" and State(one.state).ended_before_dispatch
        ]

    # Results

    def end(self, ending: Ending) -> None:
        self._step("end")
        if ending.entry_id not in self.ended:
            self.ended.append(ending.entry_id)


def number(stream_id: str) -> int:
    return int(stream_id.partition("-")[0])


@pytest.fixture
def world() -> World:
    return World()


def auditor(world: World, **options: int) -> Auditor:
    return Auditor(0, world, world, world, replace(SETTINGS, **options), FakeClock())


# --- one batch -----------------------------------------------------------------------------


def test_a_batch_goes_to_sql_then_to_the_results_and_is_forgotten_last(world: World) -> None:
    world.write(State.SCHEDULED, "a", "b")
    world.write(State.EXPIRED, "a")

    assert auditor(world).run_once(1) == 2

    assert world.steps[-5:] == ["take", "take!", "end", "trim", "trim!"]
    assert world.told() == ["a", "b", "a"]
    assert world.ended == [EntryId("a", 1)]
    assert world.entries == []


def test_an_empty_journal_costs_two_reads_of_redis_and_none_of_sql(world: World) -> None:
    drain = auditor(world)
    drain.run_once(1)
    world.steps.clear()

    assert drain.run_once(1) == 0
    assert world.steps == ["leader", "read"]


def test_a_history_without_a_name_is_left_alone(world: World) -> None:
    world.write(State.SCHEDULED, "a")
    world.epoch = 0

    assert auditor(world).run_once(1) == 0
    assert world.steps == ["leader"]


def test_a_batch_ends_at_its_limit(world: World) -> None:
    for index in range(250):
        world.write(State.SCHEDULED, f"{index}")
    drain = auditor(world)

    assert [drain.run_once(1) for _ in range(4)] == [100, 100, 50, 0]
    assert world.told() == [f"{index}" for index in range(250)]


def test_a_batch_ends_with_the_entry_that_fills_it(world: World) -> None:
    for index in range(9):
        world.write(State.SCHEDULED, *(f"{index}/{line}" for line in range(60)))

    assert auditor(world).run_once(1) == 2
    assert len(world.told()) == 120


def test_a_batch_that_sql_does_not_manage_in_time_is_tried_as_a_smaller_one(world: World) -> None:
    for number in range(400):
        world.write(State.SCHEDULED, f"t{number}")
    drain = auditor(world)
    for _ in range(3):
        world.fails["take"] = AuditUnavailable("canceling statement due to statement timeout")
        with pytest.raises(AuditUnavailable):
            drain.run_once(1)

    # an eighth, and then they grow back
    assert [drain.run_once(1) for _ in range(5)] == [12, 25, 50, 100, 100]

    for _ in range(50):
        world.fails["take"] = AuditUnavailable("away")
        with pytest.raises(AuditUnavailable):
            drain.run_once(1)
    assert drain.run_once(1) == 1


def test_an_entry_that_could_not_be_decoded_is_passed(world: World) -> None:
    world.write(State.SCHEDULED)
    world.write(State.SCHEDULED, "a")

    assert auditor(world).run_once(1) == 2
    assert world.told() == ["a"]
    assert world.entries == []


# --- dying ---------------------------------------------------------------------------------

STEPS = ["leader", "prepare", "read", "position", "take", "take!", "end", "trim", "trim!"]


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("step", STEPS)
def test_whoever_comes_after_a_crash_completes_the_batch(world: World, step: str) -> None:
    world.write(State.SCHEDULED, "a", "b")
    world.write(State.EXPIRED, "a")
    world.fails[step] = Killed()  # type: ignore[assignment]
    with pytest.raises(Killed):
        auditor(world).run_once(1)

    world.term = 2
    heir = auditor(world)
    while heir.run_once(2):
        pass

    assert world.told() == ["a", "b", "a"]
    assert world.ended == [EntryId("a", 1)]
    assert world.entries == []


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [AuditUnavailable, StoreUnavailable])
def test_after_an_outage_the_same_auditor_goes_on(
    world: World, step: str, error: type[Exception]
) -> None:
    world.write(State.SCHEDULED, "a", "b")
    world.write(State.CANCELLED, "b")
    world.fails[step] = error("away")
    drain = auditor(world)
    with pytest.raises(error):
        drain.run_once(1)

    world.write(State.SCHEDULED, "c")
    while drain.run_once(1):
        pass

    assert world.told() == ["a", "b", "b", "c"]
    assert world.ended == [EntryId("b", 1)]
    assert world.entries == []


# --- two drainers, terms and epochs ----------------------------------------------------------


def test_a_drainer_that_was_overtaken_writes_and_forgets_nothing(world: World) -> None:
    world.write(State.SCHEDULED, "a")
    slow = auditor(world)
    take = world.take

    def overtaken(
        expected: JournalPosition, events: Sequence[Event], last_id: str
    ) -> list[Ending] | None:
        world.take = take  # type: ignore[method-assign]
        world.write(State.SCHEDULED, "b")
        # another one takes less than what is there, and dies before it trims
        world.cursor = expected._replace(last_id="1-0")
        world.sql[EPOCH, "1-0", 0] = events[0]
        world.steps.clear()
        return take(expected, events, last_id)

    world.take = overtaken  # type: ignore[method-assign]

    assert slow.run_once(1) == 1
    assert "trim" not in world.steps
    while slow.run_once(1):
        pass
    assert world.told() == ["a", "b"]
    assert world.entries == []


def test_one_who_leads_no_more_still_comes_to_an_end(world: World) -> None:
    for index in range(250):
        world.write(State.SCHEDULED, f"{index}")
    drain = auditor(world)
    world.term = 2  # its trims have no effect any more

    assert [drain.run_once(1) for _ in range(4)] == [100, 100, 50, 0]
    assert len(world.told()) == 250
    assert len(world.entries) == 250

    assert auditor(world).run_once(2) == 100
    assert len(world.told()) == 250
    assert len(world.entries) == 150


def test_a_database_that_was_set_back_is_told_of_what_it_has_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two", "three"):
        world.write(State.SCHEDULED, name)
        auditor(world).run_once(world.term)
    backup = world.cursor._replace(last_id="1-0")
    world.sql = {key: one for key, one in world.sql.items() if key[1] == "1-0"}
    world.cursor = backup
    world.write(State.SCHEDULED, "four")

    # the next leader dies before it has told, and the one after that tells
    world.fails["take"] = AuditUnavailable("away")
    with pytest.raises(AuditUnavailable):
        auditor(world).run_once(world.term)
    for _ in range(2):
        auditor(world).run_once(world.term)

    assert world.told() == ["one", "-", "four"]
    [hole] = [one for one in world.sql.values() if one.state == "GAP"]
    assert hole.data == {"after": "1-0", "until": "3-0", "why": "set back"}
    assert [getattr(one, "event", "") for one in caplog.records].count("audit_set_back") == 1


def test_a_new_epoch_is_read_from_its_start(world: World) -> None:
    drain = auditor(world)
    world.write(State.SCHEDULED, "a")
    drain.run_once(1)

    # another history, whose stream ids begin anew
    world.epoch += 1
    world._written = 0
    world.write(State.SCHEDULED, "b")

    assert drain.run_once(1) == 1
    assert world.told() == ["a", "b"]
    assert world.cursor.epoch == EPOCH + 1


def test_a_history_older_than_the_audit_is_an_error(world: World) -> None:
    world.write(State.SCHEDULED, "a")
    world.cursor = JournalPosition(0, EPOCH + 1, "7-0")

    with pytest.raises(AuditUnavailable, match="set back"):
        auditor(world).run_once(1)

    assert len(world.entries) == 1


# --- whose database --------------------------------------------------------------------------


def test_the_first_database_becomes_the_stores_own(world: World) -> None:
    assert auditor(world).verify() == "sql"
    assert world.store_uuid == "sql"


def test_another_stores_database_is_not_written_to(world: World) -> None:
    world.store_uuid = "another"
    world.write(State.SCHEDULED, "a")
    drain = auditor(world)

    with pytest.raises(ForeignDatabase, match="--adopt"):
        drain.run_once(1)
    assert world.told() == []
    assert len(world.entries) == 1

    world.sql_uuid = "another"  # adopted
    assert drain.run_once(1) == 1


def test_the_database_is_looked_at_once_a_term_and_after_each_outage(world: World) -> None:
    drain = auditor(world)
    for _ in range(3):
        drain.run_once(1)
    assert world.steps.count("prepare") == 1

    drain.run_once(2)
    assert world.steps.count("prepare") == 2

    world.fails["read"] = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        drain.run_once(2)
    drain.run_once(2)
    assert world.steps.count("prepare") == 3
