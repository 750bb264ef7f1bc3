"""The audit's primary dies under traffic and its standby is promoted: nobody has to be told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from click.testing import CliRunner

from celery_delay.audit.database import Database
from celery_delay.audit.queries import AuditQueries
from celery_delay.cli import delay
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import AuditUnavailable
from tests.contract.audit_rows import rows
from tests.faults.traffic import APP, Traffic
from tests.processes import ProcessHarness, wait_until
from tests.projects import make_app, messages
from tests.sql_servers import OwnMariaDB, OwnPostgreSQL, OwnServer

Pair = tuple[OwnServer, OwnServer]


@pytest.fixture(params=[OwnPostgreSQL, OwnMariaDB], ids=["postgresql", "mariadb"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A primary, and a standby without which it commits nothing."""
    options = ()
    if request.param is OwnMariaDB:
        options = ("--log-bin", "--server-id=1")
    primary: OwnServer = request.param(*options)
    try:
        standby: OwnServer = request.param(of=primary)
        try:
            yield primary, standby
        finally:
            standby.close()
    finally:
        primary.close()


def beats_url(primary: OwnServer, standby: OwnServer) -> str | list[str]:
    """libpq knows several hosts of its own; for the others there is a list."""
    if isinstance(primary, OwnMariaDB):
        return [primary.url, standby.url]
    hosts = f"host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
    return f"postgresql+psycopg://postgres@/shop_audit?{hosts}&target_session_attrs=read-write"


def test_after_a_promotion_beats_and_people_go_on_and_the_audit_is_complete(
    pair: Pair,
    redis_server: EmbeddedRedis,
    harness: Callable[..., ProcessHarness],
    tmp_path: Path,
) -> None:
    # Given two beats that drain to a primary
    primary, standby = pair
    (tmp_path / "kept.py").write_text(APP)
    url = redis_server.tcp_url
    conf = {"delay_drain_interval": 0.01, "delay_database_timeout": 2, "delay_drain_batch": 20}
    # the standby first, since whoever lists them need not know who is who
    app = make_app(url, **conf, delay_database_url=[standby.url, primary.url])
    app.delayed.audit_log.migrate()
    conf["delay_database_url"] = beats_url(primary, standby)
    processes = harness("kept", path=(tmp_path,), env={"URL": url, "CONF": json.dumps(conf)})
    beats = [processes.beat(name) for name in ("one", "two")]
    wait_until(lambda: any("leads (term" in one.output() for one in beats), 20, "a leader")
    traffic = Traffic(app, redis.Redis.from_url(url))
    queries = AuditQueries(app.delayed.audit_log.database)
    traffic.flows(100)
    wait_until(lambda: queries.counts().get("DISPATCHED", 0) > 50, 20, "drained")

    # When it dies under traffic, and its standby is not promoted at once
    primary.kill()
    traffic.flows(50)
    with pytest.raises(AuditUnavailable, match="takes no writes"):
        queries.counts()
    standby.promote()
    traffic.flows(50)

    # Then the audit has each event of each task once, also those of before
    alone = Database(standby.url)
    everything = {"DISPATCHED": len(traffic.sent)}
    wait_until(lambda: AuditQueries(alone).counts() == everything, 60, "the audit is complete")
    told = Counter((one["task_id"], one["state"]) for one in rows(alone)["event"])
    assert told == dict.fromkeys(product(traffic.sent, ("SCHEDULED", "DISPATCHED")), 1)
    queued = Counter(one["headers"]["id"] for one in messages(app))
    assert queued == dict.fromkeys(traffic.sent, 1)
    # and the command line asks the new primary
    context = SimpleNamespace(app=app, no_color=False)
    answer = CliRunner().invoke(delay, ["history", "task-0", "--json"], obj=context)
    assert answer.exit_code == 0, answer.output
    assert [one["state"] for one in json.loads(answer.stdout)["events"]] == [
        "SCHEDULED",
        "DISPATCHED",
    ]
    alone.close()
    app.delayed.audit_log.close()
    app.close()
