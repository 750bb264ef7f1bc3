"""A Redis that is emptied while tasks wait: they are LOST, and nobody waits for them in vain."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from celery_delay.audit.queries import AuditQueries
from celery_delay.domain.states import State
from celery_delay.embedded import EmbeddedRedis
from tests.processes import ProcessHarness, wait_until
from tests.projects import make_app

APP = """
import os
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("lost", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.delay_database_url = os.environ["DATABASE"]
CeleryDelay(app)
"""


def test_an_emptied_redis_loses_tasks_loudly(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    # Given a beat that has told SQL of ten waiting tasks
    url, database = redis_server.tcp_url, f"sqlite:///{tmp_path}/audit.db"
    (tmp_path / "lost.py").write_text(APP)
    app = make_app(url, delay_database_url=database)

    @app.task(shared=False, name="later")
    def task() -> None: ...

    processes = ProcessHarness(
        tmp_path, "lost", path=(tmp_path,), env={"URL": url, "DATABASE": database}
    )
    try:
        beat = processes.beat()
        beat.wait_for_log(r"leads \(term")
        results = [task.apply_delayed(countdown=3600) for _ in range(10)]
        queries = AuditQueries(app.delayed.audit_log.database)
        wait_until(lambda: queries.counts().get("SCHEDULED") == 10, what="drained")

        # When Redis is emptied, and another task scheduled after that
        redis.Redis.from_url(url).flushall()
        kept = task.apply_delayed(countdown=3600)

        # Then the ten are LOST in the log, in SQL and as results, and the other one waits
        beat.wait_for_log("10 delayed tasks are LOST")
        wait_until(lambda: queries.counts().get("LOST") == 10, what="LOST in SQL")
        for result in results:
            with pytest.raises(LookupError, match="Redis lost the delayed task"):
                result.get(timeout=5)
        assert kept.delay_state is State.SCHEDULED
        assert kept.cancel()
    finally:
        processes.close()
