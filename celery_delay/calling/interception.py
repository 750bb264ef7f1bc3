"""Which of Celery's own delays the store takes: ``delay_intercept`` and its relatives.

Every message that leaves with an eta comes by here, whatever made it: ``apply_async`` with a
countdown or an eta, a signature's option, a canvas' part, a retry.  Each is looked at by
itself, with its task's name; nothing here touches the message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from celery.utils.time import maybe_iso8601
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name

from celery_delay.domain.clock import Clock, to_ms
from celery_delay.domain.entries import Due
from celery_delay.domain.settings import INTERCEPT, Settings
from celery_delay.exceptions import InvalidSetting

__all__ = ["is_retry", "own_due", "redelivered_after", "taken_by_the_store", "wait_of"]

#: Celery sends a delayed message for a quorum queue here: RabbitMQ delays it already.
_NATIVE = level_name(MAX_LEVEL)
#: RabbitMQ's default ``consumer_timeout``: it closes the channel of who holds a message longer.
_ACKNOWLEDGED_WITHIN = 1800.0
#: Asks every second (its default) whether a chord's header is done, for as long as it takes.
_POLLING = "celery.chord_unlock"


def is_retry(message: Any) -> bool:
    """Whether Celery's task *message* repeats a task that has run already."""
    return bool(message[0].get("retries"))


def own_due(app: Any, message: Any) -> Due | None:
    """The delay that a message brings itself, by ``countdown`` or ``eta``.

    Returns:
        ``None`` if it has none, or one that only Celery could make sense of.
    """
    countdown, eta = getattr(message, "countdown", None), getattr(message, "eta", None)
    if countdown:
        if not math.isfinite(countdown) or countdown <= 0:
            return None
        return Due(math.ceil(countdown * 1000), True)
    try:
        eta = maybe_iso8601(eta)
    except (TypeError, ValueError):
        return None
    if not isinstance(eta, datetime):
        return None
    if eta.tzinfo is None:
        eta = eta.replace(tzinfo=app.timezone)
    return Due(to_ms(eta), False)


def wait_of(due: Due, clock: Clock) -> float:
    """Seconds until *due*, by this machine's clock."""
    return due.ms / 1000 - (0.0 if due.is_delay else clock.wall())


def taken_by_the_store(
    app: Any, settings: Settings, clock: Clock, message: Any, options: Mapping[str, Any]
) -> Due | None:
    """When *message* is due, if it is one that waits in the store; ``None``: it stays native.

    Arguments:
        message: Celery's task message, with its delay still visible.
        options: where it goes.

    Raises:
        InvalidSetting: the task's attribute ``delay_intercept`` has a wrong value.
    """
    due = own_due(app, message)
    if due is None or not isinstance(message[0]["id"], str):
        return None
    if not _is_wanted(app, settings, message):
        return None
    exchange = options.get("exchange")
    if getattr(exchange, "name", exchange) == _NATIVE:
        return None
    wait, shortest = wait_of(due, clock), settings.intercept_min
    polls = message[0]["task"] == _POLLING and wait <= shortest
    return due if wait > 0 and wait >= shortest and not polls else None


def _is_wanted(app: Any, settings: Settings, message: Any) -> bool:
    name = message[0]["task"]
    tasks = app.tasks if app.finalized or app.autofinalize else {}
    wanted = getattr(tasks.get(name), "delay_intercept", None)
    if wanted is None:
        wanted = settings.intercept
    elif not any(wanted is one or (wanted == one and one == "retry") for one in INTERCEPT):
        raise InvalidSetting(
            f"delay_intercept of the task {name} must be one of"
            f" {', '.join(map(repr, INTERCEPT))}, not {wanted!r}"
        )
    if not wanted or (wanted == "retry" and not is_retry(message)):
        return False
    return not any(fnmatchcase(name, pattern) for pattern in settings.intercept_exclude)


def redelivered_after(connection: Any) -> float:
    """Seconds after which the broker gives a message that a worker holds to another one.

    Returns:
        The visibility time-out of *connection*'s broker; infinity if it has none.
    """
    transport = connection.transport
    if transport.driver_type == "amqp":
        return _ACKNOWLEDGED_WITHIN
    channel = getattr(transport, "Channel", None)
    for seconds in (
        (connection.transport_options or {}).get("visibility_timeout"),
        getattr(channel, "default_visibility_timeout", None),
        getattr(channel, "visibility_timeout", None),
    ):
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
            return float(seconds)
    return math.inf
