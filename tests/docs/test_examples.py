"""The pages' examples do what the pages say, with real processes.

A ``console`` block is run word for word: a line that starts a beat or a worker starts one,
``kill -9 <beat>`` kills the leading one, and any other ``celery`` command must succeed.  ``>>>``
is a doctest.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example
from sybil.parsers.rest import CodeBlockParser, DocTestParser, PythonCodeBlockParser

import celery_delay
from celery_delay.embedded import EmbeddedRedis
from tests.processes import CeleryProcess, ProcessHarness, wait_until

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


class Terminal:
    """Runs the commands of console blocks; long-lived ones go on until the test ends."""

    def __init__(self, harness: ProcessHarness, leads: Callable[[CeleryProcess], bool]) -> None:
        self._harness = harness
        self._leads = leads

    def __call__(self, example: Example) -> str | None:
        for line in str(example.parsed).splitlines():
            if line.startswith("$ "):
                words = shlex.split(line.removeprefix("$ "))
                self.run([self._filled(word, example) for word in words])
        return None

    @staticmethod
    def _filled(word: str, example: Example) -> str:
        """``<order>`` is the id of the result that the page calls ``order``."""
        name = word.strip("<>") if word.startswith("<") else ""
        return str(example.namespace[name].id) if name in example.namespace else word

    def run(self, command: list[str]) -> None:
        if command[:2] == ["kill", "-9"]:
            self._kill_leader()
            return
        assert command[:2] == ["celery", "-A"], command
        verb = command[3]
        if verb in ("beat", "worker"):
            number = sum(name.startswith(verb) for name in self._harness.processes)
            own = ["-l", "info", *(["-n", "docs@test"] if verb == "worker" else [])]
            process = self._harness.start(f"{verb}{number}", *command[3:], *own)
            process.wait_for_log(r"\bready\.$" if verb == "worker" else "beat: Starting", 30)
            return
        done = self._harness.run(*command[3:])
        assert done.returncode == 0, done

    def _kill_leader(self) -> None:
        beats = [one for name, one in self._harness.processes.items() if name.startswith("beat")]
        [leader] = [one for one in beats if self._leads(one)]
        leader.kill()


@pytest.fixture
def shop(
    tmp_path: Path, redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with the quickstart's ``shop.py``, whose broker is the test's Redis."""
    shutil.copy(EXAMPLES / "shop.py", tmp_path)
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.tcp_url)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", redis_server.tcp_url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    module = sys.modules.pop("shop", None)
    if module is not None:
        module.app.backend.client.close()
        module.app.close()


@pytest.fixture
def terminal(
    shop: Path, redis_server: EmbeddedRedis, harness: Callable[..., ProcessHarness]
) -> Terminal:
    environment = {
        "CELERY_BROKER_URL": redis_server.tcp_url,
        "CELERY_RESULT_BACKEND": redis_server.tcp_url,
    }

    def leads(beat: CeleryProcess) -> bool:
        import redis

        with redis.Redis.from_url(redis_server.url) as client:
            holder = client.hget("{celery-delay:0}:lease", "holder") or b""
        return f":{beat.pid}:".encode() in holder

    path = (shop, Path(celery_delay.__file__).parents[1])
    return Terminal(harness("shop", path=path, env=environment), leads)


def evaluate(page: Path, namespace: dict[str, Any], *parsers: Any) -> int:
    """Run the examples of *page* from top to bottom; how many there were."""
    document = Document.parse(str(page), *parsers, encoding="utf-8")
    document.namespace.update(namespace)
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


def test_the_quickstart_works_word_for_word(shop: Path, terminal: Terminal) -> None:
    def wait_for_audit(task_id: str, state: str) -> None:
        def seen() -> Any:
            with (
                contextlib.closing(sqlite3.connect(shop / "shop.db")) as db,
                contextlib.suppress(sqlite3.OperationalError),  # no tables yet
            ):
                return db.execute(
                    "SELECT 1 FROM celery_delay_task WHERE task_id = ? AND state = ?",
                    (task_id, state),
                ).fetchone()
            return None

        wait_until(seen, 15, f"{state} of {task_id} in SQL")

    class Console(CodeBlockParser):
        language = "console"

        def evaluate(self, example: Example) -> str | None:
            return terminal(example)

    count = evaluate(
        DOCS / "quickstart.rst",
        {"wait_for_audit": wait_for_audit},
        Console(),
        DocTestParser(optionflags=doctest.IGNORE_EXCEPTION_DETAIL),
        PythonCodeBlockParser(),
    )

    assert count > 15
    # the effects, counted by what the tasks wrote and not by us
    assert sorted((shop / "cancelled.txt").read_text().split()[1::2]) == ["42", "43", "47"]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in sorted(DOCS.rglob("*.rst")):
        document = Document.parse(str(page), CodeBlockParser(language, lambda _: None))
        for number, example in enumerate(document.examples(), 1):
            yield f"{page.relative_to(DOCS)}:{number}", str(example.parsed)


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in blocks("python")])
def test_python_blocks_are_python(source: str) -> None:
    compile(source, "<docs>", "exec")


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in blocks("sql")])
def test_sql_blocks_run_on_the_audit_tables(source: str, tmp_path: Path) -> None:
    from celery_delay.audit.log import SQLAuditLog

    database = tmp_path / "delay.db"
    log = SQLAuditLog(f"sqlite:///{database}")
    log.migrate()
    log.database.close()
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute(source, {"task_id": "x"} if ":task_id" in source else {}).fetchall() == []
