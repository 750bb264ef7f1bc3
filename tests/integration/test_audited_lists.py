"""Lists and counts that the audit answers: what it found, checked in the store, and how late."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_delay.audit.queries import AuditQueries
from celery_delay.cli import delay
from celery_delay.exceptions import AuditUnavailable, InvalidSetting, SchemaOutdated
from celery_delay.services.auditor import Auditor
from tests.projects import hand_off, make_app

HOUR = 3_600


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def app(request: Any, redis_url: str, tmp_path: Path) -> Iterator[Celery]:
    url = f"sqlite:///{tmp_path}/audit.sqlite3"
    app = make_app(redis_url, delay_database_url=url, delay_shards=request.param)
    for name in ("till.pay", "till.refund", "mail.send"):
        app.task(nothing, name=name, shared=False)
    app.delayed.audit_log.migrate()
    hand_off(app)
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.delayed.audit_log.close()
    app.close()


def put(app: Celery, task_id: str, name: str = "till.pay", hours: float = 1, **more: Any) -> None:
    app.tasks[name].apply_delayed((1,), countdown=hours * HOUR, task_id=task_id, **more)


def drain(app: Celery) -> None:
    """Bring the journal to SQL, as the leader's auditor does."""
    parts = app.delayed
    for number, shard in enumerate(parts.shards):
        auditor = Auditor(
            number, shard, parts.audit_log, parts.results, parts.settings, parts.clock
        )
        while auditor.run_once(shard.leader()[1]):
            pass


def ids(page: Any) -> list[str]:
    return [getattr(one, "entry_id", one)[0] for one in page]


def test_filters_are_answered_by_the_audit_which_tells_its_lag(app: Celery) -> None:
    put(app, "a", hours=1, namespace="acme", tags=["red", "blue"])
    put(app, "b", "till.refund", hours=2, queue="slow", tags=["red"])
    put(app, "c", "mail.send", hours=3, namespace="acme", tags=["red"])
    drain(app)
    put(app, "late", hours=4, tags=["red"])
    found = app.delayed.list

    page = found(tag="red")

    assert (ids(page), page.source, page.next) == (["a", "b", "c"], "audit", None)
    assert page.lag_ms is not None
    assert page.lag_ms >= 0
    assert ids(found(tag=["red", "blue"])) == ["a"]
    assert ids(found(namespace="acme", task="mail.*")) == ["c"]
    assert ids(found(task="till.*", source="audit")) == ["a", "b"]
    assert ids(found(queue="slow")) == ["b"]
    exact = found(tag="red", source="store")
    assert (ids(exact), exact.source, exact.lag_ms) == (["a", "b", "c", "late"], "store", None)
    # what Redis has an index of, it answers
    assert (ids(found()), found().source) == (["a", "b", "c", "late"], "store")
    number = app.delayed.count(tag="red")
    assert (number, number.source) == (3, "audit")
    assert app.delayed.count(task="till.*") == 2
    assert app.delayed.count(tag="red", source="store") == 4


def test_what_it_says_is_checked_in_the_store(app: Celery) -> None:
    for n in range(8):
        put(app, f"t{n}", hours=n + 1, tags=["x"])
    drain(app)
    app.delayed.cancel("t0")
    app.delayed.hold("t1")
    app.delayed.reschedule("t2", by=100 * HOUR)

    assert ids(app.delayed.list(tag="x", state="SCHEDULED")) == [f"t{n}" for n in range(2, 8)]
    assert ids(app.delayed.list(tag="x", state="HELD")) == ["t1"]
    early = app.delayed.now_ms() + 50 * HOUR * 1_000
    assert "t2" not in ids(app.delayed.list(tag="x", before_ms=early))


