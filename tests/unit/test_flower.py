"""Flower's Delayed tab without Flower: what is kept for a moment, shown, and put into its bar."""

from __future__ import annotations

import base64
import json
import logging
import sys
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application

from celery_delay import CeleryDelay
from celery_delay.domain.callers import caller, on_behalf_of
from celery_delay.domain.entries import EntryId, StoredEntry
from celery_delay.flower.answering import Answering, Refused
from celery_delay.flower.guarding import why_read_only
from celery_delay.flower.lately import Lately
from celery_delay.flower.listing import ListHandler
from celery_delay.flower.shown import shown
from celery_delay.flower.templating import FOLDER, Templates
from tests.fakes import FakeClock
from tests.unit.test_cli import run

# --- lately ------------------------------------------------------------------------------


def test_an_answer_is_good_for_a_moment() -> None:
    clock = FakeClock()
    lately, answers = Lately[int](clock, 5.0), iter(range(10))

    def ask() -> int:
        return next(answers)

    assert [lately.get(ask), lately.get(ask)] == [0, 0]
    clock.sleep(5.0)
    assert lately.get(ask) == 1


def test_a_failure_is_not_kept() -> None:
    lately = Lately[int](FakeClock(), 5.0)
    with pytest.raises(OSError, match="away"):
        lately.get(lambda: (_ for _ in ()).throw(OSError("away")))
    assert lately.get(lambda: 1) == 1


def test_while_one_asks_the_others_get_the_last_answer() -> None:
    clock = FakeClock()
    lately = Lately[int](clock, 5.0)
    asking, go_on = Event(), Event()
    assert lately.get(lambda: 1) == 1
    clock.sleep(6.0)

    def slow() -> int:
        asking.set()
        assert go_on.wait(10)
        return 2

    thread = Thread(target=lately.get, args=(slow,))
    thread.start()
    assert asking.wait(10)
    try:
        assert lately.get(lambda: 3) == 1
    finally:
        go_on.set()
        thread.join()
    assert lately.get(lambda: 3) == 2


# --- who asks ----------------------------------------------------------------------------


def test_a_change_for_somebody_else_bears_the_name_and_nothing_that_steers_a_terminal() -> None:
    mine = caller()
    with on_behalf_of("ann\x1b[2J"):
        assert caller() == f"ann?[2J ({mine})"
    with on_behalf_of(""):
        assert caller() == mine
    assert caller() == mine


# --- what is shown of arguments ----------------------------------------------------------


def entry(args: Any, kwargs: Any, **headers: Any) -> StoredEntry:
    body = base64.b64encode(json.dumps([args, kwargs, {}]).encode()).decode()
    envelope = {"body": body, "content-type": headers.pop("content_type", "application/json")}
    headers = {"argsrepr": repr(tuple(args)), "kwargsrepr": repr(kwargs), **headers}
    return StoredEntry(EntryId("x", 1), 1, 0, 0, {"task": "pay", **headers}, "celery", envelope)


def delayed(**conf: Any) -> CeleryDelay:
    app = Celery("shown", broker="redis://localhost:1", set_as_current=False)
    app.conf.update(conf)

    def pay(order: Any, pin: Any = None) -> None:
        """Never runs."""

    app.task(pay, shared=False, name="pay")
    return CeleryDelay(app)


@pytest.mark.parametrize(
    ("given", "conf", "told"),
    [
        (entry([1], {"b": 2}), {}, ("(1,)", "{'b': 2}")),
        (entry([1, 1234], {"token": "x"}), {}, ("(1, '…')", "{'token': '…'}")),
        (entry([1, 1234], {}, argsrepr="[1, 1234]"), {}, ("(1, '…')", "{}")),
        # a caller's own words stay, unless there is something to hide: then nothing is shown
        (entry([1], {}, argsrepr="(an order)"), {}, ("(an order)", "{}")),
        (entry([1, 1234], {}, argsrepr="(an order)"), {}, ("…", "{}")),
        (entry([1, 1234], {}, content_type="application/x-python-serialize"), {}, (None, None)),
        (entry([1, 1234], {}, compression="gzip"), {}, (None, None)),
        (entry(["x" * 70_000], {}), {}, (None, None)),
        (entry([1, 1234], {}), {"delay_audit_args": "repr"}, ("(1, 1234)", "{}")),
        (entry([1, 2], {}), {"delay_audit_args": "off"}, (None, None)),
    ],
)
def test_arguments_are_shown_without_secrets(
    given: StoredEntry, conf: dict[str, Any], told: tuple[str | None, str | None]
) -> None:
    assert shown(delayed(**conf), given) == told


