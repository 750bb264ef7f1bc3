"""The story of each task, as the audit in SQL tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery_delay import State
from celery_delay.audit.database import Database
from celery_delay.audit.queries import AuditQueries, RunRow, TaskRow
from celery_delay.exceptions import AuditUnavailable, SchemaOutdated

__all__ = ["Story", "Summary", "Told"]

_ALL_STATES = [state.value for state in State]
#: What the latest run of a task can end in.
_ENDS = {state.value for state in State if state.is_final} - {State.RETRIED.value}


class Told(NamedTuple):
    """A task and all its runs."""

    task: TaskRow
    runs: list[RunRow]

    @property
    def is_over(self) -> bool:
        return self.task.state in _ENDS

    @property
    def steps(self) -> list[tuple[str, int | None]]:
        """The latest run's states so far, each with its ms after the eta."""
        run = self.runs[-1]
        taken = [
            ("SCHEDULED", run.scheduled_ms),
            ("DISPATCHED", run.dispatched_ms),
            ("STARTED", run.started_ms),
            (run.state, run.ended_ms),
        ]
        eta = run.eta_ms
        return [(state, None if eta is None else at - eta) for state, at in taken if at is not None]


class Summary(NamedTuple):
    """What SQL says in the end.  Lags are in ms."""

    states: Counter[str]
    runs: int
    lags: list[int]


class Story:
    """Reads the audit again and again; asks only for what has changed."""

    def __init__(self, url: str) -> None:
        self._queries = AuditQueries(Database(url))
        self._told: dict[str, Told] = {}
        self.failure = "nothing was read yet"

    def read(self) -> dict[str, Told]:
        """All tasks by id.  While the database is not there yet, or busy: as before."""
        try:
            for task in self._queries.tasks(states=_ALL_STATES, limit=10_000):
                known = self._told.get(task.task_id)
                if known is None or known.task != task or (known.is_over and _is_torn(known)):
                    runs = self._queries.runs(task.task_id)
                    if runs:
                        self._told[task.task_id] = Told(task, runs)
            self.failure = ""
        except (AuditUnavailable, SchemaOutdated) as exc:
            self.failure = str(exc)
        return self._told

    def summary(self, task_ids: Iterable[Any]) -> Summary:
        """The sum over some tasks."""
        told = [self._told[one] for one in task_ids if one in self._told]
        return Summary(
            Counter(one.task.state for one in told),
            sum(len(one.runs) for one in told),
            sorted(run.lag_ms for one in told for run in one.runs if run.lag_ms is not None),
        )

    def close(self) -> None:
        self._queries.database.close()


def _is_torn(told: Told) -> bool:
    # task and runs are two reads, and something may have been written in between
    return any(run.ended_ms is None for run in told.runs)
