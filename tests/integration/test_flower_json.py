"""The Delayed tab's JSON, asked over HTTP of a real Flower that asks who one is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from celery_delay.domain.series import all_series
from celery_delay.domain.states import State
from celery_delay.services.auditor import Auditor
from tests.integration.flowers import ANN, FlowerSite, flower_site
from tests.processes import wait_until
from tests.projects import hand_off
from tests.scrapes import samples
from tests.servers import RedisServers, wipe
from tests.shards import lead, park

HOUR = 3600


@pytest.fixture(scope="module")
def running(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FlowerSite]:
    redis = redis_servers.new()
    options = ["--basic-auth=ann:secret,bob:hush"]
    conf = {"task_send_sent_event": True, "delay_drain_interval": 0.05}
    with flower_site(tmp_path_factory.mktemp("flower"), redis, *options, auth=ANN, **conf) as site:
        site.app.delayed.audit_log.migrate()
        yield site
    redis.stop()


@pytest.fixture
def site(running: FlowerSite) -> FlowerSite:
    wipe(running.redis)
    return running


def note(site: FlowerSite, what: Any = "note", **options: Any) -> str:
    """The id of a new delayed task."""
    return later(site, "note", (what,), **options)


def later(site: FlowerSite, name: str, args: Any = (), **options: Any) -> str:
    options = {"countdown": HOUR, **options}
    return str(site.app.tasks[name].apply_delayed(args, **options).id)


def drain(site: FlowerSite) -> None:
    """Bring the journal to SQL, as the leader's auditor does."""
    parts = site.app.delayed
    for number, shard in enumerate(parts.shards):
        lead(shard, "test")
        auditor = Auditor(
            number, shard, parts.audit_log, parts.results, parts.settings, parts.clock
        )
        while auditor.run_once(shard.leader()[1]):
            pass


def ids(document: Any) -> list[str]:
    return [one["task_id"] for one in document["entries"]]


# --- what is told ------------------------------------------------------------------------


def test_what_waits_is_listed_page_by_page_the_earliest_first(site: FlowerSite) -> None:
    waiting = [note(site, n, countdown=HOUR + n) for n in range(5)]

    first = site.get("/api/delayed?limit=3")
    second = site.get(f"/api/delayed?limit=3&cursor={first['next']}")

    assert ids(first) + ids(second) == waiting
    assert (first["total"], first["total_is_exact"]) == (5, True)
    assert second["next"] is None


def test_filters_search_and_ids_find_what_they_name(site: FlowerSite) -> None:
    one = note(site, namespace="acme", tags=["order-1", "vip"])
    two = later(site, "add", (1, 2), queue="sums", countdown=2 * HOUR, unique_key="sum")
    held = note(site, countdown=3 * HOUR)
    site.app.delayed.hold(held)

    found = {
        "task=add": [two],
        "task=a*": [two],
        "queue=sums": [two],
        "namespace=acme": [one],
        "tag=vip&tag=order-1": [one],
        "tag=vip&tag=order-2": [],
        "unique_key=sum": [two],
        "state=held": [held],
        "search=ORDER-": [one],
        "search=sums": [two],
        f"search={held[:13]}": [held],
        f"id={two}": [two],
        "id=unknown": [],
        "task=&queue=": [one, two, held],
    }

    def told(source: str) -> Any:
        return {one: ids(site.get(f"/api/delayed?source={source}&{one}")) for one in found}

    assert told("store") == found
    drain(site)
    assert told("auto") == found
    assert site.get("/api/delayed?tag=vip")["source"] == "audit"
    eta_ms = site.get(f"/api/delayed?id={two}")["entries"][0]["eta_ms"]
    eta = datetime.fromtimestamp(eta_ms / 1000, timezone.utc)
    assert ids(site.get(f"/api/delayed?eta_from={eta_ms}&eta_to={eta_ms}")) == [two]
    later_on = (eta + timedelta(seconds=1)).isoformat()
    assert ids(site.get("/api/delayed", params={"eta_from": later_on})) == [held]


