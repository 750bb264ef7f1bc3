"""What became of runs, counted as the journal is drained: by task, and how long they took.

Counted by the leader, after the batch is in SQL and off the journal; a crash in between leaves
some uncounted.  An event that is read again counts once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from celery_delay.domain import series
from celery_delay.domain.events import Event
from celery_delay.domain.ports import JournalPosition, RunLog
from celery_delay.domain.series import Meter
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable

__all__ = ["Outcomes"]

logger = logging.getLogger(__name__)

#: The states in which a run is over.
_OVER = frozenset(one.value for one in State if one.is_final)
#: How Celery's errors begin that end a run by its time limit.
_LIMITS = ("TimeLimitExceeded", "SoftTimeLimitExceeded")


class Outcomes:
    """Counts events; used by one thread."""

    def __init__(self, log: RunLog, meter: Meter) -> None:
        self._log = log
        self._meter = meter

    def drained(self, before: JournalPosition, events: Sequence[Event]) -> None:
        """Count those of *events* that come behind *before*, where SQL stood.

        Never raises because the database is away: their outcomes are not counted then.
        """
        start = _number(before.last_id)
        fresh = [one for one in events if _number(one.stream_id) > start]
        for state, number in Counter(one.state for one in fresh).items():
            self._meter.count(series.DRAINED, number, (state,))
        over = [one for one in fresh if one.state in _OVER]
        if not over:
            return
        try:
            runs = self._log.runs([one.entry_id for one in over])
        except AuditUnavailable as exc:
            logger.debug("%d outcomes are not counted: %s", len(over), exc)
            return
        for one in over:
            task, started_ms = runs.get(one.entry_id, ("", None))
            self._meter.count(series.FINISHED, 1, (task, one.state))
            if started_ms is not None:
                seconds = max(0, one.at_ms - started_ms) / 1000
                self._meter.observe(series.RUN, seconds, (task,))
            if str(one.data.get("error", "")).startswith(_LIMITS):
                self._meter.count(series.PAST_LIMIT, 1, (task,))


def _number(stream_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)
