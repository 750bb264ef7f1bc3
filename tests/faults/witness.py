"""What decides why a task was lost: every command that Redis saw of it, and what was logged.

When the ledger says *that* a promise was broken, the keys are gone and the journal says only what
workers have told.  So Redis' MONITOR is written down beside each run; it shows what scripts do too.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Witness", "story"]

#: Of each line that names a task this much is shown; a message is some 1 500 characters.
LONGEST = 700


class Witness:
    """Writes down all commands that the Redis at *url* (TCP) carries out, until it is closed."""

    def __init__(self, url: str, path: Path) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port), timeout=10)
        self._socket.sendall(b"MONITOR\r\n")
        assert self._socket.recv(5) == b"+OK\r\n"
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._copy, args=(path,), daemon=True)
        self._thread.start()

    def _copy(self, path: Path) -> None:
        with path.open("wb") as page, contextlib.suppress(OSError):
            while some := self._socket.recv(1 << 16):
                page.write(some)
                page.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()


def story(task_ids: Iterable[str], pages: Iterable[Path]) -> str:
    """All lines of *pages* that name a task, task by task."""
    told: dict[str, list[str]] = {one: [] for one in sorted(task_ids)}
    for page in pages:
        if page.exists():
            with page.open(errors="replace") as lines:
                for line in lines:
                    for task_id in filter(line.__contains__, told):
                        told[task_id].append(f"{page.name}: {line.rstrip()[:LONGEST]}")
    return "\n".join(f"==== {one}\n" + "\n".join(some) for one, some in told.items())
