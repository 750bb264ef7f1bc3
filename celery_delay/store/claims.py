"""Entries that a beat publishes itself: taken out under a claim, acked, or put back.

A claim names the claimant by a token and ends at an instant on the store's clock.  Whoever
comes after that instant takes the claimant for dead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from celery_delay.domain.claims import Claims
from celery_delay.domain.entries import Claimed, EntryId
from celery_delay.domain.ports import StaleEpoch
from celery_delay.store.gating import Gating

__all__ = ["BLOCKED", "QUARANTINE", "SCHEDULE", "Claiming"]

#: Where an entry is given back to, in ``give_back.lua``.
SCHEDULE, BLOCKED, QUARANTINE = "S", "B", "Q"
#: Dead claims that one call returns.
RESCUED_AT_ONCE = 100
#: Parts of the answer per claimed entry.
_PARTS = 6


class Claiming(Gating):
    """Claiming.  A lost answer leaves claims that nobody knows of; they end by themselves."""

    def claim(
        self,
        *,
        token: str,
        limit: int,
        ttl_ms: int,
        source: str = "outbound",
        hold_ms: int = 0,
        steal_ms: int = 0,
        latest_ms: int = 0,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        """Take due entries out, for this caller to publish.

        Arguments:
            token: names the claim; never used twice.
            limit: how many at most.
            ttl_ms: for how long others leave them alone.
            source: ``outbound``, or ``schedule`` where no move is possible.
            hold_ms, steal_ms, latest_ms: as in :meth:`Moves.move`.
            rooms: how many messages some queues have room for; the others have enough.

        Raises:
            StaleEpoch: this Redis history has no name yet or is not the one it was.
            StoreUnavailable: entries may have been claimed; they come back after *ttl_ms*.
        """
        with self._link() as link:
            epoch = self._epoch(link)
            if epoch is None:
                raise StaleEpoch
            values = {
                **self._of_claim(token),
                "tombstone_ms": self._tombstone_ms,
                "epoch": epoch,
                "limit": limit,
                "hold_ms": hold_ms,
                "steal_ms": steal_ms,
                "latest_ms": latest_ms,
                "ttl": ttl_ms,
                "from": source,
                "limits": self.limits.encode(rooms),
            }
            answer = self._sure(link, "claim", values)
            status, now = answer[0], int(answer[1])
            if status == b"EPOCH":
                self._forget_epoch(link)
                raise StaleEpoch
        if status != b"OK":
            return Claims(now, unmoved=status == b"JUMPED")
        next_due, expired, quarantined, blocked = (int(float(one)) for one in answer[2:6])
        taken, unreadable = _claimed(answer[8:])
        if unreadable:
            # they would come back after each claim, and take the others of their claim along
            quarantined += self.give_back(token, unreadable)
        return Claims(
            now,
            None if next_due < 0 else next_due,
            taken,
            expired,
            quarantined,
            blocked,
            answer[6].decode(),
            gated=int(answer[7]),
        )

    def ack(self, token: str, task_ids: Sequence[str]) -> int:
        """Forget entries whose messages the broker has; how many were still under *token*.

        Safe to repeat.

        Raises:
            StoreUnavailable: some may not have been forgotten.
        """
        with self._link() as link:
            return int(self._sure(link, "ack", self._of_claim(token), task_ids))

    def give_back(self, token: str, returns: Sequence[tuple[str, str, str]]) -> int:
        """Put entries back whose messages the broker has certainly not taken.

        Arguments:
            returns: task id; :data:`SCHEDULE`, :data:`BLOCKED` or :data:`QUARANTINE`; why.

        Returns:
            How many were still under *token*.
        """
        rest = [part for one in returns for part in one]
        with self._link() as link:
            return int(self._sure(link, "give_back", self._of_claim(token), rest))

    def rescue(self, *, latest_ms: int = 0) -> int:
        """Return entries to the schedule whose claims have ended in silence; how many."""
        with self._link() as link:
            values = {"now": self._given_now(), "journal_max": self._journal_max}
            limits = {"latest_ms": latest_ms, "limit": RESCUED_AT_ONCE}
            answer = self._in_epoch(link, "rescue", {**values, **limits})
        return answer if isinstance(answer, int) else 0

    def tell_broker(self, failure: str) -> None:
        """See :meth:`celery_delay.domain.claims.ClaimStore.tell_broker`."""
        if failure:
            self._read("HSET", self.keys.mark, "broker_failure", failure)
        else:
            self._read("HDEL", self.keys.mark, "broker_failure")

    def _of_claim(self, token: str) -> dict[str, object]:
        return {"now": self._given_now(), "journal_max": self._journal_max, "token": token}


def _claimed(parts: Sequence[bytes]) -> tuple[list[Claimed], list[tuple[str, str, str]]]:
    """The entries of a claim's answer; and what to give back, because its message is no JSON."""
    taken, unreadable = [], []
    for start in range(0, len(parts), _PARTS):
        name, run, version, due, attempt, message = parts[start : start + _PARTS]
        task_id = name.decode()
        try:
            envelope = json.loads(message)
        except ValueError as exc:
            unreadable.append((task_id, QUARANTINE, f"its message cannot be read: {exc}"))
            continue
        entry_id = EntryId(task_id, int(run))
        taken.append(Claimed(entry_id, int(version), int(due), int(attempt), envelope))
    return taken, unreadable
