"""``GET /api/delayed/forecast``: how much becomes due when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_delay.domain.documents import fields
from celery_delay.flower.asking import Asked, query
from celery_delay.flower.guarding import JsonHandler

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["ForecastHandler"]

#: span → the unit of its bars, and how many.
_SPANS: Mapping[str, tuple[str, int]] = {
    "hour": ("minute", 60),
    "day": ("hour", 24),
    "month": ("day", 30),
}


class ForecastHandler(JsonHandler):
    """The next hour by minutes, day by hours, or 30 days by days."""

    async def get(self) -> None:
        """Redis only counts, so this is as quick with millions as with ten."""
        self.answer(await self.ask(_forecast, self.delayed, query(self, "span", "tz")))


def _forecast(delayed: CeleryDelay, asked: Asked) -> dict[str, Any]:
    span = asked.choice("span", "day", *_SPANS)
    by, periods = _SPANS[span]
    found = delayed.forecast(by, periods, tz=asked.text("tz"))
    return {
        "span": span,
        "by": by,
        **fields("now", found.now_ms),
        "total": found.total,
        "overdue": found.overdue,
        "buckets": [
            {**fields("from", one.start_ms), **fields("to", one.end_ms), "count": one.entries}
            for one in found.periods
        ],
        "later": found.later,
        "held": found.held,
        "blocked": found.blocked,
        "gated": found.gated,
    }
