"""Deleting from the audit: what is old, in bounded batches, and one task by its id."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import func, select

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.pruning import SQLPruning
from celery_delay.audit.queries import AuditQueries
from celery_delay.audit.tables import entry, event, task
from celery_delay.exceptions import StillAlive
from tests.contract.audit_rows import T0, Journal, take

DAY = 86_400_000
TABLES = (task, entry, event)


@pytest.fixture
def pruning(audit: Database) -> SQLPruning:
    return SQLPruning(audit)


def tell(audit: Database, *stories: tuple[str, list[str], int], **fields: Any) -> None:
    """Each story: task id, its states, and when they all happened."""
    journal = Journal()
    events = [
        journal.event(one, task_id, at_ms=at_ms, eta_ms=at_ms, **fields)
        for task_id, states, at_ms in stories
        for one in states
    ]
    take(SQLAuditLog(audit), events)


def left(audit: Database) -> list[set[str]]:
    with audit.reading() as connection:
        return [set(connection.scalars(select(one.c.task_id))) for one in TABLES]


ENDED = ["SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED"]


def test_what_is_old_goes_with_all_its_rows_and_the_rest_stays(
    audit: Database, pruning: SQLPruning
) -> None:
    tell(
        audit,
        ("old", ENDED, T0),
        ("new", ENDED, T0 + DAY),
        ("failed", [*ENDED[:3], "FAILED"], T0),
    )

    assert pruning.count("SUCCEEDED", T0 + DAY) == 1
    assert pruning.prune("SUCCEEDED", T0 + DAY) == 1

    assert left(audit) == [{"new", "failed"}] * 3
    assert pruning.prune("SUCCEEDED", T0 + DAY) == 0


def test_a_batch_is_bounded_and_takes_the_oldest(audit: Database, pruning: SQLPruning) -> None:
    tell(audit, *((f"t{n}", ENDED, T0 + n) for n in range(10)))

    assert pruning.prune("SUCCEEDED", T0 + DAY, 4) == 4
    assert left(audit) == [{f"t{n}" for n in range(4, 10)}] * 3
    assert [pruning.prune("SUCCEEDED", T0 + DAY, 4) for _ in range(3)] == [4, 2, 0]


def test_what_was_due_long_ago_and_changed_lately_is_young(
    audit: Database, pruning: SQLPruning
) -> None:
    tell(audit, ("one", ["SCHEDULED"], T0))
    take(SQLAuditLog(audit), [Journal(epoch=T0).event("CANCELLED", "one", at_ms=T0 + DAY)])

    assert pruning.prune("CANCELLED", T0 + DAY) == 0
    assert pruning.prune("CANCELLED", T0 + DAY + 1) == 1


def test_a_task_with_an_entry_that_waits_stays(audit: Database, pruning: SQLPruning) -> None:
    journal = Journal()
    take(
        SQLAuditLog(audit),
        [
            journal.event("SCHEDULED", "one", run=T0, eta_ms=T0),
            journal.event("SUCCEEDED", "one", run=T0 + 1, eta_ms=T0),
        ],
    )

    assert pruning.count("SUCCEEDED", T0 + DAY) == 0
    assert pruning.prune("SUCCEEDED", T0 + DAY) == 0
    assert "one" in left(audit)[0]


def test_two_who_prune_at_once_delete_each_task_once(audit: Database, pruning: SQLPruning) -> None:
    tell(audit, *((f"t{n}", ENDED, T0 + n) for n in range(200)))
    done: list[int] = []

    def prune() -> None:
        while number := pruning.prune("SUCCEEDED", T0 + DAY, 20):
            done.append(number)

    threads = [threading.Thread(target=prune) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    while number := pruning.prune("SUCCEEDED", T0 + DAY, 20):
        done.append(number)
    assert sum(done) == 200
    assert left(audit) == [set(), set(), set()]


def test_more_than_one_statement_can_name_goes_in_one_batch(
    audit: Database, pruning: SQLPruning
) -> None:
    tell(audit, *((f"t{n}", ["SCHEDULED", "CANCELLED"], T0) for n in range(450)))

    assert pruning.prune("CANCELLED", T0 + DAY, 1000) == 450
    assert left(audit) == [set(), set(), set()]


def test_one_task_is_forgotten(audit: Database, pruning: SQLPruning) -> None:
    tell(audit, ("one", ENDED, T0), ("other", ENDED, T0))

    assert pruning.forget("one") is True
    assert pruning.forget("one") is False
    assert left(audit) == [{"other"}] * 3


@pytest.mark.parametrize("state", ["SCHEDULED", "HELD", "QUARANTINED"])
def test_what_waits_is_not_forgotten(audit: Database, pruning: SQLPruning, state: str) -> None:
    tell(audit, ("one", ["SCHEDULED", state], T0))

    with pytest.raises(StillAlive, match="cancel it first"):
        pruning.forget("one", force=True)
    assert left(audit) == [{"one"}] * 3


@pytest.mark.parametrize("state", ["DISPATCHED", "STARTED", "RETRIED"])
def test_what_may_run_is_forgotten_by_force_only(
    audit: Database, pruning: SQLPruning, state: str
) -> None:
    tell(audit, ("one", ["SCHEDULED", state], T0))

    with pytest.raises(StillAlive, match="force"):
        pruning.forget("one")
    assert pruning.forget("one", force=True) is True
    assert left(audit) == [set()] * 3


def test_the_oldest_transition_is_told(audit: Database, pruning: SQLPruning) -> None:
    queries = AuditQueries(audit)
    assert queries.oldest_ms(2) is None
    tell(audit, ("one", ENDED, T0 + 5), ("two", ENDED, T0 + DAY))

    assert queries.oldest_ms(2) == T0 + 5
    pruning.prune("SUCCEEDED", T0 + DAY)
    assert queries.oldest_ms(2) == T0 + DAY
    with audit.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(task)) == 1


def test_what_ended_before_it_was_due_is_old_from_its_end(
    audit: Database, pruning: SQLPruning
) -> None:
    journal = Journal()
    far = T0 + 365 * DAY
    events = [journal.event("SCHEDULED", name, at_ms=T0, eta_ms=far) for name in ("one", "two")]
    # a native retry waits in a worker
    take(SQLAuditLog(audit), [
        *events,
        journal.event("CANCELLED", "one", at_ms=T0 + 1, eta_ms=None),
        journal.event("DISPATCHED", "two", at_ms=T0 + 1, eta_ms=far),
    ])  # fmt: skip

    assert [pruning.prune(one, T0 + DAY) for one in ("CANCELLED", "DISPATCHED")] == [1, 0]
    assert left(audit) == [{"two"}] * 3
    assert pruning.prune("DISPATCHED", far + 1) == 1


def test_gaps_go_by_their_own_age_a_batch_at_a_time(audit: Database, pruning: SQLPruning) -> None:
    journal = Journal()
    gaps = [
        journal.event("GAP", "-", {"missing": 1}, run=0, version=0, eta_ms=None, at_ms=T0 + number)
        for number in range(10)
    ]
    take(SQLAuditLog(audit), [*gaps, *journal.life("one", at_ms=T0, eta_ms=T0)])

    assert pruning.count("GAP", T0 + 5) == 5
    assert [pruning.prune("GAP", T0 + 5, 3) for _ in range(3)] == [3, 2, 0]

    with audit.reading() as connection:
        kept = select(event.c.at_ms).where(event.c.state == "GAP").order_by(event.c.at_ms)
        assert list(connection.scalars(kept)) == [T0 + number for number in range(5, 10)]
    assert left(audit)[2] == {"-", "one"}
