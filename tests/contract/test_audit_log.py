"""The port AuditLog: what SQL has after a batch, whatever came before and whoever else drains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event as listening
from sqlalchemy import text

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import Event
from celery_delay.domain.ports import Ending, JournalPosition
from celery_delay.domain.states import State
from celery_delay.embedded import die_with_parent
from celery_delay.exceptions import AuditUnavailable, SchemaOutdated
from tests.contract.audit_rows import EPOCH, STORY, T0, Journal, rows, take

CHORD = {"task": "shop.tasks.sum_up", "args": [], "kwargs": {"of": "día"}}


@pytest.fixture
def log(audit: Database) -> SQLAuditLog:
    return SQLAuditLog(audit)


@pytest.fixture
def queries(audit: Database) -> AuditQueries:
    return AuditQueries(audit)


@pytest.fixture
def journal() -> Journal:
    return Journal()


def state(queries: AuditQueries, task_id: str = "one") -> tuple[str, int] | None:
    """State and run of a task, as its row says."""
    found = queries.task(task_id)
    return found and (found.state, found.run)


# --- what is told --------------------------------------------------------------------------


def test_a_life_is_one_row_per_task_and_run_and_one_per_event(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    events = [
        journal.event("SCHEDULED", at_ms=T0),
        journal.event("DISPATCHED", data={"lag_ms": 3}, at_ms=T0 + 60_003),
        journal.event("STARTED", data={"worker": "celery@a", "pid": 7}, at_ms=T0 + 60_010),
        journal.event("SUCCEEDED", data={"runtime": 0.5}, at_ms=T0 + 60_510),
    ]

    assert take(log, events) == []

    told = queries.task("one")
    assert told is not None
    assert told._asdict() == {
        "task_id": "one", "run": T0, "version": 1, "state": "SUCCEEDED",
        "name": STORY["name"], "queue": "celery", "args": STORY["args"],
        "kwargs": STORY["kwargs"], "root_id": "root", "parent_id": None, "group_id": None,
        "eta_ms": T0 + 60_000, "created_ms": T0, "updated_ms": T0 + 60_510,
        "result": None, "error": None,
    }  # fmt: skip
    (run,) = queries.runs("one")
    assert run._asdict() == {
        "run": T0, "version": 1, "state": "SUCCEEDED", "eta_ms": T0 + 60_000,
        "scheduled_ms": T0, "dispatched_ms": T0 + 60_003, "started_ms": T0 + 60_010,
        "ended_ms": T0 + 60_510, "lag_ms": 3, "worker": "celery@a", "error": None,
    }  # fmt: skip
    assert queries.events("one") == events


@pytest.mark.parametrize(
    ("ended", "data", "error"),
    [
        ("FAILED", {"error": "ValueError('no')"}, "ValueError('no')"),
        ("REVOKED", {"reason": "revoked"}, "revoked"),
        ("REJECTED", {}, None),
        ("RETRIED", {"reason": "TimeoutError()"}, "TimeoutError()"),
    ],
)
def test_how_it_ended(
    log: SQLAuditLog,
    queries: AuditQueries,
    journal: Journal,
    ended: str,
    data: dict[str, object],
    error: str | None,
) -> None:
    take(log, [*journal.life("one", "SCHEDULED", "DISPATCHED", "STARTED")])
    take(log, [journal.event(ended, data=data)])

    told = queries.task("one")
    assert told is not None
    assert (told.state, told.error) == (ended, error)
    assert queries.runs("one")[0].error == error
    assert queries.runs("one")[0].ended_ms is not None


def test_a_gap_is_kept_among_the_events_and_is_no_task(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    gap = journal.event("GAP", "-", {"missing": 17}, run=0, version=0)
    take(log, [*journal.life(), gap])

    assert queries.events("-") == [gap]
    assert queries.task("-") is None
    assert queries.runs("-") == []
    assert queries.counts() == {"SUCCEEDED": 1}


def test_a_state_of_a_newer_release_is_kept_among_the_events_only(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    take(log, [*journal.life("one", "SCHEDULED"), journal.event("TELEPORTED")])

    assert state(queries) == ("SCHEDULED", T0)
    assert [one.state for one in queries.events("one")] == ["SCHEDULED", "TELEPORTED"]


def test_ids_that_differ_in_case_or_accents_are_two_tasks(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    for task_id in ("Order-1", "order-1", "órder-1"):
        take(log, journal.life(task_id))

    assert queries.counts() == {"SUCCEEDED": 3}


# --- exactly once --------------------------------------------------------------------------


def test_the_cursor_starts_at_0_and_follows(log: SQLAuditLog, journal: Journal) -> None:
    assert log.position(0, EPOCH) == JournalPosition(0, EPOCH, "0")

    events = journal.life()
    take(log, events)

    assert log.position(0, EPOCH) == JournalPosition(0, EPOCH, events[-1].stream_id)
    assert log.position(1, EPOCH) == JournalPosition(1, EPOCH, "0")
    assert log.highest_epoch(0) == EPOCH
    assert log.highest_epoch(1) == 0


def test_taking_the_same_events_again_changes_nothing(
    log: SQLAuditLog, audit: Database, journal: Journal
) -> None:
    events = [*journal.life("one"), *journal.life("two", "SCHEDULED", "DISPATCHED")]
    take(log, events)
    before = rows(audit)

    take(log, events)
    take(log, events[2:4])  # and the cursor does not go back
    take(log, [])

    assert rows(audit) == before


def test_an_event_told_twice_in_one_batch_is_one(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    events = journal.life()
    take(log, [*events, *events])

    assert queries.events("one") == events


def test_only_the_new_events_of_a_batch_are_applied(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    first = journal.event("SCHEDULED", data=STORY)
    take(log, [first])
    # the same key with another content can only be a bug; the old row must stand
    forged = first._replace(data=STORY | {"name": "forged"})
    take(log, [forged, journal.event("DISPATCHED")])

    told = queries.task("one")
    assert told is not None
    assert (told.name, told.state) == (STORY["name"], "DISPATCHED")


def test_events_of_one_journal_entry_are_told_apart(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    first = journal.event("SCHEDULED", "t0")
    take(log, [first, *(first._replace(position=i, entry_id=EntryId(f"t{i}", T0)) for i in (1, 2))])

    assert queries.counts() == {"SCHEDULED": 3}


def test_of_two_drainers_at_the_same_place_one_writes(
    log: SQLAuditLog, sql_url: str, audit: Database, journal: Journal
) -> None:
    rival = SQLAuditLog(sql_url)
    seen, seen_by_rival = log.position(0, EPOCH), rival.position(0, EPOCH)
    events = journal.life()

    assert log.take(seen, events[:2], events[1].stream_id) == []
    before = rows(audit)
    assert rival.take(seen_by_rival, events, events[-1].stream_id) is None

    assert rows(audit) == before
    rival.close()


def test_a_later_place_than_expected_is_refused_too(log: SQLAuditLog, journal: Journal) -> None:
    take(log, journal.life())
    wrong = JournalPosition(0, EPOCH, f"{T0 + 10_000}-0")

    assert log.take(wrong, journal.life("two"), f"{T0 + 10_001}-0") is None
    assert log.take(JournalPosition(0, EPOCH, "0"), journal.life("two"), "9-0") is None


def test_a_new_epoch_reads_the_journal_again_from_its_start(
    log: SQLAuditLog, audit: Database, queries: AuditQueries, journal: Journal
) -> None:
    old = journal.life("one", "SCHEDULED", "DISPATCHED")
    take(log, old)

    journal.epoch = EPOCH + 1
    assert log.position(0, EPOCH + 1) == JournalPosition(0, EPOCH + 1, "0")
    take(log, [*old, *journal.life("one", "STARTED")], epoch=EPOCH + 1)

    assert state(queries) == ("STARTED", T0)
    assert [one.epoch for one in queries.events("one")] == [EPOCH, EPOCH, EPOCH + 1]
    assert [one["epoch"] for one in rows(audit)["epoch"]] == [EPOCH, EPOCH + 1]


def test_the_same_stream_id_in_another_epoch_is_another_event(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    first = journal.event("SCHEDULED")
    take(log, [first])
    take(log, [first._replace(epoch=EPOCH + 1, state="DISPATCHED", data={})], epoch=EPOCH + 1)

    assert len(queries.events("one")) == 2
    assert state(queries) == ("DISPATCHED", T0)


def test_an_older_epoch_writes_nothing(log: SQLAuditLog, audit: Database, journal: Journal) -> None:
    journal.epoch = EPOCH + 1
    take(log, journal.life(), epoch=EPOCH + 1)
    before = rows(audit)

    assert log.position(0, EPOCH).epoch == EPOCH + 1
    stale = JournalPosition(0, EPOCH, "0")
    assert log.take(stale, Journal().life("two"), f"{T0 + 100_000}-0") is None
    assert rows(audit) == before


def test_shards_do_not_meet(log: SQLAuditLog, audit: Database) -> None:
    for shard in (0, 1):
        take(log, Journal(shard).life(f"of-{shard}"), shard)

    assert [one["shard"] for one in rows(audit)["cursor"]] == [0, 1]
    assert len(rows(audit)["event"]) == 8


def test_a_batch_that_fails_half_way_leaves_nothing(
    log: SQLAuditLog, audit: Database, journal: Journal
) -> None:
    take(log, journal.life("one", "SCHEDULED"))
    before = rows(audit)
    events = journal.life("two")

    def fail(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INTO celery_delay_task" in statement:
            raise OSError("the disk is full")

    listening.listen(audit.engine, "before_cursor_execute", fail)
    with pytest.raises(AuditUnavailable, match="disk is full"):
        take(log, events)
    listening.remove(audit.engine, "before_cursor_execute", fail)

    assert rows(audit) == before
    take(log, events)
    assert len(rows(audit)["event"]) == 5


def test_a_batch_is_a_handful_of_statements(
    log: SQLAuditLog, audit: Database, journal: Journal
) -> None:
    take(log, journal.life("zero"))
    statements = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    listening.listen(audit.engine, "before_cursor_execute", note)
    take(log, [one for number in range(250) for one in journal.life(f"task-{number}")])

    written = [one for one in statements if one.startswith(("INSERT", "UPDATE"))]
    # cursor, event, entry, task
    assert len(written) == 4
    assert len(statements) <= 9
    with audit.reading() as connection:
        assert connection.scalar(text("SELECT count(*) FROM celery_delay_event")) == 1004


# --- merging -------------------------------------------------------------------------------


def test_a_worker_may_be_faster_than_the_journal(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    started, dispatched = (
        journal.event("STARTED", data={"worker": "w"}),
        journal.event("DISPATCHED", data={"lag_ms": 1}),
    )
    take(log, [*journal.life("one", "SCHEDULED"), started])
    assert state(queries) == ("STARTED", T0)

    take(log, [dispatched])

    assert state(queries) == ("STARTED", T0)
    (run,) = queries.runs("one")
    assert (run.lag_ms, run.worker, run.dispatched_ms) == (1, "w", dispatched.at_ms)


def test_a_worker_that_is_told_before_the_story(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    take(log, journal.life("one", "STARTED", "SUCCEEDED", version=0))
    take(log, journal.life("one", "SCHEDULED", "DISPATCHED"))

    told = queries.task("one")
    assert told is not None
    assert (told.state, told.name, told.version) == ("SUCCEEDED", STORY["name"], 1)


def test_a_retry_is_a_run_of_its_own_and_the_task_follows_the_latest(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    take(log, journal.life("one", "SCHEDULED", "DISPATCHED", "STARTED"))
    # the worker stores the next run before it tells of the end of this one
    take(log, journal.life("one", "SCHEDULED", run=T0 + 1, eta_ms=T0 + 90_000))
    assert state(queries) == ("SCHEDULED", T0 + 1)

    take(log, [journal.event("RETRIED", data={"reason": "TimeoutError()"})])

    told = queries.task("one")
    assert told is not None
    assert (told.state, told.run, told.eta_ms) == ("SCHEDULED", T0 + 1, T0 + 90_000)
    assert told.error is None
    assert [(one.run, one.state, one.error) for one in queries.runs("one")] == [
        (T0, "RETRIED", "TimeoutError()"),
        (T0 + 1, "SCHEDULED", None),
    ]


def test_a_failure_that_a_redelivery_mends_leaves_no_error(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    take(log, journal.life("one", "SCHEDULED", "DISPATCHED", "STARTED"))
    take(log, [journal.event("FAILED", data={"error": "WorkerLostError()"})])
    take(log, journal.life("one", "STARTED", "SUCCEEDED"))

    told = queries.task("one")
    assert told is not None
    assert (told.state, told.error) == ("SUCCEEDED", None)


def test_what_was_quarantined_can_be_stored_again_by_a_higher_version_only(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    take(log, journal.life("one", "SCHEDULED"))
    take(log, [journal.event("QUARANTINED", data={"error": "damaged"})])
    take(log, journal.life("one", "SCHEDULED"))
    assert state(queries) == ("QUARANTINED", T0)

    take(log, journal.life("one", "SCHEDULED", version=2))

    told = queries.task("one")
    assert told is not None
    assert (told.state, told.version, told.error) == ("SCHEDULED", 2, None)


@pytest.mark.parametrize("together", [True, False])
def test_what_is_sent_again_from_quarantine_keeps_its_story(
    log: SQLAuditLog, queries: AuditQueries, audit: Database, journal: Journal, together: bool
) -> None:
    story = STORY | {"group": "g", "group_index": 2, "chord": {"task": "x"}, "ignore_result": True}
    events = [
        journal.event("SCHEDULED", data=story),
        journal.event("QUARANTINED", data={"error": "no queue"}),
        journal.event("SCHEDULED", data={}, version=2, at_ms=T0 + 9_000),
    ]

    if together:
        take(log, events)
    else:
        for one in events:
            take(log, [one])

    assert state(queries) == ("SCHEDULED", T0)
    [task] = rows(audit)["task"]
    [entry] = rows(audit)["entry"]
    assert (task["name"], task["argsrepr"], task["queue"]) == (
        STORY["name"], STORY["args"], STORY["queue"],
    )  # fmt: skip
    assert (task["group_id"], task["kwargsrepr"]) == ("g", STORY["kwargs"])
    assert (entry["group_index"], entry["ignore_result"], entry["version"]) == (2, True, 2)
    assert (entry["chord"], entry["error"]) == ('{"task":"x"}', None)
    assert entry["scheduled_ms"] < T0 + 9_000


@pytest.mark.parametrize("state_then", ["SCHEDULED", "HELD", "QUARANTINED"])
@pytest.mark.parametrize("together", [True, False])
def test_another_message_tells_another_story_whatever_state_it_stays_in(
    log: SQLAuditLog,
    queries: AuditQueries,
    audit: Database,
    journal: Journal,
    together: bool,
    state_then: str,
) -> None:
    first = STORY | {"group": "g", "chord": {"task": "x"}, "ignore_result": True}
    then = STORY | {"queue": "slow", "args": "(7,)", "kwargs": "{}", "ignore_result": False}
    told = {"by": "me", "reason": "moved"} | ({"error": "no queue"} if state_then[0] == "Q" else {})
    events = [
        journal.event("SCHEDULED", data=first),
        journal.event(state_then, data={"error": "no queue"}, at_ms=T0 + 5),
        journal.event(state_then, data=then | told, version=2, at_ms=T0 + 9_000),
        # a hold or release afterwards leaves the story alone
        journal.event("HELD", data={"by": "me"}, version=3, at_ms=T0 + 9_001),
    ]

    if together:
        take(log, events[:3])
    else:
        for one in events[:3]:
            take(log, [one])

    [task] = rows(audit)["task"]
    [entry] = rows(audit)["entry"]
    assert (task["state"], task["version"]) == (state_then, 2)
    expected = {"SCHEDULED": None, "HELD": "moved", "QUARANTINED": "no queue"}[state_then]
    assert task["error"] == entry["error"] == expected
    assert (task["queue"], task["argsrepr"], task["kwargsrepr"]) == ("slow", "(7,)", "{}")
    assert (task["group_id"], entry["chord"]) == ("g", '{"task":"x"}')
    assert (entry["ignore_result"], entry["scheduled_ms"]) == (False, T0)
    take(log, events[3:])
    [task] = rows(audit)["task"]
    assert (task["state"], task["queue"], task["argsrepr"]) == ("HELD", "slow", "(7,)")


def test_an_event_without_a_run_is_the_latest_runs(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal
) -> None:
    take(log, journal.life("one", "SCHEDULED"))
    lost = {"error": "the record is missing"}
    take(log, [journal.event("QUARANTINED", "one", lost, run=0, version=0)])
    take(
        log,
        [
            *journal.life("two", "SCHEDULED"),
            journal.event("QUARANTINED", "two", lost, run=0, version=0),
        ],
    )

    assert [state(queries, one) for one in ("one", "two")] == [("QUARANTINED", T0)] * 2
    assert len(queries.runs("one")) == 1


_STATES = st.sampled_from([one.value for one in State])
_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["one", "two"]),
        _STATES,
        st.sampled_from([T0, T0 + 1, T0 + 2]),
        st.integers(1, 3),
        st.sampled_from([{}, STORY, {"name": "b", "error": "e"}, {"lag_ms": 4, "worker": "w"}]),
        st.sampled_from([None, T0 + 1, T0 + 2]),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(told=_EVENTS, cuts=st.sets(st.integers(1, 11)))
def test_it_does_not_matter_how_events_fall_into_batches(
    log: SQLAuditLog, audit: Database, told: list[Any], cuts: set[int]
) -> None:
    def outcome(shard: int, batches: list[slice]) -> Any:
        with audit.writing() as connection:
            for name in ("task", "entry", "event", "epoch", "cursor"):
                connection.execute(text(f"DELETE FROM celery_delay_{name}"))
        journal = Journal()
        events = [
            journal.event(state, task_id, data, run=run, version=version, eta_ms=eta_ms)
            for task_id, state, run, version, data, eta_ms in told
        ]
        for some in batches:
            if events[some]:
                take(log, events[some])
        return rows(audit)

    bounds = [0, *sorted(cuts), len(told)]
    pieces = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]  # noqa: RUF007

    assert outcome(0, pieces) == outcome(0, [slice(None)])


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.permutations(["SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED"]),
    cut=st.integers(0, 4),
)
def test_the_order_of_arrival_does_not_change_the_end(
    log: SQLAuditLog, queries: AuditQueries, order: list[str], cut: int
) -> None:
    journal = Journal()
    position = log.position(0, EPOCH)
    journal.epoch = position.epoch + 1  # each example has a history of its own
    task_id = f"task-{journal.epoch}"
    events = [
        journal.event(state, task_id, {"lag_ms": 2} if state == "DISPATCHED" else None)
        for state in order
    ]
    for some in (events[:cut], events[cut:]):
        if some:
            take(log, some, epoch=journal.epoch)

    told = queries.task(task_id)
    assert told is not None
    assert (told.state, told.name) == ("SUCCEEDED", STORY["name"])
    (run,) = queries.runs(task_id)
    assert run.lag_ms == 2
    assert None not in (run.scheduled_ms, run.dispatched_ms, run.started_ms, run.ended_ms)


# --- endings -------------------------------------------------------------------------------


@pytest.mark.parametrize("in_one_batch", [True, False])
@pytest.mark.parametrize("ended", ["CANCELLED", "EXPIRED", "LOST"])
def test_an_ending_has_what_its_result_needs(
    log: SQLAuditLog, journal: Journal, ended: str, in_one_batch: bool
) -> None:
    story = STORY | {"group": "g", "group_index": 3, "chord": CHORD, "ignore_result": True}
    events = [
        journal.event("SCHEDULED", data=story),
        journal.event(ended, data={"by": "ann", "reason": "paid"}),
    ]

    if in_one_batch:
        endings = take(log, events)
    else:
        assert take(log, events[:1]) == []
        endings = take(log, events[1:])

    assert endings == [
        Ending(EntryId("one", T0), State(ended), STORY["name"], "g", 3, CHORD, True, "paid")
    ]


def test_an_ending_is_told_again_when_its_event_is(log: SQLAuditLog, journal: Journal) -> None:
    events = journal.life("one", "SCHEDULED", "EXPIRED")

    assert take(log, events) == take(log, events) != []


def test_an_ending_that_was_overtaken_is_none(log: SQLAuditLog, journal: Journal) -> None:
    lost = journal.life("lost", "SCHEDULED", "LOST")
    assert len(take(log, lost)) == 1
    cancelled = journal.life("again", "SCHEDULED", "CANCELLED")
    again = journal.life("again", "SCHEDULED", run=T0 + 5)

    # it was not lost after all; and the cancelled one's id is in use again
    assert take(log, [*lost, *journal.life("lost", "DISPATCHED")]) == []
    assert take(log, [*cancelled, *again]) == []


def test_many_endings_at_once(log: SQLAuditLog, journal: Journal) -> None:
    endings = take(
        log,
        [
            one
            for number in range(1_200)
            for one in journal.life(f"task-{number:04}", "SCHEDULED", "CANCELLED")
        ],
    )

    assert len({one.entry_id for one in endings}) == len(endings) == 1_200


# --- hostile events ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nasty",
    ["\0", "a\0b", "\ud800", "😀" * 40_000, "'; DROP TABLE celery_delay_task; --", "%s %(x)s {}"],
    ids=["NUL", "inner NUL", "surrogate", "long", "SQL", "formats"],
)
def test_no_text_keeps_the_journal_from_being_drained(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal, nasty: str
) -> None:
    story = dict.fromkeys([*STORY, "group", "parent_id"], nasty) | {"chord": {nasty: nasty}}
    task_id = nasty[:300]
    events = [
        journal.event("SCHEDULED", task_id, story),
        journal.event("STARTED", task_id, {"worker": nasty}),
        journal.event("FAILED", task_id, {"error": nasty}),
    ]
    take(log, events)

    told = queries.task(task_id)
    assert told is not None
    assert told.state == "FAILED"
    assert queries.events(task_id)[0].data == story


@pytest.mark.parametrize("separator", ["", "\x1f", "\x1e"], ids=["none", "US", "RS"])
def test_the_texts_of_a_batch_stay_apart(
    log: SQLAuditLog, journal: Journal, separator: str
) -> None:
    texts = [
        None, "NULL", "None", "", '"', "\\", '\\"', '","', "{}", ",", " a ", "é", "a\tb\nc", "%s",
        separator, f"a{separator}b", f'"{separator}"',
    ]  # fmt: skip
    stories = [STORY | {"args": one} for one in texts]
    take(log, [journal.event("SCHEDULED", f"t{i:02}", one) for i, one in enumerate(stories)])

    assert [one["argsrepr"] for one in rows(log.database)["task"]] == texts


@pytest.mark.parametrize(
    "fields",
    [{"run": 2**63}, {"run": -1}, {"version": 2**31}, {"eta_ms": 2**63}],
    ids=["run", "negative run", "version", "eta"],
)
def test_an_event_that_no_table_can_hold_is_left_out_and_said(
    log: SQLAuditLog,
    queries: AuditQueries,
    journal: Journal,
    fields: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = journal.event("STARTED", "bad", **fields)
    take(log, [*journal.life("one"), bad])

    assert queries.counts() == {"SUCCEEDED": 1}
    assert log.position(0, EPOCH).last_id == bad.stream_id
    assert [one.__dict__["event"] for one in caplog.records] == ["events_unreadable"]


@pytest.mark.parametrize("data", [["a"], "text", 7, None])
def test_data_of_another_kind_tell_nothing(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal, data: Any
) -> None:
    take(log, [one._replace(data=data) for one in journal.life()])

    assert state(queries) == ("SUCCEEDED", T0)


@pytest.mark.parametrize("value", ["x", None, 2**70, float("nan"), [1]])
def test_numbers_of_another_kind_are_left_out(
    log: SQLAuditLog, queries: AuditQueries, journal: Journal, value: Any
) -> None:
    take(
        log,
        [
            journal.event("SCHEDULED", data=STORY | {"group_index": value}),
            journal.event("DISPATCHED", data={"lag_ms": value}),
        ],
    )

    assert queries.runs("one")[0].lag_ms is None


# --- several processes ---------------------------------------------------------------------

_DRAIN = """
    import sys
    from celery_delay.audit.log import SQLAuditLog
    from celery_delay.exceptions import AuditUnavailable
    from tests.contract.audit_rows import EPOCH, Journal

    url, tasks = sys.argv[1], int(sys.argv[2])
    journal = Journal()
    events = [one for number in range(tasks) for one in journal.life(f"task-{number}")]
    places = {one.stream_id: number for number, one in enumerate(events)}
    log = SQLAuditLog(url)
    taken = 0
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        try:
            position = log.position(0, EPOCH)
            begin = places.get(position.last_id, -1) + 1
            batch = events[begin : begin + 10]
            if not batch:
                break
            if log.take(position, batch, batch[-1].stream_id) is not None:
                taken += len(batch)
        except AuditUnavailable as exc:
            print("away", exc, file=sys.stderr)
    print(taken)
