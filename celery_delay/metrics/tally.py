"""Counters and histograms of this process, in memory: a :class:`Meter` that somebody reads.

Names of tasks, queues and schedules become labels, so the number of label sets is bounded: a
series keeps the first ``delay_http_labels`` of them apart and counts the others as ``other``.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from celery_delay.domain.series import Labels, Series

__all__ = ["OTHER", "Buckets", "Tally"]

#: Label of what is beyond the bound.
OTHER = "other"
#: Longer labels are cut.
_LONGEST = 120


class Buckets(NamedTuple):
    """A histogram's content: values per bucket, the last one open, and the sum of all."""

    counts: Sequence[int]
    total: float


class Tally:
    """Counts.  Safe for threads.

    Arguments:
        most: how many label sets a series has at most, beside those with ``other``.
    """

    is_counting = True

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._counters: dict[Series, dict[Labels, float]] = {}
        self._histograms: dict[Series, dict[Labels, tuple[list[int], list[float]]]] = {}
        self._asked: dict[Series, dict[Labels, Callable[[], float]]] = {}

    def count(self, series: Series, amount: float = 1, labels: Labels = ()) -> None:
        """See :meth:`celery_delay.domain.series.Meter.count`."""
        with self._lock:
            known = self._counters.setdefault(series, {})
            if labels not in known:
                labels = self._bounded(labels, known)
            known[labels] = known.get(labels, 0.0) + amount

    def observe(self, series: Series, value: float, labels: Labels = ()) -> None:
        """See :meth:`celery_delay.domain.series.Meter.observe`."""
        with self._lock:
            counts, total = self._buckets(series, labels)
            counts[bisect_left(series.bounds, value)] += 1
            total[0] += value

    def gather(self, series: Series, counts: Sequence[int], total: float) -> None:
        """See :meth:`celery_delay.domain.series.Meter.gather`."""
        with self._lock:
            into, sums = self._buckets(series, ())
            for position, number in enumerate(counts):
                into[position] += number
            sums[0] += total

    def ask(self, series: Series, answer: Callable[[], float], labels: Labels = ()) -> None:
        """See :meth:`celery_delay.domain.series.Meter.ask`."""
        with self._lock:
            self._asked.setdefault(series, {})[labels] = answer

    def values(self, series: Series) -> Iterator[tuple[Labels, float]]:
        """A counter or gauge as it is now; a counter without labels is 0 from the start."""
        with self._lock:
            counted = dict(self._counters.get(series, {}))
            asked = dict(self._asked.get(series, {}))
        if series.kind == "counter" and not series.labels:
            counted.setdefault((), 0.0)
        yield from counted.items()
        for labels, answer in asked.items():
            yield labels, answer()

    def buckets(self, series: Series) -> Iterator[tuple[Labels, Buckets]]:
        """A histogram as it is now; one without labels is there from the start."""
        with self._lock:
            if not series.labels:
                self._buckets(series, ())
            known = self._histograms.get(series, {})
            found = {labels: Buckets(list(one[0]), one[1][0]) for labels, one in known.items()}
        yield from found.items()

    def _buckets(self, series: Series, labels: Labels) -> tuple[list[int], list[float]]:
        known = self._histograms.setdefault(series, {})
        if labels not in known:
            labels = self._bounded(labels, known)
        if labels not in known:
            known[labels] = [0] * (len(series.bounds) + 1), [0.0]
        return known[labels]

    def _bounded(self, labels: Labels, known: Collection[Labels]) -> Labels:
        # what workers and producers say may hold anything: a lone surrogate is no UTF-8
        clean = tuple(one.encode("utf-8", "replace").decode()[:_LONGEST] for one in labels)
        if clean in known or len(known) < self._most:
            return clean
        return (OTHER,) * len(labels)
