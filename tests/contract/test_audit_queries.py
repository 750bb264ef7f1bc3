"""What is read back from the audit: tasks by every filter, waiting entries, the schema's state."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from celery_delay.audit import schema
from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.waiting import SQLWaitingEntries
from celery_delay.entries import EntryId
from celery_delay.exceptions import SchemaOutdated
from tests.contract.audit_rows import STORY, T0, Journal, take

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
        story = STORY | {"name": name, "queue": queue}
        eta = T0 + number * MINUTE
        take(
            log,
            [
                journal.event("SCHEDULED", f"t{number}", story, eta_ms=eta),
                *(journal.event(one, f"t{number}", eta_ms=eta) for one in more),
            ],
        )


EVERY = ("SCHEDULED", "DISPATCHED", "STARTED")


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "t0 t1 t2 t3 t4"),
    ({"states": ["SCHEDULED"]}, "t0 t2 t4"),
    ({"states": ["STARTED", "FAILED"]}, "t3"),
    ({"states": []}, ""),
    ({"name": "pay"}, "t0 t1"),
    ({"name": "Pay"}, "t4"),
    ({"name": "p%"}, ""),
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
def test_tasks_by_each_filter(queries: AuditQueries) -> None:
    for filters, found in FILTERS:
        told = queries.tasks(**{"states": EVERY, **filters})

        assert [one.task_id for one in told] == found.split(), filters


def test_what_nobody_has_heard_of(log: SQLAuditLog, queries: AuditQueries) -> None:
    assert queries.task("none") is None
    assert queries.runs("none") == queries.events("none") == []
    assert queries.counts() == {}
    assert queries.tasks(states=EVERY) == []


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
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    assert queries.schema() == ("newer", uuid)
    with pytest.raises(SchemaOutdated, match="newer"):
        queries.counts()

    with database.writing() as connection:
        connection.execute(text(f"DELETE FROM {schema.VERSION_TABLE}"))
    assert queries.schema() == ("outdated", uuid)
    with pytest.raises(SchemaOutdated, match=r"older release.*delay migrate"):
        queries.counts()