def test_secrets_are_not_shown(site: FlowerSite) -> None:
    task_id = later(site, "total", ({"password": "hush-hush", "order": 7},))

    texts = [
        site.client.get(path).text
        for path in (f"/api/delayed?id={task_id}", f"/api/delayed/{task_id}", "/api/delayed")
    ]

    assert ["hush-hush" in one for one in texts] == [False, False, False]
    assert site.get("/api/delayed")["entries"][0]["args"] == "({'password': '…', 'order': 7},)"


def test_what_somebody_wrote_is_never_a_tag(site: FlowerSite) -> None:
    evil = "<script>alert(1)</script>"
    task_id = note(site, evil, task_id=f"id-{evil}", tags=[evil], namespace=evil)
    path = f"/api/delayed/{httpx.QueryParams({'x': task_id})!s}".replace("/x=", "/")

    answers = [
        site.client.get(one)
        for one in ("/api/delayed", f"/api/delayed?search={evil}", f"/api/delayed?limit={evil}",
                    path, f"/delayed/task/{task_id}")
    ]  # fmt: skip

    assert [evil in one.text for one in answers] == [False] * 5
    assert answers[0].json()["entries"][0]["tags"] == [evil]


def test_every_answer_has_headers_that_keep_others_out(site: FlowerSite) -> None:
    for path in ("/delayed", "/api/delayed", "/api/delayed?limit=x"):
        headers = site.client.get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"], path
        assert "unsafe-eval" not in headers["Content-Security-Policy"], path
        assert "script-src" not in headers["Content-Security-Policy"], path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_task_s_page_has_its_entry_and_its_history(site: FlowerSite) -> None:
    waits, gone = note(site, tags=["a"]), note(site, namespace="acme", tags=["c", "b"])
    site.app.delayed.cancel(gone, reason="not needed")
    drain(site)

    told = site.get(f"/api/delayed/{waits}")
    over = site.get(f"/api/delayed/{gone}")

    assert told["entry"]["state"] == "SCHEDULED"
    assert [one["state"] for one in told["history"]] == ["SCHEDULED"]
    assert over["entry"] is None
    assert [one["state"] for one in over["history"]] == ["SCHEDULED", "CANCELLED"]
    assert over["history"][1]["data"]["reason"] == "not needed"
    assert [one["state"] for one in over["runs"]] == ["CANCELLED"]
    assert over["result"] == "REVOKED"
    [past] = site.get("/api/delayed?state=CANCELLED")["entries"]
    assert (past["task_id"], past["namespace"], past["tags"]) == (gone, "acme", ["b", "c"])
    assert "nobody knows" in site.get("/api/delayed/unknown", 404)["error"]


def test_the_overview_tells_how_it_stands(site: FlowerSite) -> None:
    note(site)
    due = note(site, countdown=0.01)
    site.app.delayed.hold(note(site))
    site.app.delayed.pause(task="add", reason="the till is closed")
    wait_until(lambda: hand_off(site.app), what="what is due")
    drain(site)

    def told() -> Any:
        overview = site.get("/api/delayed/overview")
        past = overview["past"] or {}
        return overview if past.get("lag_histogram") and overview["held"] else None

    overview = wait_until(told, what="the numbers, which are kept for a moment")

    assert (overview["pending"], overview["held"], overview["quarantined"]) == (1, 1, 0)
    assert overview["shards"][0]["holder"] == "test"
    [gate] = overview["gates"]
    assert (gate["gate"], gate["status"]) == ("task:add", "paused")
    assert gate["reason"] == "the till is closed"
    assert overview["past"]["reached"]["DISPATCHED"] == 1
    assert sum(one["count"] for one in overview["past"]["lag_histogram"]) == 1
    assert overview["read_only"] is False
    assert site.get(f"/api/delayed/{due}")["runs"][0]["lag_ms"] >= 0


