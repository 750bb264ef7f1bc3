"""Redis servers that are none for us, or do not want to at present, and ways of logging in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import (
    InvalidSetting,
    StoreUnavailable,
    UnsupportedBroker,
)
from celery_delay.services.loops import Bell
from tests.credentials import Rotating
from tests.integration.running import Running, projects
from tests.processes import wait_until
from tests.projects import hand_off, make_app, messages
from tests.servers import REDIS, RedisServers
from tests.shards import addition, lead, shard

HOUR = 3_600_000


@pytest.fixture(scope="module")
def server(redis_servers: RedisServers) -> Iterator[EmbeddedRedis]:
    """One that these tests may configure; each puts it right again."""
    server = redis_servers.new(REDIS, "--lua-time-limit", "100")
    yield server
    server.stop()


@pytest.fixture
def empty(server: EmbeddedRedis) -> EmbeddedRedis:
    with _raw(server) as client:
        client.flushall()
    return server


@pytest.fixture
def project(empty: EmbeddedRedis, harness: Any, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, empty.broker_url, tmp_path)


def _raw(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), socket_timeout=10)


@contextmanager
def _configured(server: EmbeddedRedis, **values: Any) -> Iterator[redis.Redis]:
    names = {name: name.replace("_", "-") for name in values}
    with _raw(server) as client:
        before = {name: client.config_get(name)[name] for name in names.values()}
        for name, value in values.items():
            client.config_set(names[name], value)
        try:
            yield client
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def nothing() -> None:
    """A task."""


# --- servers that are none for us -----------------------------------------------------------


def test_a_beat_that_is_given_a_replica_says_so_and_does_nothing(
    empty: EmbeddedRedis, new_redis: Callable[..., EmbeddedRedis], harness: Any, tmp_path: Path
) -> None:
    # Given something due on a primary, and a beat and a producer that lead to its replica
    replica = new_redis(REDIS)
    lead(shard(empty.url, prefix="celery-delay:"))
    shard(empty.url, prefix="celery-delay:").add([addition("due")])
    with _raw(replica) as client:
        client.replicaof("127.0.0.1", str(empty.port))
        wait_until(lambda: client.exists("{celery-delay:0}:schedule"), what="the replica")
        running = Running(harness, replica.tcp_url, tmp_path)
        beat = running.procs.beat()

        said = rf"127\.0\.0\.1:{replica.port} is a replica"
        beat.wait_for_log(said, timeout=20)
        with pytest.raises(StoreUnavailable, match=rf"{said}, of 127\.0\.0\.1:{empty.port}"):
            shard(replica.tcp_url).add([addition("new")])
        # When the replica is made the primary, the same beat leads
        client.replicaof("NO", "ONE")
        beat.wait_for_log(r"leads \(term", timeout=20)
        wait_until(lambda: client.llen("delay-queue") == 1, what="the task that was due")
    running.app.close()


def test_a_node_of_a_cluster_is_refused(new_redis: Callable[..., EmbeddedRedis]) -> None:
    node = new_redis(REDIS, "--cluster-enabled", "yes", "--appendonly", "no")

    with pytest.raises(UnsupportedBroker, match=r"is a node of a Redis Cluster"):
        shard(node.tcp_url).add([addition("task")])


# --- servers that do not want to at present --------------------------------------------------


def test_a_server_that_loads_its_data_is_tried_again(
    empty: EmbeddedRedis, new_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> None:
    with _raw(empty) as client:
        if str(client.info("server")["redis_version"]).startswith("6."):
            pytest.skip("Redis 6.2 answers too seldom while it loads")
    # Given a snapshot that takes two seconds to be read, in which the server looks up often
    slowly = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    server = new_redis(REDIS, "--appendonly", "no", "--dir", str(tmp_path), *slowly)
    store = shard(server.tcp_url)
    lead(store)
    store.add([addition("before")])
    with _raw(server) as client:
        client.mset({f"delay-filler-{i}": "x" * 100 for i in range(2_000)})
        client.save()
    server.kill()
    told: list[str] = []

    def repeat() -> None:
        while True:
            try:
                store.add([addition("after")])
                return
            except StoreUnavailable as exc:
                told.append(str(exc))
                time.sleep(0.02)

    # When somebody calls until it is read
    caller = threading.Thread(target=repeat)
    caller.start()
    server.start()
    caller.join(30)

    # Then it was told, and in the end all is there
    assert not caller.is_alive()
    assert any("loading" in one for one in told), set(told)
    lead(store)
    assert store.move().moved == 2


def test_a_script_of_somebody_else_that_does_not_end(empty: EmbeddedRedis) -> None:
    store = shard(empty.url, redis_timeout=0.25, add_window=0.6)
    lead(store)
    store.add([addition("task")])
    with _raw(empty) as client, _raw(empty) as other:

        def hog() -> None:
            with pytest.raises(redis.RedisError):
                other.eval("while true do end", 0)

        busy = threading.Thread(target=hog)
        busy.start()
        wait_until(lambda: _is_busy(empty), what="BUSY")
        started = time.monotonic()
        for call in (
            store.move,
            lambda: store.add([addition("new")]),
            lambda: store.cancel("task", data={}),
            store.sizes,
        ):
            with pytest.raises(StoreUnavailable, match="BUSY"):
                call()
        assert time.monotonic() - started < 30
        client.script_kill()
        busy.join(10)
    assert store.move().moved == 1


def _is_busy(server: EmbeddedRedis) -> bool:
    with _raw(server) as client:
        try:
            client.ping()
        except redis.exceptions.ResponseError as exc:
            return "BUSY" in str(exc)
    return False


def test_no_connection_left_on_the_server(empty: EmbeddedRedis) -> None:
    held = shard(empty.tcp_url)
    lead(held)
    held.add([addition("task")])
    with _configured(empty, maxclients=20), ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", empty.port)))
        with pytest.raises(StoreUnavailable, match="max number of clients"):
            shard(empty.tcp_url).add([addition("new")])
        # who has a connection keeps it
        assert held.move().moved == 1
    assert shard(empty.tcp_url).add([addition("new")])[0].code == "A"


def test_all_connections_killed_at_any_time(empty: EmbeddedRedis) -> None:
    store = shard(empty.tcp_url)
    lead(store)
    waiter = store._links.waiter(store.keys.wake)
    bell = Bell()
    with _raw(empty) as client:
        assert not waiter.wait(0.01, bell.fileno())
        for call in (
            lambda: store.add([addition("due"), addition("later", HOUR)]),
            store.move,
            lambda: store.get("later"),
            lambda: store.cancel("later", data={}),
        ):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert call()
        with pytest.raises(StoreUnavailable):
            waiter.wait(5, bell.fileno())
        store.add([addition("due-too")])
        assert waiter.wait(5, bell.fileno())
    waiter.close()
    bell.close()


def test_too_few_replicas_to_write_to(empty: EmbeddedRedis) -> None:
    store = shard(empty.url)
    lead(store)
    store.add([addition("task")])
    with _configured(empty, min_replicas_to_write=1):
        for call in (store.move, lambda: store.add([addition("new")])):
            with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
                call()
    assert store.move().moved == 1


def test_a_disk_that_takes_no_snapshot(
    new_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    server = new_redis(REDIS, "--appendonly", "no", "--dir", str(gone))
    store = shard(server.url)
    lead(store)
    store.add([addition("task")])
    gone.rmdir()
    with _raw(server) as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        wait_until(
            lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="no disk"
        )
        for call in (store.move, lambda: store.add([addition("new")])):
            with pytest.raises(StoreUnavailable, match="MISCONF"):
                call()
        client.config_set("save", "")  # and with it the reason to refuse
    assert store.move().moved == 1


# --- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "said"),
    [("allkeys-lru", "throws delayed tasks away"), ("volatile-ttl", "marks of repeated calls")],
)
def test_a_redis_that_evicts_is_spoken_of_by_the_leader(
    project: Callable[..., Running], empty: EmbeddedRedis, policy: str, said: str
) -> None:
    with _configured(empty, maxmemory="1gb", maxmemory_policy=policy):
        beat = project().procs.beat()
        beat.wait_for_log(rf"ERROR.*{said}.*{policy}\): set noeviction", timeout=20)


def test_a_redis_that_does_not_evict_is_not_spoken_of(empty: EmbeddedRedis) -> None:
    store = shard(empty.url)
    for settings in (
        {"maxmemory": 0, "maxmemory_policy": "allkeys-lru"},
        {"maxmemory": "1gb", "maxmemory_policy": "noeviction"},
    ):
        with _configured(empty, **settings):
            assert store.eviction() == ""


# --- who we are ----------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["the broker", "the store"])
def test_a_credential_provider_is_asked_at_each_connection(empty: EmbeddedRedis, of: str) -> None:
    provider = f"{Rotating.__module__}.{Rotating.__name__}"
    host = f"redis://127.0.0.1:{empty.port}"
    broker = f"{host}/0?credential_provider={provider}"
    conf: dict[str, Any] = {}
    if of == "the store":
        conf = {
            "delay_redis_url": f"{host}/5",
            "delay_redis_options": {"credential_provider": provider},
        }
    with _raw(empty) as client:
        try:
            client.config_set("requirepass", "first")
            Rotating.password = "first"
            app = make_app(broker, result_backend=None, **conf)
            task = app.task(nothing, name="project.rotated", shared=False)
            before = task.apply_delayed(countdown=0)
            asked = Rotating.asked
            # When the password is changed, and the connections are gone
            client.config_set("requirepass", "second")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(StoreUnavailable, match=r"(?i)invalid"):
                app.delayed.get(before.id)
            Rotating.password = "second"
            after = task.apply_delayed(countdown=0)

            # Then the next connection has the new one
            assert asked
            assert Rotating.asked > asked
            assert hand_off(app, until=after) == 2
            assert {one["headers"]["id"] for one in messages(app)} == {before.id, after.id}
            app.close()
        finally:
            client.config_set("requirepass", "")


def test_users_and_passwords_through_a_socket(empty: EmbeddedRedis) -> None:
    password = "p@ss:w/rd;%20"
    with _raw(empty) as client:
        client.execute_command("ACL", "SETUSER", "us:er", "on", f">{password}", "~*", "&*", "+@all")
        try:
            who = f"{quote('us:er', safe='')}:{quote(password, safe='')}"
            for url in (
                f"redis+socket://{who}@{empty.socket}?virtual_host=3",
                f"unix://{who}@{empty.socket}?db=3",
                f"redis://{who}@127.0.0.1:{empty.port}/3",
            ):
                store = shard(url)
                assert store.add([addition("task")])[0].code == "A"
                assert store.cancel("task", data={}).entry
                assert store._links.link().user == "us:er"
                assert store._links.database == 3
        finally:
            client.execute_command("ACL", "DELUSER", "us:er")


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("redis://h/0", {"pasword": "x"}, "no option 'pasword'; did you mean 'password'"),
        ("rediss://h/0?ssl_ca_cert=x", {}, "no option 'ssl_ca_cert'; did you mean 'ssl_ca_certs'"),
        ("rediss://h/0", {"ssl_cert_reqs": "maybe"}, "none, optional or required, not 'maybe'"),
        ("redis://h/0", {"credential_provider": "no.such.thing"}, "cannot import 'no.such.thing'"),
        ("redis://h/0", {"credential_provider": "os.path"}, "no redis.CredentialProvider"),
        ("redis://:x@h/0", {"credential_provider": Rotating}, "excludes a user and a password"),
        ("redis://h/0", {"master_name": "m"}, "'master_name' is for a sentinel:// URL"),
        ("unix:///a.sock", {"ssl_ca_certs": "x"}, "no TLS over a unix socket"),
        ("sentinel://h", {}, "needs the primary's name"),
        ("sentinel://h;redis://i", {"master_name": "m"}, "must begin with sentinel://"),
        ("sentinel://:a@h;sentinel://:b@i", {"master_name": "m"}, "differ in their password"),
        ("sentinel://", {"master_name": "m"}, "must name a host"),
        ("sentinel://h", {"master_name": "m", "sentinel_kwargs": 3}, "'sentinel_kwargs' must be"),
        ("redis://h:port/0", {}, "(?i)port"),
    ],
)  # fmt: skip
def test_a_wrong_address_is_a_wrong_setting(url: str, options: dict[str, Any], said: str) -> None:
    app = make_app(
        "redis://", result_backend=None, delay_redis_url=url, delay_redis_options=options
    )
    with pytest.raises(InvalidSetting, match=said) as wrong:
        app.delayed.check()
    assert "delay_redis_url" in str(wrong.value)
