"""A beat watched from outside: it counts what it does, and ``delay_http`` serves that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from celery_delay.app import CeleryDelay
from celery_delay.audit.outcomes import SQLRunLog
from celery_delay.domain import series
from celery_delay.domain.series import Meter
from celery_delay.metrics.exposition import Exposition, figures_of, render
from celery_delay.metrics.health import UNREACHABLE, Health, ShardHealth
from celery_delay.metrics.tally import Tally
from celery_delay.metrics.timing import Timing
from celery_delay.services.elector import Elector
from celery_delay.services.loops import Loop
from celery_delay.services.outcomes import Outcomes

__all__ = ["ask_shard", "begin", "count", "observers", "outcomes"]


def begin(delayed: CeleryDelay) -> Tally | None:
    """Have this process count from now on; ``None`` without ``delay_http``.

    Connections that were made before are not measured.
    """
    return None if delayed.settings.http is None else count(delayed)


def count(delayed: CeleryDelay) -> Tally:
    """Have this process count from now on."""
    settings = delayed.settings
    tally = Tally(settings.http_labels)
    timing = Timing(tally, delayed.clock)
    delayed.meter, delayed.around = tally, timing.redis
    if settings.audited:
        delayed.audit_log.database.around = timing.sql
    return tally


def observers(
    delayed: CeleryDelay,
    tally: Tally,
    shards: Callable[[], Sequence[ShardHealth]],
    ticked_at: Callable[[], float],
) -> list[Loop]:
    """The threads that serve what *tally* has: to be started and stopped with the others."""
    # an HTTP server's modules, which a beat without one does without
    from celery_delay.metrics.server import Pages, Server

    assert delayed.settings.http is not None
    clock, figures = delayed.clock, figures_of(delayed)
    patience = max(UNREACHABLE, 3 * delayed.settings.lease)
    health = Health(shards, ticked_at, clock, patience)
    exposition = Exposition(tally, figures)
    page = partial(render, exposition)
    pages = Pages(page, health.ailments, health.obstacles, clock)
    host, ports = delayed.settings.http
    return [figures.loop, Server(host, ports, pages, clock).loop]


def outcomes(delayed: CeleryDelay) -> Outcomes | None:
    """What counts the ends of runs; ``None`` if nobody does."""
    if not delayed.meter.is_counting:
        return None
    return Outcomes(SQLRunLog(delayed.audit_log.database), delayed.meter)


def ask_shard(meter: Meter, shard: int, elector: Elector, loops: Iterable[Loop]) -> None:
    """Have *meter* answer for a shard's elector and threads."""
    meter.ask(series.LEADER, lambda: float(elector.term() is not None), (str(shard),))
    for loop in loops:
        meter.ask(series.CRASHES, _crashes(loop), (loop.name,))


def _crashes(loop: Loop) -> Callable[[], float]:
    return lambda: float(loop.crashes)
