"""``apply_delayed`` on signatures, groups, chains and chords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any

from celery.canvas import Signature
from celery.result import AsyncResult, EagerResult, GroupResult, ResultBase

from celery_delay.amqp import Collection, collecting
from celery_delay.calls import due_for, require
from celery_delay.envelope import check_task_id
from celery_delay.ports import Added
from celery_delay.result import DelayedResult, EagerDelayedResult

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
        **options: as well.

    Returns:
        What ``apply_async`` returns (``AsyncResult``, ``GroupResult``), with
        :class:`~celery_delay.result.DelayedResult` for the parts that wait.

    Raises:
        As ``Task.apply_delayed``.
    """
    app = self.app
    due = due_for(app, countdown, eta, tz)
    check_task_id(options.get("task_id"))
    if app.conf.task_always_eager:
        result = self.apply_async(args, kwargs, **options)
        return EagerDelayedResult.of(result) if isinstance(result, EagerResult) else result
    delayed = require(app)
    with collecting(due) as collection:
        result = self.apply_async(args, kwargs, **options)
    added = {one.entry_id.task_id: one for one in delayed.add(collection.additions)}
    delayed.keep_chords(_chords(collection), due)
    return _delayed(result, added)


def _chords(collection: Collection) -> set[str]:
    """Group ids of the chords whose header waits: their counters must outlive the delay."""
    found = set()
    for addition in collection.additions:
        story = addition.facts
        if story.get("chord") and story.get("group"):
            found.add(str(story["group"]))
    return found


def _delayed(result: Any, added: Mapping[str, Added]) -> Any:
    """*result* with delayed results in place of those whose tasks wait."""
    if isinstance(result, GroupResult):
        result.results = [_delayed(one, added) for one in result.results]
    elif isinstance(result, AsyncResult) and result.id in added:
        return DelayedResult.of(result, added[result.id])
    parent = getattr(result, "parent", None)
    if isinstance(parent, ResultBase):
        result.parent = _delayed(parent, added)
    return result


def install_methods() -> None:
    """Put ``apply_delayed`` on Celery's Signature, and so on every canvas type."""
    Signature.apply_delayed = apply_delayed
