"""What the demo runs: Redis, two beats, a worker, Flower; and how all of it goes away.

A signal only sets a flag, and the demo looks at it wherever it waits.  So Ctrl-C cannot
hit between the start of a process and the line that remembers it.  Each process leads a
process group, so that a worker's children end with it, and dies with this process,
should somebody kill that with SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import FrameType

from celery_delay.embedded import RedisServer, die_with_parent, find_server

__all__ = ["Failure", "Interrupted", "Stack", "Stop", "free_port"]

#: Seconds that a process gets to end by itself.
PATIENCE = 5.0
HERE = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """The demo cannot go on; the text says why."""


class Interrupted(Exception):
    """Somebody wants the demo to end."""


class Stop:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.signal:
            raise Interrupted

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number


class Stack(contextlib.AbstractContextManager["Stack"]):
    """All processes of the demo and the folder with their files; gone when it is left.

    Attributes:
        folder: for databases, logs and the ledger.
        redis: the server; a child of this process unless DELAY_REDIS_URL named one.
        env: environment of all processes.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.redis: RedisServer = find_server()
        self.folder = Path(tempfile.mkdtemp(prefix="celery-delay-demo-"))
        self.env: dict[str, str] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()

    def __enter__(self) -> Stack:
        try:
            self.redis.__enter__()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.end_processes()
        finally:
            self.redis.__exit__(None, None, None)
            shutil.rmtree(self.folder, ignore_errors=True)

    def celery(self, name: str, *arguments: str) -> None:
        """Start ``celery -A shop <arguments>``; its output goes to a log file."""
        self._stop.check()
        command = [sys.executable, "-m", "celery", "-A", "shop", *arguments]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                die_with_parent(command),
                cwd=self.folder,
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we end the others in order
            )

    def beat(self, name: str) -> None:
        """Start one more beat.  No pid file: that is there to prevent a second one."""
        self.celery(name, "beat", "-S", "celery_delay.Scheduler", "-l", "info", "--pidfile=")

    def name_of(self, holder: str) -> str | None:
        """Which of our processes holds a lease; holders are ``host:pid:…``."""
        host, pid, _ = holder.rsplit(":", 2) if holder.count(":") >= 2 else ("", "0", "")
        if host != socket.gethostname():
            return None
        found = (name for name, one in self._running.items() if one.pid == int(pid))
        return next(found, None)

    def kill(self, name: str) -> int:
        """SIGKILL, as the kernel's out-of-memory killer does; returns the process id."""
        process = self._running[name]
        self._killed.add(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return process.pid

    def check(self) -> None:
        """Raises Interrupted on a signal, Failure if a process has ended by itself."""
        self._stop.check()
        for name, process in self._running.items():
            if name not in self._killed and process.poll() is not None:
                raise Failure(f"{name} ended with exit code {process.returncode}")

    def pause(self, seconds: float) -> None:
        """Wait, and notice what :meth:`check` notices."""
        until = time.monotonic() + seconds
        while True:
            self.check()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def wait_for_log(self, name: str, text: str, seconds: float = 40.0) -> None:
        """Return when a process has logged *text*."""
        until = time.monotonic() + seconds
        while text not in self.output(name):
            if time.monotonic() > until:
                raise Failure(f"{name} did not come up within {seconds:g} s")
            self.pause(0.1)

    def wait_for_page(self, url: str, seconds: float = 40.0) -> None:
        """Return when a page answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
                return
            self.pause(0.1)
        raise Failure(f"{url} did not answer within {seconds:g} s")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def output(self, name: str) -> str:
        log = self.log(name)
        return log.read_text(errors="replace") if log.exists() else ""

    def last_words(self, lines: int = 15) -> str:
        """The end of each log, for a demo that failed."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            said = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {log.name}", *said]))
        return "\n".join(parts)

    def end_processes(self) -> None:
        """End all processes but Redis; repeatable."""
        for process in self._running.values():
            process.terminate()
        until = time.monotonic() + PATIENCE
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            # also after a clean end: whatever is left of the group must go
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
