"""Many delayed calls, stored in chunks while they are read.

A chunk is stored whole or not at all.  Only one chunk is in memory at a time, so the calls may
come from a generator that never ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from itertools import islice
from typing import Any

from celery.app.task import Task

from celery_delay.calling.calls import DelayedCall, placed, require, result_of, take_transaction
from celery_delay.calling.eager import EagerDelayedResult
from celery_delay.calling.result import DelayedResult
from celery_delay.calling.shapes import is_plain, learn, recipe_for
from celery_delay.domain.entries import Addition
from celery_delay.domain.outbox import within
from celery_delay.domain.uniqueness import take_said
from celery_delay.message.collection import OPTION, Call, collecting
from celery_delay.message.delays import Delay, take_words
from celery_delay.message.envelope import check_task_id
from celery_delay.message.expiry import warn_if_dead_on_arrival
from celery_delay.store.additions import ADD_LIMIT

__all__ = ["CHUNK", "addition_by_name", "addition_of", "install_methods"]

#: Calls that are stored in one step.
CHUNK = 500

_Calls = Iterable[DelayedCall | Sequence[Any]]
_Results = list[DelayedResult | EagerDelayedResult]


def apply_delayed_many(
    self: Any,
    calls: _Calls,
    *,
    countdown: float | timedelta | None = None,
    eta: datetime | str | None = None,
    tz: str | tzinfo | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> _Results:
    """Schedule many calls of the task with few round trips.

    The calls are read, built and stored chunk by chunk.  Each chunk is stored whole or not at
    all; those before one that fails stay stored.

    Arguments:
        calls: any iterable, a generator too, of :class:`~celery_delay.calling.calls.DelayedCall`
            objects or argument tuples.  A call without a time of its own is due at *countdown* or
            *eta*; a countdown counts from the step that stores the call.
        chunk: how many are stored in one step, 1 000 at most.
        progress: called after each chunk with the number of calls stored so far.  What it
            raises ends the call.
        **options: as ``apply_delayed``; they count for every call.

    Returns:
        One result per call, in their order.  Where they are not wanted, use
        :func:`apply_delayed_chunks`, which keeps none.

    Raises:
        As :func:`~celery_delay.calling.calls.apply_delayed`, and whatever *calls* raises.  The
        exception has the attribute ``stored``: so many calls, the first ones, are stored.  Of the
        chunk after them nothing is, unless it is OutcomeUnknown or an interrupt: then that chunk is
        in doubt, as a whole.  With ``delay_shards`` above 1 a chunk is one step per shard; a
        refusal by one shard takes the others' part out again, a crash in between cannot.

    A crash leaves the chunks that were stored, and perhaps the one under way.  Give task ids of
    your own to be able to repeat the call: what is stored is then refused as AlreadyScheduled.
    """
    if (transaction := take_transaction(self._get_app(), options)) is not None:
        with within(transaction):
            return apply_delayed_many(
                self,
                calls,
                countdown=countdown,
                eta=eta,
                tz=tz,
                chunk=chunk,
                progress=progress,
                **options,
            )
    results: _Results = []
    for some in apply_delayed_chunks(
        self, calls, countdown=countdown, eta=eta, tz=tz, chunk=chunk, **options
    ):
        results += some
        if progress is not None:
            with _counting(len(results)):
                progress(len(results))
    return results


def apply_delayed_chunks(
    self: Any,
    calls: _Calls,
    *,
    countdown: float | timedelta | None = None,
    eta: datetime | str | None = None,
    tz: str | tzinfo | None = None,
    chunk: int = CHUNK,
    **options: Any,
) -> Iterator[_Results]:
    """:func:`apply_delayed_many` as an iterator, which stores a chunk whenever it is advanced.

    Nothing is stored before the first ``next()``, nor after the last: loop over it.  Memory
    stays flat, however many calls there are.

    Yields:
        The results of each chunk, in the order of the calls.

    Raises:
        As :func:`apply_delayed_many`; errors about these arguments at once.
    """
    app = self._get_app()
    require(app)
    for name in ("task_id", "unique_key", "idempotency_key"):
        if name in options:
            raise TypeError(f"{name} cannot be the same for many calls: give DelayedCall({name}=…)")
    for name in ("session", "using"):
        if options.get(name) is not None:
            raise TypeError(f"{name}= goes with apply_delayed_many, which ends within your call")
    if chunk < 1:
        raise ValueError(f"chunk={chunk!r} must be 1 at least")
    # a wrong one is refused before anything is read
    words, said, due_for = take_words(options), take_said(options), require(app).due
    general = due_for(countdown, eta, tz) if countdown is not None or eta is not None else None

    def delay(one: DelayedCall) -> tuple[DelayedCall, Delay]:
        due = general
        if due is None or one.countdown is not None or one.eta is not None:
            due = due_for(one.countdown, one.eta, tz if one.eta is not None else None)
        keys = said
        if one.unique_key is not None or one.idempotency_key is not None:
            keys = said._replace(unique_key=one.unique_key, idempotency_key=one.idempotency_key)
        whole = words._replace(due=due).with_keys(keys, self, one.args, one.kwargs)
        if whole.keys is not None:
            one = one._replace(task_id=placed(app, whole, one.task_id))
        return one, whole

    return _stored(self, map(_call, calls), delay, min(chunk, ADD_LIMIT), options)


def _stored(
    task: Any,
    calls: Iterator[DelayedCall],
    delay: Callable[[DelayedCall], tuple[DelayedCall, Delay]],
    chunk: int,
    options: Mapping[str, Any],
) -> Iterator[_Results]:
    app, count = task._get_app(), 0
    ignored = options.get("ignore_result", task.ignore_result)
    while True:
        with _counting(count):
            some = [delay(one) for one in islice(calls, chunk)]
            if not some:
                return
            results: _Results
            if app.conf.task_always_eager:
                results = [_eagerly(task, one, options) for one, _ in some]
            else:
                built = [addition_of(task, one, when, options) for one, when in some]
                results = [result_of(app, one, ignored) for one in require(app).add(built)]
        count += len(results)
        yield results


@contextlib.contextmanager
def _counting(stored: int) -> Iterator[None]:
    """Let an exception in this context tell how many calls are *stored* already."""
    try:
        yield
    except BaseException as exc:
        with contextlib.suppress(AttributeError, TypeError):  # one that takes no attributes
            exc.stored = stored  # type: ignore[attr-defined]
        if stored and hasattr(exc, "add_note"):  # Python 3.11
            exc.add_note(f"{stored} calls before this chunk are stored")
        raise


def addition_of(task: Any, one: DelayedCall, delay: Delay, options: Mapping[str, Any]) -> Addition:
    """The entry of one call of *task*, checked and built but not stored.

    Raises:
        TypeError, ValueError: about the argument they name.
        kombu.exceptions.EncodeError: the arguments cannot be sent.
    """
    check_task_id(one.task_id)
    recipe = recipe_for(task, options, delay)
    if recipe is not None and is_plain(one.task_id):
        addition = recipe.addition(one.args, one.kwargs, delay, one.task_id)
        warn_if_dead_on_arrival(addition, task._get_app().delayed.clock)
        return addition
    own = _own(one, options)
    call = Call(delay)
    with collecting(delay) as collection:
        task.apply_async(one.args, one.kwargs, **{OPTION: call}, **own)
    learn(task, one.args, one.kwargs, own, call)
    [addition] = collection.additions
    return addition


def addition_by_name(
    app: Any, name: str, one: DelayedCall, delay: Delay, options: Mapping[str, Any]
) -> Addition:
    """The same for a task of another project, by its name; its arguments are not checked."""
    check_task_id(one.task_id)
    with collecting(delay) as collection:
        app.send_task(name, one.args, one.kwargs, **{OPTION: Call(delay)}, **_own(one, options))
    [addition] = collection.additions
    return addition


def _own(one: DelayedCall, options: Mapping[str, Any]) -> Mapping[str, Any]:
    return options if one.task_id is None else {**options, "task_id": one.task_id}


def _eagerly(task: Any, one: DelayedCall, options: Mapping[str, Any]) -> EagerDelayedResult:
    check_task_id(one.task_id)
    return EagerDelayedResult.of(task.apply_async(one.args, one.kwargs, **_own(one, options)))


def _call(given: DelayedCall | Sequence[Any]) -> DelayedCall:
    return given if isinstance(given, DelayedCall) else DelayedCall(tuple(given))


def install_methods() -> None:
    """Put the methods on Celery's Task, once for all apps of the process."""
    for method in (apply_delayed_many, apply_delayed_chunks):
        setattr(Task, method.__name__, method)
