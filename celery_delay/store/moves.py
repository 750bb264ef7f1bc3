"""Due entries to their queues, and blocked ones back to the schedule."""

from __future__ import annotations

from redis.exceptions import ResponseError

from celery_delay.exceptions import StoreUnavailable
from celery_delay.ports import Moved, StaleEpoch
from celery_delay.store.connection import AnswerLost
from celery_delay.store.shard import Shard

__all__ = ["Moves"]


class Moves(Shard):
    """Moving.  A lost answer needs no repeat: the next pass sees what is left."""

    def move(self, *, hold_ms: int = 0, steal_ms: int = 0, latest_ms: int = 0) -> Moved:
        """Hand one batch of due entries to their queues.

        Arguments:
            hold_ms: keep entries back that are due for less than this.
            steal_ms: 0 as the leader; else take only what is overdue by more, and only while
                the leader makes no progress.
            latest_ms: move nothing (``Moved.unmoved``) when the store's clock is later than
                this; 0 for any time.

        Raises:
            StaleEpoch: this Redis history has no name yet or is not the one it was.
            AnswerLost is turned into StoreUnavailable: the batch may have moved, and the next
                pass sees what is left.
        """
        with self._link() as link:
            epoch = self._epoch(link)
            if epoch is None:
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
                    },
                )
            except AnswerLost as exc:
                raise StoreUnavailable(f"lost the answer to a move: {exc}") from exc
            except ResponseError as exc:
                raise StoreUnavailable(f"Redis fails in the move: {exc}") from exc
            status, now = answer[0], int(answer[1])
            if status == b"EPOCH":
                link.learnt.pop("epoch", None)
                raise StaleEpoch
            if status == b"STANDBY":
                return Moved(now_ms=now)
            if status == b"JUMPED":
                return Moved(now_ms=now, unmoved=True)
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
            )

    def has_epoch(self) -> bool:
        """Whether this Redis history has a name; only in one is anything moved."""
        with self._link() as link:
            return self._epoch(link) is not None

    def merge_back(self, *, term: int) -> int:
        """Return blocked entries to the schedule; how many, at most a batch."""
        with self._link() as link:
            answer = self._in_epoch(
                link, "merge_back", {"term": term, "limit": self._settings.batch_size}
            )
        return answer if isinstance(answer, int) else 0
