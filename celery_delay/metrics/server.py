"""A small HTTP server for ``/metrics``, ``/healthz`` and ``/readyz``.

It must not get in the way of a beat's work: requests are few at a time and each on a thread that
nobody waits for, a page that is asked for again within a second is not made again, and who is
slow to ask or to read is cut off.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from celery_delay.domain.clock import Clock
from celery_delay.exceptions import DelayError
from celery_delay.services.loops import Loop

__all__ = ["AT_ONCE", "Page", "Pages", "Server", "Unserved"]

logger = logging.getLogger(__name__)

#: Requests that are served at the same time; further connections are closed.
AT_ONCE = 8
#: How long a client may keep a request waiting, in seconds.
_PATIENCE = 5.0
#: How long a page stays as it is, in seconds.
_KEPT = 1.0

_TEXT = "text/plain; charset=utf-8"


class Unserved(DelayError):
    """Nothing can be served: no port of ``delay_http`` can be had."""


class Page(NamedTuple):
    """An answer."""

    status: int
    kind: str
    body: bytes


class Pages:
    """What the paths lead to.

    Arguments:
        metrics: makes the page for an ``Accept`` header.
        ailments: why the process is not alive; empty if it is.
        obstacles: why it is not ready.
    """

    def __init__(
        self,
        metrics: Callable[[str], tuple[str, bytes]],
        ailments: Callable[[], Sequence[str]],
        obstacles: Callable[[], Sequence[str]],
        clock: Clock,
    ) -> None:
        self._metrics = metrics
        self._checks = {"/healthz": ailments, "/readyz": obstacles}
        self._clock = clock
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, Page]] = {}

    def of(self, path: str, accept: str) -> Page:
        """The page at *path*."""
        if path in self._checks:
            wrong = self._checks[path]()
            text = "\n".join(wrong) or "ok"
            return Page(503 if wrong else 200, _TEXT, f"{text}\n".encode())
        if path != "/metrics":
            return Page(404, _TEXT, b"there are /metrics, /healthz and /readyz\n")
        with self._lock:
            made_at, page = self._made.get(accept, (0.0, None))
            if page is None or self._clock.monotonic() - made_at >= _KEPT:
                page = Page(200, *self._metrics(accept))
                # clients are few, but what they send is theirs to choose
                self._made = {} if len(self._made) > AT_ONCE else self._made
                self._made[accept] = self._clock.monotonic(), page
            return page


class Server:
    """Serves *pages* at the first of some ports that can be had; 0: any.

    While there is none, that is logged once and tried again, and the beat goes on.
    """

    def __init__(self, host: str, ports: Sequence[int], pages: Pages, clock: Clock) -> None:
        self._host = host
        self._ports = ports
        self._pages = pages
        self._http: _HTTP | None = None
        #: The thread; to be started and stopped by the owner.
        self.loop = Loop("http", self._step, clock, wait=self._wait, last=self._close)

    def _step(self) -> float:
        if self._http is None:
            self._http = self._open()
            host, port = self._http.server_address[:2]
            shown = f"[{host!s}]" if ":" in str(host) else host
            logger.info(
                "metrics and health at http://%s:%d/metrics, /healthz, /readyz",
                shown,
                port,
                extra={"event": "http_serving", "port": port},
            )
        else:
            self._http.accept()
        return 1.0

    def _wait(self, seconds: float) -> None:
        assert self._http is not None
        poll = select.poll()
        poll.register(self._http.fileno(), select.POLLIN)
        poll.register(self.loop.bell.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)
        self.loop.bell.hush()

    def _open(self) -> _HTTP:
        why = ""
        for port in self._ports:
            try:
                return _HTTP(self._host, port, self._pages)
            except OSError as exc:
                why = f"{exc.strerror or exc}"
        named = f"{self._ports[0]}" if len(self._ports) == 1 else f"{self._ports[0]} and later"
        raise Unserved(
            f"no port of delay_http can be had ({self._host}, {named}: {why}); several beats on one"
            " machine need as many ports, as in '127.0.0.1:9540-9549'"
        )

    def _close(self) -> None:
        if self._http is not None:
            self._http.server_close()
            self._http = None


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # a port that another beat listens at must not be shared with it
    allow_reuse_port = False
    request_queue_size = 64
    # a connection may be gone when handle_request() looks for it
    timeout = 0

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        self.pages = pages
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Request)
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        # HTTPServer's looks up the host's name, which may take long
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def accept(self) -> None:
        """Take a connection that is there."""
        self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request failed", exc_info=True)


class _Request(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server: _HTTP

    def do_GET(self) -> None:
        page = self.server.pages.of(self.path.partition("?")[0], self.headers.get("Accept", ""))
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_GET

    def version_string(self) -> str:
        return "celery-delay"

    def log_message(self, *_: Any) -> None:
        """Say nothing: it comes every few seconds."""
