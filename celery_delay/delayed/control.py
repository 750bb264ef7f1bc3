"""``revoke`` reaches the store: from Python, ``celery control revoke`` and Flower's button.

A worker's revoked ids live in its memory, for three hours; for a task that is due next
week that is no revocation.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.app import control as celery_control

from celery_delay.exceptions import DelayError

__all__ = ["Control", "Revoking"]

logger = logging.getLogger(__name__)


class Revoking:
    """Mixin over a Control class: takes revoked tasks out of the store first."""

    app: Any

    def broadcast(self, command: str, arguments: Any = None, **options: Any) -> Any:
        """Celery's broadcast.  All ways to revoke by id end here.

        The workers are told in any case: a task may be on its queue already.  A store that
        cannot be reached does not keep the workers from being told; it is logged.
        """
        if command == "revoke":
            given = dict(arguments or {}, **options).get("task_id")
            for task_id in [given] if isinstance(given, str) else list(given or ()):
                try:
                    self.app.delayed.revoke(task_id)
                except DelayError as exc:
                    logger.error(
                        "%s was not revoked in the store: %s",
                        task_id,
                        exc,
                        extra={"event": "revoke_failed", "task_id": task_id},
                    )
        return super().broadcast(command, arguments, **options)  # type: ignore[misc]

    def revoke_in_workers(self, task_id: str) -> None:
        """Celery's ``revoke``, for one whose task has been looked for in the store already."""
        arguments = {"task_id": task_id, "terminate": False, "signal": celery_control.TERM_SIGNAME}
        super().broadcast("revoke", arguments)  # type: ignore[misc]


class Control(Revoking, celery_control.Control):
    """Celery's Control with the store behind it; ``CeleryDelay(app)`` sets it by name."""