def test_the_forecast_counts_what_becomes_due(site: FlowerSite) -> None:
    for minutes in (10, 10, 90, 60 * 24 * 10):
        note(site, countdown=minutes * 60)

    told = {span: site.get(f"/api/delayed/forecast?span={span}") for span in ("hour", "month")}

    assert [len(one["buckets"]) for one in told.values()] == [60, 30]
    assert sum(one["count"] for one in told["hour"]["buckets"]) == 2
    assert (told["hour"]["later"], told["hour"]["total"]) == (2, 4)
    assert sum(one["count"] for one in told["month"]["buckets"]) == 4
    assert site.get("/api/delayed/forecast?tz=Europe/Berlin")["span"] == "day"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/delayed?limit=0", "limit=0"),
        ("/api/delayed?limit=many", "limit='many'"),
        ("/api/delayed?limit=1001", "limit=1001"),
        ("/api/delayed?cursor=nonsense", "cursor='nonsense'"),
        ("/api/delayed?state=WAITING", "state='WAITING'"),
        ("/api/delayed?eta_from=yesterday", "eta_from: eta='yesterday'"),
        ("/api/delayed?eta_to=99999999999999999999", "eta_to=99999999999999999999"),
        ("/api/delayed?sort=name", "sort='name'"),
        ("/api/delayed?task=a&task=b", "task was given 2 times"),
        ("/api/delayed?colour=red", "there is no 'colour'"),
        (f"/api/delayed?search={'x' * 2000}", "search has 2000 characters"),
        ("/api/delayed/forecast?span=year", "span='year'"),
        ("/api/delayed/forecast?tz=Mars", "tz='Mars'"),
        ("/api/delayed/schedules/x?n=101", "n=101"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong_with_it(
    site: FlowerSite, path: str, says: str
) -> None:
    assert says in site.get(path, 400)["error"]


# --- what is done ------------------------------------------------------------------------


def test_each_verb_changes_the_entry_in_the_store(site: FlowerSite) -> None:
    get = site.app.delayed.get
    task_id = note(site)
    before = get(task_id).eta_ms

    def act(verb: str, **body: Any) -> str:
        told = site.post(f"/api/delayed/{task_id}/{verb}", body)
        assert told["task_id"] == task_id
        assert told["done"] is True
        return str(told["outcome"])

    assert act("hold") == "HELD"
    assert get(task_id).state is State.HELD
    assert act("release") == "RELEASED"
    assert get(task_id).state is State.SCHEDULED
    assert act("reschedule", by=60) == "RESCHEDULED"
    assert get(task_id).eta_ms == before + 60_000
    assert act("reschedule", eta="2100-01-01T00:00:00Z") == "RESCHEDULED"
    assert get(task_id).eta_ms == 4_102_444_800_000
    assert act("run-now", reason="the customer waits") == "RESCHEDULED"
    assert get(task_id).eta_ms <= site.app.delayed.now_ms()
    assert act("cancel") == "CANCELLED"
    assert get(task_id) is None
    gone = site.post(f"/api/delayed/{task_id}/hold")
    assert (gone["outcome"], gone["done"]) == ("NOT_FOUND", False)


def test_the_audit_is_told_who_asked_and_why(site: FlowerSite) -> None:
    task_id = note(site)

    site.post(f"/api/delayed/{task_id}/cancel", {"reason": "order 17 was paid"})

    drain(site)
    data = site.get(f"/api/delayed/{task_id}")["history"][-1]["data"]
    assert data["reason"] == "order 17 was paid"
    assert data["by"].startswith("ann (")
    assert f"ann: cancel of {task_id} from Flower, CANCELLED" in site.process.output()


def test_an_id_fakes_no_line_of_the_log(site: FlowerSite) -> None:
    site.post("/api/delayed/a%0Aann:%20cancel%20of%20b/cancel")

    assert "cancel of a?ann: cancel of b from Flower, NOT_FOUND" in site.process.output()


def test_what_is_parked_is_listed_with_its_reason_and_sent_again(site: FlowerSite) -> None:
    waits, parked = note(site), note(site)
    park(site.app, parked)

    [row] = site.get("/api/delayed?state=QUARANTINED")["entries"]
    assert (row["task_id"], row["state"], row["reason"]) == (parked, "QUARANTINED", "refused")
    assert site.get(f"/api/delayed/{parked}")["entry"]["reason"] == "refused"
    assert ids(site.get("/api/delayed")) == [waits]
    assert site.post(f"/api/delayed/{parked}/resend")["outcome"] == "RELEASED"
    assert site.app.delayed.get(parked).state is State.SCHEDULED


def test_a_task_a_queue_a_namespace_and_all_are_paused_and_resumed(site: FlowerSite) -> None:
    pauses = "/api/delayed/pauses"
    for which, gate in (
        ({"task": "note"}, "task:note"),
        ({"queue": "a:b"}, "queue:a:b"),
        ({"namespace": "acme"}, "namespace:acme"),
        ({"all": True}, "all"),
    ):
        told = site.post(f"{pauses}/pause", {**which, "reason": "an outage"})
        assert (told["gate"], told["outcome"], told["done"]) == (gate, "PAUSED", True)
        [one] = site.app.delayed.pauses()
        assert (one.gate, one.reason) == (gate, "an outage")
        assert one.by.startswith("ann ")
        assert site.post(f"{pauses}/resume", {**which, "over": 5})["outcome"] == "RESUMED"
        wait_until(lambda: site.app.delayed.pauses() == [], what="the end of the pause")
        told = site.post(f"{pauses}/resume", which)
        assert (told["gate"], told["outcome"], told["done"]) == (gate, "NOT_PAUSED", False)
    assert "ann: pause of queue:a:b from Flower, PAUSED" in site.process.output()


def test_a_pause_of_nothing_or_of_two_is_refused(site: FlowerSite) -> None:
    for verb, body in (
        ("pause", {}),
        ("pause", {"task": "a", "queue": "b"}),
        ("pause", {"all": "yes"}),
        ("pause", {"task": "a", "over": 1}),
        ("resume", {"task": "a", "over": "1m"}),
        ("resume", {"task": "a", "over": -1}),
        ("resume", {"task": "a", "over": True}),
        ("resume", {"task": "a\nb"}),
    ):
        site.post(f"/api/delayed/pauses/{verb}", body, 400)
    assert site.app.delayed.pauses() == []


def test_many_are_changed_by_their_ids(site: FlowerSite) -> None:
    some, other = [note(site) for _ in range(3)], note(site)

    told = site.post("/api/delayed/many/cancel", {"ids": [*some, "unknown"]})

    assert (told["matched"], told["done"]) == (4, 3)
    assert told["outcomes"] == {"CANCELLED": 3, "NOT_FOUND": 1}
    assert told["failed"] == {"NOT_FOUND": ["unknown"]}
    assert ids(site.get("/api/delayed")) == [other]


def test_many_are_changed_by_a_filter_if_no_more_are_meant_than_were_shown(
    site: FlowerSite,
) -> None:
    for _ in range(3):
        note(site, tags=["campaign"])
    other = note(site)
    meant = {"filter": {"tag": "campaign"}}

    tried = site.post("/api/delayed/many/cancel", {**meant, "dry_run": True})
    assert (tried["matched"], tried["done"], tried["dry_run"]) == (3, 0, True)
    assert len(tried["sample"]) == 3
    assert site.app.delayed.count() == 4
    note(site, tags=["campaign"])
    more = site.post("/api/delayed/many/cancel", {**meant, "expected": 3}, 409)
    assert more["matched"] == 4
    assert site.app.delayed.count() == 5
    done = site.post("/api/delayed/many/cancel", {**meant, "expected": 4})
    assert done["outcomes"] == {"CANCELLED": 4}
    assert ids(site.get("/api/delayed")) == [other]
    held = site.post("/api/delayed/many/hold", {"filter": {}, "everything": True})
    assert held["outcomes"] == {"HELD": 1}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("x/reschedule", {}, "say when, in one way"),
        ("x/reschedule", {"eta": "2100-01-01", "by": 3}, "say when, in one way"),
        ("x/reschedule", {"eta": "soon"}, "eta='soon'"),
        ("x/reschedule", {"countdown": "5"}, "countdown must be a number"),
        ("x/reschedule", {"by": [1]}, "by must be a number"),
        ("x/cancel", {"why": "?"}, "there is no 'why'"),
        ("x/cancel", {"reason": 7}, "reason must be a text"),
        ("x/cancel", [], "must be a JSON object"),
        ("x/cancel", {"reason": "x" * 1_048_576}, "the body is larger than"),
        ("many/cancel", {}, "either ids or filter"),
        ("many/cancel", {"ids": []}, "ids: 0 were given"),
        ("many/cancel", {"ids": ["x"] * 1001}, "ids: 1001 were given"),
        ("many/cancel", {"ids": "x"}, "ids must be a list"),
        ("many/cancel", {"filter": {}}, "everything=True"),
        ("many/cancel", {"filter": {"tga": "x"}}, "there is no 'tga'"),
        ("many/cancel", {"filter": {"task": 7}}, "task must be a text"),
        ("many/cancel", {"filter": {"state": "FAILED"}}, "FAILED"),
        ("many/hold", {"filter": {"task": "x"}, "dry_run": "yes"}, "dry_run must be true"),
    ],
)
def test_a_bad_change_changes_nothing_and_says_why(
    site: FlowerSite, path: str, body: Any, says: str
) -> None:
    note(site)

    assert says in site.post(f"/api/delayed/{path}", body, 400)["error"]
    assert site.app.delayed.count(state="SCHEDULED") == 1


