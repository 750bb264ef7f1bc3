"""``doctor`` in front of what is really broken: servers, rights, clocks, schemas, leaders."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from celery_delay.audit.queries import AuditQueries
from celery_delay.cli import delay
from celery_delay.doctor.checks import NOTE, OK, PROBLEM, UNCHECKED, Check
from tests.projects import close, hand_off, make_app
from tests.sql import migrated

PROJECT = Path(__file__).parent / "project"
#: Nothing listens there.
NOWHERE = "127.0.0.1:9"


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


Make = Callable[..., Celery]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make the app of a project, with an audit in SQLite unless the test has another one."""
    made = []

    def build(url: str, **conf: Any) -> Celery:
        conf = {"delay_database_url": f"sqlite:///{tmp_path}/audit.db", **conf}
        app = make_app(url, **conf)
        app.task(nothing, name="clinic.treat", shared=False)
        made.append(app)
        return app

    yield build
    for app in made:
        close(app)


@pytest.fixture
def own(new_redis: Callable[..., Any]) -> Any:
    """A Redis that the test may break."""
    return new_redis()


def client(server: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket))


def healthy(app: Celery) -> Celery:
    """With tables, and somebody who leads."""
    app.delayed.audit_log.migrate()
    hand_off(app)
    return app


def looked_at(app: Celery) -> dict[str, list[Check]]:
    """What the doctor says, by the name of the check."""
    found: dict[str, list[Check]] = {}
    for one in app.delayed.doctor().checks:
        found.setdefault(one.name, []).append(one)
    return found


def only(found: dict[str, list[Check]], name: str) -> Check:
    [check] = found[name]
    return check


def results(found: dict[str, list[Check]]) -> dict[str, str]:
    """Name → how it ended, the worst of several."""
    order = [OK, NOTE, UNCHECKED, PROBLEM]
    return {
        name: max((one.result for one in some), key=order.index) for name, some in found.items()
    }


def problems(found: dict[str, list[Check]]) -> set[str]:
    return {name for name, result in results(found).items() if result == PROBLEM}


def run(app: Celery, *arguments: str) -> Any:
    obj = SimpleNamespace(app=app, no_color=False)
    return CliRunner().invoke(delay, ["doctor", *arguments], obj=obj)


EVERY = {
    "versions", "settings", "redis", "redis_version", "persistence", "eviction", "memory", "rights",
    "redis_clock", "leader", "backlog", "publishing", "blocked", "gates", "held", "quarantine",
    "journal", "audit", "database_clock", "broker", "path", "visibility_timeout", "results",
}  # fmt: skip

# --- all is well -------------------------------------------------------------------------


@pytest.mark.redis62
def test_a_healthy_system_has_no_problem(make: Make, redis_url: str) -> None:
    app = healthy(make(redis_url))

    found = looked_at(app)

    assert set(found) == EVERY
    assert problems(found) == set()
    assert UNCHECKED not in results(found).values()
    assert "celery 5.7" in only(found, "versions").text
    assert "moved" in only(found, "path").text
    assert "leaves what waits in the store alone" in only(found, "broker").text
    # whatever is not well has a remedy
    assert all(one.remedy for some in found.values() for one in some if one.result != OK)


def test_on_the_command_line_it_is_told_line_by_line_and_as_json(
    make: Make, redis_url: str
) -> None:
    app = healthy(make(redis_url))

    said = run(app)
    assert said.exit_code == 0, said.output
    assert "no problem" in said.stdout
    assert "ok           leader: test at work" in said.stdout
    document = json.loads(run(app, "--json").stdout)
    assert (document["ok"], document["store_away"]) == (True, False)
    assert {one["name"] for one in document["checks"]} == EVERY


def test_it_leaves_nothing_behind(make: Make, redis_url: str) -> None:
    app = healthy(make(redis_url))
    app.tasks["clinic.treat"].apply_delayed((), countdown=3_600)

    def contents() -> dict[bytes, Any]:
        with redis.Redis.from_url(redis_url) as look:
            return {key: look.dump(key) for key in look.scan_iter()}

    before = contents()
    looked_at(app)
    assert contents() == before


# --- Redis -------------------------------------------------------------------------------


def test_a_redis_that_may_evict_tasks(make: Make, own: Any) -> None:
    app = healthy(make(own.broker_url))
    with client(own) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        assert only(looked_at(app), "eviction").result == NOTE  # it has no limit
        admin.config_set("maxmemory", "1gb")

    found = looked_at(app)

    assert problems(found) == {"eviction"}
    assert "noeviction" in only(found, "eviction").remedy
    assert run(app).exit_code == 1


