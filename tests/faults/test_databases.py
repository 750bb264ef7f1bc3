"""The audit's database crashes under traffic: tasks keep flowing, and nothing is told twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import redis

from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
from celery_delay.audit.queries import AuditQueries
from celery_delay.embedded import EmbeddedRedis
from tests.contract.audit_rows import rows
from tests.faults.traffic import APP, Traffic
from tests.processes import ProcessHarness, wait_until
from tests.projects import make_app, messages
from tests.sql_servers import OwnMariaDB, OwnPostgreSQL, OwnServer


@pytest.fixture(scope="module", params=[OwnPostgreSQL, OwnMariaDB], ids=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[OwnServer]:
    server: OwnServer = request.param()
    yield server
    server.close()


def test_a_database_that_crashes_holds_nothing_up_and_ends_complete(
    server: OwnServer,
    redis_server: EmbeddedRedis,
    harness: Callable[..., ProcessHarness],
    tmp_path: Path,
) -> None:
    # Given two beats that drain to it as fast as they can
    (tmp_path / "kept.py").write_text(APP)
    url, conf = redis_server.tcp_url, {
        "delay_database_url": server.url, "delay_drain_interval": 0.01, "delay_database_timeout": 2,
        "delay_drain_batch": 20,
    }  # fmt: skip
    log = SQLAuditLog(Database(server.url))
    log.migrate()
    processes = harness("kept", path=(tmp_path,), env={"URL": url, "CONF": json.dumps(conf)})
    beats = [processes.beat(name) for name in ("one", "two")]
    wait_until(lambda: any("leads (term" in one.output() for one in beats), 20, "a leader")
    app = make_app(url, **conf)
    traffic = Traffic(app, redis.Redis.from_url(url))
    queries = AuditQueries(log.database)
    traffic.flows(50)
    wait_until(lambda: sum(queries.counts().values()) > 20, 20, "drained")

    # When it crashes under traffic, twice, and stays away for a while
    for _ in range(2):
        server.kill()
        # Then tasks go on as before
        traffic.flows(100)
        server.start()
        traffic.flows(100)
        wait_until(lambda: "DISPATCHED" in queries.counts(), 20, "it is there again")

    # and in the end the audit has each event once
    everything = {"DISPATCHED": len(traffic.sent)}
    wait_until(lambda: queries.counts() == everything, 60, "the audit is complete")
    told = Counter((one["task_id"], one["state"]) for one in rows(log.database)["event"])
    assert told == dict.fromkeys(product(traffic.sent, ("SCHEDULED", "DISPATCHED")), 1)
    queued = Counter(one["headers"]["id"] for one in messages(app))
    assert queued == dict.fromkeys(traffic.sent, 1)
    assert any("keeps trying" in one.output() for one in beats)
    log.close()
    app.close()
