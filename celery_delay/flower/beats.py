"""Which beats there are: they answer remote control, and say what they are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["beats_of"]

logger = logging.getLogger(__name__)

#: How long they are waited for, in seconds.
_TIMEOUT = 0.5
_PATTERN = "delay-*"


def beats_of(delayed: CeleryDelay) -> list[dict[str, Any]] | None:
    """All that answer now; ``None`` where the broker has no broadcasts, or is away.

    Those that are set up not to (``delay_remote_control``) are missing.
    """
    try:
        inspect = delayed.app.control.inspect(timeout=_TIMEOUT, pattern=_PATTERN, matcher="glob")
        answers = inspect.stats() or {}
    except Exception:
        logger.debug("beats could not be asked", exc_info=True)
        return None
    return [
        {
            "name": name,
            "role": str(told.get("role", "")),
            "holder": str(told.get("holder", "")),
            "version": str(told.get("version", "")),
        }
        for name, told in sorted(answers.items())
        if isinstance(told, dict) and "holder" in told
    ]