def test_schedules_are_listed_paused_resumed_and_triggered(site: FlowerSite) -> None:
    site.app.delayed.schedules.add("nightly <b>", "note", HOUR, args=("a",))
    path = "/api/delayed/schedules/nightly%20%3Cb%3E"

    told = site.get("/api/delayed/schedules?search=NIGHT")
    assert [one["name"] for one in told["schedules"]] == ["nightly <b>"]
    assert site.get("/api/delayed/schedules?search=daily")["schedules"] == []
    assert len(site.get(f"{path}?n=3")["occurrences"]) == 3
    paused = site.post(f"{path}/pause", {"reason": "the warehouse is being moved"})
    assert paused["outcome"] == "PAUSED"
    assert site.get(path)["schedule"]["enabled"] is False
    assert site.app.delayed.schedules.get("nightly <b>").reason == "the warehouse is being moved"
    assert site.post(f"{path}/resume")["outcome"] == "RESUMED"
    assert site.app.delayed.schedules.get("nightly <b>").enabled
    task_id = site.post(f"{path}/trigger")["task_id"]
    assert site.app.delayed.get(task_id).task == "note"
    assert "no schedule" in site.post("/api/delayed/schedules/x/pause", {}, 404)["error"]
    assert "no schedule" in site.get("/api/delayed/schedules/x", 404)["error"]


