"""``apply_delayed`` and its relatives on tasks.

The functions here become methods of Celery's ``Task`` (new names only; nothing of Celery
is replaced).  They turn the caller's words about time into a :class:`~celery_delay.amqp.Call`
and leave all the rest to ``apply_async``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from celery import _state
from celery.app.task import Task

from celery_delay.amqp import Capturing
from celery_delay.collection import OPTION, Call
from celery_delay.entries import Due
from celery_delay.envelope import check_task_id, warn_if_dead_on_arrival
from celery_delay.exceptions import NotInstalled
from celery_delay.ports import Added
from celery_delay.result import DelayedResult, EagerDelayedResult
from celery_delay.shapes import learn, recipe_for

__all__ = ["DelayedCall", "due_for", "install_methods", "require", "result_of"]


class DelayedCall(NamedTuple):
    """One call of :func:`~celery_delay.bulk.apply_delayed_many`."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    countdown: float | timedelta | None = None
    eta: datetime | str | None = None
    task_id: str | None = None


def require(app: Any) -> Any:
    """The app's ``CeleryDelay``.

    Raises:
        NotInstalled: there is none; Celery would ignore the delay and run the task at once.
    """
    if not isinstance(app.amqp, Capturing):
        if app.main == "default" and _state.default_app in (None, app):
            # what Celery makes up for a shared task when this thread knows of no app
            raise NotInstalled(
                "a shared task was called where no Celery app is known: import the module that"
                " makes yours first (Django's way: from .celery import app as celery_app, in the"
                " project's __init__.py), and let it call app.set_default() if other threads use it"
            )
        raise NotInstalled(
            f"celery-delay is not installed on {app!r}: call CeleryDelay(app) where the app is"
            " made (and see that this is the current app: app.set_current())"
        )
    return app.amqp._delayed


def due_for(app: Any, countdown: Any, eta: Any, tz: Any) -> Due:
    """When a call on *app* is due; see :func:`~celery_delay.instants.due_of` for errors."""
    due: Due = require(app).due(countdown, eta, tz)
    return due


def apply_delayed(
    self: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    countdown: float | timedelta | None = None,
    eta: datetime | str | None = None,
    tz: str | tzinfo | None = None,
    **options: Any,
) -> DelayedResult | EagerDelayedResult:
    """Run the task later: ``apply_async`` with a delay that survives.

    The task waits in Redis, not in a worker, and is handed to its ordinary queue when it is
    due; never before.

    Arguments:
        countdown: seconds from now, counted by Redis' clock: a number or a timedelta.
        eta: an aware datetime, ISO 8601 text, or a naive datetime, which is read in *tz* or
            as ``delay_naive_eta`` says.
        tz: zone of a naive *eta*.
        **options: everything that ``apply_async`` takes.

    Returns:
        DelayedResult: as ``AsyncResult``, plus ``.eta``, ``.delay_state`` and ``.cancel()``.

    Raises:
        NotInstalled: ``CeleryDelay(app)`` was not called.
        TypeError, ValueError: about the argument they name.
        AlreadyScheduled: *task_id* is that of a live entry.
        StoreUnavailable: Redis could not be reached.
        OutcomeUnknown: Redis did not answer in time; the only case in which the task may be
            stored although the call raised.
    """
    app = self._get_app()
    due = due_for(app, countdown, eta, tz)
    check_task_id(options.get("task_id"))
    if app.conf.task_always_eager:
        return EagerDelayedResult.of(self.apply_async(args, kwargs, **options))
    delayed = require(app)
    if (recipe := recipe_for(self, options)) is not None:
        addition = recipe.addition(args, kwargs, due, options.get("task_id"))
        warn_if_dead_on_arrival(addition, delayed.clock)
        [added] = delayed.add([addition])
        return result_of(app, added, options.get("ignore_result", self.ignore_result))
    call = Call(due)
    result = self.apply_async(args, kwargs, **{OPTION: call}, **options)
    learn(self, args, kwargs, options, call)
    if call.added is None:
        raise NotInstalled(
            f"{type(self).__name__}.apply_async did not pass its options on to Celery's own:"
            " the delay was lost, and the task was sent at once"
        )
    return DelayedResult.of(result, call.added)


def delay_for(
    self: Any, seconds: float | timedelta, *args: Any, **kwargs: Any
) -> DelayedResult | EagerDelayedResult:
    """``delay`` with a delay: ``task.delay_for(60, x, y=1)``.

    Raises:
        As :func:`apply_delayed`.
    """
    return apply_delayed(self, args, kwargs, countdown=seconds)


def delay_until(
    self: Any, instant: datetime | str, *args: Any, **kwargs: Any
) -> DelayedResult | EagerDelayedResult:
    """``delay`` until an instant: ``task.delay_until(monday, x, y=1)``.

    Raises:
        As :func:`apply_delayed`.
    """
    return apply_delayed(self, args, kwargs, eta=instant)


def result_of(app: Any, added: Added, ignored: bool) -> DelayedResult:
    """The result of an entry that was stored; *ignored*: with ``ignore_result``."""
    result = DelayedResult(
        added.entry_id.task_id, app=app, entry_id=added.entry_id, eta_ms=added.due_ms
    )
    result.ignored = ignored
    return result


def install_methods() -> None:
    """Put the methods on Celery's Task, once for all apps of the process."""
    for method in (apply_delayed, delay_for, delay_until):
        setattr(Task, method.__name__, method)
