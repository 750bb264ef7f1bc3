"""Producers whose calls end in time.

Over a Redis broker kombu waits without end for a server that does not answer.  To change
that for all of an app's messages would be to change what Celery does with those that are no
business of ours; so a delayed message is sent, or handed back to Celery's own way, over
connections that differ in nothing but their time-outs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.pools import ProducerPool

from celery_delay.domain.clock import Clock

__all__ = ["BoundedProducers"]

#: The transport options that bound one exchange with the broker, by kombu's driver type.
_TIMEOUTS = {
    "redis": ("socket_timeout", "socket_connect_timeout"),
    "amqp": ("read_timeout", "write_timeout"),
}
#: Pauses of a call that must not fail while there is time: until the deadline.
_PATIENT = {"max_retries": 1_000, "interval_start": 0.05, "interval_step": 0.1, "interval_max": 0.5}


class BoundedProducers:
    """Pools of producers like those that Celery uses; safe for threads and forks.

    Arguments:
        timeout: of connecting and of each exchange, in seconds.
    """

    def __init__(self, clock: Clock, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._pid = os.getpid()
        self._pools: dict[Any, ProducerPool] = {}

    @contextmanager
    def like(self, producer: Any, limit: int | None, policy: Mapping[str, Any]) -> Iterator[Any]:
        """A connected producer for the broker of *producer*, and with its transport options.

        Other transports than Redis and AMQP know no time-outs: there it is *producer* itself.

        Arguments:
            limit: of connections, as ``broker_pool_limit``.
            policy: how to repeat the connecting; see :meth:`policy`.

        Raises:
            OperationalError: the broker cannot be reached in time.
        """
        connection = producer.connection
        if connection is None or connection.transport.driver_type not in _TIMEOUTS:
            yield producer
            return
        pool = self._pool(connection, limit)
        try:
            acquired = pool.acquire(block=True, timeout=self._timeout)
        except LimitExceeded as exc:
            raise OperationalError("all connections to the broker are in use") from exc
        with acquired as bounded:
            bounded.connection.ensure_connection(**policy)
            yield bounded

    def policy(self, given: Mapping[str, Any], until: float, *, patient: bool) -> dict[str, Any]:
        """A retry policy for kombu that ends at *until* (boot clock).

        Arguments:
            given: the policy that would be used otherwise.
            patient: go on until then, whatever *given* says of the number of repeats.
        """

        def end_in_time(exc: Exception, interval: float) -> None:
            if self._clock.boot() + interval + self._timeout > until:
                raise OperationalError(f"gave up after delay_publish_timeout: {exc}") from exc

        known = ("max_retries", "interval_start", "interval_step", "interval_max")
        numbers = {name: given[name] for name in known if name in given}
        return {**numbers, **(_PATIENT if patient else {}), "errback": end_in_time}

    def _pool(self, connection: Any, limit: int | None) -> ProducerPool:
        if self._pid != os.getpid():
            # a forked child must not speak on its parent's sockets
            self._pools, self._pid = {}, os.getpid()
        pool = self._pools.get(connection)
        if pool is None:
            # not clone(): a connection from a pool makes one of the same pool
            clone = Connection(**self._described(connection))
            made = ProducerPool(clone.Pool(limit=limit), limit=limit)
            pool = self._pools.setdefault(connection, made)  # another thread may have been first
        return pool

    def _described(self, connection: Any) -> dict[str, Any]:
        names = _TIMEOUTS[connection.transport.driver_type]
        return {
            **connection.info(),
            "connect_timeout": self._timeout,
            "transport_options": {
                **(connection.transport_options or {}),
                **dict.fromkeys(names, self._timeout),
            },
        }
