"""Beat's node of remote control: the connection over which it is asked, and answers.

It stands beside the ``celerybeat@…`` that Celery's own beat may have, which answers ``ping`` and
no more.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.utils.nodenames import nodename
from kombu import pidbox
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from celery_delay.app import CeleryDelay
from celery_delay.beats.commands import Commands
from celery_delay.exceptions import StoreUnavailable

__all__ = ["Node"]

logger = logging.getLogger(__name__)

#: How long one look for commands takes: so long an end may have to wait.  In seconds.
_LOOK = 0.25
#: How often the connection is asked whether it still leads anywhere, in seconds.
_CHECK = 5.0
#: Of connecting to the broker and of one exchange with it, in seconds.
_TIMEOUT = 1.0
#: Beat never unpickles.
_NOT_ACCEPTED = {"pickle", "application/x-python-serialize"}


class Node:
    """Answers commands, over a connection of its own; :meth:`run_once` is a loop's step.

    Arguments:
        term, holder: see :class:`Commands`.

    Attributes:
        name: ``delay-PID@HOST``: several beats on one machine must differ.
    """

    def __init__(
        self, delayed: CeleryDelay, term: Callable[[int], int | None], holder: str
    ) -> None:
        self._delayed = delayed
        self.name = nodename(f"delay-{os.getpid()}", socket.gethostname())
        self._commands = Commands(delayed, term, holder, self.name)
        self._connection: Any = None
        self._checked = 0.0
        self._node: Any = _PidboxNode(  # type: ignore[no-untyped-call]
            self.name, handlers=self._commands.handlers, mailbox=delayed.app.control.mailbox
        )

    def run_once(self) -> float:
        """Answer what has come, for a quarter of a second; connect first if need be.

        Raises:
            StoreUnavailable: the broker cannot be reached, or does not let us listen.
        """
        if self._connection is None and not self._connect():
            return 3_600.0
        connection = self._connection
        try:
            with suppress(socket.timeout):
                connection.drain_events(timeout=0.001 if self._commands.is_searching else _LOOK)
            self._check()
        except _failures(connection) as exc:
            self.close()
            raise StoreUnavailable(_why(exc)) from exc
        except Exception:
            self.close()
            raise
        self._commands.go_on()
        return 0.0

    def close(self) -> None:
        """Give the connection back, and with it the node's queue."""
        connection, self._connection, self._node.channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):  # it may be what has just failed
                connection.release()

    # -- connection ---------------------------------------------------------------------

    def _connect(self) -> bool:
        """Whether commands can come at all; they come from now on."""
        app = self._delayed.app
        connection = app.connection_for_read(
            connect_timeout=_TIMEOUT, heartbeat=app.conf.broker_heartbeat
        )
        if not connection.supports_exchange_type("fanout"):
            logger.warning(
                "no remote control of delayed tasks: %s has no broadcasts",
                connection.transport_cls,
                extra={"event": "remote_control_unavailable"},
            )
            return False
        if connection.transport.driver_type == "redis":
            # for this connection alone: kombu would wait for ever for a Redis that says nothing
            connection.transport_options = {
                **(connection.transport_options or {}),
                "socket_timeout": _TIMEOUT,
                "socket_connect_timeout": _TIMEOUT,
            }
        self._connection = connection
        try:
            connection.ensure_connection(max_retries=len(connection.alt) or 1, interval_start=0)
            self._node.channel = connection.channel()
            self._node.listen(callback=self._take)
        except _failures(connection) as exc:
            self.close()
            raise StoreUnavailable(_why(exc)) from exc
        self._checked = self._delayed.clock.monotonic()
        logger.info("answers as %s", self.name, extra={"event": "remote_control_ready"})
        return True

    def _check(self) -> None:
        """Notice a broker that has gone without a word."""
        now = self._delayed.clock.monotonic()
        if now - self._checked < _CHECK:
            return
        self._checked = now
        connection = self._connection
        if connection.supports_heartbeats:
            if connection.get_heartbeat_interval():
                connection.heartbeat_check()
        elif connection.transport.driver_type == "redis":
            connection.transport.cycle.maybe_check_subclient_health()

    def _take(self, body: Any, message: Any) -> None:
        # what only workers know is answered by silence: an error would stand in their answers
        if isinstance(body, dict) and body.get("method") in self._node.handlers:
            self._node.handle_message(body, message)


class _PidboxNode(pidbox.Node):
    """kombu's, but it answers over its own connection, and reads no pickles."""

    mailbox: Any

    def Consumer(
        self, channel: Any = None, no_ack: Any = True, accept: Any = None, **options: Any
    ) -> Any:
        accept = set(accept or self.mailbox.accept or ()) - _NOT_ACCEPTED
        return super().Consumer(channel, no_ack, accept, **options)  # type: ignore[no-untyped-call]

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        logger.debug("a command that cannot be read: %s", exc)

    def reply(self, data: Any, exchange: str, routing_key: str, ticket: str, **_: Any) -> None:
        self.mailbox._publish_reply(
            data,
            exchange,
            routing_key,
            ticket,
            producer=Producer(self.channel, auto_declare=False),
            channel=self.channel,
            serializer=self.mailbox.serializer,
            retry_policy={"max_retries": 1},
        )


def _failures(connection: Any) -> tuple[type[BaseException], ...]:
    return (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError)


def _why(exc: BaseException) -> str:
    text = str(exc) or type(exc).__name__
    if "NOPERM" in text or "permission" in text.lower():
        return f"the broker does not let beat listen to remote control: {text}"
    return f"the broker cannot be reached for remote control: {text}"
