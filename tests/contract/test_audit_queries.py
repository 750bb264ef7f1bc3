"""What is read back from the audit: tasks by every filter, waiting entries, the schema's state."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text

from celery_delay.audit import recent
from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.outcomes import SQLRunLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.tables import tag, task
from celery_delay.audit.version import VERSION_TABLE
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.domain.answers import Lag
from celery_delay.domain.entries import EntryId
from celery_delay.exceptions import SchemaOutdated
from tests.contract.audit_rows import EPOCH, STORY, T0, Journal, take

MINUTE = 60_000


@pytest.fixture
def log(audit: Database) -> SQLAuditLog:
    return SQLAuditLog(audit)


@pytest.fixture
def queries(audit: Database) -> AuditQueries:
    return AuditQueries(audit)


@pytest.fixture
def waiting(audit: Database) -> SQLWaitingEntries:
    return SQLWaitingEntries(audit)


LABELS: dict[int, dict[str, Any]] = {
    0: {"namespace": "acme", "tags": ["red", "blue"]},
    2: {"namespace": "Acme", "tags": ["red"]},
    3: {"tags": ["red", "red", "x" * 200]},
}


@pytest.fixture
def shop(log: SQLAuditLog) -> None:
    """Five tasks, a minute apart: of two names, on two queues, in three states."""
    journal = Journal()
    for number, (name, queue, *more) in enumerate(
        [
            ("pay", "celery"),
            ("pay", "celery\x06\x163", "DISPATCHED"),
            ("mail", "celery2"),
            ("mail", "mail_%", "DISPATCHED", "STARTED"),
            ("Pay", "mailXY"),
        ]
    ):
        story = STORY | {"name": name, "queue": queue} | LABELS.get(number, {})
        eta = T0 + number * MINUTE
        take(
            log,
            [
                journal.event("SCHEDULED", f"t{number}", story, eta_ms=eta),
                *(journal.event(one, f"t{number}", eta_ms=eta) for one in more),
            ],
        )


EVERY = ("SCHEDULED", "DISPATCHED", "STARTED")


ANY: dict[str, Any] = {
    "queue": None, "namespace": None, "tags": (), "after_ms": None, "before_ms": None,
}  # fmt: skip
FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "t0 t1 t2 t3 t4"),
    ({"states": ["SCHEDULED"]}, "t0 t2 t4"),
    ({"states": ["STARTED", "FAILED"]}, "t3"),
    ({"states": []}, ""),
    ({"name": "pay"}, "t0 t1"),
    ({"name": "Pay"}, "t4"),
    ({"name": "p%"}, ""),
    ({"namespace": "acme"}, "t0"),
    ({"namespace": "nobody"}, ""),
    ({"tags": ["red"]}, "t0 t2 t3"),
    ({"tags": ["red", "blue"]}, "t0"),
    ({"tags": ["red", "green"]}, ""),
    ({"tags": ["red"], "states": ["STARTED"]}, "t3"),
    ({"pattern": "m*l"}, "t2 t3"),
    ({"pattern": "m?il"}, "t2 t3"),
    ({"pattern": "[m]ail"}, "t2 t3"),
    ({"pattern": "m%"}, ""),
    ({"behind": (T0 + MINUTE, "t1")}, "t2 t3 t4"),
    ({"behind": (T0 + MINUTE, "t0")}, "t1 t2 t3 t4"),
    ({"behind": (T0 + MINUTE, "t2"), "limit": 1}, "t2"),
    ({"behind": (T0 + MINUTE, "t1"), "latest_first": True}, "t0"),
    ({"behind": (T0 + MINUTE, "t2"), "latest_first": True}, "t1 t0"),
    # with all its priorities, and nobody else
    ({"queue": "celery"}, "t0 t1"),
    # what a pattern would take for any letters
    ({"queue": "mail_%"}, "t3"),
    ({"after_ms": T0 + MINUTE}, "t1 t2 t3 t4"),
    ({"before_ms": T0 + MINUTE}, "t0 t1"),
    ({"after_ms": T0 + MINUTE, "before_ms": T0 + MINUTE}, "t1"),
    ({"latest_first": True}, "t4 t3 t2 t1 t0"),
    ({"limit": 2}, "t0 t1"),
    ({"limit": 2, "latest_first": True}, "t4 t3"),
    ({"name": "mail", "queue": "celery2", "states": ["SCHEDULED"]}, "t2"),
]


@pytest.mark.usefixtures("shop")
def test_numbers_are_told_by_name(queries: AuditQueries) -> None:
    told = queries.numbers(states=EVERY, **{**ANY, "tags": ["red"]})

    assert dict(told) == {"pay": 1, "mail": 2}


def test_tags_of_all_runs_are_kept_and_told_once(
    audit: Database, log: SQLAuditLog, queries: AuditQueries
) -> None:
    journal = Journal()
    both = [
        journal.event("SCHEDULED", "one", STORY | {"namespace": "n", "tags": ["a", "b"]}),
        journal.event("SCHEDULED", "one", STORY | {"tags": ["b", "c"]}, run=T0 + 1),
        journal.event("SCHEDULED", "two", STORY | {"tags": ["a", None, 7], "namespace": 8}),
        journal.event("SCHEDULED", "three", STORY | {"tags": "a"}),
        journal.event("HELD", "one", {"by": "me"}, run=T0 + 1, version=2),
    ]
    take(log, both[:1])
    take(log, both[1:])

    with audit.reading() as connection:
        rows = connection.execute(select(tag.c.tag, tag.c.task_id)).all()
        names = connection.execute(select(task.c.task_id, task.c.namespace)).all()
    assert sorted(map(tuple, rows)) == [
        ("", "two"), ("7", "two"), ("a", "one"), ("a", "two"), ("b", "one"), ("c", "one"),
    ]  # fmt: skip
    assert dict(map(tuple, names)) == {"one": "n", "two": "8", "three": None}


@pytest.mark.usefixtures("shop")
def test_tasks_by_each_filter(queries: AuditQueries) -> None:
    for filters, found in FILTERS:
        told = queries.tasks(**{"states": EVERY, **filters})

        assert [one.task_id for one in told] == found.split(), filters


def test_what_nobody_has_heard_of(log: SQLAuditLog, queries: AuditQueries) -> None:
    assert queries.task("none") is None
    assert queries.runs("none") == queries.events("none") == []
    assert queries.counts() == {}
    assert queries.tasks(states=EVERY) == []
    assert queries.numbers(states=EVERY, **ANY) == []


def test_events_are_told_in_the_journals_order_over_all_histories(
    log: SQLAuditLog, queries: AuditQueries
) -> None:
    old, new = Journal(epoch=5), Journal(epoch=6)
    # later by the clock, and of the older history
    late = old.event("SCHEDULED", at_ms=T0 + 99, stream_id=f"{T0 + 99}-0")
    take(log, [late], epoch=5)
    events = [new.event("SCHEDULED", stream_id=f"{T0}-{number}") for number in (9, 10, 11)]
    take(log, events, epoch=6)

    assert queries.events("one") == [late, *events]


# --- waiting entries -------------------------------------------------------------------------


def test_waiting_entries_come_in_pages_and_each_once(
    log: SQLAuditLog, waiting: SQLWaitingEntries
) -> None:
    journal = Journal()
    events = [
        one
        for number in range(20)
        for one in journal.life(f"t{number:02}", "SCHEDULED", run=T0 + number % 2)
    ]
    # two entries of one task id, ids that differ in case only, and what waits no more
    events += journal.life("t05", "SCHEDULED", run=T0 + 7)
    events += journal.life("T05", "SCHEDULED")
    events += journal.life("t10", "DISPATCHED")
    events += journal.life("t11", "CANCELLED", run=T0 + 1)
    take(log, events)

    pages, after = [], None
    while page := waiting.waiting(after, 6):
        pages.append(page)
        after = page[-1]

    found = [one for page in pages for one in page]
    assert [len(page) for page in pages] == [6, 6, 6, 2]
    assert len(set(found)) == len(found) == 20
    assert {one.task_id for one in found if one.task_id.lower() == "t05"} == {"t05", "T05"}
    assert EntryId("t05", T0 + 1) in found
    assert EntryId("t05", T0 + 7) in found
    assert not {"t10", "t11"} & {one.task_id for one in found}


def test_still_waiting_is_about_the_very_entry(
    log: SQLAuditLog, waiting: SQLWaitingEntries
) -> None:
    journal = Journal()
    take(log, [*journal.life("one", "SCHEDULED"), *journal.life("two", "SCHEDULED", "LOST")])
    asked = [EntryId("two", T0), EntryId("one", T0 + 1), EntryId("one", T0), EntryId("none", T0)]

    assert waiting.still_waiting(asked) == [EntryId("one", T0)]
    assert waiting.still_waiting([]) == []


def test_many_waiting_entries_are_asked_for_at_once(
    log: SQLAuditLog, waiting: SQLWaitingEntries
) -> None:
    journal = Journal()
    take(log, [one for n in range(1_000) for one in journal.life(f"t{n:04}", "SCHEDULED")])

    page = waiting.waiting(None, 1_000)

    assert len(page) == 1_000
    assert waiting.still_waiting(page) == page


# --- the schema's state ----------------------------------------------------------------------


def test_the_state_of_the_tables_is_told_and_nothing_is_made(
    database: Database,
) -> None:
    queries = AuditQueries(database)
    assert queries.schema() == ("missing", None)
    with pytest.raises(SchemaOutdated, match=r"do not exist yet.*delay migrate"):
        queries.counts()

    uuid = SQLAuditLog(database).migrate()
    assert queries.schema() == ("current", uuid)

    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    assert queries.schema() == ("newer", uuid)
    with pytest.raises(SchemaOutdated, match="newer"):
        queries.counts()

    with database.writing() as connection:
        connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))
    assert queries.schema() == ("outdated", uuid)
    with pytest.raises(SchemaOutdated, match=r"older release.*delay migrate"):
        queries.counts()


# --- the recent past ---------------------------------------------------------------------


def test_the_recent_past_counts_states_and_lags(log: SQLAuditLog, queries: AuditQueries) -> None:
    # Given hand-offs that were 1 to 100 ms late, one of another shard, and one of long ago
    journal, other = Journal(), Journal(shard=1)
    late = [journal.event("DISPATCHED", f"t{n}", {"lag_ms": n}) for n in range(1, 101)]
    old = journal.event("DISPATCHED", "old", {"lag_ms": 9_999}, at_ms=T0 - MINUTE)
    native = journal.event("DISPATCHED", "native", {"native": True})
    take(log, [*late, old, native, journal.event("FAILED", "t1")])
    take(log, [other.event("DISPATCHED", "far", {"lag_ms": 200})], shard=1)

    past = queries.recent(2, T0)

    assert past.since_ms == T0
    assert past.reached == {"DISPATCHED": 102, "FAILED": 1}
    assert past.lag == Lag(101, p50=51, p95=96, p99=100, max=200)
    assert queries.recent(1, T0).reached == {"DISPATCHED": 101, "FAILED": 1}
    assert queries.recent(2, T0 + MINUTE) == (T0 + MINUTE, {}, None, ())


def test_the_recent_past_goes_back_only_so_far(
    log: SQLAuditLog, queries: AuditQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more events than are looked at, of two histories of Redis
    monkeypatch.setattr(recent, "RECENT", 10)
    first, second = Journal(), Journal(epoch=EPOCH + 1)
    take(log, [first.event("SCHEDULED", f"a{n}") for n in range(20)])
    take(
        log,
        [second.event("SCHEDULED", f"b{n}", at_ms=T0 + 100 + n) for n in range(20)],
        epoch=EPOCH + 1,
    )

    past = queries.recent(1, 0)

    assert past.since_ms == T0 + 110
    assert past.reached == {"SCHEDULED": 10}


# --- for whoever counts how runs end -----------------------------------------------------


def test_of_each_run_its_task_and_its_beginning_are_told(log: SQLAuditLog) -> None:
    journal, long = Journal(), "x" * 400
    for task_id in ("a", long):
        story = STORY | {"name": f"task.{task_id[0]}"}
        events = [journal.event("SCHEDULED", task_id, story), journal.event("STARTED", task_id)]
        take(log, events)
    started_ms = {one.entry_id: one.at_ms for one in events}
    (known,) = started_ms
    waiting = journal.event("SCHEDULED", "waits", STORY)
    take(log, [waiting])
    unknown = EntryId("unknown", 1)

    found = SQLRunLog(log.database).runs(
        [known, EntryId("a", known.run), EntryId("a", known.run + 1), waiting.entry_id, unknown]
    )

    assert found == {
        known: ("task.x", started_ms[known]),
        EntryId("a", known.run): ("task.a", found[EntryId("a", known.run)][1]),
        waiting.entry_id: (STORY["name"], None),
    }
    assert found[EntryId("a", known.run)][1] is not None
