"""Coming from Celery's own delays, from RedBeat and from django-celery-beat.

The scripts are those of ``docs/examples/migrate``, run on entries that RedBeat's and
django-celery-beat's own code has written.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import AlreadyScheduled
from tests.integration.websites import EXAMPLES, Website, websites
from tests.processes import wait_until
from tests.projects import hand_off, make_app, messages


@pytest.fixture
def new_site(tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[Callable[..., Website]]:
    yield from websites(tmp_path, redis_server)


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "redbeat:*", "mails", "_kombu*")


def test_what_workers_hold_already_runs_as_celery_runs_it(
    new_site: Callable[..., Website], redis_server: EmbeddedRedis
) -> None:
    # Given a worker without celery-delay that holds a task
    site = new_site("fastapi_shop", "tasks")
    new = (site.folder / "tasks.py").read_text()
    (site.folder / "tasks.py").write_text(new.replace("CeleryDelay(celery)\n", ""))
    worker = site.procs.worker("before")
    schedule = "import time, tasks; tasks.cancel_unpaid.apply_async((1,), countdown=6)"
    site.python("-c", schedule)
    worker.wait_for_log(r"received")

    # When it is stopped, and started again with celery-delay
    worker.stop()
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.llen("celery") == 1  # a warm shutdown gives it back
    (site.folder / "tasks.py").write_text(new)
    site.start()

    # Then the task runs, once
    site.procs.processes["worker"].wait_for_log(r"succeeded in", 30)
    assert (site.folder / "cancelled-1").exists()
    assert site.celery("list")["tasks"] == []


REDBEAT = """
from datetime import datetime, timedelta, timezone
from celery.schedules import crontab, schedule
from redbeat import RedBeatSchedulerEntry
from redbeat.schedulers import RedBeatScheduler
from redbeat.schedules import rrule
from tasks import celery

def entry(name, schedule, **more):
    RedBeatSchedulerEntry(
        name, "tasks.cancel_unpaid", schedule, args=[42], app=celery, **more
    ).save()

now = datetime.now(timezone.utc)
once = dict(app=celery, freq="DAILY", count=1)
entry("once", rrule(**once, dtstart=datetime(2099, 7, 1, 12, tzinfo=timezone.utc)))
entry("thrice", rrule(**{**once, "count": 3}, dtstart=datetime(2099, 8, 1, tzinfo=timezone.utc)),
      options={"queue": "mails", "expires": 60})
entry("soon", rrule(**once, dtstart=now + timedelta(seconds=60)))
entry("off", rrule(**once, dtstart=now + timedelta(days=1)), enabled=False)
over = rrule(**once, dtstart=now - timedelta(days=2))
entry("over", over, last_run_at=now)
entry("daily", crontab(hour=3, minute=0))
celery.conf.beat_schedule = {"static": {"task": "tasks.cancel_unpaid", "schedule": 60}}
RedBeatScheduler(celery)
"""


def test_redbeat_s_one_offs(new_site: Callable[..., Website]) -> None:
    # Given entries of all kinds
    site = new_site("fastapi_shop", "tasks")
    script = shutil.copy(EXAMPLES / "migrate" / "from_redbeat.py", site.folder)
    site.python("-W", "ignore", "-c", REDBEAT)

    def run(*options: str) -> dict[str, str]:
        said = site.python("-W", "ignore", str(script), "tasks:celery", *options)
        return dict(line.split(": ", 1) for line in said.splitlines())

    # When it only looks
    told = run()

    # Then it says what it would do, and does nothing
    assert told["once"] == "tasks.cancel_unpaid at 2099-07-01 12:00:00+00:00"
    assert told["soon"].startswith("left, RedBeat's beat runs it at")
    assert told["off"] == "left, it is disabled"
    assert told["over"] == "left, it is over"
    assert told["daily"].startswith("left, it repeats; put it into beat_schedule")
    assert "static" not in told
    assert site.celery("list")["tasks"] == []

    # When it does it, and again
    assert run("--do-it") == told
    assert set(run("--do-it")) == set(told) - {"once", "thrice"}

    # Then the tasks wait in our store, with their options
    tasks = site.celery("list")["tasks"]
    assert [one["eta"][:10] for one in tasks] == [
        "2099-07-01", "2099-08-01", "2099-08-02", "2099-08-03",
    ]  # fmt: skip
    assert [one["queue"] for one in tasks] == ["celery", "mails", "mails", "mails"]
    code = """
