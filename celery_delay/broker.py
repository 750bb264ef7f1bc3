"""The broker's Redis, as kombu is configured to reach it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from celery_delay.exceptions import StoreUnavailable, UnsupportedBroker
from celery_delay.store.connection import Links

__all__ = ["RedisBroker"]


class RedisBroker:
    """Asks kombu, never the URL: TLS, Sentinel, sockets and credentials come along.

    Making a channel connects; so a property may raise StoreUnavailable when the broker is
    down, and is asked again next time.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    @cached_property
    def _channel(self) -> Any:
        connection = self._app.connection_for_write()
        if connection.transport.driver_type != "redis":
            raise UnsupportedBroker(
                "celery-delay needs a Redis broker in this version;"
                f" broker_url is {connection.as_uri()}"
            )
        try:
            return connection.channel()
        except connection.connection_errors as exc:
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
