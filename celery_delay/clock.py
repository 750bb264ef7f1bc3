"""The only module that reads a clock.

Three clocks, three uses.  *Wall* time stamps instants that are stored or shown.
*Boot* time (``CLOCK_BOOTTIME``) measures leases and deadlines: it goes on while a
machine is suspended and nobody can set it.  *Monotonic* time measures waits.
Whether a task is due is decided by none of them but by Redis' own ``TIME``.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]

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
