"""``celery delay export`` and ``import``: what they say, and what a kill in the middle leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_delay.cli import delay
from celery_delay.exceptions import StoreUnavailable
from tests.processes import wait_until
from tests.projects import hand_off, make_app, messages

MANY = 4_000
#: 2040-01-31T12:00:00Z.
NOON = 2_211_624_000_000

PROJECT = """\
import os
from celery import Celery
from celery_delay import CeleryDelay
app = Celery("shop", broker=os.environ["SHOP_URL"], set_as_current=False)
app.conf.update(delay_audit="off", delay_key_prefix=os.environ["SHOP_PREFIX"])
CeleryDelay(app)
"""


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture
def apps(redis_url: str) -> Iterator[tuple[Celery, Celery]]:
    """Where it comes from, and where it goes."""
    base, _, _ = redis_url.rpartition("/")
    made = [
        make_app(f"{base}/{number}", delay_audit="off", delay_key_prefix=f"celery-delay:{number}:")
        for number in range(2)
    ]
    for app in made:
        app.task(nothing, name="till.pay", shared=False)
    yield made[0], made[1]
    for app in made:
        for shard in app.delayed.shards:
            shard.close()
        app.close()


def fill(app: Celery, number: int = MANY) -> None:
    app.tasks["till.pay"].apply_delayed_many([((n,), {}) for n in range(number)], countdown=100_000)


def ids(app: Celery) -> list[str]:
    return [one.entry_id.task_id for one in app.delayed.iterate()]


def run(app: Celery, *arguments: str, given: bytes | None = None) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    return CliRunner().invoke(delay, list(arguments), obj=context, input=given)


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a verb in a process of its own."""
    (tmp_path / "shop.py").write_text(PROJECT)
    base, _, _ = redis_url.rpartition("/")
    started: list[subprocess.Popen[bytes]] = []

    def start(number: int, *arguments: str) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "SHOP_URL": f"{base}/{number}",
            "SHOP_PREFIX": f"celery-delay:{number}:",
        }
        command = [sys.executable, "-m", "celery", "-A", "shop", "delay", *arguments]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.communicate()


def killed(process: subprocess.Popen[bytes], far_enough: Callable[[], bool]) -> None:
    wait_until(lambda: far_enough() or process.poll() is not None, timeout=30)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_in_the_middle_and_done_again(
    apps: tuple[Celery, Celery], start: Callable[..., Any], tmp_path: Path
) -> None:
    source, target = apps
    fill(source)
    wanted = ids(source)
    file = tmp_path / "waiting.jsonl"

    killed(start(0, "export", str(file)), lambda: file.exists() and file.stat().st_size > 100_000)
    assert start(0, "export", str(file), "--resume").wait() == 0
    lines = [json.loads(one) for one in file.read_text().splitlines()]
    entries = [one for one in lines if one.get("kind") == "entry"]
    assert [one["task_id"] for one in entries] == wanted
    assert [one["n"] for one in entries] == list(range(1, MANY + 1))
    assert lines[-1] == {"kind": "end", "entries": MANY}

    killed(start(1, "import", str(file)), lambda: target.delayed.count() > 0)
    # meanwhile some of it is handed off
    assert target.delayed.count() < MANY
    hand_off(target, until=next(target.delayed.iterate()).eta_ms)
    process = start(1, "import", str(file), "--json")
    out, err = process.communicate()
    told = json.loads(out)

    # nothing is missing, and nothing is there twice
    assert (process.returncode, err) == (0, b"")
    gone = [one["headers"]["id"] for one in messages(target)]
    assert sorted(gone + ids(target)) == sorted(wanted)
    assert told["before"] == len(gone)
    assert told["imported"] + told["present"] + told["before"] == MANY


# --- what they say -----------------------------------------------------------------------


def test_there_and_back_with_a_summary(apps: tuple[Celery, Celery], tmp_path: Path) -> None:
    source, target = apps
    fill(source, 30)
    file = str(tmp_path / "waiting.jsonl")

    dry = run(source, "export", file, "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, "30 tasks would be exported\n")
    said = run(source, "export", file, "--json")
    assert said.exit_code == 0
    assert json.loads(said.stdout)["entries"] == 30
    again = run(source, "export", file)
    assert again.exit_code == 2
    assert "is there already: --resume, or another name" in again.stderr
    whole = run(source, "export", file, "--resume", "--json")
    assert json.loads(whole.stdout)["entries"] == 30

    would = run(target, "import", file, "--dry-run")
    assert (would.exit_code, would.stdout) == (0, "30 tasks would be imported\n")
    first = run(target, "import", file)
    assert (first.exit_code, first.stdout) == (0, "30 tasks imported\n")
    second = run(target, "import", file)
    assert (second.exit_code, second.stdout) == (0, "0 tasks imported, 30 were here already\n")


def test_through_a_pipe(apps: tuple[Celery, Celery]) -> None:
    source, target = apps
    fill(source, 5)
    said = run(source, "export", "-", "--task", "till.*")
    assert (said.exit_code, said.stderr) == (0, "5 tasks exported\n")

    come = run(target, "import", "-", given=said.stdout_bytes)

    assert (come.exit_code, target.delayed.count()) == (0, 5)
    assert run(source, "export", "-", "--json").exit_code == 2
    assert run(source, "export", "-", "--resume").exit_code == 2


def test_what_is_wrong_is_told_by_exit_code(
    apps: tuple[Celery, Celery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = apps
    fill(source, 3)
    file = tmp_path / "waiting.jsonl"
    run(source, "export", str(file))
    lines = file.read_bytes().splitlines(keepends=True)

    bad = run(target, "import", "-", "--json", given=b"".join([*lines[:2], b"{\n", *lines[3:]]))
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["refused"][0]["line"] == 3
    assert "line 3: no JSON" in bad.stderr
    cut = run(target, "import", "-", given=b"".join(lines[:-1]))
    assert cut.exit_code == 1
    assert "the export was cut short" in cut.stderr
    newer = lines[0].replace(b'"version":1', b'"version":7')
    refused = run(target, "import", "-", given=newer)
    assert refused.exit_code == 2
    assert "format version 7, and this release knows 1" in refused.stderr
    assert run(source, "export", str(tmp_path / "no" / "folder")).exit_code == 1
    sealed = run(source, "export", str(tmp_path / "sealed"), "--encrypted")
    assert sealed.exit_code == 2
    assert "an encrypted export needs a key: set delay_payload_keys" in sealed.stderr
    # Redis goes away in the middle: what came is told
    shard = target.delayed.shards[0]
    monkeypatch.setattr(shard, "bring_in", lambda *_: (_ for _ in ()).throw(StoreUnavailable("x")))
    away = run(target, "import", "-", "--json", given=b"".join(lines))
    assert away.exit_code == 69
    assert json.loads(away.stdout)["error"] == "x"
    assert "give the same command again" in away.stderr