def test_a_redis_that_keeps_nothing(make: Make, own: Any) -> None:
    app = healthy(make(own.broker_url))
    with client(own) as admin:
        admin.config_set("appendonly", "no")
        admin.config_set("save", "")
        assert only(looked_at(app), "persistence").result == PROBLEM
        admin.config_set("save", "3600 1")
        snapshots = only(looked_at(app), "persistence")
        admin.config_set("appendonly", "yes")
        admin.config_set("appendfsync", "no")
        kernel = only(looked_at(app), "persistence")

    assert snapshots.result == NOTE
    assert "3600 1" in snapshots.text
    assert kernel.result == NOTE
    assert "appendfsync everysec" in kernel.remedy


def test_a_redis_that_cannot_write_to_its_disk(make: Make, own: Any) -> None:
    app = healthy(make(own.broker_url))
    with client(own) as admin:
        admin.config_set("stop-writes-on-bgsave-error", "no")
        # a snapshot cannot take its place
        Path(admin.config_get("dir")["dir"], admin.config_get("dbfilename")["dbfilename"]).mkdir()
        admin.bgsave()
        while admin.info("persistence")["rdb_bgsave_in_progress"]:
            app.delayed.clock.sleep(0.02)

    found = looked_at(app)

    assert problems(found) == {"persistence"}
    assert "snapshot failed" in found["persistence"][0].text


def test_a_redis_that_is_nearly_full(make: Make, own: Any) -> None:
    app = healthy(make(own.broker_url))
    with client(own) as admin:
        used = admin.info("memory")["used_memory"]
        admin.config_set("maxmemory", round(used * 1.05))

    found = looked_at(app)

    assert only(found, "memory").result == PROBLEM
    assert "maxmemory" in only(found, "memory").text
    assert only(found, "rights").result == OK, "a full Redis is no missing right"
    assert set(found) == EVERY


def test_a_redis_that_is_away_hides_nothing_else(make: Make, own: Any, redis_url: str) -> None:
    app = healthy(make(own.broker_url, result_backend=redis_url))
    own.stop()

    answer = run(app, "--json")

    assert answer.exit_code == 69
    document = json.loads(answer.stdout)
    assert document["store_away"] is True
    by_name = {one["name"]: one for one in document["checks"]}
    assert by_name["redis"]["result"] == "problem"
    assert "cannot connect" in by_name["redis"]["text"]
    assert by_name["broker"]["result"] == "problem"
    assert by_name["rights"]["result"] == by_name["shards"]["result"] == "not checked"
    for name in ("versions", "settings", "audit", "results"):
        assert by_name[name]["result"] == "ok", by_name[name]
    assert ":password@" not in answer.stdout
    assert run(app).exit_code == 69


def test_a_replica_is_no_store(make: Make, own: Any, redis_server: Any) -> None:
    app = make(own.broker_url)
    with client(own) as admin:
        admin.replicaof("127.0.0.1", redis_server.port)
    assert "replica" in only(looked_at(app), "redis").text


# --- rights ------------------------------------------------------------------------------


@pytest.mark.redis62
@pytest.mark.parametrize(
    ("rules", "told", "granted"),
    [
        (["+@all", "-zadd"], "zadd", "+zadd"),
        (["+@all", "-blpop", "-xadd"], "blpop, xadd", "+blpop +xadd"),
        (["+@all", "-evalsha"], "evalsha", "+evalsha"),
        (["+@all", "resetkeys", "~celery*", "~_kombu*"], "want of keys", "~{celery-delay:*"),
    ],
)
def test_a_missing_right_is_named(
    make: Make,
    redis_server: Any,
    redis_url: str,
    request: pytest.FixtureRequest,
    rules: list[str],
    told: str,
    granted: str,
) -> None:
    address = redis_url.removeprefix("redis://")
    with client(redis_server) as admin:
        admin.execute_command("ACL", "SETUSER", "nurse", "on", ">pw", "~*", "&*", *rules)
        request.addfinalizer(
            lambda: client(redis_server).execute_command("ACL", "DELUSER", "nurse")
        )
    healthy(make(redis_url))
    app = make(f"redis://nurse:pw@{address}")

    check = only(looked_at(app), "rights")

    assert check.result == PROBLEM
    assert "nurse" in check.text
    assert told in check.text
    assert granted in check.remedy