# --- who may -----------------------------------------------------------------------------


def test_a_change_needs_the_page_s_token_and_its_origin(site: FlowerSite) -> None:
    task_id = note(site)
    path = f"/api/delayed/{task_id}/cancel"
    bob = httpx.Client(base_url=site.url, auth=("bob", "hush"))
    bobs = bob.get("/api/delayed/overview").json()["csrf"]
    bob.close()
    mine = site.token()
    refused = [
        {"X_Delayed_CSRF": None},
        {"X_Delayed_CSRF": "nonsense"},
        {"X_Delayed_CSRF": mine[:-1] + ("0" if mine[-1] != "0" else "1")},
        {"X_Delayed_CSRF": bobs},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": None},
        {"Origin": None, "Referer": "https://evil.example/x"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ]

    for headers in refused:
        told = site.post(path, None, 403, **headers)
        assert "token" in told["error"] or "Origin" in told["error"], headers
    assert "Content-Type" in site.post(path, {}, 400, Content_Type="text/plain")["error"]
    assert site.app.delayed.get(task_id) is not None
    site.post("/api/delayed/pauses/pause", {"all": True}, 403, X_Delayed_CSRF=bobs)
    assert site.app.delayed.pauses() == []
    assert site.client.get(path).status_code == 405
    assert site.post(path, Origin=None, Referer=f"{site.url}/delayed")["done"] is True


def test_nobody_gets_in_without_the_password(site: FlowerSite) -> None:
    task_id = note(site)
    for auth in (None, ("ann", "wrong")):
        stranger = httpx.Client(base_url=site.url, auth=auth)
        for path in ("/delayed", "/delayed/schedules", "/api/delayed", "/api/delayed/overview"):
            answer = stranger.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="flower"'
        assert stranger.post(f"/api/delayed/{task_id}/cancel").status_code == 401
        stranger.close()
    assert site.app.delayed.get(task_id) is not None


# --- beside Flower's own -----------------------------------------------------------------


def test_every_page_of_flower_has_the_tab(site: FlowerSite) -> None:
    for path in ("/", "/tasks", "/workers"):
        assert ">Delayed</a>" in site.client.get(path).text, path
    for path in ("/delayed", "/delayed/schedules", "/delayed/task/x%2Fy"):
        bar = site.client.get(path).text.partition("</nav>")[0]
        assert 'aria-current="page">Delayed</a>' in bar, path


def test_flower_s_own_list_has_a_delayed_task_before_it_runs_and_revokes_it(
    site: FlowerSite,
) -> None:
    task_id = note(site)

    def listed() -> Any:
        return site.client.get("/api/tasks").json().get(task_id)

    shown = wait_until(listed, what="Flower's event of the task")

    assert (shown["state"], shown["name"], shown["received"]) == ("PENDING", "note", None)
    eta = datetime.fromisoformat(shown["eta"]).timestamp() * 1000
    assert abs(eta - site.app.delayed.get(task_id).eta_ms) < 1000
    assert task_id in site.client.get(f"/task/{task_id}").text
    revoked = site.client.post(f"/api/task/revoke/{task_id}", headers={"Origin": site.url})
    assert revoked.status_code == 200, revoked.text
    assert site.app.delayed.get(task_id) is None
    wait_until(lambda: listed()["state"] == "REVOKED", what="Flower's event of the revoke")


def test_the_schemas_are_closed_and_explain_each_of_their_fields() -> None:
    import json
    from importlib.resources import files

    from tests.unit.test_json_schemas import parts

    folder = files("celery_delay.flower").joinpath("schemas")
    found = {one.name: json.loads(one.read_text("utf-8")) for one in folder.iterdir()}
    assert len(found) == 11
    for name, schema in found.items():
        for path, one in parts(schema):
            if "properties" in one:
                assert sorted(one["required"]) == sorted(one["properties"]), (name, path)
            for field, its in one.get("properties", {}).items():
                assert its.get("description", "").endswith("."), (name, path, field)


def test_flower_s_metrics_have_the_names_of_a_beat_s(site: FlowerSite) -> None:
    note(site, countdown=200)
    note(site)

    def told() -> dict[str, float]:
        answer = site.client.get("/metrics")
        assert answer.status_code == 200
        return samples(answer.text)

    # a look at the store is good for some seconds
    found = wait_until(lambda: (now := told())["celery_delay_pending"] == 2 and now, 10, "2 tasks")

    assert found['celery_delay_due{within="5m"}'] == 1
    assert found["celery_delay_store_up"] == 1
    assert "flower_worker_online" in site.client.get("/metrics").text
    assert found["process_resident_memory_bytes"] > 0, "Flower's own, and once"
    text = site.client.get("/metrics").text
    assert [one.name for one in all_series() if text.count(f"# TYPE {one.name} ") != 1] == []
    assert text.count("# TYPE process_resident_memory_bytes ") == 1