"""


def drainer(url: str, tasks: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        die_with_parent([sys.executable, "-c", textwrap.dedent(_DRAIN), url, str(tasks)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


def test_two_processes_that_drain_at_once_write_each_event_once(
    log: SQLAuditLog, sql_url: str, audit: Database, queries: AuditQueries
) -> None:
    tasks = 200
    drainers = [drainer(sql_url, tasks) for _ in range(2)]
    for one in drainers:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    taken = [int(one.communicate("go\n", timeout=60)[0]) for one in drainers]

    assert sum(taken) == 4 * tasks
    assert len(rows(audit)["event"]) == 4 * tasks
    assert queries.counts() == {"SUCCEEDED": tasks}


def test_a_forked_child_has_connections_of_its_own(
    log: SQLAuditLog, audit: Database, queries: AuditQueries, journal: Journal
) -> None:
    take(log, journal.life("before"))
    mine = audit.engine
    child = os.fork()
    if child == 0:  # what pytest has set up is not the child's to take down
        try:
            assert audit.engine is not mine
            take(log, journal.life("child"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert audit.engine is mine
    for _ in range(4):
        journal.event("SCHEDULED")  # the child's stream ids
    take(log, journal.life("after"))

    assert queries.counts() == {"SUCCEEDED": 3}


_HOLD = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    connection.execute("CREATE TABLE held (x)")
    print("held", flush=True)
    sys.stdin.readline()
    connection.execute("ROLLBACK")
"""


