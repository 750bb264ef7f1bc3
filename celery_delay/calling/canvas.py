"""``apply_delayed`` on signatures, groups, chains and chords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any

from celery.canvas import Signature, _chain, xmap, xstarmap
from celery.result import AsyncResult, EagerResult, GroupResult, ResultBase

from celery_delay.calling.calls import delay_of, require, result_of, take_transaction
from celery_delay.calling.eager import EagerDelayedResult
from celery_delay.calling.result import DelayedResult
from celery_delay.domain.entries import Added
from celery_delay.domain.outbox import within
from celery_delay.domain.uniqueness import Said
from celery_delay.message.collection import collecting
from celery_delay.message.delays import Delay

__all__ = ["install_methods"]


def apply_delayed(
    self: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    countdown: float | timedelta | None = None,
    eta: datetime | str | None = None,
    tz: str | tzinfo | None = None,
    **options: Any,
) -> Any:
    """Run a signature or a whole canvas later.

    Every task that ``apply_async`` would send now waits in the store: all of a group, the
    first of a chain, the header of a chord.  A part with a countdown of its own (``skew``,
    ``set(countdown=…)``) counts it from this delay's end.  All entries are stored in one
    step, or none.

    Arguments:
        countdown, eta, tz: as for a task.
        args, kwargs: as for the canvas' ``apply_async``.
        **options: as well; ``window``, ``namespace``, ``tags`` and ``expires_from`` as for a task,
            and for every part that waits.  Keys (``unique_key``, ``idempotency_key``) are for a
            signature and the first task of a chain; of a chain whose key another task has, that
            task's result is returned.

    Returns:
        What ``apply_async`` returns (``AsyncResult``, ``GroupResult``), with
        :class:`~celery_delay.calling.result.DelayedResult` for the parts that wait.

    Raises:
        As ``Task.apply_delayed``.
        ValueError: a group or chord has a key.
    """
    app = self.app
    if (transaction := take_transaction(app, options)) is not None:
        with within(transaction):
            return apply_delayed(self, args, kwargs, countdown=countdown, eta=eta, tz=tz, **options)
    first, delay = _delay_of(self, args, kwargs, (countdown, eta, tz), options)
    if app.conf.task_always_eager:
        result = self.apply_async(args, kwargs, **options)
        return EagerDelayedResult.of(result) if isinstance(result, EagerResult) else result
    delayed = require(app)
    until = delayed.clock.boot() + delayed.settings.publish_timeout
    with collecting(delay, until, at_once=delay.keys is not None) as collection:
        result = first.apply_async(args, kwargs, **options)
    stored = collection.added or delayed.add(collection.additions, until=until)
    if stored and stored[0].is_other:
        return result_of(app, stored[0], result.ignored)
    added = {one.entry_id.task_id: one for one in stored}
    groups = _mark_delayed(result, added)
    if added and groups:
        # the counter of a chord must outlive the delay of its header
        delayed.keep_chords(groups, max(one.due_ms for one in added.values()))
    return result


def _delay_of(
    self: Any, args: Any, kwargs: Any, when: tuple[Any, Any, Any], options: dict[str, Any]
) -> tuple[Any, Delay]:
    """What is sent (the canvas, or a copy with a task id that its key needs), and how it waits.

    Raises:
        TypeError, ValueError: as :func:`~celery_delay.calling.calls.delay_of`; or there is a key,
            but more than one task would be stored for it.
    """
    first = _first_of(self)
    if first is None:
        if any(name in options for name in Said._fields):
            kind = type(self).__name__.strip("_")
            raise ValueError(
                f"several entries cannot share one key, and this {kind} makes several: give its"
                " tasks keys of their own, one by one"
            )
        return self, delay_of(self.app, *when, options)
    whole_args, whole_kwargs, _ = first._merge(args, kwargs, {})
    called = (self.app.tasks.get(first.task), whole_args, whole_kwargs)
    of_first = options
    if first is not self:  # the id of a chain is that of its last task
        of_first = {name: one for name, one in options.items() if name != "task_id"}
    if first.options.get("task_id") is not None:
        of_first.setdefault("task_id", first.options["task_id"])
    delay = delay_of(self.app, *when, of_first, *called)
    if first is self:
        return self, delay
    for name in options.keys() - of_first.keys() - {"task_id"}:
        del options[name]
    if delay.keys is not None and of_first.get("task_id") is not None:
        self = self.clone()
        _first_of(self).options["task_id"] = of_first["task_id"]
    return self, delay


def _first_of(canvas: Any) -> Any:
    """The one task that is sent at once for *canvas*; ``None`` if there may be several."""
    while type(canvas) is _chain and canvas.tasks:
        canvas = canvas.tasks[0]
    return canvas if type(canvas) in (Signature, xmap, xstarmap) else None


def _mark_delayed(result: Any, added: Mapping[str, Added]) -> set[str]:
    """Make delayed results of those in *result* whose tasks wait.

    Returns:
        The ids of its groups, headers of chords among them.
    """
    groups, ahead = set(), [result]
    while ahead:
        one = ahead.pop()
        if isinstance(one, GroupResult):
            groups.add(str(one.id))
            ahead += one.results
        elif isinstance(one, AsyncResult) and one.id in added:
            DelayedResult.of(one, added[one.id])
        ahead += [one.parent] if isinstance(getattr(one, "parent", None), ResultBase) else []
    return groups


def install_methods() -> None:
    """Put ``apply_delayed`` on Celery's Signature, and so on every canvas type."""
    Signature.apply_delayed = apply_delayed
