"""The broker, the way that due tasks take to it, and the result backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.backends.base import DisabledBackend

from celery_delay.doctor.checks import NOTE, OK, PROBLEM, Check, within
from celery_delay.doctor.visit import Visit
from celery_delay.domain.spans import span

__all__ = ["broker", "path", "results", "visibility"]

#: Seconds that a broker or a result backend may take to answer.
_PATIENCE = 5.0
_DEFAULT_VISIBILITY = {"redis": 3_600, "sqs": 1_800}


def broker(visit: Visit) -> Iterator[Check]:
    """Whether it can be reached from here."""
    app = visit.delayed.app
    with app.connection_for_write() as connection:
        where = connection.as_uri()
        connection.connect_timeout = _PATIENCE
        if connection.transport.driver_type == "redis":
            # for this connection alone: kombu would wait for ever for a Redis that says nothing
            names = ("socket_timeout", "socket_connect_timeout")
            options = {**(connection.transport_options or {}), **dict.fromkeys(names, _PATIENCE)}
            connection.transport_options = options
        try:
            within(2 * _PATIENCE, lambda: _reach(connection))
        except Exception as exc:
            yield Check(
                "broker", PROBLEM, f"{where} cannot be reached: {exc or type(exc).__name__}",
                "start it, or mend broker_url; due tasks wait in the store meanwhile",
            )  # fmt: skip
        else:
            yield Check(
                "broker", OK,
                f"{where}; `celery purge` empties its queues and leaves what waits in the store"
                " alone (`celery -A proj delay cancel` takes that out)",
            )  # fmt: skip


def _reach(connection: Any) -> None:
    connection.ensure_connection(max_retries=0)
    channel = connection.channel()
    client = getattr(channel, "client", None)
    if connection.transport.driver_type == "redis" and client is not None:
        client.ping()
    channel.close()


def path(visit: Visit) -> Iterator[Check]:
    """How due tasks get to their queues, tried out as a beat tries it out."""
    delayed = visit.delayed
    driver = delayed.app.connection_for_write().transport.driver_type
    claim = "due tasks are published one by one, with the broker's confirmation"
    if delayed.settings.handoff == "claim":
        yield Check("path", OK, f'{claim}: delay_handoff is "claim"')
    elif driver != "redis":
        yield Check("path", OK, f"{claim}: the broker is {driver}, no Redis")
    elif not delayed.moves():
        yield Check("path", OK, f"{claim}: the broker is not the Redis server that is the store,"
                                " or cannot be asked")  # fmt: skip
    elif why := delayed.move_differs():
        yield Check(
            "path", NOTE, f"{claim}, which is slower: the move inside Redis does not do: {why}",
            "where a right is missing, grant it and restart the beats; else it is right as it is",
        )  # fmt: skip
    else:
        yield Check("path", OK, "due tasks are moved to their queues inside Redis; tried out")


def visibility(visit: Visit) -> Iterator[Check]:
    """Delays that stay Celery's own run more than once when they outlast it."""
    app, settings = visit.delayed.app, visit.delayed.settings
    connection = app.connection_for_write()
    driver = str(connection.transport_cls if connection.transport_cls == "sqs"
                 else connection.transport.driver_type)  # fmt: skip
    if driver not in _DEFAULT_VISIBILITY:
        return
    options = app.conf.broker_transport_options or {}
    seconds = float(options.get("visibility_timeout") or _DEFAULT_VISIBILITY[driver])
    told = f"visibility_timeout is {span(round(seconds * 1000))}"
    if settings.intercept is True:
        yield Check("visibility_timeout", OK, f"{told}; Celery's own delays wait in the store too")
    else:
        yield Check(
            "visibility_timeout", NOTE,
            f"{told}: a countdown or eta of Celery's own that is longer runs more than once",
            "use apply_delayed, or delay_intercept = True; no delay in the store is concerned",
        )  # fmt: skip


def results(visit: Visit) -> Iterator[Check]:
    """``get()`` of a task that was cancelled hangs, if its result cannot be written."""
    app = visit.delayed.app
    if isinstance(app.backend, DisabledBackend):
        yield Check(
            "results", NOTE, "there is no result backend: nobody can wait for a delayed task",
            "set result_backend if somebody does; cancelling works without",
        )  # fmt: skip
        return
    where = app.backend.as_uri()
    try:
        within(_PATIENCE, lambda: app.backend.get_state("celery-delay.doctor"))
    except Exception as exc:
        yield Check(
            "results", PROBLEM,
            f"the result backend {where} cannot be asked: {exc or type(exc).__name__}; get() of a"
            " task that was cancelled would not end",
            "start it, or mend result_backend",
        )  # fmt: skip
    else:
        yield Check("results", OK, where)
