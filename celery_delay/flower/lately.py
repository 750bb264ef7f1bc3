"""Answers that are good for a moment, so that ten open pages ask no more than one."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from celery_delay.domain.clock import Clock

__all__ = ["Lately"]

_T = TypeVar("_T")


class Lately(Generic[_T]):
    """The last answer to one question; for many threads, of which one asks.

    Arguments:
        seconds: how long an answer is good for.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._asking = Lock()
        self._last: tuple[float, _T] | None = None

    def get(self, ask: Callable[[], _T]) -> _T:
        """The last answer while it is good, else what *ask* returns now.

        While another thread asks, the last answer, however old; the first one is waited for.
        """
        last = self._last
        if self._is_good(last):
            return last[1]  # type: ignore[index]
        if not self._asking.acquire(blocking=last is None):
            return last[1]  # type: ignore[index]
        try:
            last = self._last
            if self._is_good(last):
                return last[1]  # type: ignore[index]
            answer = ask()
            self._last = self._clock.monotonic(), answer
            return answer
        finally:
            self._asking.release()

    def _is_good(self, last: tuple[float, _T] | None) -> bool:
        return last is not None and self._clock.monotonic() - last[0] < self._seconds
