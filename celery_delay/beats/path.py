"""How due tasks get to their queues from here: by the move, or by claim, publish and ack.

Chosen once in the life of a beat.  The claim path is right everywhere; the move is taken where
store and queues are on one Redis server and trying it out has found nothing.
"""

from __future__ import annotations

import logging
import threading

from celery_delay.app import CeleryDelay

__all__ = ["HandoffPath"]

logger = logging.getLogger(__name__)


class HandoffPath:
    """The path of one process; all its shards share the choice."""

    def __init__(self, delayed: CeleryDelay) -> None:
        self._delayed = delayed
        self._lock = threading.Lock()
        #: "move", "claim", or ``None`` while it is not known.
        self.chosen: str | None = None

    @property
    def moves(self) -> bool:
        """Whether due tasks go by the move, as far as that is known."""
        return self.chosen != "claim"

    def choose(self) -> None:
        """Find out, if it is not known yet.

        Raises:
            StoreUnavailable: that cannot be done now; the path stays unknown.
        """
        with self._lock:
            if self.chosen is not None:
                return
            why = ""
            if not self._delayed.moves() or (why := self._delayed.move_differs()):
                self.chosen = "claim"
            else:
                self.chosen = "move"
        if self.chosen == "claim" and self._delayed.settings.tracks:
            logger.warning(
                "delay_guard does not watch what this beat hands off, for it publishes it",
                extra={"event": "watch_off"},
            )
        if why:
            logger.warning(
                "due tasks are published one by one, for the move does not do: %s",
                why,
                extra={"event": "path_chosen", "path": self.chosen},
            )
            return
        logger.info(
            "due tasks go to their queues by %s",
            "the move inside Redis" if self.chosen == "move" else "claim, publish and ack",
            extra={"event": "path_chosen", "path": self.chosen},
        )
