"""Pending entries against the tasks of this code: what would fail when it is due.

To be asked before a deploy.  A task that was renamed or has new arguments is found weeks later
otherwise, when an old entry reaches the new workers.
"""

from __future__ import annotations

import base64
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from celery.app.trace import task_has_custom

from celery_delay.delayed.steering import Steering
from celery_delay.domain.entries import StoredEntry

__all__ = ["UNKNOWN_TASK", "Checking", "EntryCheck", "Misfit", "load_tasks"]

#: Reason of entries for whose task name there is no task.
UNKNOWN_TASK = "no task of this name is registered"

_UNREADABLE = "the record cannot be read"
_NOT_JSON = "the body is not plain JSON"
_UNTYPED = "the task does not check its arguments (typing = False, or its own __call__)"


class Misfit(NamedTuple):
    """Pending entries of one task that this code would not run, for one reason.

    ``first_eta_ms`` is the earliest eta among them, UTC.
    """

    task: str
    reason: str
    task_ids: list[str]
    first_eta_ms: int


@dataclass
class EntryCheck:
    """What :meth:`CeleryDelay.check_entries` found.

    Attributes:
        fitting: how many entries this code can run.
        ignored: how many have a name that was to be ignored.
        not_looked_at: reason → how many could not be judged.  Their task's name is known,
            unless the reason is that the record cannot be read.
        misfits: by task and reason, the earliest due first.
        held: ids of those that are held now because no task has their name.
    """

    fitting: int = 0
    ignored: int = 0
    not_looked_at: dict[str, int] = field(default_factory=dict)
    misfits: list[Misfit] = field(default_factory=list)
    held: list[str] = field(default_factory=list)

    @property
    def misfitting(self) -> int:
        """How many entries this code would not run."""
        return sum(len(one.task_ids) for one in self.misfits)

    @property
    def total(self) -> int:
        """How many entries were read."""
        judged = self.fitting + self.misfitting
        return judged + self.ignored + sum(self.not_looked_at.values())


def load_tasks(app: Any) -> None:
    """Import what a worker of *app* imports at its start, so that all tasks are registered.

    Raises:
        Whatever a module of tasks raises; a worker would not start either.
    """
    app.loader.import_default_modules()
    app.finalize(auto=True)


class Checking(Steering):
    """The part of ``app.delayed`` that compares entries with the code."""

    def check_entries(
        self,
        *,
        ignore: Iterable[str] = (),
        hold: bool | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> EntryCheck:
        """Judge each pending entry (scheduled, blocked, held, quarantined) by this code's tasks.

        An entry does not fit if no task has its name, or its arguments do not bind to the
        task's signature, as ``apply_async`` would check it.  Bodies are read as JSON and never
        unpickled.  What comes after a task (chain, callbacks, a chord's body) is not judged.

        The tasks are loaded as a worker loads them.  The store is read in small pages and, but
        for what is held, stays as it is; memory grows with the misfits only, by some 200 bytes
        each.  Entries that come, go or move while this runs may be missed.

        Arguments:
            ignore: shell patterns of task names that other projects run, ``"billing.*"``.
            hold: whether entries for whose name there is no task are held, each as by
                :meth:`hold`, when all is judged; ``None``: as ``delay_on_unknown`` says.
            progress: called after each page with the number of entries read so far.

        Raises:
            StoreUnavailable: Redis could not be reached; some may have been held.
            Exception: whatever a module of tasks raises when it is imported.
        """
        load_tasks(self.app)
        tally = _Tally(self.app.tasks, tuple(ignore))
        seen = 0
        for shard in self.shards:
            for page in shard.pages():
                for one in page.entries:
                    tally.take(one)
                tally.skipped[_UNREADABLE] += len(page.unreadable)
                seen += len(page.entries) + len(page.unreadable)
                if progress is not None:
                    progress(seen)
        found = tally.result()
        if self.settings.on_unknown == "hold" if hold is None else hold:
            unknown = (one.task_ids for one in found.misfits if one.reason == UNKNOWN_TASK)
            found.held = [
                task_id
                for ids in unknown
                for task_id in ids
                if self.hold(task_id, reason=UNKNOWN_TASK)
            ]
        return found

    def pending(self) -> int:
        """How many entries :meth:`check_entries` has to read, about."""
        sizes = [shard.sizes() for shard in self.shards]
        places = ("pending", "blocked", "gated", "held", "quarantined")
        return sum(one[place] for one in sizes for place in places)


class _Tally:
    """The verdicts so far."""

    def __init__(self, tasks: Mapping[str, Any], ignore: Sequence[str]) -> None:
        self._tasks = tasks
        self._ignore = ignore
        self._binders: dict[str, Callable[..., object] | None] = {}
        self._found: dict[tuple[str, str], dict[str, int]] = {}
        self._result = EntryCheck()
        self.skipped: Counter[str] = Counter()

    def take(self, entry: StoredEntry) -> None:
        """Judge *entry*."""
        name = entry.task
        if any(fnmatchcase(name, pattern) for pattern in self._ignore):
            self._result.ignored += 1
            return
        if name not in self._tasks:
            self._refuse(entry, UNKNOWN_TASK)
            return
        if name not in self._binders:
            self._binders[name] = _binder(self._tasks[name])
        bind = self._binders[name]
        if bind is None:
            self.skipped[_UNTYPED] += 1
            return
        given = _arguments(entry)
        if given is None:
            self.skipped[_NOT_JSON] += 1
            return
        try:
            bind(*given[0], **given[1])
        except TypeError as exc:
            self._refuse(entry, str(exc))
        else:
            self._result.fitting += 1

    def result(self) -> EntryCheck:
        """All verdicts."""
        self._result.misfits = sorted(
            (
                Misfit(task, reason, sorted(etas, key=etas.__getitem__), min(etas.values()))
                for (task, reason), etas in self._found.items()
            ),
            key=lambda one: one.first_eta_ms,
        )
        self._result.not_looked_at = {why: n for why, n in self.skipped.items() if n}
        return self._result

    def _refuse(self, entry: StoredEntry, reason: str) -> None:
        # by id: Redis may show an entry twice
        self._found.setdefault((entry.task, reason), {})[entry.entry_id.task_id] = entry.eta_ms


def _binder(task: Any) -> Callable[..., object] | None:
    """What raises TypeError for arguments that do not fit; ``None`` if that cannot be told."""
    if not task.typing:
        return None
    header: Callable[..., object] | None = getattr(task, "__header__", None)
    if header is not None:
        return header
    # a task made of a class has no header; Celery itself finds out when it runs
    if task_has_custom(task, "__call__"):
        return None
    try:
        return inspect.signature(task.run).bind
    except (TypeError, ValueError):
        return None


def _arguments(entry: StoredEntry) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments of *entry*; ``None`` where its body is anything but plain JSON."""
    envelope = entry.envelope
    if envelope.get("content-type") != "application/json" or entry.headers.get("compression"):
        return None
    try:
        args, kwargs, _embed = json.loads(base64.b64decode(str(envelope["body"])))
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        return None
    return args, kwargs
