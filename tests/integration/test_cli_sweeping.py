"""Verbs that change all that a filter means: what they show, when they ask, what they do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_delay.cli import delay, sweeping
from celery_delay.exceptions import StoreUnavailable
from tests.projects import make_app


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = make_app(redis_url, delay_audit="off")
    for name in ("till.pay", "mail.send"):
        app.task(nothing, name=name, shared=False)
    for n in range(24):
        app.tasks["mail.send" if n % 2 else "till.pay"].apply_delayed(
            (n,), countdown=3_600 + n, task_id=f"t{n:02}", tags=["even"] if n % 2 == 0 else []
        )
    yield app
    for shard in app.delayed.shards:
        shard.close()
    app.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_can_ask", lambda: True)


def run(app: Celery, *arguments: str, answer: str | None = None) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    return CliRunner().invoke(delay, list(arguments), obj=context, input=answer)


@pytest.mark.usefixtures("terminal")
def test_what_would_be_hit_is_shown_and_a_no_changes_nothing(app: Celery) -> None:
    for answer in ("n\n", "\n", ""):
        said = run(app, "cancel", "--task", "mail.*", answer=answer)

        assert said.exit_code == 1
        assert "t01" in said.stdout
        assert "t19" in said.stdout
        assert "t21" not in said.stdout
        assert "and 2 more" in said.stdout
        assert "Cancel 12 tasks? [y/N]" in said.stderr
        assert app.delayed.count() == 24


@pytest.mark.usefixtures("terminal")
def test_a_yes_does_it(app: Celery) -> None:
    said = run(app, "cancel", "--task", "mail.*", "--reason", "stopped", answer="y\n")

    assert said.exit_code == 0
    assert "12 of 12 tasks: CANCELLED" in said.stdout
    assert app.delayed.count() == app.delayed.count(task="till.pay") == 12


@pytest.mark.usefixtures("terminal")
def test_where_nothing_fits_nobody_is_asked(app: Celery) -> None:
    said = run(app, "hold", "--queue", "nowhere")

    assert said.exit_code == 0
    assert "0 of 0 tasks: HELD" in said.stdout
    assert "?" not in said.stderr


def test_every_verb_takes_a_filter_and_tells_programs_what_became_of_it(app: Celery) -> None:
    def told(*arguments: str) -> Any:
        said = run(app, *arguments, "--json")
        assert said.exit_code == 0, said.output
        return json.loads(said.stdout)

    shown = told("cancel", "--tag", "even", "--dry-run", "--limit", "3")
    assert (shown["looked_at"], shown["cancelled"], shown["dry_run"]) == (3, 0, True)
    assert [one["task_id"] for one in shown["sample"]] == ["t00", "t02", "t04"]

    held = told("hold", "--task", "till.*", "--yes")
    assert (held["held"], held["outcomes"], held["error"]) == (12, {"HELD": 12}, None)
    assert told("release", "--state", "HELD", "--limit", "5", "--yes")["released"] == 5
    assert told("release", "--all", "--yes")["released"] == 7
    moved = told("reschedule", "--after", "1h", "--before", "3605s", "--by", "1d", "--yes")
    assert moved["rescheduled"] in (5, 6)
    assert told("run-now", "--tag", "even", "--yes")["rescheduled"] == 12
    assert told("cancel", "--all", "--yes")["cancelled"] == 24
    assert app.delayed.count() == 0


def test_a_filter_that_cannot_be_meant_is_wrong_usage(app: Celery) -> None:
    said = run(app, "hold", "--state", "FAILED", "--yes")

    assert (said.exit_code, said.stdout) == (2, "")
    assert "no entry that is FAILED" in said.stderr


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(StoreUnavailable("the cable"), 69, "the cable"), (KeyboardInterrupt(), 1, "interrupted")],
)
def test_what_ends_it_in_the_middle_is_told_with_what_was_done(
    app: Celery, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    cancel = type(app.delayed).cancel

    def cut(self: Any, task_id: str, **more: Any) -> Any:
        if task_id == "t05":
            raise error
        return cancel(self, task_id, **more)

    monkeypatch.setattr(type(app.delayed), "cancel", cut)
    said = run(app, "cancel", "--all", "--yes", "--json")

    document = json.loads(said.stdout)
    assert said.exit_code == code
    assert (document["cancelled"], document["looked_at"]) == (5, 5)
    assert says in document["error"]
    assert says in said.stderr


def test_other_answers_are_told_with_their_ids(app: Celery) -> None:
    shard = app.delayed.shards[0]
    with shard._link() as link:
        link.call("HSET", shard.keys.entries, "t03", "9 what")

    said = run(app, "hold", "--all", "--yes")

    assert said.exit_code == 1
    assert "23 of 24 tasks: HELD" in said.stdout
    assert "DAMAGED: 1\n  t03" in said.stdout


@pytest.mark.usefixtures("terminal")
def test_a_purge_wants_the_number_typed(app: Celery) -> None:
    app.delayed.hold("t01")
    for answer in ("", "\n", "y\n", "23\n"):
        said = run(app, "purge", answer=answer)

        assert said.exit_code == 1
        assert "EVERYTHING THAT WAITS IS CANCELLED" in said.stderr
        assert "Cancel 24 tasks: type their number" in said.stderr
        assert app.delayed.count() == 24

    said = run(app, "purge", "--reason", "new data", answer="24\n")

    assert said.exit_code == 0
    assert "24 of 24 tasks: CANCELLED" in said.stdout
    assert app.delayed.count() == 0


def test_a_purge_for_programs(app: Celery) -> None:
    for arguments, cancelled, left in (("--dry-run",), 0, 24), (("--yes",), 24, 0):
        said = run(app, "purge", *arguments, "--json")

        assert said.exit_code == 0
        document = json.loads(said.stdout)
        assert (document["cancelled"], document["looked_at"]) == (cancelled, 24)
        assert app.delayed.count() == left
