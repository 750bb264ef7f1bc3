"""``celery delay check``: what waits in a real Redis, against the tasks of another release."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from celery_delay.cli import delay
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.scanning import PAGE
from tests.projects import close, make_app

HOUR = 3600


def pay(order: int, amount: int = 0) -> None: ...


def pay_now(order: int, amount: int, currency: str) -> None: ...


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = make_app(redis_url, **conf)
        made.append(app)
        return app

    yield make
    for app in made:
        close(app)


@pytest.fixture
def old(new_app: Callable[..., Celery]) -> Celery:
    """The release that runs."""
    app = new_app()
    app.pay = app.task(pay, shared=False, name="till.pay")
    app.remind = app.task(pay, shared=False, name="till.remind")
    return app


@pytest.fixture
def new(new_app: Callable[..., Celery]) -> Celery:
    """The one that is about to be deployed: one task is gone, the other takes more."""
    app = new_app()
    app.task(pay_now, shared=False, name="till.pay")
    return app


def check(app: Celery, *arguments: str) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    return CliRunner().invoke(delay, ["check", *arguments], obj=context)


def quarantine(app: Celery, task_id: str) -> None:
    """Park an entry, as ``include/quarantine.lua`` does it."""
    keys = app.delayed.shard_keys[0]
    with redis.Redis.from_url(app.conf.broker_url) as connection:
        record = connection.hget(keys.entries, task_id)
        eta = connection.zscore(keys.schedule, task_id)
        parked = json.dumps(["no queue", str(int(eta)), record.decode(), 0])
        connection.hset(keys.quarantine, task_id, parked)
        connection.hdel(keys.entries, task_id)
        connection.zrem(keys.schedule, task_id)


def test_scheduled_held_blocked_and_quarantined_tasks_are_judged(old: Celery, new: Celery) -> None:
    ids = [f"t{number}" for number in range(5)]
    for number, one in enumerate(ids):
        old.pay.apply_delayed((number,), countdown=HOUR + number, task_id=one)
    fits = old.pay.apply_delayed((1,), {"amount": 2}, countdown=HOUR)
    old.remind.apply_delayed((1,), countdown=60, task_id="gone")
    old.delayed.hold("t1")
    quarantine(old, "t2")
    keys = old.delayed.shard_keys[0]
    with redis.Redis.from_url(old.conf.broker_url) as connection:
        connection.zadd(keys.blocked, {"t3": connection.zscore(keys.schedule, "t3")})
        connection.zrem(keys.schedule, "t3")

    # The code that runs takes all of it, the new one refuses it by task and reason
    assert check(old).exit_code == 0
    answer = check(new, "--json")

    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    gone, *changed = document["misfits"]
    assert (gone["task"], gone["task_ids"], gone["count"]) == ("till.remind", ["gone"], 1)
    assert "registered" in gone["reason"]
    told = {one["reason"].split(":")[0]: one["task_ids"] for one in changed}
    assert told == {
        "pay_now() missing 2 required positional arguments": ids,
        "pay_now() missing 1 required positional argument": [fits.id],
    }
    assert (document["total"], document["fitting"], document["misfitting"]) == (7, 0, 7)
    assert changed[0]["first_eta_ms"] > gone["first_eta_ms"] > old.delayed.now_ms()


def test_people_see_groups_with_the_first_ids_and_the_sums(old: Celery, new: Celery) -> None:
    for number in range(30):
        old.remind.apply_delayed((number,), countdown=HOUR + number, task_id=f"r{number:02}")
    old.pay.apply_delayed((1, 2), countdown=HOUR)

    said = check(new, "--limit", "3").stdout

    assert "till.remind: no task of this name is registered" in said
    assert "30 waiting, the first due" in said
    assert [one in said for one in ("r00", "r01", "r02", "r03")] == [True, True, True, False]
    assert "and 27 more" in said
    assert "till.pay: pay_now() missing 1 required" in said
    assert "31 waiting tasks: 0 fit, 31 do not" in said


@pytest.mark.parametrize(
    ("setting", "arguments", "held"),
    [
        ("leave", (), False),
        ("leave", ("--hold",), True),
        ("hold", (), True),
        ("hold", ("--no-hold",), False),
        ("hold", ("--ignore", "till.remind"), False),
    ],
)
def test_unknown_tasks_are_held(
    old: Celery, new: Celery, setting: str, arguments: tuple[str, ...], held: bool
) -> None:
    new.conf.delay_on_unknown = setting
    old.remind.apply_delayed((1,), countdown=HOUR, task_id="unknown")
    old.pay.apply_delayed((1,), countdown=HOUR, task_id="misfit")

    answer = check(new, *arguments, "--json")

    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    assert document["held"] == (["unknown"] if held else [])
    assert old.delayed.held() == document["held"]
    # the code that knows it can let it go
    assert bool(old.delayed.release("unknown")["unknown"]) is held


def test_tasks_of_other_projects_can_be_ignored(old: Celery, new: Celery) -> None:
    old.remind.apply_delayed((1,), countdown=HOUR)
    new.delayed.send_task("billing.pay", countdown=HOUR)

    assert check(new, "--ignore", "billing.*").exit_code == 1
    answer = check(new, "--ignore", "billing.*", "--ignore", "till.remind", "--json")

    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["ignored"] == 2


def test_pickled_bodies_and_unreadable_records_are_counted(old: Celery, new: Celery) -> None:
    old.conf.accept_content = ["json", "pickle"]
    old.pay.apply_delayed((1,), countdown=HOUR, serializer="pickle")
    old.pay.apply_delayed((1,), countdown=HOUR, compression="gzip")
    old.pay.apply_delayed((1,), countdown=HOUR, task_id="damaged")
    with redis.Redis.from_url(old.conf.broker_url) as connection:
        connection.hset(old.delayed.shard_keys[0].entries, "damaged", "9 of a newer release")
        connection.hset(old.delayed.shard_keys[0].quarantine, "parked", "nothing that we know")

    found = new.delayed.check_entries()

    assert found.not_looked_at == {"the body is not plain JSON": 2, "the record cannot be read": 2}
    assert (found.total, found.misfits) == (4, [])


def test_every_entry_of_every_shard_is_read_while_others_come_and_go(
    new_app: Callable[..., Celery],
) -> None:
    # Given entries in several shards, far more than a page
    app = new_app(delay_shards=3)
    app.pay = app.task(pay, shared=False, name="till.pay")
    stay = [one.id for one in app.pay.apply_delayed_many([(1, 2)] * 3_000, countdown=HOUR)]
    going = [one.id for one in app.pay.apply_delayed_many([(1, 2)] * 300, countdown=HOUR)]
    app.tasks.pop("till.pay")
    # When some leave and others come with each page
    seen: list[int] = []

    def meanwhile(number: int) -> None:
        seen.append(number)
        if going:
            app.delayed.cancel(going.pop())
        app.delayed.send_task("till.late", countdown=HOUR)

    found = app.delayed.check_entries(progress=meanwhile, ignore=["till.late"])
    # Then those that stay are all there
    [misfit] = found.misfits
    assert set(stay) <= set(misfit.task_ids)
    assert len(seen) >= 3_000 / PAGE
    assert seen == sorted(seen)


def test_an_entry_that_moves_between_two_looks_is_judged(
    old: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a held entry, which is released while a page is being read
    old.pay.apply_delayed((1,), countdown=HOUR, task_id="moving")
    old.delayed.hold("moving")
    [shard] = old.delayed.shards
    read = shard._read

    def meanwhile(*command: object) -> Any:
        if command[:2] == ("ZMSCORE", shard.keys.held):
            old.delayed.release("moving")
        return read(*command)

    monkeypatch.setattr(shard, "_read", meanwhile)

    assert old.delayed.check_entries().fitting == 1


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_entries(old: Celery) -> None:
    def peak() -> int:
        gc.collect()
        tracemalloc.start()
        assert old.delayed.check_entries().misfits == []
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    old.pay.apply_delayed_many([(1, 2)] * 500, countdown=HOUR)
    peak()
    few = peak()
    old.pay.apply_delayed_many([(1, 2)] * 2_000, countdown=HOUR)

    assert peak() < few * 1.5


def test_the_tasks_are_loaded_as_a_worker_loads_them(
    old: Celery, redis_url: str, tmp_path: Path
) -> None:
    # Given a project whose tasks are in a module that only a worker imports
    old.pay.apply_delayed((1,), countdown=HOUR)
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\nfrom celery_delay import CeleryDelay\n"
        f"app = Celery('proj', broker={redis_url!r}, include=['jobs'])\nCeleryDelay(app)\n"
    )
    jobs = tmp_path / "jobs.py"
    jobs.write_text("from proj import app\n@app.task(name='till.pay')\ndef pay(order): pass\n")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *(command or "-m celery -A proj delay check".split())],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    fitting = run()
    called = run("-c", "from proj import app; print(app.delayed.check_entries().fitting)")
    jobs.write_text("import no_such_module_anywhere\n")
    broken = run()

    assert (fitting.returncode, fitting.stderr) == (0, "")
    assert "1 waiting tasks: 1 fit" in fitting.stdout
    assert (called.returncode, called.stdout) == (0, "1\n")
    assert broken.returncode == 2
    assert "no_such_module_anywhere" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_without_redis_it_says_so(new_redis: Callable[..., Any]) -> None:
    server = new_redis()
    app = make_app(server.tcp_url, delay_redis_timeout=0.5)
    server.stop()

    with pytest.raises(StoreUnavailable):
        app.delayed.check_entries()
    assert check(app).exit_code == 69
    app.close()
