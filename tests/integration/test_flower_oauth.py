"""Flower behind OAuth and a proxy: its cookie lets one in, changes come from the proxy's origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tornado.web import create_signed_value

from tests.integration.flowers import FlowerSite, flower_site
from tests.processes import wait_until
from tests.servers import RedisServers

SECRET = "of this Flower"
OUTSIDE = "https://flower.example.com"


@pytest.fixture(scope="module")
def site(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FlowerSite]:
    options = [
        "--auth=.*@example.com",
        "--auth-provider=flower.views.auth.GoogleAuth2LoginHandler",
        "--oauth2-key=key",
        "--oauth2-secret=secret",
        "--oauth2-redirect-uri=http://localhost/login",
        f"--cookie-secret={SECRET}",
    ]
    server = redis_servers.new()
    folder = tmp_path_factory.mktemp("flower")
    with flower_site(folder, server, *options, delay_flower_origins=[OUTSIDE]) as site:
        yield site
    server.stop()


def log_in(site: FlowerSite, address: str) -> None:
    site.client.cookies.clear()
    cookie = create_signed_value(SECRET, "user", address).decode()
    site.client.cookies.set("user", cookie)


def test_only_who_is_logged_in_may_look(site: FlowerSite) -> None:
    page = site.client.get("/delayed")
    assert page.status_code == 302
    assert page.headers["Location"].startswith("/login?next=")
    assert site.get("/api/delayed", 401)["error"] == "log in first"

    log_in(site, "eve@evil.example")
    assert site.get("/api/delayed", 401)["error"] == "log in first"
    log_in(site, "ann@example.com")
    assert site.get("/api/delayed")["entries"] == []


def test_a_change_comes_from_the_proxy_s_origin_with_one_s_own_token(site: FlowerSite) -> None:
    task_id = str(site.app.tasks["note"].apply_delayed(("a",), countdown=3600).id)
    path = f"/api/delayed/{task_id}/hold"
    log_in(site, "bob@example.com")
    bobs = site.token()
    log_in(site, "ann@example.com")

    assert "Origin" in site.post(path, {}, 403)["error"]
    assert "Origin" in site.post(path, {}, 403, Origin=f"{OUTSIDE}.evil.example")["error"]
    assert "Origin" in site.post(path, {}, 403, Origin="http://flower.example.com")["error"]
    assert "token" in site.post(path, {}, 403, Origin=OUTSIDE, token=bobs)["error"]
    assert site.post(path, {}, Origin=OUTSIDE)["outcome"] == "HELD"
    assert f"ann@example.com: hold of {task_id}" in site.process.output()


def test_the_overview_names_the_leader_and_the_standby(site: FlowerSite) -> None:
    log_in(site, "ann@example.com")
    beats = [site.procs.beat("one"), site.procs.beat("two")]
    for one in beats:
        one.wait_for_log("answers as delay-")

    def led() -> Any:
        told = site.get("/api/delayed/overview")
        # what beats say is kept for five seconds, and a busy one may be too late once
        roles = sorted(one["role"] for one in told["beats"])
        is_led = told["shards"][0]["status"] == "leading"
        return told if is_led and roles == ["leader", "standby"] else None

    told = wait_until(led, 30, what="a leader and a standby")
    [leader] = [one for one in told["beats"] if one["role"] == "leader"]
    assert leader["holder"] == told["shards"][0]["holder"]
    assert told["shards"][0]["term"] >= 1
    assert told["shards"][0]["progress_ms"] is not None