# --- who may -----------------------------------------------------------------------------


def handler(
    monkeypatch: pytest.MonkeyPatch, unauthenticated_api: bool = False, **given: Any
) -> Answering:
    options = {"basic_auth": [], "auth": "", "read_only": False, **given}
    conf = options.pop("conf", {})
    application: Any = Application(cookie_secret="x")
    application.options, application.capp = SimpleNamespace(**options), delayed(**conf).app
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", str(unauthenticated_api))
    connection: Any = SimpleNamespace(set_close_callback=lambda callback: None)
    line = RequestStartLine("GET", "/api/delayed", "HTTP/1.1")
    request = HTTPServerRequest(
        start_line=line, headers=HTTPHeaders({"Host": "x"}), connection=connection
    )
    return ListHandler(application, request)


def test_an_open_api_is_not_open_to_other_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = handler(monkeypatch, unauthenticated_api=True)

    assert ours.unauthenticated_api
    assert [one for one in ours._headers if one.startswith("Access-Control")] == []
    assert ours._headers["Content-Security-Policy"].startswith("default-src 'self'")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "nobody has to log in"),
        ({"basic_auth": ["ann:secret"]}, None),
        ({"auth": "ann@example.com"}, None),
        ({"conf": {"delay_flower_actions": "open"}}, None),
        ({"conf": {"delay_flower_actions": "off"}, "auth": "ann@example.com"}, "'off'"),
        ({"conf": {"delay_flower_actions": "open"}, "read_only": True}, "--read-only"),
    ],
)
def test_changes_need_somebody_who_is_known_or_the_project_s_word(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], why: str | None
) -> None:
    said = why_read_only(handler(monkeypatch, **options))

    assert said == why if why is None else why in (said or "")


def test_a_project_without_celery_delay_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = handler(monkeypatch)
    ours.application.capp = Celery("bare", set_as_current=False)  # type: ignore[attr-defined]

    with pytest.raises(Refused) as told:
        _ = ours.delayed
    assert told.value.status_code == 503
    assert "CeleryDelay(app)" in told.value.text


# --- the way into Flower -----------------------------------------------------------------


def test_a_bar_without_a_list_stays_as_it_is_and_the_log_says_where_the_page_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "navbar.html").write_text("<nav>another Flower</nav>")
    loader = Templates(str(tmp_path), None)

    with caplog.at_level(logging.WARNING):
        assert loader.load("navbar.html").generate() == b"<nav>another Flower</nav>"
    assert "/delayed" in caplog.text


def test_the_tab_goes_to_the_end_of_the_first_list(tmp_path: Path) -> None:
    (tmp_path / "navbar.html").write_text("<ul><li>Tasks</li></ul><ul><li>Theme</li></ul>")
    loader = Templates(str(tmp_path), None)

    told = loader.load("navbar.html").generate(
        active_tab="delayed", reverse_url=lambda name: f"/{name}"
    )

    text = told.decode()
    assert text.index("Tasks") < text.index('href="/delayed"') < text.index("Theme")
    assert (FOLDER / "delayed.html").is_file()


def test_without_flower_the_verb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flower", None)

    answer = run("flower", "--port=0", app=delayed().app)

    assert answer.exit_code == 2
    assert "pip install 'celery-delay[flower]'" in answer.output


def test_the_verb_needs_an_app_and_explains_itself() -> None:
    answer = run("flower", "--help")
    assert answer.exit_code == 0
    assert "flowerconfig.py" in answer.output
    assert run("flower", "--port=0").exit_code == 2
