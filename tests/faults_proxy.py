"""A TCP proxy in front of Redis that loses, delays and cuts off what passes through it.

One thread per connection, one request at a time, as our links speak.  A fault holds for a
number of requests, or until the next is set; it is decided when a request comes in.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

__all__ = ["FAULTS", "FaultyProxy"]

#: What may happen to a request:
#:   ok          it is answered
#:   delay       it reaches the server only after :meth:`FaultyProxy.release`
#:   blackhole   nobody ever hears of it; the connection stays open
#:   drop-reply  the server runs it; instead of the answer comes the connection's end
#:   reset       the connection is reset, and the server never sees it
FAULTS = ("ok", "delay", "blackhole", "drop-reply", "reset")


class FaultyProxy:
    """Stands in front of the server on *port* of 127.0.0.1; a context manager.

    Attributes:
        port: its own.
        url: what to connect to instead of the server.
        met: the faults that requests have met, ``ok`` left out.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._fault, self._times, self._only = "ok", 0, b""
        self.met: list[str] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._released = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def fail(self, fault: str, times: int = 1, *, only: bytes = b"") -> None:
        """Let the next *times* requests (of those with *only* in them) meet *fault*."""
        assert fault in FAULTS
        with self._lock:
            self._fault, self._times, self._only = fault, times, only

    def release(self) -> None:
        """Let go of the requests that ``delay`` holds."""
        self._released.set()

    def __enter__(self) -> FaultyProxy:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._released.set()
        with self._lock:
            ends = [self._listener, *self._sockets]
        for end in ends:
            _hang_up(end)
        for thread in self._threads:
            thread.join()

    def _start(self, work: object, *args: socket.socket) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:  # it is down: so is the proxy
            _hang_up(client)
            return
        with self._lock:
            self._sockets.append(server)
        # one thread carries the answers, so that a request may come in several pieces
        broken = threading.Event()
        dropping = threading.Event()
        self._start(lambda: _answer(server, client, dropping, broken))
        with contextlib.suppress(OSError):
            while request := client.recv(1 << 16):
                fault = self._next(request)
                if fault == "reset":
                    # a close without lingering sends RST
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    break
                if fault == "blackhole":
                    continue
                if fault == "delay":
                    self._released.wait()
                if fault == "drop-reply":
                    dropping.set()
                server.sendall(request)
        if not broken.is_set():
            _hang_up(server, socket.SHUT_WR)

    def _next(self, request: bytes) -> str:
        with self._lock:
            if not self._times or self._only not in request:
                return "ok"
            self._times -= 1
            self.met.append(self._fault)
            return self._fault


def _answer(
    server: socket.socket,
    client: socket.socket,
    dropping: threading.Event,
    broken: threading.Event,
) -> None:
    with contextlib.suppress(OSError):
        while answer := server.recv(1 << 16):
            if dropping.is_set():
                break
            with contextlib.suppress(OSError):  # it may have given up; the server has not
                client.sendall(answer)
    broken.set()
    _hang_up(client)
    _hang_up(server)


def _hang_up(end: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(how)
    if how == socket.SHUT_RDWR:
        end.close()
