"""The series as Prometheus reads them.  The only module that imports prometheus-client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from celery_delay.domain import series
from celery_delay.domain.clock import Clock
from celery_delay.domain.series import Labels, Series, all_series
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting
from celery_delay.metrics.figures import PATIENCE, Figures
from celery_delay.metrics.tally import Buckets, Tally
from celery_delay.store.connection import Links
from celery_delay.store.keys import ShardKeys
from celery_delay.store.measuring import StoreFigures, measure

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Exposition", "figures_of", "render", "require"]


class Delayer(Protocol):
    """What the composition root offers to this module."""

    @property
    def clock(self) -> Clock: ...

    @property
    def shard_keys(self) -> Sequence[ShardKeys]: ...

    def links(self) -> Links: ...


def require(settings: Settings) -> None:
    """Raise InvalidSetting if prometheus-client is needed and missing; say how to install it."""
    if settings.http is not None and find_spec("prometheus_client") is None:
        raise InvalidSetting(
            "delay_http is set, but prometheus-client is not installed:"
            " pip install 'celery-delay[metrics]', or leave delay_http out"
        )


def figures_of(delayed: Delayer) -> Figures:
    """The figures of the project's store; their thread is to be started."""
    links: list[Links] = []

    def look() -> StoreFigures:
        if not links:
            links.append(delayed.links())
        link = links[0].take()
        try:
            return measure(link, delayed.shard_keys)
        finally:
            links[0].give(link)

    return Figures(look, delayed.clock)


def render(exposition: Exposition, accept: str, *, of_process: bool = True) -> tuple[str, bytes]:
    """The page in the format that an ``Accept`` header asks for: its type, and itself.

    Arguments:
        of_process: with the process' own CPU and memory, where the system tells them.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(exposition)
    if of_process:
        ProcessCollector(registry=registry)
    try:
        encode, kind = choose_encoder(accept)
    except (TypeError, ValueError):
        encode, kind = choose_encoder("")
    return kind, encode(registry)


class Exposition:
    """A collector of prometheus-client's, for any registry.

    Arguments:
        figures: of the store.
        patience: the longest wait for them, in seconds; 0: those of the last time, if they are
            fresh, and new ones for the next time.
    """

    def __init__(self, tally: Tally, figures: Figures, patience: float = PATIENCE) -> None:
        self._tally = tally
        self._figures = figures
        self._patience = patience

    def describe(self) -> Iterator[Metric]:
        """The names, for a registry that looks for two of the same."""
        return (_family(one) for one in all_series())

    def collect(self) -> Iterator[Metric]:
        """All series with their values; takes *patience* at most."""
        of_store = _of_store(self._figures.now(self._patience))
        for one in all_series():
            family = _family(one)
            if one.kind == "histogram":
                for labels, buckets in self._tally.buckets(one):
                    family.add_metric(labels, *_cumulated(one, buckets))
            elif one is series.INFO:
                family.add_metric([version("celery-delay")], 1.0)
            else:
                values = of_store.get(one, {}) if one.of == "store" else self._tally.values(one)
                for labels, value in dict(values).items():
                    family.add_metric(labels, value)
            yield family


def _family(one: Series) -> Any:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    kinds = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    return kinds[one.kind](one.name, one.help, labels=one.labels)


def _cumulated(one: Series, buckets: Buckets) -> tuple[list[tuple[str, float]], float]:
    found, so_far = [], 0
    for bound, count in zip([*map(str, one.bounds), "+Inf"], buckets.counts, strict=True):
        so_far += count
        found.append((bound, float(so_far)))
    return found, buckets.total


def _of_store(known: StoreFigures | None) -> dict[Series, dict[Labels, float]]:
    up: dict[Series, dict[Labels, float]] = {series.STORE_UP: {(): float(known is not None)}}
    if known is None:
        return up
    plain = {
        series.PENDING: known.pending,
        series.OVERDUE: known.overdue,
        series.OLDEST_OVERDUE: known.oldest_overdue,
        series.HELD: known.held,
        series.GATED: known.gated,
        series.BLOCKED: known.blocked,
        series.CLAIMED: known.claimed,
        series.QUARANTINE: known.quarantine,
        series.COLD: known.cold,
        series.SCHEDULES: known.schedules,
        series.JOURNAL: known.journal,
        series.DRAIN_LAG: known.drain_lag,
        series.GAP: known.gap,
        series.REDIS_MEMORY: known.memory,
        series.REDIS_MEMORY_LIMIT: known.memory_limit,
    }
    return {
        **up,
        **{one: {(): float(value)} for one, value in plain.items()},
        series.DUE: {(within,): float(number) for within, number in known.due.items()},
        series.TERM: {(str(shard),): float(term) for shard, term in known.terms.items()},
    }
