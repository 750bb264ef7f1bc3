"""What a doctor writes down: one line for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from typing import NamedTuple, TypeVar

__all__ = ["NOTE", "OK", "PROBLEM", "UNCHECKED", "Check", "Checkup", "NoAnswer", "within"]

#: How a check ended; ``not checked`` where something stood in its way.
OK, NOTE, PROBLEM, UNCHECKED = "ok", "note", "problem", "not checked"

_T = TypeVar("_T")


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: stable.
        result: ``ok``, ``note`` (worth knowing), ``problem``, or ``not checked``.
        text: what is the case.
        remedy: what to do; "" where there is nothing to do.
    """

    name: str
    result: str
    text: str
    remedy: str = ""


class Checkup(NamedTuple):
    """All that was looked at.

    Attributes:
        store_away: Redis cannot be reached, so that much could not be looked at.
    """

    checks: Sequence[Check]
    store_away: bool

    @property
    def ok(self) -> bool:
        """Whether there is no problem, as far as could be seen."""
        return not self.store_away and all(one.result != PROBLEM for one in self.checks)


class NoAnswer(Exception):
    """Somebody did not answer in time."""


def within(seconds: float, question: Callable[[], _T]) -> _T:
    """The answer to *question*, which may hang for ever: then it is left behind in its thread.

    Raises:
        NoAnswer: it took longer.
        Exception: whatever *question* raises.
    """
    answers: list[_T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as exc:
            failures.append(exc)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise NoAnswer(f"no answer within {seconds:g} s")
    return answers[0]
