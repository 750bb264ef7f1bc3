"""The wires of the models: requests and replies that get lost or come late, and who waits."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

__all__ = ["Process", "Running", "Unanswered", "Wires"]

Process = Generator[None, None, Any]


class Unanswered(Exception):
    """No reply came; the request may have run, or may still run later."""


@dataclass
class Running:
    who: str
    steps: Process
    asleep: int  # until then it stalls: a paused process, or a request on a slow wire


class Wires:
    """What the processes of a model reach the two stores by.

    A model has ``rng``, ``loss`` (how often a request or its reply is lost or late), ``spawn``,
    ``run_step`` (runs a step now and keeps it for the story) and ``sql_is_up``.
    """

    #: Up to so many times ``loss`` on the dice, something is lost.
    LOST = 4
    rng: random.Random
    loss: float
    sql_is_up: bool
    spawn: Callable[..., None]
    run_step: Callable[..., Any]

    def redis(self, who: str, script: Callable[..., Any], *args: Any) -> Process:
        yield
        dice = self.rng.random()
        if dice < self.loss:
            raise Unanswered
        if dice < 2 * self.loss:
            late = self.rng.choice((300, 1_500, 3_500, 6_000))
            self.spawn(f"late {who}", self._arrive(f"late {who}", script, args), late)
            raise Unanswered
        answer = self.run_step(who, script, args)
        yield
        if dice < self.LOST * self.loss:
            raise Unanswered
        return answer

    def _arrive(self, who: str, script: Callable[..., Any], args: tuple[Any, ...]) -> Process:
        yield
        self.run_step(who, script, args)

    def sql(self, who: str, transaction: Callable[..., Any], *args: Any) -> Process:
        yield
        if not self.sql_is_up:
            raise Unanswered
        answer = self.run_step(who, transaction, args)
        yield
        if self.rng.random() < self.loss:
            raise Unanswered
        return answer
