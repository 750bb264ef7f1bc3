"""Redis over TLS, with everything verified: the server's certificate, its name, and ours."""

from __future__ import annotations

import logging
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from celery_delay.embedded import EmbeddedRedis, die_with_parent, free_port
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.loops import Bell
from celery_delay.store import connection
from tests.integration.running import Running, projects
from tests.processes import wait_until
from tests.projects import hand_off, make_app, messages
from tests.servers import REDIS, RedisServers, unavailable
from tests.shards import addition, lead, shard

PASSWORD = "test-password"
NAME = "mymaster"


@dataclass
class Secured:
    """A Redis with TLS; its certificate is for 127.0.0.1, and not for ``localhost``.

    Attributes:
        port: where it speaks TLS; its ``server.port`` speaks plainly.
        ca, other_ca: files with the authority that signed for it, and with one that did not.
        certificate, key: files by which a client can prove who it is.
        sentinel: port of a Sentinel that watches it, with TLS and a password.
    """

    server: EmbeddedRedis
    port: int
    ca: str
    other_ca: str
    certificate: str
    key: str
    sentinel: int = 0

    def url(self, database: int = 0, host: str = "127.0.0.1", ca: str = "") -> str:
        query = f"ssl_cert_reqs=required&ssl_ca_certs={ca or self.ca}"
        return f"rediss://:{PASSWORD}@{host}:{self.port}/{database}?{query}"

    @property
    def admin(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.server.socket), password=PASSWORD)


@pytest.fixture(scope="module")
def secured(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    ca, other_ca, certificate, key = (
        str(folder / f"{name}.pem") for name in ("ca", "other-ca", "certificate", "key")
    )
    authority.cert_pem.write_to_path(ca)
    other.cert_pem.write_to_path(other_ca)
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    port = free_port()
    files = {"cert-file": certificate, "key-file": key, "ca-cert-file": ca, "auth-clients": "no"}
    tls = [part for name, value in files.items() for part in (f"--tls-{name}", value)]
    try:
        server = redis_servers.new(
            REDIS, "--tls-port", str(port), "--requirepass", PASSWORD, "--bind", "*", *tls
        )
    except StoreUnavailable as exc:
        if "Bad directive" not in str(exc):
            raise
        unavailable("redis with TLS", "this redis-server was built without it")
    made = Secured(server, port, ca, other_ca, certificate, key)
    made.sentinel = free_port()
    conf = folder / "sentinel.conf"
    conf.write_text(
        "port 0\nbind 127.0.0.1\ntls-replication yes\n"
        f"dir {folder}\ntls-port {made.sentinel}\nrequirepass {PASSWORD}\n"
        + "".join(f"tls-{name} {value}\n" for name, value in files.items())
        + f"sentinel monitor {NAME} 127.0.0.1 {port} 1\nsentinel auth-pass {NAME} {PASSWORD}\n"
    )
    with (folder / "sentinel.log").open("wb") as log:
        command = die_with_parent([str(server.executable), str(conf), "--sentinel"])
        sentinel = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: _listens(made.sentinel), what="the Sentinel")
    yield made
    sentinel.kill()
    sentinel.wait()
    server.stop()


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def empty(secured: Secured) -> Secured:
    with secured.admin as client:
        client.flushall()
    return secured


