"""What a beat says of itself over HTTP: its numbers, whether it is alive, whether it is ready."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from celery_delay.domain.clock import SystemClock
from celery_delay.embedded import EmbeddedRedis, free_port
from celery_delay.metrics.server import AT_ONCE, Pages, Server, Unserved
from tests.integration import running
from tests.processes import ProcessHarness, wait_until
from tests.scrapes import get, port_of, scrape

pytestmark = pytest.mark.integration


@pytest.fixture
def server(new_redis: Callable[..., EmbeddedRedis]) -> EmbeddedRedis:
    """One of its own: it is frozen, and its commands are counted."""
    return new_redis()


@pytest.fixture
def project(
    harness: Callable[..., ProcessHarness], server: EmbeddedRedis, tmp_path: Path
) -> Iterator[Callable[..., running.Running]]:
    yield from running.projects(harness, server.tcp_url, tmp_path)


def test_what_a_beat_does_is_counted_where_it_is_served(
    project: Callable[..., running.Running], server: EmbeddedRedis
) -> None:
    # Given a beat, a worker, and tasks that end well, badly, and at their time limit
    shop = project(delay_http="127.0.0.1:0").start()
    port = port_of(shop.procs.processes["beat"])
    tasks = shop.app.tasks
    for number in range(3):
        tasks["add"].apply_delayed((number,), countdown=0.1)
    tasks["fails"].apply_delayed(countdown=0.1)
    tasks["sleeps"].apply_delayed((30,), countdown=0.1)
    for countdown in (30, 200, 800, 4_000):
        tasks["add"].apply_delayed((0,), countdown=countdown)
    tasks["add"].apply_delayed((0,), countdown=3_000).hold()

    # When it has all happened
    seen: dict[str, float] = {}

    def is_over() -> bool:
        seen.clear()
        seen.update(scrape(port))
        return seen.get('celery_delay_past_limit_total{task="sleeps"}') == 1

    wait_until(is_over, 20, what="the run that overran")

    # Then it is told: what was handed off and how late,
    assert seen['celery_delay_dispatched_total{queue="celery",task="add"}'] == 3
    assert seen['celery_delay_dispatched_total{queue="celery",task="fails"}'] == 1
    assert seen['celery_delay_lag_seconds_bucket{le="+Inf"}'] == 5
    assert 0 < seen["celery_delay_lag_seconds_sum"] < 50
    # how runs ended and how long they took,
    assert seen['celery_delay_finished_total{outcome="SUCCEEDED",task="add"}'] == 3
    assert seen['celery_delay_finished_total{outcome="FAILED",task="fails"}'] == 1
    assert seen['celery_delay_run_seconds_count{task="add"}'] == 3
    assert seen['celery_delay_run_seconds_sum{task="sleeps"}'] >= 0.9
    assert seen['celery_delay_drained_total{state="DISPATCHED"}'] == 5
    # what waits (a look at the store is good for some seconds),
    wait_until(lambda: seen.update(scrape(port)) or seen["celery_delay_pending"] == 4, what="4")
    due = [seen[f'celery_delay_due{{within="{one}"}}'] for one in ("1m", "5m", "15m")]
    assert due == [1, 2, 3]
    assert (seen["celery_delay_overdue"], seen["celery_delay_held"]) == (0, 1)
    # who leads, and how the servers answer
    assert seen['celery_delay_leader{shard="0"}'] == 1
    assert seen['celery_delay_term{shard="0"}'] == 1
    assert seen['celery_delay_elections_total{shard="0"}'] == 1
    assert seen["celery_delay_redis_seconds_count"] > 10
    assert seen["celery_delay_sql_seconds_count"] > 2
    assert seen["celery_delay_sql_errors_total"] == 0
    assert seen["celery_delay_redis_memory_bytes"] > 0
    assert seen["celery_delay_redis_memory_bytes"] < seen["celery_delay_redis_memory_limit_bytes"]
    assert seen["process_resident_memory_bytes"] > 1e6

    # And to ask is no load for Redis, however often it is done
    client = redis.Redis.from_url(server.url)
    scrape(port)  # now the figures are fresh
    before = client.info("commandstats")["cmdstat_zcount"]["calls"]
    for _ in range(50):
        scrape(port)
    after = client.info("commandstats")["cmdstat_zcount"]["calls"]
    client.close()
    assert after - before <= 3 * 8, "three looks at the store at most in that time"


def test_a_standby_is_ready_and_takes_its_own_port_of_the_range(
    project: Callable[..., running.Running],
) -> None:
    # Given two beats of one configuration
    first = free_port()
    shop = project(delay_http=f"127.0.0.1:{first}-{first + 20}", delay_audit="off")
    leader = shop.procs.beat("one")
    leader.wait_for_log(r"leads \(term")
    standby = shop.procs.beat("two")
    ports = port_of(leader), port_of(standby)

    # Then both serve, and the one that does not lead is as ready as the other
    assert ports[0] != ports[1]
    wait_until(lambda: get(ports[1], "/readyz")[0] == 200, what="a ready standby")
    assert get(ports[0], "/readyz") == (200, "ok\n")
    assert [scrape(one)['celery_delay_leader{shard="0"}'] for one in ports] == [1, 0]
    assert get(ports[0], "/elsewhere")[0] == 404

    # And when the leader dies, the other leads
    leader.kill()
    wait_until(lambda: scrape(ports[1])['celery_delay_leader{shard="0"}'] == 1, what="a leader")
    wait_until(lambda: scrape(ports[1])['celery_delay_term{shard="0"}'] == 2, what="the next term")


def test_a_beat_whose_redis_does_not_answer_is_alive_and_not_ready_and_says_so_at_once(
    project: Callable[..., running.Running], server: EmbeddedRedis
) -> None:
    shop = project(delay_http="127.0.0.1:0", delay_audit="off")
    beat = shop.procs.beat()
    beat.wait_for_log(r"leads \(term")
    port = port_of(beat)
    assert scrape(port)["celery_delay_store_up"] == 1

    # When Redis stops answering
    with frozen(server):
        wait_until(lambda: get(port, "/readyz")[0] == 503, what="not ready")
        # Then that is told in bounded time, and is no reason to replace the beat
        wait_until(lambda: scrape(port)["celery_delay_store_up"] == 0, what="no figures")
        begun = time.monotonic()
        seen = scrape(port)
        assert time.monotonic() - begun < 4
        assert "celery_delay_pending" not in seen, "what is not known is not told"
        assert seen['celery_delay_leader{shard="0"}'] == 0
        assert seen['celery_delay_redis_errors_total{kind="lost"}'] >= 1
        assert "does not answer" in get(port, "/readyz")[1]
        assert get(port, "/healthz") == (200, "ok\n")

    # and is over when it is back
    wait_until(lambda: get(port, "/readyz")[0] == 200, what="ready again")
    wait_until(lambda: scrape(port).get("celery_delay_store_up") == 1, what="the figures")
    wait_until(lambda: scrape(port)['celery_delay_leader{shard="0"}'] == 1, what="a leader")

    # And clients who say and read nothing keep neither others waiting nor beat from its end
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    assert get(port, "/healthz")[0] == 200
    begun = time.monotonic()
    assert beat.stop() == 0
    assert time.monotonic() - begun < 3
    for one in idle:
        one.close()


@contextmanager
def frozen(server: EmbeddedRedis) -> Iterator[None]:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_the_first_port_that_is_free_is_taken_and_who_gets_none_says_how_to_mend_it() -> None:
    # Given a port that somebody has, and two servers that may take it or the next
    first = free_port()
    with socket.create_server(("127.0.0.1", first)):
        clock = SystemClock()
        pages = Pages(lambda accept: ("text/plain", b"metrics"), list, list, clock)
        servers = [Server("127.0.0.1", ports, pages, clock) for ports in ([first, 0], [first])]
        try:
            # Then the one serves at another,
            servers[0]._step()
            assert servers[0]._http is not None
            assert servers[0]._http.server_address[1] != first
            # and the other has none, and says what is missing
            with pytest.raises(Unserved, match=r"delay_http .* need as many ports"):
                servers[1]._step()
        finally:
            servers[0]._close()


def test_clients_that_say_nothing_are_few_at_a_time() -> None:
    clock = SystemClock()
    pages = Pages(lambda accept: ("text/plain", b"metrics"), list, list, clock)
    server = Server("127.0.0.1", [0], pages, clock)
    server.loop.start()
    wait_until(lambda: server._http is not None, what="a port")
    assert server._http is not None
    address = server._http.server_address[:2]
    idle = [socket.create_connection(address) for _ in range(AT_ONCE)]
    try:
        time.sleep(0.2)  # they are taken one after the other
        # one more is turned away, and not made a thread of
        with socket.create_connection(address, timeout=5) as more:
            more.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            with suppress(ConnectionError):
                assert more.recv(100) == b""
        # and served when one of them has gone
        idle.pop().close()
        wait_until(lambda: _answers(address[1]), what="an answer")
    finally:
        for one in idle:
            one.close()
        server.loop.stop()
        server.loop.join(5)
        assert not server.loop.is_alive()


def _answers(port: int) -> bool:
    try:
        return get(port, "/healthz")[0] == 200
    except OSError:
        return False
