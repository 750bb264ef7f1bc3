"""The Django project of ``docs/examples/django_shop``, with everything real.

Effects are rows of the shop's own table, which its tasks and views change.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url

from celery_delay.embedded import EmbeddedRedis
from tests.integration.websites import Website, websites
from tests.processes import wait_until
from tests.sql import SQLDatabases, administrator, run_sql


@pytest.fixture
def new_site(tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[Callable[..., Website]]:
    yield from websites(tmp_path, redis_server)


@pytest.fixture
def site(new_site: Callable[..., Website]) -> Website:
    """The project, without its tables; nothing runs yet."""
    return new_site("django_shop", "proj", PAY_WITHIN="600")


def in_shell(site: Website, code: str) -> Any:
    """What *code* printed at last, in ``manage.py shell``, as Python reads it."""
    said = site.python("manage.py", "shell", "-v0", "-c", code)
    return ast.literal_eval(said.strip().splitlines()[-1])


def test_a_shop(site: Website) -> None:
    # Given a web server that reloads itself, as in development, two beats and a worker
    site.python("manage.py", "migrate", "-v0")
    site.serve("manage.py", "runserver", f"127.0.0.1:{site.port}")
    site.start(beats=2)

    # When one order is paid
    paid = site.post("/orders", 201)
    [waiting] = site.celery("list")["tasks"]
    outcome = site.post(f"/orders/{paid['order']}/pay")

    # Then its task never runs, and the audit says why
    assert waiting["task_id"] == paid["cancellation"]
    assert waiting["task"] == "shop.tasks.cancel_unpaid"
    assert outcome == {"outcome": "CANCELLED"}
    assert site.celery("list")["tasks"] == []

    # When another is not, and a third is reminded of by a task that retries
    unpaid, reminded = in_shell(
        site,
        "from shop.models import Order\n"
        "from shop.tasks import cancel_unpaid, remind\n"
        "unpaid, reminded = (Order.objects.create() for _ in range(2))\n"
        "print([(unpaid.pk, cancel_unpaid.delay_for(0.5, unpaid.pk).id),\n"
        "       (reminded.pk, remind.delay_for(0.5, reminded.pk).id)])",
    )

    # Then both tasks do their work
    site.wait_for(f"/orders/{unpaid[0]}", state="cancelled")
    site.wait_for(f"/orders/{reminded[0]}", state="reminded")
    site.wait_for(f"/orders/{paid['order']}", state="paid")
    run = ["SCHEDULED", "DISPATCHED", "STARTED"]
    site.wait_for_history("delay.sqlite3", paid["cancellation"], "SCHEDULED", "CANCELLED")
    site.wait_for_history("delay.sqlite3", unpaid[1], *run, "SUCCEEDED")
    # the retry is stored while its run is still under way
    wait_until(
        lambda: (
            sorted(site.history("delay.sqlite3", reminded[1]))
            == sorted([*run, "RETRIED", *run, "SUCCEEDED"])
        ),
        20,
        "both runs of the reminder",
    )
    told = site.celery("history", paid["cancellation"])
    assert "paid" in json.dumps(told)


def test_the_project_s_own_tests_pass(site: Website) -> None:
    site.python("-W", "error::RuntimeWarning", "manage.py", "test")
    assert "No changes detected" in site.python("manage.py", "makemigrations", "--check")


def test_importing_the_app_reads_no_settings(site: Website) -> None:
    said = site.python(
        "-c",
        "import proj, sys, django.conf as conf\n"
        "app = proj.celery_app\n"
        "print([app.configured, app.finalized, conf.settings.configured, 'shop' in sys.modules])",
    )

    assert ast.literal_eval(said) == [False, False, False, False]


def test_a_setting_that_does_not_exist_ends_every_process_with_its_name(site: Website) -> None:
    with (site.folder / "proj" / "settings.py").open("a") as file:
        file.write("\nCELERY_DELAY_DATABSE_URL = 'sqlite:////tmp/x'\n")
    told = "no setting CELERY_DELAY_DATABSE_URL; did you mean CELERY_DELAY_DATABASE_URL?"

    server = site.procs.python("server", "manage.py", "runserver", "--noreload", str(site.port))
    beat = site.procs.beat()

    assert server.wait(30) != 0
    assert told in server.output()
    assert beat.wait(30) != 0
    assert told in beat.output()


def test_transactions(site: Website) -> None:
    code = """
from functools import partial
from celery.contrib.django.task import DjangoTask
from django.db import transaction
from proj.celery import app
from shop.tasks import cancel_unpaid

def place():
    transaction.on_commit(partial(cancel_unpaid.apply_delayed, (1,), countdown=60))
    return app.delayed.count()

found = [isinstance(cancel_unpaid._get_current_object(), DjangoTask)]
try:
    with transaction.atomic():
        place()
        raise KeyError
except KeyError:
    found.append(app.delayed.count())
with transaction.atomic():
    found.append(place())
found.append(app.delayed.count())

