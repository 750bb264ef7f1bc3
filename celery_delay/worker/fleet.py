"""The workers that answer remote control, beside those that report what they begin."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kombu.exceptions import KombuError
from kombu.utils.uuid import uuid

from celery_delay.domain.clock import Clock
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.guarding import Guarding

__all__ = ["Workers", "name_of"]

logger = logging.getLogger(__name__)

#: For how long workers are listened to, and how often their answers are looked for, in seconds.
_PATIENCE, _EVERY = 1.0, 0.05
#: Beat never unpickles.
_NOT_ACCEPTED = {"pickle", "application/x-python-serialize"}


def name_of(worker: str) -> str:
    """The node name in what a reporting worker is called in the store."""
    return worker.rpartition(" ")[0]


class Workers:
    """Asks the workers of *app*; see :class:`celery_delay.domain.watches.Fleet`.

    A worker without remote control (``worker_enable_remote_control = False``) cannot be seen.
    """

    def __init__(self, app: Any, shards: Iterable[Guarding], clock: Clock) -> None:
        self._app = app
        self._shards = shards
        self._clock = clock

    def strangers(self) -> Mapping[str, Sequence[str]]:
        """Queue → the workers that take messages from it and do not report what they begin.

        What does not answer is left out: this never raises because something is away.
        """
        found: dict[str, list[str]] = {}
        with self._app.connection_for_write(connect_timeout=_PATIENCE) as connection:
            errors = (*connection.connection_errors, *connection.channel_errors)
            try:
                answers = self._answers(connection)
                known = {
                    name_of(one) for shard in self._shards for one in shard.reporting_workers()
                }
            except (StoreUnavailable, KombuError, OSError, *errors) as exc:
                logger.debug("the workers cannot be asked: %s", exc)
                return {}
        for node, queues in sorted(answers.items()):
            for queue in queues if node not in known else ():
                found.setdefault(queue["name"], []).append(node)
        return found

    def _answers(self, connection: Any) -> dict[str, list[dict[str, Any]]]:
        """Node → its queues, as ``celery inspect active_queues`` tells them.

        Answers are looked for, not waited for: a beat may not do the latter, for the command that
        it takes could take tasks as well.
        """
        channel, ticket = connection.default_channel, uuid()
        mailbox = self._app.control.mailbox(connection)
        mailbox._publish(
            "active_queues", {}, reply_ticket=ticket, channel=channel, timeout=_PATIENCE
        )
        replies = mailbox.reply_queue(channel)
        accept = set(mailbox.accept or ()) - _NOT_ACCEPTED
        found: dict[str, list[dict[str, Any]]] = {}
        until = self._clock.monotonic() + _PATIENCE
        while self._clock.monotonic() < until:
            message = replies.get(no_ack=True, accept=accept)
            if message is None:
                self._clock.sleep(_EVERY)
            elif message.headers.get("ticket") == ticket and isinstance(message.payload, dict):
                found.update(message.payload)
        channel.after_reply_message_received(replies.name)
        return found
