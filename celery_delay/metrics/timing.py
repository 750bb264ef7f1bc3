"""How long commands and transactions take, and how they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_delay.domain import series
from celery_delay.domain.clock import Clock
from celery_delay.domain.series import Meter
from celery_delay.exceptions import AuditUnavailable, StoreUnavailable
from celery_delay.store.connection import AnswerLost

__all__ = ["Timing"]


class Timing:
    """Surrounds calls, and measures them.  Safe for threads."""

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock

    def redis(self, call: Callable[..., Any], command: tuple[object, ...]) -> Any:
        """Send one command of Redis; what it answers or raises."""
        begun = self._clock.monotonic()
        try:
            return call(*command)
        except StoreUnavailable:
            self._meter.count(series.REDIS_ERRORS, 1, ("unavailable",))
            raise
        except AnswerLost:
            self._meter.count(series.REDIS_ERRORS, 1, ("lost",))
            raise
        finally:
            self._meter.observe(series.REDIS, self._clock.monotonic() - begun)

    @contextmanager
    def sql(self) -> Iterator[None]:
        """One transaction in the audit database."""
        begun = self._clock.monotonic()
        try:
            yield
        except AuditUnavailable:
            self._meter.count(series.SQL_ERRORS)
            raise
        finally:
            self._meter.observe(series.SQL, self._clock.monotonic() - begun)
