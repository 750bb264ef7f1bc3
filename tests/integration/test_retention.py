"""Old tasks leave the audit, and a task is forgotten: from Python, by command, by the beat."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from sqlalchemy import update

from celery_delay.audit.tables import task
from celery_delay.beats.replica import Replica
from celery_delay.cli import delay
from celery_delay.exceptions import AuditUnavailable, InvalidSetting, StillAlive
from celery_delay.services.auditor import Auditor
from tests.processes import wait_until
from tests.projects import hand_off, make_app

DAY = 86_400_000


def pay() -> None: ...


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "celery*")


@pytest.fixture
def new_app(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    made = []

    def make(**conf: Any) -> Celery:
        app = make_app(redis_url, delay_database_url=f"sqlite:///{tmp_path}/audit.db", **conf)
        app.task(pay, shared=False, name="shop.pay")
        app.delayed.audit_log.migrate()
        made.append(app)
        return app

    yield make
    for app in made:
        app.delayed.audit_log.close()
        app.close()


@pytest.fixture
def app(new_app: Callable[..., Celery]) -> Celery:
    return new_app()


def drain(app: Celery) -> None:
    parts = app.delayed
    [store] = parts.shards
    auditor = Auditor(0, store, parts.audit_log, parts.results, parts.settings, parts.clock)
    while auditor.run_once(store.leader()[1]):
        pass


def cancelled(app: Celery, *, days: int = 0) -> str:
    """The id of a task that was cancelled so many days ago."""
    task_id = str(app.tasks["shop.pay"].delay_for(3600).id)
    hand_off(app)  # names the Redis history
    assert app.delayed.cancel(task_id)
    drain(app)
    if days:
        then = app.delayed.now_ms() - days * DAY
        with app.delayed.audit_log.database.writing() as connection:
            connection.execute(
                update(task).where(task.c.task_id == task_id).values(updated_ms=then, eta_ms=then)
            )
    return task_id


def run(app: Celery, *arguments: str, exit_code: int = 0) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    answer = CliRunner().invoke(delay, list(arguments), obj=context)
    assert answer.exit_code == exit_code, answer.output
    return json.loads(answer.stdout) if "--json" in arguments else answer


def known(app: Celery, task_id: str) -> bool:
    return bool(app.delayed.history(task_id).events)


def test_old_tasks_are_counted_and_deleted(app: Celery) -> None:
    old, young = cancelled(app, days=40), cancelled(app)

    assert app.delayed.prune("30d", dry_run=True) == {"CANCELLED": 1}
    assert known(app, old)
    seen: list[int] = []
    assert app.delayed.prune("30d", progress=seen.append) == {"CANCELLED": 1}
    assert seen[-1] == 1
    assert not known(app, old)
    assert known(app, young)


def test_prune_by_command(app: Celery) -> None:
    old = cancelled(app, days=40)

    assert "there is nobody to ask" in run(app, "prune", exit_code=2).stderr
    assert "delay_retention" in run(app, "prune", "--yes", exit_code=2).stderr
    assert "30d" in run(app, "prune", "--older-than", "x", "--yes", exit_code=2).stderr
    failed = ("prune", "--older-than", "30d", "--state", "failed", "--yes", "--json")
    assert run(app, *failed)["total"] == 0
    dry = run(app, "prune", "--older-than", "30d", "--dry-run", "--json")
    assert dry == {"dry_run": True, "total": 1, "tasks": {"CANCELLED": 1}}
    assert known(app, old)
    assert "deleted 1 task" in run(app, "prune", "--older-than", "30d", "--yes").stdout
    assert not known(app, old)


def test_the_setting_says_what_is_old(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_retention={"CANCELLED": "30d"})
    old = cancelled(app, days=40)

    assert app.delayed.prune() == {"CANCELLED": 1}
    assert not known(app, old)


def test_without_any_age_nothing_is_deleted(app: Celery) -> None:
    with pytest.raises(InvalidSetting, match="delay_retention"):
        app.delayed.prune()
    with pytest.raises(ValueError, match="SCHEDULED"):
        app.delayed.prune("30d", states=["SCHEDULED"])


def test_a_task_is_forgotten(app: Celery) -> None:
    task_id = cancelled(app)

    assert app.delayed.forget(task_id) is True
    assert not known(app, task_id)
    assert app.delayed.forget(task_id) is False
    assert run(app, "forget", task_id, "--json", exit_code=1)["outcome"] == "NOT_FOUND"


def test_a_task_that_waits_is_not_forgotten(app: Celery) -> None:
    result = app.tasks["shop.pay"].delay_for(3600)

    with pytest.raises(StillAlive, match="cancel it first"):
        app.delayed.forget(result.id)
    assert run(app, "forget", result.id, "--json", exit_code=1)["outcome"] == "ALIVE"
    assert "cancel it first" in run(app, "forget", result.id, exit_code=1).stderr


def test_what_the_journal_still_has_is_waited_for(app: Celery) -> None:
    hand_off(app)
    result = app.tasks["shop.pay"].delay_for(3600)
    assert result.cancel()

    with pytest.raises(AuditUnavailable, match="drained"):
        app.delayed.forget(result.id, timeout=0.2)
    later = threading.Timer(0.5, drain, [app])
    later.start()
    assert app.delayed.forget(result.id) is True
    later.join()
    drain(app)
    assert not known(app, result.id)


def test_a_leading_beat_prunes(new_app: Callable[..., Celery]) -> None:
    app = new_app(delay_retention={"*": "30d"}, delay_remote_control=False)
    old, young = cancelled(app, days=40), cancelled(app)

    replica = Replica(app.delayed)
    replica.start()
    try:
        wait_until(lambda: not known(app, old), 20)
    finally:
        replica.stop()
        replica.join(5)
    assert known(app, young)


def test_status_tells_the_oldest_transition(app: Celery) -> None:
    assert run(app, "status", "--json", exit_code=1)["audit"]["oldest_ms"] is None
    cancelled(app)

    told = run(app, "status", "--json")["audit"]
    assert abs(told["oldest_ms"] - app.delayed.now_ms()) < DAY
    assert "oldest in it" in run(app, "status").stdout


def test_migrate_prints_sql_and_makes_no_file(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url, delay_database_url=f"sqlite:///{tmp_path}/none.db")

    assert "CREATE TABLE celery_delay_task" in run(app, "migrate", "--sql").stdout
    assert not (tmp_path / "none.db").exists()
    assert "--since" in run(app, "migrate", "--since", "0001", exit_code=2).stderr
    assert "no version" in run(app, "migrate", "--sql", "--since", "9", exit_code=2).stderr
    app.close()
