"""``apply_delayed`` on signatures, groups, chains and chords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any

from celery.canvas import Signature
from celery.result import AsyncResult, EagerResult, GroupResult, ResultBase

from celery_delay.calls import due_for, require
from celery_delay.collection import collecting
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
    until = delayed.clock.boot() + delayed.settings.publish_timeout
    with collecting(due, until) as collection:
        result = self.apply_async(args, kwargs, **options)
    stored = delayed.add(collection.additions, until=until)
    added = {one.entry_id.task_id: one for one in stored}
    groups = _mark_delayed(result, added)
    if added and groups:
        # the counter of a chord must outlive the delay of its header
        delayed.keep_chords(groups, max(one.due_ms for one in added.values()))
    return result


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