from tasks import celery
print([celery.delayed.get(one).headers["expires"] for one in %r])
"""
    expires = ast.literal_eval(site.python("-c", code % [one["task_id"] for one in tasks]))
    assert expires[0] is None
    assert [one[:19] for one in expires[1:]] == [f"2099-08-0{day}T00:01:00" for day in (1, 2, 3)]


def nothing() -> None:
    pass


def test_an_id_is_free_again_once_its_task_is_cancelled(redis_url: str) -> None:
    app = make_app(redis_url)
    task = app.task(nothing, shared=False, name="project.task")
    task.apply_delayed(countdown=0, task_id="order 42")

    with pytest.raises(AlreadyScheduled, match="order 42"):
        task.apply_delayed(countdown=60, task_id="order 42")
    assert app.delayed.cancel("order 42")
    task.apply_delayed(countdown=0, task_id="order 42")

    assert hand_off(app) == 1
    assert [one["headers"]["id"] for one in messages(app)] == ["order 42"]
    app.close()


ROWS = """
from datetime import datetime, timedelta, timezone
from django_celery_beat.models import ClockedSchedule, IntervalSchedule, PeriodicTask

def row(name, clocked_time=None, **more):
    if clocked_time:
        more["clocked"] = ClockedSchedule.objects.create(clocked_time=clocked_time)
    more = {"args": "[42]", "one_off": True, **more}
    PeriodicTask.objects.create(name=name, task="shop.tasks.cancel_unpaid", **more)

then, now = datetime(2099, 7, 1, 12, tzinfo=timezone.utc), datetime.now(timezone.utc)
row("far", then, expire_seconds=60, queue="mails", headers='{"trace": "x"}')
row("elsewhere", then + timedelta(hours=1), args="[]", kwargs='{"pk": 1}')
PeriodicTask.objects.filter(name="elsewhere").update(task="another.project")
row("soon", now + timedelta(seconds=5))
row("off", then, enabled=False)
row("has run", then, total_run_count=1)
row("hourly", interval=IntervalSchedule.objects.create(every=1, period="hours"))
row("daily", one_off=False, interval=IntervalSchedule.objects.create(every=1, period="days"))
"""


def test_django_celery_beat_s_one_offs(new_site: Callable[..., Website]) -> None:
    # Given rows of all kinds
    site = new_site("django_shop", "proj")
    commands = site.folder / "shop" / "management" / "commands"
    commands.mkdir(parents=True)
    shutil.copy(EXAMPLES / "migrate" / "move_clocked.py", commands)
    (site.folder / "proj" / "other.py").write_text(
        "from .settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, 'django_celery_beat']\n"
    )
    site.procs.env["DJANGO_SETTINGS_MODULE"] = "proj.other"
    site.python("manage.py", "migrate", "-v0")
    site.python("manage.py", "shell", "-c", ROWS)

    def run(*options: str) -> dict[str, str]:
        said = site.python("manage.py", "move_clocked", *options)
        return dict(line.split(": ", 1) for line in said.splitlines())

    # When it only looks
    told = run()

    # Then it says what it would do, and does nothing
    assert told["far"] == "shop.tasks.cancel_unpaid at 2099-07-01 12:00:00+00:00"
    assert told["soon"].startswith("left, the old beat runs it at")
    assert told["hourly"].startswith("left, its time is not clocked")
    assert set(told) == {"far", "elsewhere", "soon", "hourly"}
    assert site.celery("list")["tasks"] == []

    # When it does it; is thought to have died before the row was written; and is run again
    assert run("--do-it") == told
    site.python(
        "manage.py", "shell", "-c",
        "from django_celery_beat.models import PeriodicTask as P\n"
        "assert P.objects.filter(name='far', enabled=False).update(enabled=True) == 1",
    )  # fmt: skip
    assert set(run("--do-it")) == {"far", "soon", "hourly"}

    # Then each task waits in our store once, with its options
    tasks = site.celery("list")["tasks"]
    assert [(one["task"], one["queue"]) for one in tasks] == [
        ("shop.tasks.cancel_unpaid", "mails"),
        ("another.project", "celery"),
    ]
    code = """
from proj import celery_app as app
entry = app.delayed.get(%r)
app.delayed.send_task("shop.tasks.cancel_unpaid", [2], countdown=1)
print([entry.headers[name] for name in ("expires", "trace", "periodic_task_name", "argsrepr")])
"""
    said = site.python("-c", code % tasks[0]["task_id"])
    expires, *others = ast.literal_eval(said)
    assert expires[:19] == "2099-07-01T12:01:00"
    assert others == ["x", "far", "[42]"]

    # When the old beat goes on beside ours
    site.procs.beat("theirs", scheduler="django_celery_beat.schedulers:DatabaseScheduler")
    site.start()

    # Then each has done its part, once
    worker = site.procs.processes["worker"]
    wait_until(lambda: worker.output().count("succeeded in") >= 2, 40, "both tasks")
    assert worker.output().count("succeeded in") == 2
    site.procs.processes["theirs"].wait_for_log(r"Sending due task soon")
