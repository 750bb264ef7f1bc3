"""Runs that workers claim before they begin them, and signs of the workers' life."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from celery_delay.domain.entries import EntryId
from celery_delay.domain.events import encode_lines
from celery_delay.store.journal import UNSAID
from celery_delay.store.shard import Shard

__all__ = ["FORGET_WORKERS_MS", "Claim", "Guarding"]

#: Workers, and the queues that they serve, are forgotten after so long without a sign of life.
FORGET_WORKERS_MS = 86_400 * 1_000
#: How many marks of dead workers are forgotten in one call.
_FORGOTTEN_AT_ONCE = 500


class Claim(Enum):
    """The answers to a worker that is about to begin a run; see ``begin_run.lua``."""

    #: Nobody has it: begin.
    RUN = "RUN"
    #: A worker that is dead had it: begin.
    TAKEN = "TAKEN"
    #: A worker that lives has it: ask again later.
    WAIT = "WAIT"
    #: It is over, or this message is one too many.
    DROP = "DROP"


class Guarding(Shard):
    """The guard's marks.  After a lost answer each call may be repeated."""

    def begin_run(self, entry_id: EntryId, *, token: str, worker: str, comes_again: bool) -> Claim:
        """Claim a run.

        Arguments:
            token: names this delivery of its message.
            worker: who asks; see :meth:`give_sign`.
            comes_again: whether the broker delivers this message again should the worker die,
                or has delivered it before.

        Raises:
            StoreUnavailable: no answer came; it may be claimed.
        """
        values = {
            "now": self._given_now(),
            "journal_max": self._journal_max,
            "keep_ms": self._settings.keep_ms,
            "silent_ms": self._settings.patience_ms,
            "task_id": entry_id.task_id,
            "run": entry_id.run,
            "token": token,
            "worker": worker,
            "comes_again": int(comes_again),
        }
        with self._link() as link:
            return Claim(self._sure(link, "begin_run", values).decode())

    def unclaim(self, entry_id: EntryId, token: str) -> bool:
        """Give a run back whose message goes back to its queue; False if it was not *token*'s.

        Raises:
            StoreUnavailable: no answer came; the run may be claimed still.
        """
        values = {
            "now": self._given_now(),
            "keep_ms": self._settings.keep_ms,
            "task_id": entry_id.task_id,
            "run": entry_id.run,
            "token": token,
        }
        with self._link() as link:
            return bool(self._sure(link, "unclaim", values))

    def give_sign(self, worker: str, queues: Sequence[str]) -> None:
        """Tell that *worker* lives and takes messages from *queues*; without any, that it ends.

        Raises:
            StoreUnavailable: that may not be known.
        """
        values = {
            "now": self._given_now(),
            "forget_ms": FORGET_WORKERS_MS,
            "worker": worker,
        }
        with self._link() as link:
            self._sure(link, "sign_of_life", values, queues)

    def tell_fetched(self, entry_ids: Sequence[EntryId]) -> None:
        """Tell that a worker has their messages, though the broker does not know it yet.

        Good until the next look but one: to be repeated within each ``delay_guard_patience``.

        Raises:
            StoreUnavailable: they may be sent again.
        """
        values = {
            "now": self._given_now(),
            "journal_max": self._journal_max,
            "missing": 0,
            "keep_ms": 0,
        }
        lines = encode_lines([(one, 1, None, {}) for one in entry_ids])
        with self._link() as link:
            self._sure(link, "report", values, (f"{UNSAID}FETCHED", lines))

    def reporting_workers(self) -> list[str]:
        """The workers that have given a sign of life within ``delay_guard_patience``."""
        since = (self._given_now() or self.time_ms()) - self._settings.patience_ms
        found = self._read("ZRANGE", self.keys.workers, since, "+inf", "BYSCORE")
        return [one.decode() for one in found]

    def forget_marks(self, *, term: int) -> int:
        """Forget marks that dead workers have left, as the leader; how many."""
        values = {
            "now": self._given_now(),
            "term": term,
            "keep_ms": self._settings.keep_ms,
            "silent_ms": self._settings.patience_ms,
            "limit": _FORGOTTEN_AT_ONCE,
        }
        with self._link() as link:
            answer = self._in_epoch(link, "forget_marks", values)
        return answer if isinstance(answer, int) else 0
