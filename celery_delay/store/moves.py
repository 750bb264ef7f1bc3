"""Due entries to their queues, and blocked ones back to the schedule."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ResponseError

from celery_delay.domain.ports import Counts, Moved, StaleEpoch
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.connection import AnswerLost
from celery_delay.store.gating import Gating

__all__ = ["Moves"]


class Moves(Gating):
    """Moving.  A lost answer needs no repeat: the next pass sees what is left."""

    #: Upper bounds in ms of the lags by which hand-offs are counted; none: they are not.
    lag_bounds_ms: tuple[int, ...] = ()

    def move(
        self, *, hold_ms: int = 0, steal_ms: int = 0, latest_ms: int = 0, traceparent: str = ""
    ) -> Moved:
        """Hand one batch of due entries to their queues.

        Arguments:
            hold_ms: keep entries back that are due for less than this.
            steal_ms: 0 as the leader; else take only what is overdue by more, and only while
                the leader makes no progress.
            latest_ms: move nothing (``Moved.unmoved``) when the store's clock is later than
                this; 0 for any time.
            traceparent: context of the span of this hand-off, for the messages' headers; ""
                for none.

        Raises:
            StaleEpoch: this Redis history has no name yet or is not the one it was.
            AnswerLost is turned into StoreUnavailable: the batch may have moved, and the next
                pass sees what is left.
        """
        with self._link() as link:
            if (epoch := self._epoch(link)) is None:
                raise StaleEpoch
            try:
                answer = self._script(
                    link,
                    "move",
                    {
                        "now": self._given_now(),
                        "tombstone_ms": self._tombstone_ms,
                        "journal_max": self._journal_max,
                        "epoch": epoch,
                        "limit": self._settings.batch_size,
                        "hold_ms": hold_ms,
                        "steal_ms": steal_ms,
                        "latest_ms": latest_ms,
                        "database": self._links.database,
                        "traceparent": traceparent,
                        "lag_bounds": " ".join(map(str, self.lag_bounds_ms)),
                        **self._watch | {"limits": self.limits.encode()},
                    },
                )
            except AnswerLost as exc:
                raise StoreUnavailable(f"lost the answer to a move: {exc}") from exc
            except ResponseError as exc:
                raise StoreUnavailable(f"Redis fails in the move: {exc}") from exc
            status, now = answer[0], int(answer[1])
            if status == b"EPOCH":
                self._forget_epoch(link)
                raise StaleEpoch
            if status in (b"STANDBY", b"JUMPED"):
                return Moved(now_ms=now, unmoved=status == b"JUMPED")
            next_due = int(float(answer[2]))
            handled, lag, expired, quarantined, blocked = map(int, answer[3:8])
            return Moved(
                now,
                None if next_due < 0 else next_due,
                handled,
                lag,
                expired,
                quarantined,
                blocked,
                answer[8].decode(),
                gated=int(answer[9]),
                openable=answer[10] == 1,
                counts=_counts(*answer[11:13]) if len(answer) > 11 else None,
            )

    def has_epoch(self) -> bool:
        """Whether this Redis history has a name; only in one is anything moved."""
        with self._link() as link:
            return self._epoch(link) is not None

    def merge_back(self, *, term: int) -> int:
        """Return blocked entries to the schedule; how many, at most a batch.

        Keys that have ended are forgotten by the way.
        """
        with self._link() as link:
            values = {"now": self._given_now(), "term": term, "limit": self._settings.batch_size}
            answer = self._in_epoch(link, "merge_back", values)
        return answer if isinstance(answer, int) else 0


def _counts(lags: list[Any], routes: list[Any]) -> Counts:
    tasks, queues = ([one.decode(errors="replace") for one in routes[n::3]] for n in (0, 1))
    return Counts(lags[0], lags[1:], list(zip(tasks, queues, routes[2::3], strict=True)))
