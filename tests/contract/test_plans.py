"""What the product asks of the audit is answered by an index, on a table of any size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice

import pytest

from celery_delay.audit.backed import SQLBackedRows
from celery_delay.audit.cold import SQLColdRows
from celery_delay.audit.comparing import SQLComparable
from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.domain.entries import EntryId
from celery_delay.domain.states import State
from tests.plans import plan_of, recorded
from tests.questions import questions
from tests.synthetic import fill

#: So few that it takes seconds, and more than any question may look at; 5 000 000 are asked by
#: ``tests/benchmarks/run.py --only history``.
TASKS = 20_000
PAYLOAD = re.compile("celery_delay_payload")


def test_no_question_reads_a_table_from_end_to_end(database: Database) -> None:
    SQLAuditLog(database).migrate()
    fill(database, TASKS)
    asked = questions(database, TASKS)

    for question in asked:
        with recorded(database) as statements:
            question.ask()
        rows = 0
        for one in statements:
            with database.reading() as connection:
                plan = plan_of(connection, one)
                connection.rollback()
            assert plan.scanned == set(), (question.name, plan.steps)
            rows += plan.rows or 0
        assert statements, question.name
        assert question.counts or rows <= question.rows, (question.name, rows)


@pytest.fixture
def without_statistics(database: Database) -> Database:
    SQLAuditLog(database).migrate()
    with database.engine.begin() as connection:
        run = connection.exec_driver_sql
        run("ALTER TABLE celery_delay_payload SET (autovacuum_enabled = off)").close()
        run(
            "INSERT INTO celery_delay_payload SELECT 'task-' || n, 1, 0, 1, 1, 'SCHEDULED',"
            " CASE WHEN mod(n, 2) = 0 THEN 'cold' ELSE 'hot' END, n, 1, 0, NULL, ''"
            " FROM generate_series(1, 20000) AS n"
        ).close()
    return database


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
def test_a_table_without_statistics_is_not_read_from_end_to_end(
    without_statistics: Database,
) -> None:
    database = without_statistics
    rows = SQLBackedRows(database)

    with recorded(database, PAYLOAD) as statements:
        rows.some([EntryId(f"task-{n}", 2) for n in range(400)])

    [one] = statements
    with database.reading() as connection:
        plan = plan_of(connection, one)
        connection.rollback()
    assert plan.steps
    assert [one for one in plan.steps if one.startswith("Seq Scan")] == []


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("asked", ["cold", "latest", "comparing"])
def test_a_page_without_statistics_reads_no_more_than_a_page(
    without_statistics: Database, asked: str
) -> None:
    database = without_statistics
    cold = SQLColdRows(database)
    ask: dict[str, Callable[[], Iterable[object]]] = {
        "cold": lambda: cold.page(0, [State.SCHEDULED], after=(0, ""), before_ms=10**12, limit=50),
        "latest": lambda: cold.latest(0, 0, None, 50),
        "comparing": lambda: islice(SQLComparable(database).between(0, (0, ""), None), 50),
    }

    with recorded(database, PAYLOAD) as statements:
        assert len(list(ask[asked]())) == 50

    [one] = statements
    with database.paging() as connection:
        plan = plan_of(connection, one)
        connection.rollback()
    assert plan.rows is not None
    assert plan.rows < 2_500