def test_its_pages_go_on_although_most_of_what_it_says_is_gone(app: Celery) -> None:
    for n in range(30):
        put(app, f"t{n:02}", hours=n // 10 + 1, tags=["x"])
    drain(app)
    for n in range(25):
        app.delayed.cancel(f"t{n:02}")

    first = app.delayed.list(tag="x", limit=2)
    second = app.delayed.list(tag="x", limit=2, cursor=first.next)
    third = app.delayed.list(tag="x", limit=2, cursor=second.next)

    assert [ids(one) for one in (first, second, third)] == [
        ["t25", "t26"], ["t27", "t28"], ["t29"],
    ]  # fmt: skip
    assert third.next is None
    with pytest.raises(ValueError, match="cursor is of source='audit'"):
        app.delayed.list(tag="x", cursor=first.next, source="store")


def test_an_audit_that_is_late_or_cannot_be_asked_is_not_asked(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(app, "a", tags=["x"])
    assert app.delayed.list(tag="x", source="audit") == []
    for lag_ms in (60_000, None):
        monkeypatch.setattr(app.delayed, "audit_lag_ms", lambda lag_ms=lag_ms: lag_ms)
        page = app.delayed.list(tag="x")
        assert (ids(page), page.source) == (["a"], "store")
        assert app.delayed.list(tag="x", source="audit").lag_ms == lag_ms

    monkeypatch.setattr(app.delayed, "audit_lag_ms", lambda: 0)
    assert app.delayed.list(tag="x").source == "audit"
    app.delayed.audit_log.close()
    for one in tmp_path.iterdir():
        one.unlink()
    assert ids(app.delayed.list(tag="x")) == ["a"]
    with pytest.raises(SchemaOutdated):
        app.delayed.list(tag="x", source="audit")


def test_an_audit_that_fails_in_the_middle_is_passed_over(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise AuditUnavailable("the cable")

    put(app, "a", tags=["x"])
    put(app, "b", tags=["x"])
    drain(app)
    cursor = app.delayed.list(tag="x", limit=1).next
    monkeypatch.setattr(AuditQueries, "tasks", away)
    monkeypatch.setattr(AuditQueries, "number", away)

    page = app.delayed.list(tag="x")
    number = app.delayed.count(tag="x")

    assert (ids(page), page.source, number, number.source) == (["a", "b"], "store", 2, "store")
    for again in ({"source": "audit"}, {"cursor": cursor}):
        with pytest.raises(AuditUnavailable):
            app.delayed.list(tag="x", **again)
    with pytest.raises(AuditUnavailable):
        app.delayed.count(tag="x", source="audit")


def test_without_an_audit_it_cannot_be_named(redis_url: str) -> None:
    app = make_app(redis_url, delay_audit="off")
    with pytest.raises(InvalidSetting):
        app.delayed.list(task="x", source="audit")
    with pytest.raises(InvalidSetting):
        app.delayed.past()
    with pytest.raises(ValueError, match="source='sql' must be one of"):
        app.delayed.list(source="sql")
    with pytest.raises(ValueError, match=r"FAILED is no state of what waits; past\(\)"):
        app.delayed.list(state="FAILED")
    app.close()


def test_what_is_over_is_told_by_the_audit_the_latest_first(app: Celery) -> None:
    for n in range(5):
        put(app, f"t{n}", hours=n + 1, namespace="acme" if n % 2 else None)
        app.delayed.cancel(f"t{n}")
    put(app, "waits")
    drain(app)

    first = app.delayed.past(limit=3)
    second = app.delayed.past(limit=3, cursor=first.next)

    assert (ids(first), ids(second), second.next) == (["t4", "t3", "t2"], ["t1", "t0"], None)
    assert first[0].state == "CANCELLED"
    assert ids(app.delayed.past(namespace="acme")) == ["t3", "t1"]
    assert ids(app.delayed.past(state="FAILED")) == []
    assert ids(app.delayed.past(state=["CANCELLED", "SCHEDULED"], limit=2)) == ["t0", "waits"]
    with pytest.raises(ValueError, match="is of a list of another kind"):
        app.delayed.list(cursor=first.next)


# --- from a terminal -----------------------------------------------------------------------


def run(app: Celery, *arguments: str) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    answer = CliRunner().invoke(delay, list(arguments), obj=context)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def told(app: Celery, *arguments: str) -> Any:
    return json.loads(run(app, *arguments, "--json"))


def test_the_list_goes_on_with_a_cursor_and_shows_all(app: Celery) -> None:
    for n in range(5):
        put(app, f"t{n}", hours=n + 1, tags=["x"] if n != 2 else [])
    drain(app)

    for filters in ((), ("--tag", "x"), ("--tag", "x", "--source", "store")):
        first = told(app, "list", "--limit", "2", *filters)
        second = told(app, "list", "--limit", "2", "--cursor", first["next"], *filters)
        both = [one["task_id"] for one in first["tasks"] + second["tasks"]]
        assert both == (["t0", "t1", "t3", "t4"] if filters else ["t0", "t1", "t2", "t3"])
        assert first["source"] == second["source"] == ("audit" if len(filters) == 2 else "store")
        everything = told(app, "list", "--all", "--limit", "1", *filters)
        assert len(everything["tasks"]) == (4 if filters else 5)
        assert everything["next"] is None
    shown = run(app, "list", "--limit", "2")
    assert "2 of 5 waiting tasks" in shown
    assert f"go on with --cursor {told(app, 'list', '--limit', '2')['next']}" in shown
    assert "t4" in run(app, "list", "--all")
    assert told(app, "count", "--tag", "x") == {"count": 4, "source": "audit", "audit_lag_ms": 0}
    assert told(app, "count")["source"] == "store"
    assert run(app, "count", "--tag", "x", "--source", "store") == "4\n"


def test_all_pages_are_shown_one_after_the_other(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_delay.cli.listing._PAGE", 2)
    for n in range(5):
        put(app, f"t{n}", hours=n + 1)

    assert [one["task_id"] for one in told(app, "list", "--all")["tasks"]] == [
        f"t{n}" for n in range(5)
    ]
    shown = run(app, "list", "--all")
    assert all(f"t{n}" in shown for n in range(5))
    assert shown.count("task id") == 3


def test_a_watch_looks_again_until_it_is_stopped(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        put(app, f"t{len(waits)}/{seconds}")
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(app.delayed.clock, "sleep", sleep)
    shown = run(app, "list", "--watch")

    assert waits == [2.0] * 3
    assert shown.index("nothing waits") < shown.index("1 of 1") < shown.index("2 of 2")
    waits.clear()
    run(app, "list", "--watch", "0.5")
    assert waits == [0.5] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--all", "--cursor", "x"),
        ("list", "--all", "--watch"),
        ("list", "--watch", "--json"),
        ("list", "--cursor", "x"),
        ("list", "--state", "FAILED", "--cursor", base64.b64encode(b"[1]").decode()),
        ("count", "--state", "FAILED"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(app: Celery, arguments: tuple[str, ...]) -> None:
    context = SimpleNamespace(app=app, no_color=False)
    answer = CliRunner().invoke(delay, list(arguments), obj=context)

    assert (answer.exit_code, answer.stdout) == (2, "")
