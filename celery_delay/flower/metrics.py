"""Our series among those of Flower's ``/metrics``."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from flower.views.monitor import Metrics

from celery_delay.beats.observing import count
from celery_delay.calling.calls import require
from celery_delay.exceptions import DelayError
from celery_delay.metrics.exposition import Exposition, figures_of, render

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["MetricsHandler"]

logger = logging.getLogger(__name__)


class MetricsHandler(Metrics):
    """Flower's page, and ours behind it."""

    def initialize(self, known: dict[str, Any]) -> None:
        """*known* keeps what is counted, for all requests."""
        self._known = known

    async def get(self) -> None:
        """Whoever may read Flower's may read ours."""
        await super().get()
        loop = asyncio.get_running_loop()
        self.write(await loop.run_in_executor(self.application.executor, self._ours))

    def _ours(self) -> bytes:
        """Nothing, where Flower's app has no celery-delay: that page is Flower's alone."""
        try:
            delayed: CeleryDelay = require(self.capp)
            if "exposition" not in self._known:
                figures = figures_of(delayed)
                self._known["exposition"] = Exposition(count(delayed), figures)
                figures.loop.start()
        except DelayError as exc:
            logger.debug("no metrics of ours: %s", exc)
            return b""
        # of the process itself Flower has told already
        return render(self._known["exposition"], "", of_process=False)[1]
