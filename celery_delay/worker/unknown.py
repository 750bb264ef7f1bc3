"""Delayed tasks that a worker does not know: back into the store, held, instead of dropped.

A worker of Celery acknowledges a message whose task it does not know, writes a failure and
forgets it.  With ``delay_on_unknown = "hold"`` a delayed task comes back into the store as its
next run, and waits there for a release, after the deploy that brings the task, or a cancel.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import bootsteps

from celery_delay.domain.entries import Addition, Due, EntryId
from celery_delay.domain.ports import Change, Transition
from celery_delay.domain.states import State
from celery_delay.exceptions import AlreadyScheduled
from celery_delay.message.collection import OPTION, Call, collecting
from celery_delay.message.delays import Delay
from celery_delay.message.envelope import HEADER
from celery_delay.message.runs import spanned

__all__ = ["HoldUnknown"]

logger = logging.getLogger(__name__)

#: An entry is held right after it is stored.  Should its worker die in between, it comes to a
#: worker again after so long, in ms.
_MEANWHILE = 3_600_000


class HoldUnknown(bootsteps.StartStopStep):
    """Takes the place of the consumer's way with unknown tasks; a step of Celery's consumer."""

    requires = ("celery.worker.consumer:Tasks",)

    def start(self, consumer: Any) -> None:
        """The consumer begins, or begins again after its connection was lost."""
        celerys = type(consumer).on_unknown_task

        def on_unknown_task(body: Any, message: Any, exc: Exception) -> None:
            if _is_delayed(message) and _hold(consumer.app, message):
                message.ack_log_error(logger, consumer.connection_errors)
            else:
                celerys(consumer, body, message, exc)

        consumer.on_unknown_task = on_unknown_task


def _is_delayed(message: Any) -> bool:
    headers = message.headers
    return isinstance(headers.get(HEADER), Mapping) and "id" in headers


def _hold(app: Any, message: Any) -> bool:
    """Whether the message is an entry now, which is held.  Never raises."""
    task_id, name = message.headers["id"], message.headers["task"]
    reason = f"a worker has no task {name!r}"
    told: dict[str, Any] = {"task_id": task_id, "task": name}
    own = message.headers[HEADER]
    eta_ms, entry_id = int(own.get("eta_ms") or 0), EntryId(task_id, int(own["run"]))
    try:
        try:
            app.delayed.add([_addition(app, message)])
        except AlreadyScheduled:
            # the broker has delivered this message before
            logger.debug("%s is in the store already", task_id)
        app.delayed.steer(task_id, Change(Due(eta_ms, False), hold=True), reason)
        app.delayed.record([Transition(entry_id, 1, State.REJECTED, {"error": reason})])
    except Exception:
        logger.exception(
            "%s cannot be put back into the store, so Celery drops it: %s",
            task_id,
            reason,
            extra={"event": "unknown_not_held", **told},
        )
        return False
    logger.error(
        "%s is held in the store: %s; see `celery delay release`",
        task_id,
        reason,
        extra={"event": "unknown_held", **told},
    )
    return True


def _addition(app: Any, message: Any) -> Addition:
    """The entry of a message that came, as the task's next run; its body stays as it is."""
    headers = {**message.headers, **spanned(message.headers[HEADER])}
    compression = headers.pop("compression", None)
    delay = Delay(Due(_MEANWHILE, True))
    where = message.delivery_info
    # without an exchange the routing key is a queue's name
    way = {"exchange": where["exchange"], "routing_key": where["routing_key"]}
    if not way["exchange"]:
        way = {"queue": where["routing_key"]}
    kept = ("correlation_id", "reply_to", "priority", "delivery_mode", "expiration")
    options = {name: message.properties[name] for name in kept if name in message.properties}
    if "expiration" in options:
        options["expiration"] = int(options["expiration"]) / 1000
    with collecting(delay) as collection, app.producer_or_acquire() as producer:
        app.amqp.send_task_message(
            producer,
            headers["task"],
            (headers, {}, message.body, None),
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            compression=compression,
            **{OPTION: Call(delay)},
            **way,
            **options,
        )
    [addition] = collection.additions
    return addition
