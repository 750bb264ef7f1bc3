"""The example projects of ``docs/examples`` as real web sites with beat and worker.

An example is copied into the test's folder and run from there unchanged: its broker and results
are what ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` say, which Celery reads itself.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

import celery_delay
from celery_delay.embedded import EmbeddedRedis
from tests.processes import ProcessHarness, wait_until

__all__ = ["EXAMPLES", "Website", "websites"]

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class Website:
    """One example project, for one test or module.

    Attributes:
        folder: the copy.
        procs: starts its processes.
        client: speaks HTTP to the server that :meth:`serve` has started.
    """

    def __init__(self, folder: Path, app: str, redis: EmbeddedRedis, **env: str) -> None:
        self.folder = folder
        urls = {"CELERY_BROKER_URL": redis.tcp_url, "CELERY_RESULT_BACKEND": redis.tcp_url}
        # the installed package's folder too: it may be an editable install
        path = (folder, Path(celery_delay.__file__).parents[1])
        self.procs = ProcessHarness(folder, app, path=path, env={**urls, **env})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def python(self, *arguments: str) -> str:
        """Run ``python <arguments>`` to its good end; its standard output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.procs.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def celery(self, *arguments: str) -> Any:
        """Run ``celery -A … delay <arguments> --json`` to its good end; its document."""
        done = self.procs.run("delay", *arguments, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def start(self, beats: int = 1) -> None:
        """Beats and a worker, ready to work."""
        started = [self.procs.beat(f"beat{number}") for number in range(beats)]
        self.procs.worker()
        wait_until(
            lambda: any(" leads (term" in one.output() for one in started), 30, "a beat that leads"
        )

    def serve(self, *arguments: str) -> None:
        """Start ``python <arguments>``, a web server at :attr:`port`; return once it answers."""
        server = self.procs.python("server", *arguments)

        def answers() -> bool:
            assert server.is_running, server
            with contextlib.suppress(httpx.TransportError):
                return bool(self.client.get("/").status_code)
            return False

        wait_until(answers, 30, "the web server")

    def post(self, path: str, expected: int = 200, **options: Any) -> Any:
        answer = self.client.post(path, **options)
        assert answer.status_code == expected, (answer, answer.text[:2000])
        return answer.json()

    def wait_for(self, path: str, **expected: Any) -> None:
        """Wait until a GET of *path* answers with these values."""
        wait_until(lambda: expected.items() <= self.client.get(path).json().items(), 30, path)

    def history(self, database: str, task_id: str) -> list[str]:
        """The states that the audit in the SQLite file *database* has of a task, in order."""
        with (
            contextlib.closing(sqlite3.connect(self.folder / database)) as db,
            contextlib.suppress(sqlite3.OperationalError),  # no tables yet
        ):
            return [
                state
                for (state,) in db.execute(
                    "SELECT state FROM celery_delay_event WHERE task_id = ?"
                    " ORDER BY at_ms, stream_ms, stream_seq",
                    (task_id,),
                )
            ]
        return []

    def wait_for_history(self, database: str, task_id: str, *states: str) -> None:
        wait_until(
            lambda: self.history(database, task_id) == list(states), 20, f"{states} of {task_id}"
        )

    def close(self) -> None:
        self.client.close()
        self.procs.close()


def websites(folder: Path, redis: EmbeddedRedis) -> Iterator[Callable[..., Website]]:
    """Body of a fixture: ``make(example, app, **env)`` copies an example; closed at the end.

    Logs are shown beside a failure.
    """
    made: list[Website] = []

    def make(example: str, app: str, **env: str) -> Website:
        copied = folder / example
        shutil.copytree(EXAMPLES / example, copied, ignore=shutil.ignore_patterns("__pycache__"))
        made.append(Website(copied, app, redis, **env))
        return made[-1]

    yield make
    for one in made:
        one.close()
        print(one.procs)  # captured
