"""The broker's Redis, as kombu is configured to reach it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from celery_delay.exceptions import InvalidSetting, StoreUnavailable, UnsupportedBroker
from celery_delay.store.connection import Links
from celery_delay.store.scripts import server_of

__all__ = ["RedisBroker"]


class RedisBroker:
    """Asks kombu, never the URL: TLS, Sentinel, sockets and credentials come along.

    Making a channel connects; so a property may raise StoreUnavailable when the broker is
    down, and is asked again next time.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def check(self) -> None:
        """Refuse a broker that tasks cannot be moved to; without a connection.

        Raises:
            UnsupportedBroker: it is no Redis.
            InvalidSetting: its Sentinels are not told which primary.
        """
        connection = self._app.connection_for_write()
        if connection.transport.driver_type != "redis":
            raise UnsupportedBroker(
                "celery-delay needs a Redis broker in this version;"
                f" broker_url is {connection.as_uri()}"
            )
        options = self._app.conf.broker_transport_options or {}
        if connection.transport_cls == "sentinel" and not options.get("master_name"):
            raise InvalidSetting(
                'broker_transport_options lacks "master_name", what Sentinel calls the primary'
            )

    def check_server(self, links: Links) -> None:
        """Refuse a store on another Redis server than the queues': the move could not reach them.

        Raises:
            UnsupportedBroker: they are two servers.
            StoreUnavailable: one of them cannot be asked.
        """
        here, there = (server_of(one.link())["run_id"] for one in (self.links(2.0), links))
        if here != there:
            raise UnsupportedBroker(
                "delay_redis_url leads to another Redis server than broker_url: in this version"
                " the store must be on the broker's server (any DB number)"
            )

    @cached_property
    def _channel(self) -> Any:
        self.check()
        connection = self._app.connection_for_write()
        try:
            return connection.channel()
        except (*connection.connection_errors, *connection.channel_errors) as exc:
            raise StoreUnavailable(f"cannot connect to the broker: {exc}") from exc

    @property
    def prefix(self) -> str:
        """kombu's ``global_keyprefix``; without a connection."""
        options = self._app.conf.broker_transport_options or {}
        return str(options.get("global_keyprefix") or "")

    @cached_property
    def database(self) -> int:
        """Number of the DB in which the queues live."""
        return int(self._channel.pool.connection_kwargs.get("db") or 0)

    def links(self, timeout: float) -> Links:
        """Connections of our own to the same server and DB."""
        return Links.like(self._channel.pool, timeout)
