"""Waiting for a token in a list of Redis, on a connection of its own."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.failures import explain

if TYPE_CHECKING:
    from celery_delay.store.connection import Link

__all__ = ["Waiter"]


class Waiter:
    """One ``BLPOP key 0`` outstanding on a connection of its own.

    The timer is on our side: an idle Redis looks at blocked clients' time-outs only every
    100 ms.
    """

    def __init__(self, link: Link, key: str) -> None:
        self._link = link
        self._key = key
        # the socket on which the question is outstanding: a new one has not been asked
        self._asked: Any = None

    def wait(self, seconds: float, interrupt: int) -> bool:
        """Wait for a token, for *seconds*, or until *interrupt* (a descriptor) is readable.

        Returns:
            Whether a token was taken.

        Raises:
            StoreUnavailable: the connection could not be made or was lost.
        """
        self._link.connect()
        connection = self._link._connection
        try:
            if connection._sock is not self._asked:
                connection.send_command("BLPOP", self._key, 0, check_health=False)
                self._asked = connection._sock
            poll = select.poll()  # select() cannot take descriptors above 1023
            poll.register(self._asked, select.POLLIN)
            poll.register(interrupt, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}
            if self._asked.fileno() not in ready:
                return False
            connection.read_response()
            self._asked = None
            return True
        except (RedisError, OSError) as exc:
            self.close()
            text = explain(exc, "BLPOP", self._link, self._link.user)
            raise StoreUnavailable(f"lost the waiting connection: {text}") from exc

    def close(self) -> None:
        """Stop waiting: no token will be taken any more."""
        self._asked = None
        self._link.close()
