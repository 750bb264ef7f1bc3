"""What the product asks of the audit is answered by an index, on a table of any size."""

from __future__ import annotations

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from tests.plans import plan_of, recorded
from tests.questions import questions
from tests.synthetic import fill

#: So few that it takes seconds, and more than any question may look at; 5 000 000 are asked by
#: ``tests/benchmarks/run.py --only history``.
TASKS = 20_000


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
                if connection.dialect.name == "postgresql":
                    # a table that small is read in full with good reason, if that is allowed
                    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                plan = plan_of(connection, one)
                connection.rollback()
            assert plan.scanned == set(), (question.name, plan.steps)
            rows += plan.rows or 0
        assert statements, question.name
        assert question.counts or rows <= question.rows, (question.name, rows)