def test_a_user_that_may_look_at_no_configuration_is_no_problem(make: Make, own: Any) -> None:
    with client(own) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-config", "-acl", "-memory")
    app = healthy(make(own.broker_url))

    found = looked_at(app)

    assert problems(found) == set()
    assert UNCHECKED not in results(found).values()
    assert "default" in only(found, "redis").text


# --- clocks ------------------------------------------------------------------------------


class Shifted:
    """A machine whose wall clock is wrong by so many seconds."""

    def __init__(self, clock: Any, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def wall(self) -> float:
        return float(self._clock.wall() + self._seconds)


@pytest.mark.parametrize(
    ("seconds", "result", "way"),
    [(0.1, OK, ""), (-1.2, NOTE, "ahead of"), (1.2, NOTE, "behind"), (60, PROBLEM, "behind")],
)
def test_clocks_that_differ(
    make: Make, redis_url: str, seconds: float, result: str, way: str
) -> None:
    app = healthy(make(redis_url))
    app.delayed.clock = Shifted(app.delayed.clock, seconds)

    check = only(looked_at(app), "redis_clock")

    assert check.result == result
    assert way in check.text
    assert ("chrony" in check.remedy) is (result != OK)


def test_the_database_s_clock_is_compared(make: Make, redis_url: str, sql_url: str) -> None:
    with migrated(sql_url):
        app = make(redis_url, delay_database_url=sql_url)
        hand_off(app)
        right = only(looked_at(app), "database_clock")
        app.delayed.clock = Shifted(app.delayed.clock, 60)
        wrong = only(looked_at(app), "database_clock")

        assert right.result == OK
        assert wrong.result == (OK if sql_url.startswith("sqlite") else PROBLEM)


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
def test_a_postgresql_that_does_not_tidy_its_tables_is_noted(
    make: Make, redis_url: str, sql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with migrated(sql_url) as database:
        with database.reading() as connection:
            is_on = connection.exec_driver_sql("SHOW autovacuum").scalar() == "on"
        app = make(redis_url, delay_database_url=sql_url)

        assert only(looked_at(app), "autovacuum").result == (OK if is_on else NOTE)
        monkeypatch.setattr(AuditQueries, "autovacuum", lambda _: not is_on)
        assert only(looked_at(app), "autovacuum").result == (NOTE if is_on else OK)


# --- who leads ---------------------------------------------------------------------------


def test_nobody_leads(make: Make, redis_url: str) -> None:
    app = make(redis_url)
    app.delayed.audit_log.migrate()
    app.tasks["clinic.treat"].apply_delayed((), eta="2020-01-01T00:00:00Z")

    found = looked_at(app)

    assert problems(found) >= {"leader", "backlog"}
    assert "celery -A proj beat" in only(found, "leader").remedy


def test_a_leader_that_stands_still(
    make: Make, redis_url: str, harness: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    # Given a beat that leads, and is frozen
    conf = {"delay_database_url": f"sqlite:///{tmp_path}/audit.db"}
    settings = {"url": redis_url, "effects": str(tmp_path / "effects"), **conf}
    beats = harness("running", path=(PROJECT,), env={"PROJECT": json.dumps(settings)})
    beat = beats.beat()
    beat.wait_for_log(r"leads \(term")
    app = make(redis_url)
    wait_until(lambda: not problems(looked_at(app)), 20, "a healthy system")
    beat.pause()

    wait_until(lambda: problems(looked_at(app)) >= {"leader"}, 20, "a leader that has stopped")

    beat.resume()
    wait_until(lambda: not problems(looked_at(app)), 20, "that it goes on")


def test_what_is_paused_is_a_note(make: Make, redis_url: str) -> None:
    app = healthy(make(redis_url))
    app.delayed.pause(task="clinic.treat", reason="the clinic is closed")

    check = only(looked_at(app), "gates")

    assert check.result == NOTE
    assert "clinic.treat" in check.text
    assert check.remedy


# --- the audit ---------------------------------------------------------------------------


def test_a_database_that_is_away(make: Make, redis_url: str) -> None:
    app = make(redis_url, delay_database_url=f"postgresql+psycopg://nobody:secret@{NOWHERE}/none")
    hand_off(app)

    found = looked_at(app)

    assert problems(found) == {"audit"}
    assert only(found, "database_clock").result == UNCHECKED
    assert "secret" not in repr(found)
    assert only(found, "redis").result == OK


def test_a_database_of_another_redis(make: Make, redis_url: str) -> None:
    app = healthy(make(redis_url))
    with redis.Redis.from_url(redis_url) as admin:
        admin.hset(app.delayed.shard_keys[0].mark, "audit_id", "another")

    found = looked_at(app)

    assert problems(found) == {"audit"}
    assert "belongs to another Redis" in only(found, "audit").text
    assert "migrate --adopt" in only(found, "audit").remedy


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE celery_delay_version SET version_num = 'from-the-future'", "newer release"),
        ("DELETE FROM celery_delay_version", "older release"),
    ],
)
def test_tables_of_another_release(
    make: Make, redis_url: str, tmp_path: Path, statement: str, said: str
) -> None:
    app = healthy(make(redis_url))
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        connection.execute(statement)
    connection.close()

    found = looked_at(app)

    assert problems(found) == {"audit"}
    assert said in only(found, "audit").text


def test_no_audit_is_no_problem(make: Make, redis_url: str) -> None:
    app = make(redis_url, delay_database_url=None)
    hand_off(app)

    found = looked_at(app)

    assert problems(found) == set()
    assert "none is kept" in only(found, "audit").text
    assert "database_clock" not in found


# --- broker, results, settings -----------------------------------------------------------


def test_a_broker_and_a_result_backend_that_are_away(make: Make, redis_url: str) -> None:
    app = make(
        f"amqp://guest:secret@{NOWHERE}//",
        delay_redis_url=redis_url,
        result_backend=f"redis://:secret@{NOWHERE}/0",
        result_backend_transport_options={"retry_policy": {"max_retries": 0}},
    )
    healthy(app)

    found = looked_at(app)

    assert problems(found) == {"broker", "results"}
    assert "published one by one" in only(found, "path").text
    assert "amqp" in only(found, "path").text
    assert "secret" not in repr(found)


def test_no_result_backend_is_a_note(make: Make, redis_url: str) -> None:
    app = healthy(make(redis_url, result_backend=None))
    assert only(looked_at(app), "results").result == NOTE


def test_the_way_to_the_queues_is_told_with_its_reason(
    make: Make, redis_url: str, own: Any
) -> None:
    chosen = healthy(make(redis_url, delay_handoff="claim"))
    assert 'delay_handoff is "claim"' in only(looked_at(chosen), "path").text

    apart = make(own.broker_url, delay_redis_url=redis_url)
    assert "not the Redis server that is the store" in only(looked_at(apart), "path").text


def test_settings_that_contradict_are_told(make: Make, redis_url: str) -> None:
    app = make(
        redis_url, task_protocol=1, delay_audit="off", delay_journal_full="refuse",
        delay_leader_grace=1.0, task_always_eager=True,
    )  # fmt: skip
    hand_off(app)

    found = looked_at(app)

    assert only(found, "task_protocol").result == PROBLEM
    text = " ".join(one.text for one in found["settings"])
    for name in ("delay_audit", "delay_journal_full", "delay_leader_grace", "task_always_eager"):
        assert name in text
    assert all(one.remedy for one in found["settings"])


def test_settings_that_are_wrong_are_told_and_the_rest_too(make: Make, redis_url: str) -> None:
    app = make(redis_url, delay_leese=1)

    answer = run(app)

    assert answer.exit_code == 1
    assert "did you mean delay_lease?" in answer.stdout
    assert "ok           versions" in answer.stdout
    assert "ok           broker" in answer.stdout


def test_delays_that_outlast_the_visibility_timeout(make: Make, redis_url: str) -> None:
    some = healthy(make(redis_url, broker_transport_options={"visibility_timeout": 60}))
    check = only(looked_at(some), "visibility_timeout")
    assert check.result == NOTE
    assert "1m 00s" in check.text

    every = make(redis_url, delay_intercept=True)
    assert only(looked_at(every), "visibility_timeout").result == OK


# --- one hides no other ------------------------------------------------------------------


def test_a_check_that_crashes_is_told_and_the_others_go_on(
    make: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = healthy(make(redis_url))

    def crash(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("celery_delay.doctor.server.refusals", crash)
    found = looked_at(app)

    assert only(found, "rights") == Check(
        "rights", UNCHECKED, "could not be looked at: RuntimeError: a bug"
    )
    assert set(found) == EVERY
    assert run(app).exit_code == 0
