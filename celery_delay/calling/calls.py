"""``apply_delayed`` and its relatives on tasks.

The functions here become methods of Celery's ``Task`` (new names only; nothing of Celery
is replaced).  They turn the caller's words about time into a
:class:`~celery_delay.calling.amqp.Call` and leave all the rest to ``apply_async``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, NamedTuple

from celery import _state
from celery.app.task import Task
from kombu.utils.uuid import uuid

from celery_delay.calling.amqp import Capturing
from celery_delay.calling.eager import EagerDelayedResult
from celery_delay.calling.result import DelayedResult
from celery_delay.calling.shapes import learn, recipe_for
from celery_delay.domain.entries import Added
from celery_delay.domain.outbox import Transaction, within
from celery_delay.domain.uniqueness import take_said
from celery_delay.exceptions import NotInstalled
from celery_delay.message.collection import OPTION, Call
from celery_delay.message.delays import Delay, take_words
from celery_delay.message.envelope import check_task_id
from celery_delay.message.expiry import warn_if_dead_on_arrival
from celery_delay.store.keys import shard_of

__all__ = ["DelayedCall", "delay_of", "install_methods", "placed", "require", "result_of"]
__all__ += ["take_transaction"]


class DelayedCall(NamedTuple):
    """One call of :func:`~celery_delay.calling.bulk.apply_delayed_many`."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    countdown: float | timedelta | None = None
    eta: datetime | str | None = None
    task_id: str | None = None
    unique_key: str | None = None
    idempotency_key: str | None = None


def require(app: Any) -> Any:
    """The app's ``CeleryDelay``.

    Raises:
        NotInstalled: there is none; Celery would ignore the delay and run the task at once.
    """
    # what Celery keeps there once it is made: its property takes a lock each time
    amqp = app.__dict__.get("amqp") or app.amqp
    if not isinstance(amqp, Capturing):
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
    return amqp._delayed


def take_transaction(app: Any, options: dict[str, Any]) -> Transaction | None:
    """Take ``session`` and ``using`` out of a call's options; ``None`` where it has none.

    Raises:
        TypeError, InvalidSetting: see ``app.delayed.transaction``.
    """
    if "session" not in options and "using" not in options:
        return None
    session, using = options.pop("session", None), options.pop("using", None)
    if (session is None and using is None) or app.conf.task_always_eager:
        return None
    found: Transaction = require(app).transaction(session=session, using=using)
    return found


def delay_of(
    app: Any,
    countdown: Any,
    eta: Any,
    tz: Any,
    options: dict[str, Any],
    task: Any = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Delay:
    """How a call on *app* waits; what *options* say of that is taken out of them.

    They get a task id where the entry's keys decide in which shard it lives.

    Arguments:
        task: may have a ``delay_unique_key`` for *args* and *kwargs*; ``None``: not known.

    Raises:
        TypeError, ValueError: see :func:`~celery_delay.message.instants.due_of`,
            :func:`~celery_delay.message.delays.take_words` and ``Delay.with_keys``.
    """
    due, said = require(app).due(countdown, eta, tz), take_said(options)
    delay = take_words(options)._replace(due=due).with_keys(said, task, args, kwargs)
    if (task_id := placed(app, delay, options.get("task_id"))) is not None:
        options["task_id"] = task_id
    return delay


def placed(app: Any, delay: Delay, task_id: str | None) -> str | None:
    """The task id of a call, made up where it has none and its keys need a certain shard.

    Raises:
        TypeError, ValueError: *task_id* is none that can be stored, or lies in another shard
            than the key.
    """
    check_task_id(task_id)
    if delay.keys is None or (shards := require(app).settings.shards) == 1:
        return task_id
    shard = shard_of(delay.key, shards)
    if task_id is None:
        return next(one for one in iter(uuid, None) if shard_of(one, shards) == shard)
    if shard_of(task_id, shards) != shard:
        raise ValueError(
            f"task_id={task_id!r} and the key {delay.key!r} lie in two of the {shards} shards"
            " (delay_shards), and no step reaches both: leave task_id out, and one that fits is"
            " made up"
        )
    return task_id


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
        window: seconds, a number or a timedelta, up to a year: the task is due somewhere within
            so long after that instant, at a place that its id decides.  Many calls for one
            instant are spread evenly like that.
        namespace: whose task it is (a tenant, a team): 1 to 255 characters.
        tags: words to find it by: 20 at most, of 1 to 100 characters.
        expires_from: ``"call"``, as Celery counts *expires*, or ``"eta"``: so many seconds after
            the task is due.  A later change of its eta leaves the expiry where it is.
        unique_key: 1 to 255 characters, which no other task may have at the same time.  A task's
            ``delay_unique_key`` makes one of its arguments: ``"remind:{0}:{order}"``.
        on_conflict: what to do if another task has it.  ``"keep"``: nothing is stored, and the
            result is that of the other task.  ``"replace"``: that one is cancelled.
            ``"extend"``: it gets this call's eta, and its result is returned.  ``"error"``.
        unique_until: the key is free when the task is ``"dispatched"``, or ``"started"``, or
            ``"done"``; a retry is not done.
        unique_for: seconds after the hand-off at which the key is free in any case; must be said
            with ``"started"`` and ``"done"``.
        idempotency_key: 1 to 255 characters that name this call: whoever calls with it again gets
            the result of the first call, whatever has become of its task.
        idempotency_for: for how many seconds; a day if it is not said.
        session: an SQLAlchemy Session, AsyncSession, scoped_session or Connection: the task is
            scheduled if and when its transaction commits.  See :doc:`/howto/outbox`.
        using: the same for Django's connection of that alias, in ``transaction.atomic()``.
        **options: everything that ``apply_async`` takes.

    Returns:
        DelayedResult: as ``AsyncResult``, plus ``.eta``, ``.delay_state`` and ``.cancel()``.

    Raises:
        NotInstalled: ``CeleryDelay(app)`` was not called.
        TypeError, ValueError: about the argument they name.
        AlreadyScheduled: *task_id* is that of a live entry.
        UniqueConflict: another task has the key, and *on_conflict* does not allow that.
        StoreUnavailable: Redis could not be reached.
        OutcomeUnknown: Redis did not answer in time; the only case in which the task may be
            stored although the call raised.
    """
    app = self._get_app()
    if (transaction := take_transaction(app, options)) is not None:
        with within(transaction):
            return apply_delayed(self, args, kwargs, countdown=countdown, eta=eta, tz=tz, **options)
    delayed = require(app)
    if options or getattr(self, "delay_unique_key", None) is not None:
        delay = delay_of(app, countdown, eta, tz, options, self, args, kwargs)
    else:
        delay = Delay(delayed.due(countdown, eta, tz))
    if app.conf.task_always_eager:
        return EagerDelayedResult.of(self.apply_async(args, kwargs, **options))
    if (recipe := recipe_for(self, options, delay)) is not None:
        addition = recipe.addition(args, kwargs, delay, options.get("task_id"))
        warn_if_dead_on_arrival(addition, delayed.clock)
        [added] = delayed.add([addition])
        return result_of(app, added, options.get("ignore_result", self.ignore_result))
    call = Call(delay)
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
