"""Completion by click's protocol, as each shell speaks it to ``celery``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import celery_delay
from tests.projects import make_app
from tests.schemas import SERVERS, verbs

PROJECT = """
import logging, sys
from celery import Celery
from celery_delay import CeleryDelay
print("printed when it is imported")
print("and on stderr", file=sys.stderr)
logging.getLogger("clinic").warning("and in the log")
app = Celery("clinic", broker={url!r})
CeleryDelay(app)

@app.task(name="clinic.treat")
def treat():
    pass
"""

pytestmark = pytest.mark.skipif(
    not entry_points(group="celery.commands", name="delay"), reason="celery-delay is not installed"
)


def nothing() -> None:
    """The body of tasks that nobody runs."""


def asked(folder: Path, line: str, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """What the shell does when the tab key is pressed at the end of *line*."""
    words = line.split()
    begun = "" if line.endswith(" ") else words.pop()
    env = {
        **os.environ,
        "COMP_WORDS": " ".join([*words, begun]),
        "COMP_CWORD": begun if shell == "fish" else str(len(words)),
        "_CELERY_COMPLETE": f"{shell}_complete",
        "PYTHONPATH": str(Path(celery_delay.__file__).parents[1]),
    }
    program = "import sys; sys.argv[0] = 'celery'; from celery.bin.celery import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip


def offered(folder: Path, line: str) -> list[str]:
    """The words that bash offers."""
    answer = asked(folder, line)
    assert answer.stderr == ""
    return [one.partition(",")[2] for one in answer.stdout.splitlines() if one]


@pytest.fixture
def folder(tmp_path: Path, redis_url: str) -> Path:
    """The working directory of somebody who has the project ``clinic``."""
    (tmp_path / "clinic.py").write_text(PROJECT.format(url=redis_url))
    return tmp_path


@pytest.fixture
def ids(redis_url: str) -> dict[str, str]:
    """Two tasks that wait, and one that is held."""
    app = make_app(redis_url)
    app.task(nothing, name="clinic.treat", shared=False)
    treat = app.tasks["clinic.treat"]
    made = {
        name: treat.apply_delayed((), countdown=3_600, task_id=f"{name}-1").id
        for name in ("first", "second", "third")
    }
    app.delayed.hold(made["third"])
    app.delayed.shards[0].close()
    app.close()
    return made


def test_verbs_are_offered(folder: Path) -> None:
    found = offered(folder, "celery -A clinic delay ")
    assert set(found) == {one.split()[0] for one in verbs()} | SERVERS
    assert offered(folder, "celery -A clinic delay rel") == ["release"]


def test_options_and_their_values_are_offered(folder: Path) -> None:
    assert {"--by", "--periods", "--json"} <= set(
        offered(folder, "celery -A clinic delay forecast --")
    )
    assert offered(folder, "celery -A clinic delay forecast --by h") == ["hour"]
    assert offered(folder, "celery -A clinic delay list --state S") == [
        "SCHEDULED", "STARTED", "SUCCEEDED",
    ]  # fmt: skip
    assert offered(folder, "celery -A clinic delay list --state he") == ["held"]


def test_ids_that_wait_are_offered_each_once(folder: Path, ids: dict[str, str]) -> None:
    for verb in ("cancel", "show", "reschedule"):
        assert set(offered(folder, f"celery -A clinic delay {verb} ")) == set(ids.values()), verb
    assert offered(folder, "celery -A clinic delay cancel fi") == ["first-1"]
    assert offered(folder, "celery -A clinic delay cancel first-1 fi") == []
    assert offered(folder, "celery -A clinic delay release ") == ["third-1"]


def test_only_so_many_ids_are_looked_at(folder: Path, redis_url: str, ids: dict[str, str]) -> None:
    app = make_app(redis_url)
    app.task(nothing, name="clinic.treat", shared=False)
    app.tasks["clinic.treat"].apply_delayed_many([()] * 500, countdown=60)
    assert len(offered(folder, "celery -A clinic delay cancel ")) == 200
    app.delayed.shards[0].close()
    app.close()


def test_names_of_tasks_are_offered(folder: Path) -> None:
    assert offered(folder, "celery -A clinic delay add cl") == ["clinic.treat"]
    assert offered(folder, "celery -A clinic delay list --task ") == ["clinic.treat"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_answered(folder: Path, ids: dict[str, str], shell: str) -> None:
    answer = asked(folder, "celery -A clinic delay cancel fi", shell)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert re.search(r"\bfirst-1\b", answer.stdout)
    assert "printed" not in answer.stdout
    # zsh and fish show what the words are about
    assert ("clinic.treat" in answer.stdout) is (shell != "bash")
    script = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'celery';"
         "from celery.bin.celery import main; main()"],
        env={**os.environ, "_CELERY_COMPLETE": f"{shell}_source"},
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert "_CELERY_COMPLETE" in script.stdout


@pytest.mark.parametrize(
    "line",
    [
        "celery delay cancel ",
        "celery -A nosuch delay cancel ",
        "celery -A broken delay cancel ",
        "celery -A bare delay cancel ",
        "celery -A away delay cancel ",
    ],
)
def test_what_cannot_be_had_is_silently_left_out(folder: Path, line: str) -> None:
    (folder / "broken.py").write_text("import sys; print('no'); sys.exit(3)")
    (folder / "bare.py").write_text("from celery import Celery; app = Celery('bare')")
    (folder / "away.py").write_text(PROJECT.format(url="redis://127.0.0.1:9/0"))

    answer = asked(folder, line)

    assert (answer.returncode, answer.stdout.strip(), answer.stderr) == (0, "", "")


def test_a_redis_that_says_nothing_is_not_waited_for_long(
    folder: Path, new_redis: Callable[..., Any]
) -> None:
    server = new_redis()
    (folder / "frozen.py").write_text(PROJECT.format(url=server.broker_url))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        answer = asked(folder, "celery -A frozen delay cancel ")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert (answer.stdout.strip(), answer.stderr) == ("", "")
