"""Threads that run a service's ``run_once`` again and again.

A failure is a state, not an end: it is logged once when it begins and once when it is over,
and in between the step is tried with growing, jittered pauses.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from celery_delay.domain.clock import Clock
from celery_delay.exceptions import DelayError

__all__ = ["Bell", "Loop"]

logger = logging.getLogger(__name__)

#: Pause after the first failure, and the longest one, in seconds.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


class Bell:
    """A self-pipe: wakes a thread that waits in ``poll``.

    Ringing takes no lock, so a signal handler may do it on top of anything.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._read

    def ring(self) -> None:
        """Wake the waiter, or the next one to wait."""
        with suppress(BlockingIOError):  # it is ringing already
            os.write(self._write, b"!")

    def hush(self) -> None:
        """Take note of all rings so far."""
        with suppress(BlockingIOError):
            while os.read(self._read, 64):
                pass

    def wait(self, seconds: float) -> None:
        """Wait for a ring, at most *seconds*."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)
        self.hush()

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._read)
        os.close(self._write)


class Loop(threading.Thread):
    """Runs *step*, waits as long as it says, and so on until it is told to stop.

    Arguments:
        step: one pass; returns seconds until the next.
        wait: how to wait; the default waits for the bell or the time.
        last: called once, in the thread, when it ends.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        clock: Clock,
        *,
        wait: Callable[[float], None] | None = None,
        last: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.bell = Bell()
        self._step = step
        self._clock = clock
        self._wait = wait or self.bell.wait
        self._last = last
        self._stopping = False
        #: What fails at present ("step", "wait"), and how often in a row anything did.
        self._broken: set[str] = set()
        self._failures = 0
        #: How often the step has raised something that it should not.
        self.crashes = 0
        #: When (boot clock) it last began a step or a wait.
        self.seen_at = clock.boot()

    def stop(self) -> None:
        """Let the thread end after the present pass.  Takes no lock."""
        self._stopping = True
        self.bell.ring()

    def wait_for_end(self, seconds: float) -> float:
        """Wait for the thread, *seconds* at most; what is left of them."""
        begun = self._clock.monotonic()
        if self.is_alive():
            self.join(max(0.0, seconds))
        return seconds - (self._clock.monotonic() - begun)

    def run(self) -> None:
        """The thread; ends only when it is stopped."""
        while not self._is_stopping():
            seconds = self._attempt("step", self._step)
            if self._is_stopping():
                break
            if seconds is None:
                # a pause after a failure must not depend on the very thing that failed
                self.bell.wait(self._pause())
            elif seconds > 0 and self._attempt("wait", partial(self._wait_for, seconds)) is None:
                self.bell.wait(min(seconds, self._pause()))
        if self._last is not None:
            last = self._last
            self._attempt("last", lambda: last() or 0.0)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _wait_for(self, seconds: float) -> float:
        self._wait(seconds)
        return 0.0

    def _attempt(self, part: str, call: Callable[[], float]) -> float | None:
        """What *call* returns, or None if it failed, which is logged here.

        The loop works again when each part that failed has succeeded.
        """
        self.seen_at = self._clock.boot()
        try:
            answer = call()
        except DelayError as exc:
            if not self._broken:
                logger.warning(
                    "%s cannot work, and keeps trying: %s",
                    self.name,
                    exc,
                    extra={"event": "loop_failing"},
                )
        except Exception:
            self.crashes += 1
            logger.exception(
                "%s failed unexpectedly; it goes on", self.name, extra={"event": "loop_crashed"}
            )
        else:
            self._broken.discard(part)
            if self._failures and not self._broken:
                self._failures = 0
                logger.info("%s works again", self.name, extra={"event": "loop_recovered"})
            return answer
        self._broken.add(part)
        self._failures += 1
        return None

    def _pause(self) -> float:
        longest: float = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(self._failures - 1, 10))
        return longest * random.uniform(0.5, 1.0)
