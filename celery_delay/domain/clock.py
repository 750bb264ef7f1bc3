"""The only module that reads a clock.

Three clocks, three uses.  *Wall* time stamps instants that are stored or shown.
*Boot* time (``CLOCK_BOOTTIME``) measures leases and deadlines: it goes on while a
machine is suspended and nobody can set it.  *Monotonic* time measures waits.
Whether a task is due is decided by none of them but by Redis' own ``TIME``.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Protocol

__all__ = ["Clock", "SystemClock", "from_ms", "to_ms"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)


def to_ms(instant: datetime) -> int:
    """Milliseconds since the epoch, rounded up, so that nothing is ever early.

    *instant* must be aware; ``TypeError`` otherwise.
    """
    return -((_EPOCH - instant) // _MS)


def from_ms(ms: int) -> datetime:
    """The aware UTC instant *ms* milliseconds after the epoch."""
    return _EPOCH + ms * _MS


#: Systems without CLOCK_BOOTTIME (macOS) fall back to the monotonic clock, which
#: stops during suspend; a lease then lives longer, which is late but never unsafe.
_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the services ask for the time; tests pass a fake one."""

    def wall(self) -> float:
        """Seconds since the epoch, UTC."""
        ...

    def boot(self) -> float:
        """Seconds since boot, suspended time included."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that only serves to measure waits."""
        ...

    def sleep(self, seconds: float) -> None:
        """Do nothing for that long."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def boot(self) -> float:
        return time.clock_gettime(_BOOT)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
