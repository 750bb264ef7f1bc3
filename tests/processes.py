"""Real ``celery`` processes for tests: started, killed, frozen, read, and gone at the end.

Nothing here knows celery-delay: a test says which app and which command.  Each
process leads its own process group, so that a worker's pool children can be ended
with it, and writes to a log file of its own, which a failing test shows.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from celery_delay.embedded import die_with_parent

__all__ = ["CeleryProcess", "ProcessHarness", "wait_until"]

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Return the predicate's first true answer; look every 10 ms for ``timeout`` seconds.

    Raises:
        AssertionError: it never was true; names ``what`` and the last answer.
    """
    deadline = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            name = what or getattr(predicate, "__name__", "it")
            raise AssertionError(f"{name}: not within {timeout:g} s, last answer {answer!r}")
        time.sleep(0.01)
    return answer


class CeleryProcess:
    """One started process.

    Attributes:
        name: what the test calls it; also names the log file.
        log: file with its output, all runs one after the other.
    """

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], cwd: Path) -> None:
        self.name = name
        self.command = command
        self.log = cwd / f"{name}.log"
        self._env = dict(env)
        self._cwd = cwd
        self._groups: list[int] = []
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the current or last run."""
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, else the exit code; minus the signal that ended it."""
        return self._popen.poll() if self._popen else None

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self.returncode is None

    def start(self) -> CeleryProcess:
        """Start it, or start it again after :meth:`kill` or :meth:`stop`.

        From a thread that lives on: the end of the forking thread ends the process.
        """
        assert not self.is_running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                die_with_parent(self.command),
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._groups.append(self.pid)
        return self

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group (a worker's pool too)."""
        if group:
            os.killpg(self.pid, number)
        elif self.is_running:
            os.kill(self.pid, number)

    def kill(self, *, group: bool = False) -> None:
        """SIGKILL, and wait for the end.  Without ``group``, pool children see to themselves."""
        if self.is_running:
            self.signal(signal.SIGKILL, group=group)
        self.wait(10)

    def stop(self, timeout: float = 45.0) -> int:
        """SIGTERM: warm shutdown; return the exit code.

        A pool process that ends a task while its worker stops may not be heard any more: then it
        stays for 30 s (billiard's ``_ensure_messages_consumed``), once in a hundred times.

        Raises:
            AssertionError: it still runs after ``timeout`` seconds.
        """
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def pause(self, *, group: bool = False) -> None:
        """SIGSTOP: it does nothing and notices nothing until :meth:`resume`."""
        self.signal(signal.SIGSTOP, group=group)

    def resume(self, *, group: bool = False) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT, group=group)

    def wait(self, timeout: float = 20.0) -> int:
        """Return the exit code once it has ended by itself or by a signal."""
        assert self._popen is not None, f"{self.name} was never started"
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s\n{self}") from None

    def output(self) -> str:
        """All it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def mark(self) -> int:
        """A place in the log: ``wait_for_log(..., since=mark)`` looks only behind it."""
        return len(self.output())

    def wait_for_log(self, pattern: str, timeout: float = 20.0, since: int = 0) -> re.Match[str]:
        """Return the first match of a regular expression in the log.

        Raises:
            AssertionError: it did not come, or the process ended first.
        """
        expression = re.compile(pattern, re.MULTILINE)

        def found() -> re.Match[str] | None:
            ended = not self.is_running  # before the look: its last words count
            match = expression.search(self.output(), since)
            assert match or not ended, f"{self.name} ended ({self.returncode})\n{self}"
            return match

        try:
            return wait_until(found, timeout, f"{pattern!r} in the log of {self.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self}") from None

    def end(self) -> None:
        """Leave nothing of any run behind."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self._popen:
            self._popen.wait()

    def __str__(self) -> str:
        tail = "\n".join(self.output().splitlines()[-40:])
        return f"--- {self.name}: {' '.join(self.command)}\n{tail}"


class ProcessHarness:
    """Starts ``celery -A <app> …`` processes in a folder of their own and ends them all.

    Args:
        folder: working directory of the processes, with their logs and schedule files.
        app: module of the Celery app, as for ``celery -A``.
        path: folders to import it from; the work tree is not among them, so the
            processes import the celery_delay that is installed.
        env: further environment variables.
    """

    def __init__(
        self,
        folder: Path,
        app: str,
        *,
        path: tuple[Path, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.app = app
        self.processes: dict[str, CeleryProcess] = {}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.env = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONUNBUFFERED": "1",
            "C_FORCE_ROOT": "1",
            **(env or {}),
        }

    def start(
        self, name: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> CeleryProcess:
        """Start ``celery -A <app> <arguments>``; the name must be new."""
        return self.python(name, "-m", "celery", "-A", self.app, *arguments, env=env)

    def python(
        self, name: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> CeleryProcess:
        """Start ``python <arguments>``, a web server say; the name must be new."""
        assert name not in self.processes, f"{name} exists: call its start()"
        command = [sys.executable, *arguments]
        process = CeleryProcess(name, command, {**self.env, **(env or {})}, self.folder)
        self.processes[name] = process
        return process.start()

    def beat(
        self,
        name: str = "beat",
        *options: str,
        scheduler: str = "celery_delay.Scheduler",
        loglevel: str = "info",
        env: Mapping[str, str] | None = None,
    ) -> CeleryProcess:
        """Start a beat; return before it is up (see :meth:`CeleryProcess.wait_for_log`)."""
        schedule = self.folder / f"{name}.schedule"
        files = ("--schedule", str(schedule), "--pidfile=")
        return self.start(name, "beat", "-S", scheduler, "-l", loglevel, *files, *options, env=env)

    def worker(
        self,
        name: str = "worker",
        *options: str,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: str = "celery",
        loglevel: str = "info",
        env: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> CeleryProcess:
        """Start a worker, node name ``<name>@test``, and return once it takes tasks, unless
        *wait* says not to."""
        node = ("-n", f"{name}@test", "-Q", queues, "-P", pool, "-c", str(concurrency))
        process = self.start(name, "worker", *node, "-l", loglevel, *options, env=env)
        if wait:
            process.wait_for_log(r"\bready\.$", timeout=30)
        return process

    def run(self, *arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run ``celery -A <app> <arguments>`` to its end; output and exit code are for the test."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", self.app, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def close(self) -> None:
        """End every process, frozen ones and pool children too."""
        for process in self.processes.values():
            process.end()

    def __str__(self) -> str:
        return "\n".join(map(str, self.processes.values()))
