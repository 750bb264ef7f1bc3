"""Held connections to Redis, and what a failure on them means.

redis-py's own retries are off: it would repeat a command whose answer was lost, and only
the caller knows whether that is safe.  So a failure is sorted here into two kinds, by
whether the server can have seen the command: :class:`StoreUnavailable` (it cannot) and
:class:`AnswerLost` (it may).

A held connection that is spoken to directly (``wire.py``) costs a fifth of ``client.evalsha``.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import select
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)

from celery_delay.domain.clock import SystemClock
from celery_delay.exceptions import InvalidSetting, StoreUnavailable
from celery_delay.store.address import Address, address_of_pool, parse_address
from celery_delay.store.failures import AnswerLost, explain, is_refusal, unreachable
from celery_delay.store.sentinel import Sentinels
from celery_delay.store.waiting import Waiter
from celery_delay.store.wire import packed, read, send

__all__ = ["AnswerLost", "Around", "Link", "Links"]

logger = logging.getLogger(__name__)

#: Carries out a command, given as a function and its arguments, and measures it.
Around = Callable[[Callable[..., Any], tuple[object, ...]], Any]

#: Servers that this process has warned of; see :func:`_warn_of_plain_password`.
_warned: set[str] = set()


class Link:
    """One connection.  Not thread-safe; see :class:`Links`.

    Arguments:
        connection: redis-py's, not connected yet.
        sentinels: who knows where to connect to; ``None``: *connection* does.

    Attributes:
        learnt: what was learnt about the server over this connection; forgotten with it,
            because the next one may lead to another server, or another life of this one.
    """

    def __init__(self, connection: Any, sentinels: Sentinels | None = None) -> None:
        self._connection = connection
        self._sentinels = sentinels
        self.learnt: dict[str, Any] = {}
        self.around: Around | None = None
        self._polled: Any = None
        self._poll = select.poll()

    def __str__(self) -> str:
        """Where it leads to."""
        path = getattr(self._connection, "path", None)
        return path or f"{self._connection.host}:{self._connection.port}"

    @property
    def user(self) -> str | None:
        """The user that it logs in as; ``None`` where a credential provider knows."""
        if self._connection.credential_provider is not None:
            return None
        return self._connection.username or "default"

    def call(self, *command: object) -> Any:
        """Send one command and return its answer (bytes, numbers, lists).

        Its first word may be an :class:`~celery_delay.store.wire.Opening`.

        Raises:
            StoreUnavailable: no connection, or the server refused for now; no effect.
            AnswerLost: the effect is unknown.
            redis.exceptions.ResponseError: the server's answer is an error; no effect.
        """
        if self.around is None:
            return self._call(*command)
        return self.around(self._call, command)

    def _call(self, *command: object) -> Any:
        self.connect()
        connection, text = self._connection, packed(command[0], command[1:])
        try:
            send(connection._sock, text)
            return read(connection._sock, connection._parser.parse_error)
        except (BusyLoadingError, AuthenticationError) as exc:
            self.close()
            raise StoreUnavailable(f"Redis refuses: {exc}") from exc
        except ResponseError as exc:
            if not is_refusal(exc):
                raise
            # the next connection may lead elsewhere: a replica has taken its primary's place
            self.close()
            raise StoreUnavailable(explain(exc, command[0], self, self.user)) from exc
        except (RedisError, OSError) as exc:
            self.close()
            raise AnswerLost(str(exc)) from exc
        except BaseException:
            # a signal handler raised in the middle: the answer to this command must not be
            # taken for the answer to the next one
            self.close()
            raise

    def connect(self) -> None:
        """Make sure that there is a connection, and that it leads to the primary.

        Raises:
            StoreUnavailable: the server cannot be reached or does not let us in.
        """
        connection = self._connection
        if connection._sock is not None:  # is_connected came with redis-py 7
            if self._sentinels is None:
                return
            if not self._sentinels.have_left((connection.host, connection.port)):
                return
            self.close()
        if self._sentinels is not None:
            connection.host, connection.port = self._sentinels.primary()
        try:
            connection.connect()
        except (RedisError, OSError) as exc:
            self.close()
            raise StoreUnavailable(unreachable(self, exc, connection)) from exc
        self.learnt.clear()
        _warn_of_plain_password(connection)

    def rouse(self) -> None:
        """Drop the connection if the server has closed it while nobody looked.

        What is sent on such a connection is lost, and only the missing answer tells.
        """
        sock = self._connection._sock
        if sock is None:
            return
        if sock is not self._polled:
            self._poll = select.poll()  # select() cannot take descriptors above 1023
            self._poll.register(sock, select.POLLIN)
            self._polled = sock
        if self._poll.poll(0):
            self.close()

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        self._connection.disconnect()


class Links:
    """Makes links and keeps idle ones for the next caller; safe for threads and forks."""

    def __init__(
        self,
        connection_class: type,
        options: Mapping[str, Any],
        timeout: float,
        sentinels: Sentinels | None = None,
    ) -> None:
        self._class = connection_class
        self._options = {
            **options,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": None,
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,
        }
        self._sentinels = sentinels
        self.timeout = timeout
        #: What the links made from now on do around each command; ``None`` for nothing.
        self.around: Around | None = None
        self._pid = os.getpid()
        self._idle: deque[Link] = deque()

    @classmethod
    def to(cls, address: Address, timeout: float) -> Links:
        """Links to the server at *address*; its Sentinels are asked within *timeout* too."""
        known = address.sentinels
        sentinels = None
        if known is not None:
            nodes = [cls.to(one, timeout) for one in known.nodes]
            sentinels = Sentinels(nodes, known.name, known.others, SystemClock())
        return cls(address.connection_class, address.options, timeout, sentinels)

    @classmethod
    def from_url(cls, url: str, timeout: float, options: Mapping[str, Any] | None = None) -> Links:
        """Links to the server at *url*; see :func:`~celery_delay.store.address.parse_address`.

        Raises:
            InvalidSetting: the URL or an option is wrong.
        """
        try:
            return cls.to(parse_address(url, options), timeout)
        except ValueError as exc:
            raise InvalidSetting(f"delay_redis_url or delay_redis_options: {exc}") from exc

    @classmethod
    def like(cls, pool: Any, timeout: float) -> Links:
        """Links to the server of kombu's *pool*, with its TLS, credentials, socket, Sentinels."""
        return cls.to(address_of_pool(pool), timeout)

    def __str__(self) -> str:
        """Where they lead to."""
        return str(self.link())

    @property
    def database(self) -> int:
        """Number of the DB that the links select."""
        return int(self._options.get("db") or 0)

    def with_timeout(self, timeout: float) -> Links:
        """The same server, another time-out."""
        links = Links(self._class, self._options, timeout, self._sentinels)
        links.around = self.around
        return links

    def link(self) -> Link:
        """A new link, not connected yet."""
        link = Link(self._class(**self._options), self._sentinels)
        link.around = self.around
        return link

    def waiter(self, key: str) -> Waiter:
        """A new waiting connection for *key*."""
        return Waiter(self.link(), key)

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
        """Close the idle links, and those to Sentinels."""
        while self._idle:
            self._idle.pop().close()
        if self._sentinels is not None:
            self._sentinels.close()


def _warn_of_plain_password(connection: Any) -> None:
    """Say once a server that a password crosses the network for all to read."""
    if isinstance(connection, (SSLConnection, UnixDomainSocketConnection)):
        return
    if not connection.password and connection.credential_provider is None:
        return
    where = f"{connection.host}:{connection.port}"
    if where in _warned:
        return
    try:
        peer = connection._sock.getpeername()[0]
        if ipaddress.ip_address(peer.partition("%")[0]).is_loopback:
            return
    except (OSError, ValueError):
        return  # it has hung up
    _warned.add(where)
    logger.warning(
        "the password of Redis goes to %s unencrypted: use rediss:// or broker_use_ssl",
        where,
        extra={"event": "password_unencrypted", "server": where},
    )
