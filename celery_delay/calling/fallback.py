"""What becomes of an intercepted message that the store does not take.

Its sender has asked for Celery's own delay and not for ours, so it gets that, wherever
certainly nothing was stored and a worker can hold it without the broker giving it to
another one.
"""

from __future__ import annotations

import logging
from typing import Any

from celery_delay.calling.interception import is_retry, redelivered_after, wait_of
from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Due
from celery_delay.domain.ports import Leaderless
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import AlreadyScheduled, OutcomeUnknown, UnsupportedBroker

__all__ = ["Fallback", "tell_in_doubt", "tell_native"]

logger = logging.getLogger(__name__)

#: What no waiting would mend, and what would not have happened without us.
_OURS_ALONE = (AlreadyScheduled, Leaderless, UnsupportedBroker, ValueError)


class Fallback:
    """The way back of one message.

    Arguments:
        connection: the one to the broker that the message would be sent over.
    """

    def __init__(
        self, settings: Settings, clock: Clock, message: Any, due: Due, connection: Any
    ) -> None:
        self._message = message
        self._allowed = settings.intercept_fallback == "native" and wait_of(
            due, clock
        ) * 2 < redelivered_after(connection)

    @property
    def needs_leader(self) -> bool:
        """Whether the message is rather sent natively than stored while no beat leads."""
        return self._allowed

    def goes_native(self, exc: Exception) -> bool:
        """Whether the message is sent natively, now that storing it has raised *exc*."""
        if isinstance(exc, OutcomeUnknown):
            return False
        if not (self._allowed or is_retry(self._message) or isinstance(exc, _OURS_ALONE)):
            return False
        tell_native(self._message, exc)
        return True


def tell_native(message: Any, exc: Exception) -> None:
    """Log that Celery itself delays *message*."""
    headers = message[0]
    if is_retry(message):
        logger.warning(
            "the retry of %s waits in a worker's memory: %s",
            headers["id"],
            exc,
            extra={"event": "retry_went_native", "task_id": headers["id"]},
        )
    else:
        logger.warning(
            "%s (%s) waits in a worker's memory: %s",
            headers["id"],
            headers["task"],
            exc,
            extra={"event": "call_went_native", "task_id": headers["id"]},
        )


def tell_in_doubt(message: Any, exc: OutcomeUnknown) -> None:
    """Log that a retry is taken for stored although no answer said so."""
    logger.error(
        "the retry of %s may be lost: %s",
        message[0]["id"],
        exc,
        extra={"event": "retry_in_doubt", "task_id": message[0]["id"]},
    )