def test_while_another_process_holds_an_sqlite_file_nothing_is_lost(
    tmp_path: Path, journal: Journal
) -> None:
    log = SQLAuditLog(Database(f"sqlite:///{tmp_path}/audit.db", timeout=1.0))
    log.migrate()
    events = journal.life()
    take(log, events[:2])
    log.close()  # else the other process would not get its exclusive lock
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_HOLD), str(tmp_path / "audit.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    for step in (lambda: log.position(0, EPOCH), log.prepare, log.migrate):
        with pytest.raises(AuditUnavailable, match="locked"):
            step()
    with pytest.raises(AuditUnavailable, match="locked"):
        log.take(JournalPosition(0, EPOCH, events[1].stream_id), events[2:], events[3].stream_id)
    holder.communicate("let go\n", timeout=10)

    assert log.position(0, EPOCH).last_id == events[1].stream_id
    take(log, events[2:])
    assert AuditQueries(log.database).events("one") == events
    log.close()


# --- the database itself -------------------------------------------------------------------


def test_prepare_makes_sqlite_ready_and_a_server_needs_migrate(database: Database) -> None:
    log = SQLAuditLog(database)
    assert log.uuid() is None

    if not database.is_sqlite:
        with pytest.raises(SchemaOutdated, match="delay migrate"):
            log.prepare()
        log.migrate()

    uuid = log.prepare()
    assert uuid == log.prepare() == log.migrate() == log.uuid()


def test_a_statement_that_fails_says_why_but_not_what_about(
    log: SQLAuditLog, audit: Database, journal: Journal
) -> None:
    with audit.writing() as connection:
        connection.execute(text("DROP TABLE celery_delay_task"))

    with pytest.raises(AuditUnavailable) as raised:
        take(log, journal.life())

    assert "celery_delay_task" in str(raised.value)
    assert "12345" not in f"{raised.value} {raised.value.__cause__}"


def test_close_leaves_no_connection(log: SQLAuditLog, audit: Database, journal: Journal) -> None:
    take(log, journal.life())
    pool = audit.engine.pool
    assert pool.checkedin() == 1  # type: ignore[attr-defined]
    log.close()
    assert pool.checkedin() == 0  # type: ignore[attr-defined]


def test_what_is_kept_of_data_is_json(log: SQLAuditLog, audit: Database, journal: Journal) -> None:
    data = {"error": "día\n\t\"'\\", "deep": {"list": [1, None, True]}}
    take(log, [journal.event("FAILED", data=data)])

    (row,) = rows(audit)["event"]
    assert json.loads(row["data"]) == data


def all_states(journal: Journal) -> list[Event]:
    return [journal.event(one.value, f"is-{one.value}") for one in State]


def test_counts_tell_each_state(log: SQLAuditLog, queries: AuditQueries, journal: Journal) -> None:
    take(log, all_states(journal))

    assert queries.counts() == {one.value: 1 for one in State}
