"""Asking Sentinel where the primary is.

A new connection asks first.  A connection that lives asks again at most every second: a
primary that was cut off or frozen, and is not the primary any more, would otherwise go on
taking writes from those who have not noticed, until Sentinel demotes it, and with that
lose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from celery_delay.domain.clock import Clock
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.failures import AnswerLost

if TYPE_CHECKING:
    from celery_delay.store.connection import Links

__all__ = ["Sentinels"]

#: How often, in seconds, a connection that lives asks whether it still leads to the primary.
LOOK_EVERY = 1.0
#: And after no Sentinel has answered: to wait for them must not slow down a Redis that works.
LOOK_AGAIN_AFTER = 5.0


class Sentinels:
    """The Sentinels of one primary.  Safe for threads and forks.

    Arguments:
        nodes: connections to each.
        name: what they call the primary.
        others: how many other Sentinels one must see to be believed.
    """

    def __init__(self, nodes: Sequence[Links], name: str, others: int, clock: Clock) -> None:
        self._nodes = list(nodes)
        self._name = name
        self._others = others
        self._clock = clock
        self._primary: tuple[str, int] | None = None
        self._look_at = 0.0

    def primary(self) -> tuple[str, int]:
        """Host and port of the primary, asked for now.

        Raises:
            StoreUnavailable: no Sentinel can say.
        """
        failures = []
        for node in list(self._nodes):
            try:
                found = self._ask(node)
            except (StoreUnavailable, AnswerLost, ResponseError) as exc:
                failures.append(f"{node}: {exc}")
                continue
            if isinstance(found, str):
                failures.append(f"{node} {found}")
                continue
            # who answers is asked first next time (not by sort(): other threads look meanwhile)
            self._nodes = [node, *(one for one in self._nodes if one is not node)]
            self._primary = found
            self._look_at = self._clock.monotonic() + LOOK_EVERY
            return found
        raise StoreUnavailable(
            f"no Sentinel says where the primary {self._name!r} is: {'; '.join(failures)}"
        )

    def have_left(self, place: tuple[str, int]) -> bool:
        """Whether the primary is known to be elsewhere than at *place*."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_AFTER  # others do not ask meanwhile
            try:
                self.primary()
            except StoreUnavailable:
                return False  # while they are away, what works is kept
        return self._primary is not None and self._primary != place

    def close(self) -> None:
        """Close the idle connections to them."""
        for node in self._nodes:
            node.close()

    def _ask(self, node: Links) -> tuple[str, int] | str:
        """The place, or why there is none."""
        link = node.take()
        try:
            answer = link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            if answer is None:
                return "does not know it"
            if self._others:
                said: list[Any] = link.call("SENTINEL", "MASTER", self._name)
                seen = int(dict(zip(said[::2], said[1::2], strict=False))[b"num-other-sentinels"])
                if seen < self._others:
                    return f"sees {seen} other Sentinels, of at least {self._others}"
        finally:
            node.give(link)
        return answer[0].decode(), int(answer[1])
