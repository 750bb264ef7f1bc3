"""The projects of ``docs/examples/fastapi_shop`` and ``flask_shop``, with everything real."""

from __future__ import annotations

import ast
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from celery_delay.embedded import EmbeddedRedis
from tests.integration.websites import Website, websites
from tests.processes import wait_until

RAN = ("SCHEDULED", "DISPATCHED", "STARTED", "SUCCEEDED")


@pytest.fixture
def new_site(tmp_path: Path, redis_server: EmbeddedRedis) -> Iterator[Callable[..., Website]]:
    yield from websites(tmp_path, redis_server)


def test_fastapi(new_site: Callable[..., Website]) -> None:
    # Given a server, a beat and a worker
    site = new_site("fastapi_shop", "tasks")
    site.serve("-m", "uvicorn", "main:app", "--port", str(site.port), "--no-access-log")
    site.start()

    # When an order is placed at either kind of endpoint, and another one is paid
    plain = site.post("/orders/1?pay_within=0.5", 201)
    awaited = site.post("/orders/2/later?pay_within=0.5", 201)
    paid = site.post("/orders/3", 201)
    outcome = site.post(f"/cancellations/{paid['cancellation']}/cancel")

    # Then the first two are cancelled by their tasks
    wait_until(lambda: (site.folder / "cancelled-1").exists(), 30)
    wait_until(lambda: (site.folder / "cancelled-2").exists(), 30)
    for one in (plain, awaited):
        site.wait_for_history("delay.db", one["cancellation"], *RAN)
    # and the third has none any more
    assert outcome == {"outcome": "CANCELLED"}
    site.post(f"/cancellations/{plain['cancellation']}/cancel", 409)
    site.wait_for_history("delay.db", paid["cancellation"], "SCHEDULED", "CANCELLED")
    assert not (site.folder / "cancelled-3").exists()

    # When many threads of the server schedule at once
    with ThreadPoolExecutor(8) as threads:
        calls = [f"/orders/{number}{'/later' * (number % 2)}" for number in range(100, 180)]
        answers = list(threads.map(lambda path: site.post(path, 201), calls))

    # Then each of them got its own answer
    listed = {one["task_id"] for one in site.celery("list")["tasks"]}
    assert {one["cancellation"] for one in answers} == listed
    assert len(listed) == 80


def test_fastapi_while_redis_hangs_and_when_it_is_gone(
    new_site: Callable[..., Website], new_redis: Callable[..., EmbeddedRedis]
) -> None:
    server = new_redis()
    site = new_site("fastapi_shop", "tasks", CELERY_BROKER_URL=server.tcp_url)
    site.serve("-m", "uvicorn", "main:app", "--port", str(site.port))
    site.post("/orders/1/later", 201)
    assert server.pid is not None

    # When Redis hangs during a call of an async endpoint
    def took(method: str, path: str) -> tuple[float, httpx.Response]:
        begun = time.monotonic()
        answer = httpx.request(method, f"http://127.0.0.1:{site.port}/{path}", timeout=20)
        return time.monotonic() - begun, answer

    os.kill(server.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as threads:
            pending = threads.submit(took, "POST", "orders/2/later")
            others = []
            while not pending.done():
                others.append(took("GET", "openapi.json")[0])
        waited, answer = pending.result()
    finally:
        os.kill(server.pid, signal.SIGCONT)

    # Then the caller is told what is known, and nobody else waited for it
    assert answer.status_code == 503
    assert answer.json()["task"]
    assert max(others) < waited / 2

    # When there is none
    server.stop()

    # Then the caller is told to try again
    answer = site.client.post("/orders/3")
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text


def test_a_server_with_a_wrong_setting_does_not_start(new_site: Callable[..., Website]) -> None:
    site = new_site("fastapi_shop", "tasks")
    with (site.folder / "tasks.py").open("a") as file:
        file.write("\ncelery.conf.delay_databse_url = 'sqlite:////tmp/x'\n")

    server = site.procs.python("server", "-m", "uvicorn", "main:app", "--port", str(site.port))

    assert server.wait(30) != 0
    assert "did you mean delay_database_url?" in server.output()


def test_flask(new_site: Callable[..., Website], tmp_path: Path) -> None:
    # Given an app made in a factory, with shared tasks, each of which needs Flask's context
    site = new_site("flask_shop", "make_celery", SHOP_FOLDER=str(tmp_path))
    site.serve("-m", "flask", "--app", "shop", "run", "--port", str(site.port))
    site.start()

    # When one order is paid and another is not
    paid = site.post("/orders/1", 201)
    outcome = site.post(f"/cancellations/{paid['cancellation']}/cancel")
    unpaid = site.post("/orders/2?pay_within=0.5", 201)

    # Then the task of the other has run, and that one alone
    site.wait_for_history(str(tmp_path / "delay.db"), unpaid["cancellation"], *RAN)
    assert outcome == {"outcome": "CANCELLED"}
    assert (tmp_path / "orders").read_text() == "2 cancelled\n"
    site.wait_for_history(
        str(tmp_path / "delay.db"), paid["cancellation"], "SCHEDULED", "CANCELLED"
    )


SCRIPT = """
import threading
from celery import Celery, shared_task
from celery_delay import CeleryDelay
from celery_delay.exceptions import NotInstalled

def make(name):
    app = Celery(name)
    app.conf.delay_key_prefix = name + ":celery-delay:"
    CeleryDelay(app)
    return app

@shared_task
def work(number):
    pass

def call(answers):
    try:
        answers.append(work.delay_for(60, 1).app.main)
    except NotInstalled as exc:
        answers.append("app.set_default()" in str(exc))

def in_a_thread():
    answers = []
    thread = threading.Thread(target=call, args=(answers,))
    thread.start()
    thread.join()
    return answers[0]

first, second = make("first"), make("second")
found = []
call(found)               # the one made last is this thread's current app
found.append(in_a_thread())   # and no other thread's
first.set_default()
found.append(in_a_thread())
first.set_current()
call(found)
print([*found, first.delayed.count(), second.delayed.count()])
"""


def test_a_script_with_two_apps(new_site: Callable[..., Website]) -> None:
    site = new_site("flask_shop", "make_celery")

    found: Any = ast.literal_eval(site.python("-c", SCRIPT))

    assert found == ["second", True, "first", "first", 2, 1]
