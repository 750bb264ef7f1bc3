"""``apply_delayed`` and its relatives on tasks.

The functions here become methods of Celery's ``Task`` (new names only; nothing of Celery
is replaced).  They turn the caller's words about time into a :class:`~celery_delay.amqp.Call`
and leave all the rest to ``apply_async``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from celery import _state
from celery.app.task import Task

from celery_delay.amqp import Capturing
from celery_delay.collection import OPTION, Call, collecting
from celery_delay.entries import Due
from celery_delay.envelope import check_task_id, warn_if_dead_on_arrival
from celery_delay.exceptions import NotInstalled
from celery_delay.ports import Added
from celery_delay.result import DelayedResult, EagerDelayedResult
from celery_delay.shapes import is_plain, learn, recipe_for

__all__ = ["DelayedCall", "due_for", "install_methods", "require"]

#: Entries that one bulk call hands to the store at a time.
CHUNK = 500


class DelayedCall(NamedTuple):
    """One call of :func:`apply_delayed_many`."""

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
        return _result(app, added, options.get("ignore_result", self.ignore_result))
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


def apply_delayed_many(
    self: Any,
    calls: Iterable[DelayedCall | Sequence[Any]],
    *,
    countdown: float | timedelta | None = None,
    eta: datetime | str | None = None,
    tz: str | tzinfo | None = None,
    chunk: int = CHUNK,
    **options: Any,
) -> list[DelayedResult | EagerDelayedResult]:
    """Schedule many calls of the task with few round trips.

    Arguments:
        calls: :class:`DelayedCall` objects, or argument tuples.  A call without a time of
            its own is due at *countdown* or *eta*.
        chunk: how many are stored in one step.  All arguments are checked, and all messages
            built, before the first step.
        **options: as ``apply_async``; they count for every call.

    Returns:
        One result per call, in their order.

    Raises:
        As :func:`apply_delayed`.  Should a later chunk be refused, those stored by this call
        are cancelled again before it raises.
    """
    app = self._get_app()
    delayed = require(app)
    if "task_id" in options:
        raise TypeError("task_id cannot be the same for many calls: give DelayedCall(task_id=…)")
    general = due_for(app, countdown, eta, tz) if countdown is not None or eta is not None else None
    if app.conf.task_always_eager:
        return [_eagerly(self, _call(one), countdown, eta, tz, options) for one in calls]
    additions = []
    recipe = None
    for one in map(_call, calls):
        due = general
        if one.countdown is not None or one.eta is not None or due is None:
            due = due_for(app, one.countdown, one.eta, tz if one.eta is not None else None)
        check_task_id(one.task_id)
        recipe = recipe or recipe_for(self, options)
        if recipe is not None and is_plain(one.task_id):
            addition = recipe.addition(one.args, one.kwargs, due, one.task_id)
            warn_if_dead_on_arrival(addition, delayed.clock)
        else:
            own = options if one.task_id is None else {**options, "task_id": one.task_id}
            call = Call(due)
            with collecting(due) as collection:
                self.apply_async(one.args, one.kwargs, **{OPTION: call}, **own)
            learn(self, one.args, one.kwargs, own, call)
            [addition] = collection.additions
        additions.append(addition)
    ignored = options.get("ignore_result", self.ignore_result)
    return [_result(app, added, ignored) for added in delayed.add(additions, chunk=chunk)]


def _eagerly(
    task: Any, one: DelayedCall, countdown: Any, eta: Any, tz: Any, options: Mapping[str, Any]
) -> DelayedResult | EagerDelayedResult:
    if one.countdown is not None or one.eta is not None:
        countdown, eta, tz = one.countdown, one.eta, tz if one.eta is not None else None
    own = options if one.task_id is None else {**options, "task_id": one.task_id}
    return apply_delayed(task, one.args, one.kwargs, countdown=countdown, eta=eta, tz=tz, **own)


def _result(app: Any, added: Added, ignored: bool) -> DelayedResult:
    result = DelayedResult(
        added.entry_id.task_id, app=app, entry_id=added.entry_id, eta_ms=added.due_ms
    )
    result.ignored = ignored
    return result


def _call(given: DelayedCall | Sequence[Any]) -> DelayedCall:
    return given if isinstance(given, DelayedCall) else DelayedCall(tuple(given))


def install_methods() -> None:
    """Put the methods on Celery's Task, once for all apps of the process."""
    for method in (apply_delayed, delay_for, delay_until, apply_delayed_many):
        setattr(Task, method.__name__, method)
