"""The pages' examples do what the pages say, with real processes.

A ``console`` block is run word for word: a line that starts a beat or a worker starts one,
``kill -9 <beat>`` kills the leading one, and any other ``celery`` command must succeed.  ``>>>``
is a doctest.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import re
import shlex
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sybil import Document, Example
from sybil.parsers.rest import CodeBlockParser, DocTestParser, PythonCodeBlockParser

import celery_delay
from celery_delay.audit.database import Database
from celery_delay.audit.log import SQLAuditLog
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


def test_sql_blocks_run_on_every_audit_database(database: Database) -> None:
    SQLAuditLog(database).migrate()
    values = {"task_id": "x", "since_ms": 0, "before_ms": 1}

    for name, source in blocks("sql"):
        used = {key: value for key, value in values.items() if f":{key}" in source}
        with database.reading() as connection:
            assert connection.execute(text(source), used).all() == [], name


def test_what_the_page_says_of_instants_is_true(database: Database) -> None:
    names = {"postgresql": "PostgreSQL", "mysql": "MySQL, MariaDB", "sqlite": "SQLite"}
    page = (DOCS / "howto" / "audit.rst").read_text()
    with database.reading() as connection:
        row = page.partition(f"   * - {names[connection.dialect.name]}\n")[2]
        an_hour_ago, for_people = re.findall(r"``(.*?)``", row)[:2]
        if connection.dialect.name == "mysql":
            connection.execute(text("SET time_zone = '+00:00'"))

        found = float(connection.scalar(text(f"SELECT {an_hour_ago}")))
        assert abs(found / 1000 - (time.time() - 3600)) < 60

        one = "(SELECT 1700000000000 AS at_ms) AS one"
        told = connection.scalar(text(f"SELECT {for_people} FROM {one}"))
        if connection.dialect.name == "postgresql":
            assert told.timestamp() == 1_700_000_000
        else:
            assert str(told).startswith("2023-11-14 22:13:20")
