"""Which run of a task a message starts.

A message for the same task id that is sent from inside a run (a retry, a replacement, the
retry of a lost worker) starts the run after it; any other message starts a new entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_delay.domain.entries import EntryId
from celery_delay.domain.labels import NO_LABELS, Labels
from celery_delay.message.envelope import HEADER
from celery_delay.telemetry.headers import CONTEXT

__all__ = ["NEW", "Following", "entry_id_of", "following", "header_of", "pop_copied", "spanned"]


def header_of(request: Any) -> Mapping[str, Any] | None:
    """Our header of a request, or of a message's headers; ``None`` if they are not ours."""
    get = getattr(request, "get", None)
    header = get(HEADER) if get is not None else getattr(request, HEADER, None)
    if not isinstance(header, Mapping):
        # a worker's own Request keeps the message's headers inside
        inner = getattr(request, "request_dict", None) or {}
        header = inner.get(HEADER)
    return header if isinstance(header, Mapping) and "run" in header else None


def entry_id_of(request: Any) -> EntryId | None:
    """The entry that a request or a message's headers belong to; ``None`` if it is not ours."""
    header = header_of(request)
    return EntryId(str(header["task_id"]), int(header["run"])) if header is not None else None


def spanned(header: Any) -> dict[str, str]:
    """The context of the span that scheduled, by our header, as the headers that it came in."""
    return {one: header[one] for one in CONTEXT if one in header}


class Following(NamedTuple):
    """What a message takes over from the run that it is sent from.

    Attributes:
        run: that run's number + 1; 0 for a message that does not come from inside a run.
        labels: that run's.
    """

    run: int = 0
    labels: Labels = NO_LABELS

    def header(self, task_id: str) -> dict[str, object]:
        """Our header, for a message that goes past the store."""
        header: dict[str, object] = {"task_id": task_id, "run": self.run}
        said = {name: value for name, value in self.labels._asdict().items() if value}
        return {**header, "labels": said} if said else header


NEW = Following()


def following(app: Any, task_id: str, copied: Any) -> Following:
    """What a message for *task_id* takes over when it is sent from inside a run of it.

    Arguments:
        copied: our header, if Celery has copied it into the message.  It does so in a
            retry; a replaced task has none, and a lost worker's retry is sent from the
            worker's main process.
    """
    if isinstance(copied, Mapping) and copied.get("task_id") == task_id:
        return _after(copied)
    current = app.current_worker_task
    request = current.request if current else None
    if request is not None and request.id == task_id:
        present = request.get(HEADER)
        if isinstance(present, Mapping) and present.get("task_id") == task_id:
            return _after(present)
    return NEW


def _after(header: Mapping[str, Any]) -> Following:
    return Following(int(header["run"]) + 1, Labels.read(header.get("labels")).for_next_run())


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
