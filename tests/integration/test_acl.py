"""Redis users that may do what they must and nothing else, as the page on Redis gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chord
from celery.exceptions import TaskRevokedError

from celery_delay.domain.states import CancelOutcome
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store.keys import ShardKeys
from tests.integration.project.running import build
from tests.processes import wait_until
from tests.servers import REDIS, RedisServers

USERS = Path(__file__).parents[2] / "docs" / "howto" / "redis-users.acl"
PROJECT = Path(__file__).parent / "project"
PASSWORD = "test-password"
#: redis-py tells its name, and goes on if it may not; 6.2 does not say which CLIENT it was.
HARMLESS = {"client|setinfo", "client"}


def _rules(version: str) -> dict[str, list[str]]:
    """User → rules, for that Redis; 6.2 does not know keys that may only be read."""
    users = {}
    for line in USERS.read_text().splitlines():
        _, name, *rules = line.replace("CHANGE-ME", PASSWORD).split()
        if version.startswith("6."):
            rules = [one.replace("%R~", "~") for one in rules]
        users[name] = rules
    return users


def _version(server: EmbeddedRedis) -> str:
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        return str(client.info("server")["redis_version"])


class Guarded:
    """A Redis with those users only, and an admin for the test."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self.server = server
        self.version = _version(server)
        with redis.Redis(unix_socket_path=str(server.socket)) as client:
            client.execute_command("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
            for name, rules in _rules(self.version).items():
                client.execute_command("ACL", "SETUSER", name, *rules)
            client.execute_command("ACL", "SETUSER", "default", "off")

    def client(self, user: str = "admin", password: str = "admin") -> redis.Redis:
        path = str(self.server.socket)
        return redis.Redis(unix_socket_path=path, username=user, password=password, protocol=2)

    def url(self, user: str) -> str:
        return f"redis://{user}:{PASSWORD}@127.0.0.1:{self.server.port}/0"

    def denied(self) -> list[tuple[str, ...]]:
        """Whom Redis has refused what since the last call."""
        with self.client() as client:
            found = [
                tuple(str(one[part]) for part in ("username", "reason", "context", "object"))
                for one in client.acl_log()
            ]
            client.acl_log_reset()
        return [one for one in found if one[3] not in HARMLESS]


@pytest.fixture(scope="module")
def guarded(redis_servers: RedisServers) -> Iterator[Guarded]:
    server = redis_servers.new(REDIS)
    yield Guarded(server)
    server.stop()


@pytest.fixture
def roles(guarded: Guarded, harness: Any, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Make a producer's app, or a harness, for the user of that name."""
    with guarded.client() as client:
        client.flushall()
    guarded.denied()
    conf = {
        "delay_database_url": f"sqlite:///{tmp_path / 'audit.sqlite'}",
        "delay_drain_interval": 0.05,
        "task_send_sent_event": True,
        "beat_schedule": {"tick": {"task": "note", "schedule": 0.5, "args": ["tick"]}},
    }
    made: list[Celery] = []

    def make(user: str, **more: Any) -> Any:
        settings = {"url": guarded.url(user), "effects": str(tmp_path / "effects")}
        if user == "producer":
            made.append(build(*settings.values(), **conf))
            return made[-1]
        env = {"PROJECT": json.dumps({**settings, **conf, **more})}
        return harness("running", path=(PROJECT,), env=env)

    yield make
    for app in made:
        app.close()


def test_each_role_does_its_work_as_a_user_of_its_own(
    guarded: Guarded, roles: Callable[..., Any], tmp_path: Path
) -> None:
    # Given beats, workers and a producer, each with no more rights than the page gives it
    beats = roles("beat")
    first = beats.beat("first")
    first.wait_for_log(r"leads \(term")
    beats.beat("second")
    worker = roles("worker").worker("worker", "-E", pool="threads")
    producer: Celery = roles("producer")
    note, add, total = (producer.tasks[name] for name in ("note", "add", "total"))

    # When they do all that they do
    results = [note.apply_delayed((i,), countdown=0.5) for i in range(3)]
    cancelled = note.apply_delayed(("cancelled",), countdown=3_600)
    assert cancelled.cancel() is CancelOutcome.CANCELLED
    revoked = note.apply_delayed(("revoked",), countdown=3_600)
    producer.control.revoke(revoked.id)
    sum_of = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_delayed(countdown=0.5)
    urgent = note.apply_delayed(("urgent",), countdown=0.5, priority=9)

    words = {"unique_key": "k", "unique_until": "done", "unique_for": 600}
    unique = note.apply_delayed(("unique",), countdown=0.5, **words)
    assert note.apply_delayed(("kept",), countdown=0.5, **words).id == unique.id
    replaced = note.apply_delayed((1,), countdown=600, unique_key="r", on_conflict="replace")
    extended = note.apply_delayed((2,), countdown=600, unique_key="r", on_conflict="replace")
    assert replaced.id != extended.id
    more = {"unique_key": "r", "on_conflict": "extend", "idempotency_key": "i"}
    assert note.apply_delayed((3,), countdown=0, **more).id == extended.id

    # Then it works
    assert unique.get(timeout=20) == "unique"
    wait_until(lambda: producer.delayed.get_unique("k") is None, what="the key given back")
    assert [one.get(timeout=20) for one in results] == [0, 1, 2]
    assert sum_of.get(timeout=20) == 6
    assert urgent.get(timeout=20) == "urgent"
    assert producer.delayed.get(revoked.id) is None
    assert producer.delayed.list() == []
    much = [note.apply_delayed((i,), countdown=600, namespace="acme").id for i in range(3)]
    assert producer.delayed.count(namespace="acme", source="store") == 3
    assert producer.delayed.list(namespace="acme").source == "audit"
    assert producer.delayed.hold_many(namespace="acme").done == 3
    assert producer.delayed.release_many(namespace="acme").done == 3
    assert {one.entry_id.task_id for one in producer.delayed.iterate()} == set(much)
    assert producer.delayed.purge().done == 3
    effects = tmp_path / "effects"
    wait_until(lambda: "note tick" in effects.read_text(), what="a periodic task")
    schedules = producer.delayed.schedules
    schedules.add("extra", "note", 0.5, ("extra",))
    wait_until(lambda: "note extra" in effects.read_text(), what="a schedule that was added")
    schedules.update("extra", args=["other"])
    assert schedules.pause("tick")
    assert schedules.resume("tick")
    assert len(schedules.preview("tick")) == 10
    assert schedules.trigger("tick").get(timeout=20) == "tick"
    now = datetime.now(timezone.utc)
    assert schedules.backfill(
        "tick", now - timedelta(seconds=60), now - timedelta(seconds=58)
    ).fired
    schedules.remove("extra")
    assert [one.name for one in schedules.list()] == ["tick"]
    # the node of remote control answers; the beat's user may not ask, so an admin does
    with Celery(broker=guarded.url("admin").replace(PASSWORD, "admin")) as tool:
        assert len(tool.control.inspect(timeout=10, limit=3).stats() or ()) == 3
    # a leader hands over, and the command line reads, with the rights of a beat
    first.stop()
    note.apply_delayed(("after",), countdown=0.1).get(timeout=20)
    for verb in ("status", "list", "leader", "forecast", "stats", f"history {results[0].id}"):
        ran = beats.run("delay", *verb.split())
        assert ran.returncode in (0, 1), ran
        assert "NOPERM" not in ran.stdout + ran.stderr
    told = beats.run("delay", "history", results[0].id, "--json").stdout
    assert {"SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED"} <= set(re.findall("[A-Z]{7,}", told))
    worker.stop()
    assert guarded.denied() == []


def test_a_task_on_its_queue_is_chased_with_the_rights_of_a_beat(
    guarded: Guarded, roles: Callable[..., Any]
) -> None:
    # Given tasks on their queue
    beats = roles("beat")
    beats.beat().wait_for_log(r"leads \(term")
    producer: Celery = roles("producer")
    note = producer.tasks["note"]
    by_hand, revoked, kept = (note.apply_delayed((one,), countdown=0) for one in "abc")
    with guarded.client() as admin:
        ids = [one.id for one in (by_hand, revoked, kept)]
        wait_until(
            lambda: all(one in str(admin.lrange("celery", 0, -1)) for one in ids), what="the queue"
        )
    assert guarded.denied() == []

    # When they are chased from the command line, and by a producer that may not
    ran = beats.run("delay", "cancel", by_hand.id, "--chase", "--json")
    assert json.loads(ran.stdout)["answers"][0]["outcome"] == "CANCELLED", ran
    assert guarded.denied() == []
    assert revoked.cancel(chase=True) is CancelOutcome.TOO_LATE
    assert {one[3] for one in guarded.denied()} == {"lrange"}

    # Then a worker that comes finds the mark, with the rights of a worker
    worker = roles("worker", delay_worker_revokes=True).worker(pool="threads")
    assert kept.get(timeout=20) == "c"
    for one in (by_hand, revoked):
        with pytest.raises(TaskRevokedError):
            one.get(timeout=20)
    worker.stop()
    assert guarded.denied() == []


def test_a_beat_that_publishes_one_by_one_has_rights_enough(
    guarded: Guarded, roles: Callable[..., Any]
) -> None:
    # Given a beat that may not try out the move
    with guarded.client() as admin:
        admin.execute_command("ACL", "SETUSER", "beat", "-rpop")
    try:
        beat = roles("beat").beat()
        roles("worker").worker(pool="threads")
        beat.wait_for_log(r"published one by one.*\+rpop", timeout=20)
        producer: Celery = roles("producer")

        assert producer.tasks["note"].apply_delayed((1,), countdown=0.2).get(timeout=20) == 1

        assert {one[3] for one in guarded.denied()} == {"rpop"}
    finally:
        with guarded.client() as admin:
            admin.execute_command("ACL", "SETUSER", "beat", *_rules(guarded.version)["beat"])


def test_a_worker_that_schedules_has_rights_of_its_own(
    guarded: Guarded, roles: Callable[..., Any]
) -> None:
    beat = roles("beat").beat()
    more = {"delay_intercept": "retry", "delay_intercept_min": 0.0}
    roles("scheduling-worker", **more).worker(pool="threads")
    beat.wait_for_log(r"leads \(term")
    producer: Celery = roles("producer")

    assert producer.tasks["flaky"].apply_delayed((2,), countdown=0.2).get(timeout=20) == 2

    assert guarded.denied() == []


def test_the_guard_needs_no_more_rights_than_the_page_gives(
    guarded: Guarded, roles: Callable[..., Any]
) -> None:
    # Given a task whose message is lost before any worker has it
    more = {"delay_guard": "guard", "delay_guard_patience": 1.0}
    beat = roles("beat", **more).beat()
    beat.wait_for_log(r"leads \(term")
    lost = roles("producer").tasks["waits_late"].apply_delayed((0.1,), countdown=0.2)
    with guarded.client() as admin:
        wait_until(lambda: admin.rpop("celery"), what="a message that gets lost")

    # When a worker comes, then it gets a copy, and claims, runs and reports it
    worker = roles("worker", **more).worker(pool="threads")
    assert lost.get(timeout=20) == "waited"
    worker.stop()
    with guarded.client() as admin:
        keys = ShardKeys("celery-delay:", 0)
        assert admin.exists(keys.done_even, keys.done_odd) == 1
        assert not admin.exists(keys.marks, keys.workers)
    assert guarded.denied() == []


def test_a_beat_without_the_channel_of_remote_control_only_warns(
    guarded: Guarded, roles: Callable[..., Any]
) -> None:
    with guarded.client() as admin:
        admin.execute_command("ACL", "SETUSER", "beat", "resetchannels")
    try:
        beat = roles("beat").beat()
        beat.wait_for_log(r"remote-control cannot work.*does not let beat listen", timeout=20)
        beat.wait_for_log(r"leads \(term")
        assert beat.stop(timeout=5) == 0
    finally:
        with guarded.client() as admin:
            admin.execute_command("ACL", "SETUSER", "beat", *_rules(guarded.version)["beat"])
    guarded.denied()


MARK, SCHEDULE, LEASE = (f"{{celery-delay:0}}:{one}" for one in ("mark", "schedule", "lease"))

ANYBODY = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("SHUTDOWN",),
    ("SAVE",),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("MONITOR",),
    ("SCRIPT", "FLUSH"),
    ("GET", "session:somebody"),
    ("PUBLISH", "somebody", "hello"),
)
FORBIDDEN = {
    "producer": (*ANYBODY, ("LPUSH", "celery", "{}"), ("BRPOP", "celery", "1"), ("RPOP", "celery")),
    "beat": (*ANYBODY, ("LPUSH", "other-queue", "{}"), ("BRPOP", "celery", "1")),
    "worker": (
        *ANYBODY,
        ("ZADD", SCHEDULE, "1", "task"),
        ("ZREM", SCHEDULE, "task"),
        ("HSET", LEASE, "holder", "me"),
        ("LPUSH", "other-queue", "{}"),
    ),
    "scheduling-worker": (*ANYBODY, ("LPUSH", "other-queue", "{}")),
}


@pytest.mark.parametrize("user", FORBIDDEN)
def test_what_is_not_its_work_is_refused(guarded: Guarded, user: str) -> None:
    with guarded.client(user, PASSWORD) as client:
        assert client.ping()
        for command in FORBIDDEN[user]:
            if guarded.version.startswith("6.") and "celery" in command:
                continue  # it can't be told which keys may only be read
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
            # nor by way of a script
            arguments = ",".join(f"'{one}'" for one in command)
            with pytest.raises(redis.exceptions.ResponseError, match=r"can't|lacks|not allowed"):
                client.eval(f"return redis.call({arguments})", 0)
    guarded.denied()


def test_the_rules_name_every_command_of_our_scripts(guarded: Guarded) -> None:
    lua = files("celery_delay.store").joinpath("lua")
    used = {
        name: set(re.findall(r"redis\.p?call\('(\w+)'", _with_includes(lua, name)))
        for name in ("add", "cancel", "record", "report", "begin_run", "unclaim", "sign_of_life")
    }
    used["all"] = {
        one for path in [*lua.iterdir(), *lua.joinpath("include").iterdir()]
        if path.name.endswith(".lua")
        for one in re.findall(r"redis\.p?call\('(\w+)'", path.read_text())
    }  # fmt: skip
    granted = {
        name: {one[1:].upper() for one in rules if one.startswith("+")}
        for name, rules in _rules("7").items()
    }

    assert used["all"] - granted["beat"] == set()
    assert used["add"] | used["cancel"] <= granted["producer"]
    assert used["add"] | used["cancel"] <= granted["scheduling-worker"]
    for name in ("record", "report", "begin_run", "unclaim", "sign_of_life"):
        assert used[name] <= granted["worker"]


def _with_includes(lua: Any, name: str) -> str:
    text: str = lua.joinpath(f"{name}.lua").read_text()
    named = re.search(r"^-- @include (.*)$", text, re.MULTILINE)
    for include in named[1].split() if named else []:
        text += lua.joinpath("include", f"{include}.lua").read_text()
    return text


@pytest.mark.parametrize(
    ("taken", "error", "said"),
    [
        ("-evalsha", StoreUnavailable, "user 'producer' the command EVALSHA: grant it \\+evalsha"),
        ("-zadd", OutcomeUnknown, r"user 'producer' ZADD in add\.lua"),
        ("resetkeys", StoreUnavailable, "user 'producer' a key of EVALSHA"),
        ("-info", StoreUnavailable, "user 'producer' the command INFO: grant it \\+info"),
    ],
)
def test_a_missing_right_is_named(
    guarded: Guarded, roles: Callable[..., Any], taken: str, error: type[Exception], said: str
) -> None:
    producer: Celery = roles("producer")
    note = producer.tasks["note"]
    note.apply_delayed((1,), countdown=3_600)
    producer.delayed.shards[0].close()
    with guarded.client() as admin:
        admin.execute_command("ACL", "SETUSER", "producer", taken)
        try:
            with pytest.raises(error, match=said):
                note.apply_delayed((2,), countdown=3_600)
        finally:
            admin.execute_command(
                "ACL", "SETUSER", "producer", *_rules(guarded.version)["producer"]
            )
    assert note.apply_delayed((3,), countdown=3_600)
    guarded.denied()
