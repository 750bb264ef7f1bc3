"""Which run of a task a message starts.

A message for the same task id that is sent from inside a run (a retry, a replacement, the
retry of a lost worker) starts the run after it; any other message starts a new entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_delay.envelope import HEADER

__all__ = ["next_run", "pop_copied"]


def next_run(app: Any, task_id: str, copied: Any) -> int:
    """The run that a message for *task_id* gets when it is sent from inside a run of it.

    Arguments:
        copied: our header, if Celery has copied it into the message.  It does so in a
            retry; a replaced task has none, and a lost worker's retry is sent from the
            worker's main process.

    Returns:
        The present run + 1; 0 for a message that does not come from inside a run.
    """
    if isinstance(copied, Mapping) and copied.get("task_id") == task_id:
        return int(copied["run"]) + 1
    current = app.current_worker_task
    request = current.request if current else None
    if request is not None and request.id == task_id:
        present = request.get(HEADER)
        if isinstance(present, Mapping) and present.get("task_id") == task_id:
            return int(present["run"]) + 1
    return 0


def pop_copied(headers: dict[str, Any], options: dict[str, Any]) -> Any:
    """Take our header out of what the caller passes on; it belongs to another message.

    Returns:
        The header, or ``None``.
    """
    given = options.get("headers")
    copied = None
    if given and HEADER in given:
        options["headers"] = {name: value for name, value in given.items() if name != HEADER}
        copied = given[HEADER]
    return headers.pop(HEADER, None) or copied
