"""The app's broker, as kombu is configured to reach it, and whether the move reaches its queues."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from kombu.exceptions import OperationalError

from celery_delay.domain.clock import Clock
from celery_delay.exceptions import InvalidSetting, StoreUnavailable, UnsupportedBroker
from celery_delay.store.connection import Links
from celery_delay.store.scripts import server_of

__all__ = ["Broker"]

#: Seconds that the broker may take to answer when it is asked what it is, and for which one
#: that did not is left alone.
_TIMEOUT, _LEFT_ALONE = 1.0, 5.0
#: Of more queues than this the others are not listed.
_MOST_QUEUES = 100


class Broker:
    """Asks kombu, never the URL: TLS, Sentinel, sockets and credentials come along.

    Making a channel connects; so a property may raise StoreUnavailable when the broker is
    down, and is asked again next time.
    """

    def __init__(self, app: Any, clock: Clock) -> None:
        self._app = app
        self._clock = clock
        self._shared: bool | None = None
        self._silent_until = 0.0

    @cached_property
    def is_redis(self) -> bool:
        """Whether it is a Redis; without a connection."""
        return bool(self._app.connection_for_write().transport.driver_type == "redis")

    def check(self) -> None:
        """Refuse a broker whose Redis is to be the store, and that has none; without a connection.

        Raises:
            UnsupportedBroker: it is no Redis.
            InvalidSetting: its Sentinels are not told which primary.
        """
        connection = self._app.connection_for_write()
        if not self.is_redis:
            raise UnsupportedBroker(
                f"broker_url is {connection.as_uri()}, no Redis, so"
                " delay_redis_url must say where delayed tasks wait: redis://host:6379/0"
            )
        options = self._app.conf.broker_transport_options or {}
        if connection.transport_cls == "sentinel" and not options.get("master_name"):
            raise InvalidSetting(
                'broker_transport_options lacks "master_name", what Sentinel calls the primary'
            )

    def shares(self, links: Callable[[], Links] | None) -> bool:
        """Whether the queues live on the Redis server behind *links*, which is asked for once.

        ``None``: the store is on the broker's own server.

        A broker that cannot be asked now does not: to publish is right in any case.

        Raises:
            StoreUnavailable: the server behind *links* cannot be asked.
            UnsupportedBroker, InvalidSetting: see :meth:`check`; only without *links*.
        """
        if self._shared is None and links is None:
            self.check()
            self._shared = True
        if self._shared is None and not self.is_redis:
            self._shared = False
        if self._shared is None and links is not None:
            if self._clock.boot() < self._silent_until:
                return False
            store = links()
            here = _run_id(store)
            try:
                self._shared = _run_id(self.links(store.timeout)) == here
            except StoreUnavailable:
                # a call that schedules must not wait for the broker each time
                self._silent_until = self._clock.boot() + _LEFT_ALONE
                return False
        return bool(self._shared)

    @cached_property
    def _pool(self) -> Any:
        """kombu's pool of connections, for what it knows; it holds none, so that a worker's
        children inherit none."""
        self.check()
        connection = self._app.connection_for_write()
        # for this connection alone: kombu would wait for ever for a Redis that says nothing
        connection.transport_options = {
            **(connection.transport_options or {}),
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": _TIMEOUT,
        }
        errors = (OperationalError, *connection.connection_errors, *connection.channel_errors)
        try:
            return connection.ensure_connection(max_retries=0).channel().pool
        except errors as exc:
            raise StoreUnavailable(f"cannot connect to the broker: {exc}") from exc
        finally:
            connection.release()

    @property
    def prefix(self) -> str:
        """kombu's ``global_keyprefix``; without a connection."""
        options = self._app.conf.broker_transport_options or {}
        return str(options.get("global_keyprefix") or "")

    @property
    def unacked(self) -> str:
        """Key of the hash in which kombu keeps what workers have; without a connection."""
        options = self._app.conf.broker_transport_options or {}
        channel = self._app.connection_for_write().transport.Channel
        return f"{self.prefix}{options.get('unacked_key') or channel.unacked_key}"

    @cached_property
    def database(self) -> int:
        """Number of the DB in which the queues live."""
        return int(self._pool.connection_kwargs.get("db") or 0)

    def lists(self) -> list[tuple[int, str]]:
        """DB number and key of each list that the app's queues have: one per priority.

        Only those queues that this process knows, by ``task_queues`` or because it has used them.
        """
        names = list(self._app.amqp.queues)[:_MOST_QUEUES]
        ends = self.endings()
        return [(self.database, f"{self.prefix}{one}{end}") for one in names for end in ends]

    def endings(self) -> tuple[str, ...]:
        """What stands behind a queue's key to name the lists of its priorities; "" among them."""
        channel = self._app.connection_for_write().transport.Channel
        options = self._app.conf.broker_transport_options or {}
        steps = options.get("priority_steps") or channel.priority_steps
        separator = options.get("sep") or channel.sep
        return tuple(f"{separator}{one}" if one else "" for one in steps)

    def links(self, timeout: float) -> Links:
        """Connections of our own to the same server and DB."""
        return Links.like(self._pool, timeout)


def _run_id(links: Links) -> str:
    link = links.link()
    try:
        return str(server_of(link)["run_id"])
    finally:
        link.close()