# an async view
from asgiref.sync import async_to_sync, sync_to_async
async def view():
    return await sync_to_async(cancel_unpaid.apply_delayed)((2,), countdown=60)
print([*found, async_to_sync(view)().delay_state.value])
"""

    assert in_shell(site, code) == [True, 0, 0, 1, "SCHEDULED"]


@pytest.mark.parametrize("aware", [True, False])
def test_times(site: Website, aware: bool) -> None:
    (site.folder / "proj" / "other.py").write_text(f"from .settings import *\nUSE_TZ = {aware}\n")
    code = """
from datetime import datetime, timedelta, timezone as utc
from django.utils import timezone
from shop.tasks import cancel_unpaid
naive = cancel_unpaid.apply_delayed((1,), eta=datetime(2099, 7, 1, 12))
soon = timezone.now() + timedelta(hours=1)
off = cancel_unpaid.delay_until(soon, 1).eta - datetime.now(utc.utc) - timedelta(hours=1)
print([naive.eta.isoformat(), timezone.is_aware(soon), abs(off.total_seconds()) < 30])
"""
    site.procs.env["DJANGO_SETTINGS_MODULE"] = "proj.other"

    # a naive eta is in TIME_ZONE, which is Berlin's
    assert in_shell(site, code) == ["2099-07-01T10:00:00+00:00", aware, True]


def test_a_server_that_forks_after_it_has_scheduled(site: Website) -> None:
    # Given a parent that has used its connection, as with gunicorn --preload
    code = """
import os
import redis
from proj.celery import app
from shop.tasks import cancel_unpaid

server = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
connected = [len(server.client_list())]
cancel_unpaid.delay_for(60, 1)
connected.append(len(server.client_list()))
scheduled, tell = os.pipe()
stay, leave = os.pipe()
child = os.fork()
if not child:
    cancel_unpaid.delay_for(60, 2)
    os.write(tell, b"!")
    os.close(leave)
    os.read(stay, 1)  # the connection is open until the parent has looked
    os._exit(0)
os.read(scheduled, 1)
connected.append(len(server.client_list()))
cancel_unpaid.delay_for(60, 3)
connected.append(len(server.client_list()))
os.close(leave)
os.waitpid(child, 0)
print([app.delayed.count(), *connected])
"""

    count, _, parent, child, again = in_shell(site, code)

    # then the child has one of its own, and the parent goes on with its
    assert (count, child, again) == (3, parent + 1, parent + 1)


def test_a_shared_task_where_no_app_is_known(site: Website) -> None:
    (site.folder / "proj" / "__init__.py").write_text("")  # the usual way to get this wrong
    code = """
from celery import shared_task
import celery_delay.app
from celery_delay.exceptions import NotInstalled
def one():
    pass
try:
    shared_task(one).apply_delayed(countdown=60)
except NotInstalled as exc:
    print([str(exc)])
"""

    [told] = ast.literal_eval(site.python("-c", code))
    assert "from .celery import app as celery_app" in told
    assert "app.set_default()" in told


@pytest.fixture
def postgres(sql_databases: SQLDatabases) -> Iterator[URL]:
    """A database of PostgreSQL's with no tables, before and after."""
    url = make_url(sql_databases.url("postgresql"))
    anew = ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    with administrator(url) as engine:
        run_sql(engine, *anew)
        yield url
        run_sql(engine, *anew)


def test_django_and_the_audit_share_a_server_s_database(site: Website, postgres: URL) -> None:
    # Given a project whose DATABASES names a server
    default = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": postgres.database,
        "USER": postgres.username or "",
        "PASSWORD": postgres.password or "",
        "HOST": postgres.host or "",
        "PORT": postgres.port or "",
    }
    (site.folder / "proj" / "other.py").write_text(
        "from .settings import *\n"
        f"DATABASES = {{'default': {default!r}}}\n"
        "CELERY_DELAY_DATABASE_URL = database_url(DATABASES['default'])\n"
    )
    site.procs.env["DJANGO_SETTINGS_MODULE"] = "proj.other"

    # When both make their tables there
    site.python("manage.py", "migrate", "-v0")
    migrated = site.procs.run("delay", "migrate")
    site.start()
    code = """
from shop.models import Order
from shop.tasks import cancel_unpaid
print(repr(cancel_unpaid.delay_for(0, Order.objects.create().pk).id))
"""
    task_id = in_shell(site, code)

    # Then a task's story is beside the shop's orders, and Django has nothing to say to it
    assert migrated.returncode == 0, migrated
    with administrator(postgres) as engine:
        story = f"SELECT state FROM celery_delay_task WHERE task_id = '{task_id}'"
        wait_until(lambda: run_sql(engine, story) == "SUCCEEDED", 30, "the story")
        assert run_sql(engine, "SELECT state FROM shop_order") == "cancelled"
    assert "No changes detected" in site.python("manage.py", "makemigrations", "--check")
    site.python("manage.py", "migrate", "--check")
    site.procs.close()
