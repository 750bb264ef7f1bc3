"""Held connections to Redis, and what a failure on them means.

redis-py's own retries are off: it would repeat a command whose answer was lost, and only
the caller knows whether that is safe.  So a failure is sorted here into two kinds, by
whether the server can have seen the command: :class:`StoreUnavailable` (it cannot) and
:class:`AnswerLost` (it may).

A held connection with a packed command costs half of ``client.evalsha``.
"""

from __future__ import annotations

import os
import re
import select
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis.connection import ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from celery_delay.exceptions import StoreUnavailable

__all__ = ["AnswerLost", "Link", "Links"]

#: Answers by which a server says that it did nothing and will not do it now.
_REFUSALS = (OutOfMemoryError, ReadOnlyError, NoPermissionError)
#: The codes of those without a class.  Redis 6.2 lets a script run up to its first write,
#: and tells of the refusal in the middle of the error's text.
_REFUSED = re.compile(r"(?:^| -)(?:BUSY|CLUSTERDOWN|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY)\b")


def _is_readable(sock: Any) -> bool:
    poll = select.poll()  # select() cannot take descriptors above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class AnswerLost(Exception):
    """The command was sent, and no answer came: it may or may not have had its effect."""


class Link:
    """One connection.  Not thread-safe; see :class:`Links`.

    Attributes:
        learnt: what was learnt about the server over this connection; forgotten with it,
            because the next one may lead to another server, or another life of this one.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.learnt: dict[str, Any] = {}

    def call(self, *command: object) -> Any:
        """Send one command and return its answer (bytes, numbers, lists).

        Raises:
            StoreUnavailable: no connection, or the server refused for now; no effect.
            AnswerLost: the effect is unknown.
            redis.exceptions.ResponseError: the server's answer is an error; no effect.
        """
        self.connect()
        packed = self._connection.pack_command(*command)
        try:
            self._connection.send_packed_command(packed, check_health=False)
            return self._connection.read_response()
        except (BusyLoadingError, AuthenticationError) as exc:
            self.close()
            raise StoreUnavailable(f"Redis refuses: {exc}") from exc
        except ResponseError as exc:
            if not isinstance(exc, _REFUSALS) and not _REFUSED.search(str(exc)):
                raise
            # the next connection may lead elsewhere: a replica has taken its primary's place
            self.close()
            raise StoreUnavailable(f"Redis refuses: {exc}") from exc
        except (RedisError, OSError) as exc:
            self.close()
            raise AnswerLost(str(exc)) from exc
        except BaseException:
            # a signal handler raised in the middle: the answer to this command must not be
            # taken for the answer to the next one
            self.close()
            raise

    def connect(self) -> None:
        """Make sure that there is a connection.

        Raises:
            StoreUnavailable: the server cannot be reached or does not let us in.
        """
        if self._connection.is_connected:
            return
        try:
            self._connection.connect()
        except (RedisError, OSError) as exc:
            self.close()
            raise StoreUnavailable(f"cannot connect to Redis: {exc}") from exc
        self.learnt.clear()

    def rouse(self) -> None:
        """Drop the connection if the server has closed it while nobody looked.

        What is sent on such a connection is lost, and only the missing answer tells.
        """
        sock = self._connection._sock
        if sock is not None and _is_readable(sock):
            self.close()

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        self._connection.disconnect()


class Waiter:
    """One ``BLPOP key 0`` outstanding on a connection of its own.

    The timer is on our side: an idle Redis looks at blocked clients' time-outs only every
    100 ms.
    """

    def __init__(self, connection: Any, key: str) -> None:
        self._connection = connection
        self._key = key
        self._asked = False

    def wait(self, seconds: float, interrupt: int) -> bool:
        """Wait for a token, for *seconds*, or until *interrupt* (a descriptor) is readable.

        Returns:
            Whether a token was taken.

        Raises:
            StoreUnavailable: the connection could not be made or was lost.
        """
        try:
            if not self._connection.is_connected:
                self._connection.connect()
                self._asked = False
            if not self._asked:
                self._connection.send_command("BLPOP", self._key, 0, check_health=False)
                self._asked = True
            sock = self._connection._sock
            poll = select.poll()  # select() cannot take descriptors above 1023
            poll.register(sock, select.POLLIN)
            poll.register(interrupt, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}
            if sock.fileno() not in ready:
                return False
            self._connection.read_response()
            self._asked = False
            return True
        except (RedisError, OSError) as exc:
            self.close()
            raise StoreUnavailable(f"lost the waiting connection: {exc}") from exc

    def close(self) -> None:
        """Stop waiting: no token will be taken any more."""
        self._asked = False
        self._connection.disconnect()


class Links:
    """Makes links and keeps idle ones for the next caller; safe for threads and forks."""

    def __init__(self, connection_class: type, options: Mapping[str, Any], timeout: float) -> None:
        self._class = connection_class
        self._options = {
            **{name: value for name, value in options.items() if _is_ours(name)},
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": None,
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,
        }
        self._pid = os.getpid()
        self._idle: deque[Link] = deque()

    @classmethod
    def from_url(cls, url: str, timeout: float) -> Links:
        """Links to the server at *url*; kombu's ``redis+socket://`` is understood too.

        Raises:
            ValueError: the URL is not one of Redis.
        """
        pool = ConnectionPool.from_url(_redis_url(url))
        return cls(pool.connection_class, pool.connection_kwargs, timeout)

    @classmethod
    def like(cls, pool: Any, timeout: float) -> Links:
        """Links to the server of *pool*, with its TLS, credentials and socket.

        kombu's pools make connections of a class of their own that reports to the channel;
        ours must not, so the nearest class of redis-py is taken.
        """
        connection_class = next(
            one for one in pool.connection_class.__mro__ if one.__module__.startswith("redis.")
        )
        return cls(connection_class, pool.connection_kwargs, timeout)

    @property
    def database(self) -> int:
        """Number of the DB that the links select."""
        return int(self._options.get("db") or 0)

    def with_timeout(self, timeout: float) -> Links:
        """The same server, another time-out."""
        return Links(self._class, self._options, timeout)

    def link(self) -> Link:
        """A new link, not connected yet."""
        return Link(self._class(**self._options))

    def waiter(self, key: str) -> Waiter:
        """A new waiting connection for *key*; its reads have no time-out."""
        return Waiter(self._class(**{**self._options, "socket_timeout": None}), key)

    def take(self) -> Link:
        """An idle link, or a new one.  Give it back with :meth:`give`."""
        if self._pid != os.getpid():
            # a forked child must not speak on its parent's sockets
            self._idle = deque()
            self._pid = os.getpid()
        try:
            link = self._idle.pop()
        except IndexError:
            return self.link()
        link.rouse()
        return link

    def give(self, link: Link) -> None:
        """Keep *link* for the next caller."""
        self._idle.append(link)

    def close(self) -> None:
        """Close the idle links."""
        while self._idle:
            self._idle.pop().close()


#: What says where the server is and who we are; the rest is behaviour, and ours to choose.
_ADDRESS = frozenset(
    "host port path db username password credential_provider client_name"
    " socket_keepalive socket_keepalive_options".split()
)


def _is_ours(option: str) -> bool:
    return option in _ADDRESS or option.startswith("ssl_")


def _redis_url(url: str) -> str:
    if not url.startswith("redis+socket://"):
        return url
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    database = query.get("virtual_host", "0").lstrip("/") or "0"
    # not urlunsplit(): without a host it writes "unix:/path", which redis-py does not take
    return f"unix://{parts.netloc}{parts.path}?db={database}"
