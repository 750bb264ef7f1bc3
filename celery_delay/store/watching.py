"""What was handed off and has not begun: looked for, and sent again."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from celery_delay.domain.entries import EntryId
from celery_delay.domain.watches import Look
from celery_delay.store.shard import Shard

__all__ = ["LONGEST", "MOST_COPIES", "Watching"]

#: Queues with more messages are not searched: what is late there is late because of them.
LONGEST = 1_000
#: How much is read of a queue, in bytes; that takes Redis some 10 ms.
_MOST_BYTES = 8 * 1024 * 1024
#: An entry that was sent again so often in vain is given up.
MOST_COPIES = 5
#: Entries that one call looks at.
_AT_ONCE = 200
_COUNTS = 12


class Watching(Shard):
    """The watch over a shard's hand-offs.

    Attributes:
        unacked: key of the hash in which the broker keeps what workers have.
        endings: what stands behind a queue's key to name the lists of its priorities.
    """

    unacked = "unacked"
    endings: Sequence[str] = ("",)

    def watch_over(
        self, *, term: int, spared: Collection[str] = (), traceparent: str = ""
    ) -> Look | None:
        """One batch of looks, as the leader; ``None`` if the caller leads no more.

        Arguments:
            spared: queues of which nothing is sent again.
            traceparent: context of the span of this sending, for the messages' headers.

        Raises:
            StoreUnavailable: some may have been sent.
        """
        values = {
            "now": self._given_now(),
            "journal_max": self._journal_max,
            "term": term,
            "limit": _AT_ONCE,
            "patience": self._settings.patience_ms,
            "most_copies": MOST_COPIES,
            "longest": LONGEST,
            "most_bytes": _MOST_BYTES,
            "database": self._links.database,
            "unacked": self.unacked,
            "endings": json.dumps(list(self.endings)),
            "traceparent": traceparent,
        }
        with self._link() as link:
            answer = self._in_epoch(link, "watch_over", values, sorted(spared))
        if not isinstance(answer, list):
            return None
        now, next_look = int(answer[1]), int(float(answer[2]))
        looked, _, missing, unsearched, unserved, _ = map(int, answer[3:9])
        told = [one.decode() for one in answer[_COUNTS:]]
        pairs = list(zip(told[::2], told[1::2], strict=True))
        return Look(
            now,
            None if next_look < 0 else next_look,
            looked,
            missing,
            unsearched,
            unserved,
            [_entry_id(member) for what, member in pairs if what == "S"],
            [_entry_id(member) for what, member in pairs if what == "G"],
            answer[9].decode(errors="replace"),
            int(answer[10]),
            int(answer[11]),
        )


def _entry_id(member: str) -> EntryId:
    task_id, _, run = member.rpartition("/")
    return EntryId(task_id, int(run))