@pytest.fixture
def project(empty: Secured, harness: Any, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    yield from projects(harness, empty.url(), tmp_path)


def nothing() -> None:
    """A task."""


def _ways(secured: Secured) -> dict[str, tuple[str, dict[str, Any]]]:
    """How to say it: the broker's URL, and settings."""
    plain = f"redis://:{PASSWORD}@127.0.0.1:{secured.port}/0"
    verified = {"ssl_cert_reqs": "required", "ssl_ca_certs": secured.ca}
    sentinel = {"master_name": NAME, "sentinel_kwargs": {"password": PASSWORD, "ssl": True,
                                                        "ssl_ca_certs": secured.ca}}  # fmt: skip
    by_sentinel = f"sentinel://:{PASSWORD}@127.0.0.1:{secured.sentinel}"
    return {
        "the broker's URL": (secured.url(), {}),
        "broker_use_ssl": (plain, {"broker_use_ssl": verified}),
        "a URL of its own": (secured.url(), {"delay_redis_url": secured.url(5)}),
        "a URL of its own, and options": (
            secured.url(),
            {
                "delay_redis_url": f"rediss://:{PASSWORD}@127.0.0.1:{secured.port}/5",
                "delay_redis_options": {"ssl_ca_certs": secured.ca},
            },
        ),
        "Sentinel as the broker": (
            f"{by_sentinel}/0",
            {"broker_use_ssl": verified, "broker_transport_options": sentinel},
        ),
        "Sentinel for the store": (
            secured.url(),
            {
                "delay_redis_url": f"{by_sentinel}/5",
                "delay_redis_options": {**sentinel, "ssl": verified},
            },
        ),
    }


WAYS = (
    "the broker's URL", "broker_use_ssl", "a URL of its own", "a URL of its own, and options",
    "Sentinel as the broker", "Sentinel for the store",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_verified_connection(empty: Secured, way: str) -> None:
    url, conf = _ways(empty)[way]
    with empty.admin as client:
        client.config_set("port", 0)  # nothing can take the plain way
    app = make_app(url, result_backend=None, **conf)
    try:
        task = app.task(nothing, name="project.secure", shared=False)
        result = task.apply_delayed(countdown=0)
        assert hand_off(app, until=result) == 1
        assert [one["headers"]["id"] for one in messages(app)] == [result.id]
    finally:
        app.close()
        with empty.admin as client:
            client.config_set("port", empty.server.port)


def test_the_brokers_options_are_taken_at_their_word(empty: Secured) -> None:
    url, conf = _ways(empty)["broker_use_ssl"]
    conf["broker_use_ssl"]["ssl_ca_certs"] = empty.other_ca
    app = make_app(url, result_backend=None, **conf)

    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        app.delayed.shards[0].time_ms()
    app.close()


def test_beat_and_worker_over_tls(project: Callable[..., Running]) -> None:
    running = project().start(pool="threads")

    result = running.app.tasks["note"].apply_delayed(("secure",), countdown=0.3)

    wait_until(lambda: running.effects == ["note secure"], 20)
    running.wait_for_history(result.id, [["SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED"]])


def test_what_cannot_be_verified_is_refused_and_says_why(empty: Secured) -> None:
    plain = f"redis://:{PASSWORD}@127.0.0.1"
    for url, said in (
        (empty.url(ca=empty.other_ca), "certificate verify failed"),
        (empty.url(host="localhost"), "localhost:.*Hostname mismatch"),
        (empty.url(ca="/nowhere/ca.pem"), r"ssl_ca_certs = '/nowhere/ca\.pem' cannot be read"),
        (f"rediss://:{PASSWORD}@127.0.0.1:{empty.port}/0", "certificate verify failed"),
        (f"{plain}:{empty.port}/0", "cannot connect to Redis"),
        (empty.url().replace(str(empty.port), str(empty.server.port)), "does not speak TLS"),
    ):
        with pytest.raises(StoreUnavailable, match=said):
            shard(url).add([addition("task")])
    # unless that is what was asked for
    unverified = f"rediss://:{PASSWORD}@localhost:{empty.port}/0?ssl_cert_reqs=none"
    assert shard(unverified).add([addition("task")])[0].code == "A"
    assert shard(f"{empty.url(host='localhost')}&ssl_check_hostname=false").sizes()["pending"] == 1


def test_client_certificates(empty: Secured) -> None:
    with empty.admin as client:
        client.config_set("tls-auth-clients", "yes")
    try:
        with pytest.raises(StoreUnavailable, match="cannot connect to Redis"):
            shard(empty.url()).add([addition("task")])
        proof = f"&ssl_certfile={empty.certificate}&ssl_keyfile={empty.key}"
        store = shard(empty.url() + proof)
        lead(store)
        store.add([addition("task")])
        assert store.move().moved == 1
    finally:
        with empty.admin as client:
            client.config_set("tls-auth-clients", "no")


def test_a_waiter_wakes_up_over_tls(empty: Secured) -> None:
    store = shard(empty.url())
    waiter = store._links.waiter(store.keys.wake)
    bell = Bell()
    assert not waiter.wait(0.1, bell.fileno())
    store.add([addition("task")])
    assert waiter.wait(10, bell.fileno())
    assert not waiter.wait(0.05, bell.fileno())
    waiter.close()
    bell.close()


def _own_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


def test_a_password_that_crosses_the_network_is_warned_of_once(
    empty: Secured, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _own_address()
    if address is None or address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    monkeypatch.setattr(connection, "_warned", set())
    caplog.set_level(logging.WARNING)

    def warned() -> list[str]:
        return [
            one.server  # type: ignore[attr-defined]
            for one in caplog.records
            if getattr(one, "event", "") == "password_unencrypted"
        ]

    port = empty.server.port
    shard(f"redis://:{PASSWORD}@127.0.0.1:{port}/0").sizes()
    shard(empty.url()).sizes()
    assert warned() == []
    for _ in range(2):
        shard(f"redis://:{PASSWORD}@{address}:{port}/0").sizes()
    assert warned() == [f"{address}:{port}"]
    assert PASSWORD not in caplog.text
