"""Whether anybody leads, as the answers to adds say, and the warning when nobody does.

The leader writes the instant of each renewal of its lease beside the entries; the script
that stores an entry answers how long ago the last one was.
"""

from __future__ import annotations

import logging

__all__ = ["Heartbeat"]

logger = logging.getLogger(__name__)


class Heartbeat:
    """The last sign of life of one shard's leader, as this process knows it.

    Arguments:
        grace: ``delay_leader_grace`` in seconds.
    """

    def __init__(self, shard: int, grace: float) -> None:
        self._shard = shard
        self.grace_ms = round(grace * 1000)
        self._warned = False

    def seen(self, age_ms: int) -> None:
        """Something was stored while the last sign of life was *age_ms* old; -1 for none.

        Warns once, and again only after a leader was seen meanwhile.
        """
        if 0 <= age_ms <= self.grace_ms:
            self._warned = False
        elif not self._warned:
            self._warned = True
            since = "ever" if age_ms < 0 else f"for {age_ms / 1000:.0f} s"
            logger.warning(
                "a delayed task was stored, but no beat has led %s: start one with `celery beat"
                " --scheduler celery_delay.Scheduler`, or it will wait",
                since,
                extra={"event": "no_leader", "shard": self._shard, "age_ms": age_ms},
            )
