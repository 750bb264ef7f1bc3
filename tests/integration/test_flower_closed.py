"""Flower as it is started by most: nobody logs in, a prefix, our tab by its ``flowerconfig.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.integration.flowers import FlowerSite, flower_site
from tests.processes import wait_until
from tests.servers import RedisServers

CONFIG = """
from celery_delay.flower import install
install()
install()
url_prefix = "watch"
"""


@pytest.fixture(scope="module")
def site(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FlowerSite]:
    server = redis_servers.new()
    folder = tmp_path_factory.mktemp("flower")
    (folder / "flowerconfig.py").write_text(CONFIG)
    with flower_site(folder, server, verb=("flower",), prefix="/watch") as site:
        yield site
    server.stop()


def note(site: FlowerSite) -> str:
    return str(site.app.tasks["note"].apply_delayed(("a",), countdown=3600).id)


def test_the_tab_is_under_the_prefix_once(site: FlowerSite) -> None:
    page = site.client.get("/tasks").text

    assert page.count('href="/watch/delayed"') == 1
    assert page.count('href="/watch/broker"') == 1
    for path in ("/delayed", "/delayed/task/x", "/delayed/schedules"):
        assert site.client.get(path).status_code == 200
    assert "Multiple handlers" not in site.process.output()
    outside = site.url.removesuffix("/watch")
    assert site.client.get(f"{outside}/delayed").status_code == 404


def test_what_the_pages_load_is_there(site: FlowerSite) -> None:
    import re

    for path in ("/delayed", "/delayed/task/x", "/delayed/schedules"):
        page = site.client.get(path).text
        wanted = re.findall(r'(?:src|href)="(/watch/(?:delayed/)?static/[^"]+)"', page)
        assert len(wanted) > 5, path
        for one in wanted:
            answer = site.client.get(site.url.removesuffix("/watch") + one)
            assert answer.status_code == 200, one
        assert "<style" not in page
        assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    ours = site.client.get("/delayed/static/../__init__.py")
    assert ours.status_code in (403, 404)


def test_only_our_page_may_ask(site: FlowerSite) -> None:
    task_id = note(site)
    reads = ("", "/overview", "/forecast", "/schedules", f"/{task_id}")

    for path in reads:
        assert "FLOWER_UNAUTHENTICATED_API" in site.get(f"/api/delayed{path}", 401)["error"]
        site.get(f"/api/delayed{path}", headers={"X-Delayed-CSRF": site.token()})
    overview = site.get("/api/delayed/overview", headers={"X-Delayed-CSRF": site.token()})
    site.get("/api/delayed", headers={"X-Delayed-CSRF": overview["csrf"]})
    assert overview["read_only"] is True


def test_nothing_can_be_changed_where_nobody_logs_in(site: FlowerSite) -> None:
    task_id = note(site)
    posts = {
        f"/api/delayed/{task_id}/cancel": {},
        "/api/delayed/many/cancel": {"ids": [task_id]},
        "/api/delayed/schedules/x/pause": {},
        "/api/delayed/pauses/pause": {"all": True},
    }

    for path, body in posts.items():
        assert "--basic-auth" in site.post(path, body, 403)["error"]
    assert site.app.delayed.get(task_id) is not None
    assert site.app.delayed.pauses() == []


def test_without_redis_it_says_so_and_goes_on_when_it_is_back(site: FlowerSite) -> None:
    task_id, token = note(site), {"X-Delayed-CSRF": site.token()}

    def status(path: str) -> int:
        return site.client.get(f"/api/delayed{path}", headers=token).status_code

    site.redis.kill()
    try:
        assert site.client.get("/delayed").status_code == 200
        for path in ("", f"/{task_id}", "/forecast", "/schedules"):
            assert "Redis" in site.get(f"/api/delayed{path}", 503, headers=token)["error"]
        # which is good for a moment
        wait_until(lambda: status("/overview") == 503, what="another overview")
    finally:
        site.redis.start()
    wait_until(lambda: status("") == status("/overview") == 200, what="answers")


def test_flower_ends_at_once_and_leaves_no_connection(site: FlowerSite) -> None:
    # the last one: Flower is gone behind it
    site.get("/api/delayed/overview", headers={"X-Delayed-CSRF": site.token()})
    with redis.Redis.from_url(site.redis.url) as client:
        assert site.process.stop(5) == 0, site.process

        mine = client.client_id()
        ours = {shard._links for shard in site.app.delayed.shards}
        for links in ours:
            links.close()
        site.app.pool.force_close_all()
        wait_until(
            lambda: [one for one in client.client_list() if int(one["id"]) != mine] == [],
            what="the end of the connections",
        )
