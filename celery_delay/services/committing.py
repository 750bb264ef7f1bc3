"""SQL first, then Redis: the callers' way with entries that SQL backs.

A call is answered when both have decided, or, where only SQL has and the mirror can be made up
for, when SQL has committed: the leader's relay does the rest.  A crash anywhere leaves at most a
row that Redis has not heard of, which the relay finds.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from celery_delay.domain.backing import (
    COLD,
    HOT,
    OVER,
    BackedRow,
    forget_at,
    is_open,
    pack,
    placed,
    stored,
    unpack,
)
from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import Added, Addition, EntryId, StoredEntry
from celery_delay.domain.mirrors import BackedStore, ColdRows, Refused
from celery_delay.domain.ports import Cancelled, Leaderless, Transition
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.domain.uniqueness import FOLLOW
from celery_delay.exceptions import AlreadyScheduled, OutcomeUnknown, StoreUnavailable
from celery_delay.services.telling import AT_ONCE, tell_cold, tell_left

__all__ = ["PAUSE", "ROUNDS", "UNSETTLED", "Committing", "Moment", "ended", "epoch_of", "has_left"]

logger = logging.getLogger(__name__)

#: The last instant that a datetime can say.
LAST_MS = 253_402_300_799_000
#: How often an operation is decided anew, because something has changed meanwhile.
ROUNDS = 6
#: A row is looked at by the relay so much later, in ms, if nobody has confirmed it by then.
LOOK_AFTER_MS = 100
#: Seconds before that.
PAUSE = 0.05
UNSETTLED = "it changes all the time, or Redis has just been replaced: call again"
_UNDECIDED = (
    "SQL has it, and Redis did not say whether another task has its key: it runs if none has when a"
    " beat asks Redis; call again with the same key"
)
_LEFT = {one.value for one in State if one.rank >= State.DISPATCHED.rank} | {State.EXPIRED.value}


class Moment(NamedTuple):
    """When and where an addition is decided: the store's clock, and its history (0: not known)."""

    now_ms: int
    epoch: int


class Committing:
    """What callers do with entries that SQL backs.  Safe for threads.

    Arguments:
        stores: the mirror, shard by shard.
        rows: the truth.
    """

    def __init__(
        self, stores: Sequence[BackedStore], rows: ColdRows, settings: Settings, clock: Clock
    ) -> None:
        self._stores, self._rows = stores, rows
        self._settings, self._clock = settings, clock

    # -- adding -------------------------------------------------------------------------

    def moment(self, shard: int) -> Moment:
        """Now, in that shard; by SQL's clock while Redis is away."""
        store = self._stores[shard]
        try:
            return Moment(store.now_ms(), store.named())
        except StoreUnavailable:
            return Moment(self._rows.clock_ms(), 0)

    def add(
        self,
        additions: Sequence[tuple[int, Addition]],
        *,
        needs_leader: bool = False,
        held: Collection[EntryId] = (),
    ) -> list[Added]:
        """Commit additions (with the number of their shard), all or none, and mirror them.

        Redis need not be there: what SQL has committed is accepted.  Those in *held* are HELD.

        Raises:
            AuditUnavailable: SQL is away, or did not commit; nothing is scheduled.
            OutcomeUnknown: its connection broke, perhaps amid the commit.
            Leaderless: *needs_leader*, and no beat leads; nothing is scheduled.
            AlreadyScheduled, UniqueConflict, JournalFull: nothing is scheduled.
            OutcomeUnknown: one has a key, and Redis, which decides about it, gave no answer.
        """
        if not additions:
            return []
        shards = sorted({shard for shard, _ in additions})
        if needs_leader:
            self._require_leader(shards)
        moments = {shard: self.moment(shard) for shard in shards}
        rows = [self.row_of(one, shard, moments[shard]) for shard, one in additions]
        rows = [row._replace(state=State.HELD) if row.entry_id in held else row for row in rows]
        if self._settings.hot_window or self._settings.hot_max:
            drawn = {one.entry_id.task_id for _, one in additions if not one.entry_id.run}
            self._require_free([one for one in rows if one.entry_id.task_id in drawn])
        try:
            self._rows.insert(rows)
        except AlreadyScheduled:
            # a run that follows a known one has its number from that: this is a repeat of it
            again = self._again(additions)
            if again is None:
                raise
            return again
        return self.mirror(rows)

    def _require_free(self, rows: Sequence[BackedRow]) -> None:
        """Raise AlreadyScheduled for a new row of a task that waits: no add compares the cold."""
        now_ms = max((one.entry_id.run for one in rows), default=0)
        waiting = self._rows.waiting([one.entry_id.task_id for one in rows], now_ms)
        taken = [one.entry_id.task_id for one in waiting]
        for shard in sorted({one.shard for one in rows if one.tier == COLD}):
            cold = [one.entry_id.task_id for one in rows if (one.shard, one.tier) == (shard, COLD)]
            with contextlib.suppress(StoreUnavailable):  # which nobody needs for these
                taken += self._stores[shard].taken(cold)
        if taken:
            raise AlreadyScheduled(taken[0])

    def _again(self, additions: Sequence[tuple[int, Addition]]) -> list[Added] | None:
        ids = [one.entry_id for _, one in additions]
        known = self._rows.some(ids) if all(one.run for one in ids) else {}
        if len(known) < len(ids):
            return None
        rows = [known[one] for one in ids]
        return [Added(one.entry_id, "D" if is_open(one) else "G", one.eta_ms) for one in rows]

    def row_of(self, addition: Addition, shard: int, moment: Moment) -> BackedRow:
        """The row of a new entry, decided at *moment*."""
        task_id, run = addition.entry_id
        if "\n" in task_id or "\t" in task_id:
            raise ValueError(f"the task id {task_id!r} cannot be stored")
        now_ms, epoch = moment
        due = addition.due
        eta_ms = due.ms + (now_ms + (1 if due.ms else 0) if due.is_delay else 0)
        row = BackedRow(
            EntryId(task_id, run or now_ms),
            shard,
            addition.version,
            0,
            State.SCHEDULED,
            COLD,
            min(max(0, eta_ms), LAST_MS),
            epoch,
            now_ms + self._settings.window_ms if epoch else 0,
            None,
            pack(addition),
        )
        return placed(row, now_ms, self._settings.hot_window_ms, now_ms + LOOK_AFTER_MS)

    def mirror(self, rows: Sequence[BackedRow]) -> list[Added]:
        """Add rows to Redis that SQL has committed; what does not get there now comes later.

        Raises:
            AlreadyScheduled, UniqueConflict, JournalFull: Redis refuses; none is scheduled.
            OutcomeUnknown: Redis has not said who has the key of one; it comes if that is free.
        """
        undecided = [one.entry_id for one in rows if _asks_for_key(one)]
        answers = {one.entry_id: Added(one.entry_id, "A", one.eta_ms) for one in rows}
        for shard in sorted({one.shard for one in rows}):
            mine = [one for one in rows if one.shard == shard and one.epoch and one.tier == HOT]
            for start in range(0, len(mine), AT_ONCE):
                some = mine[start : start + AT_ONCE]
                try:
                    added = self._stores[shard].add_backed(some, some[0].epoch) or []
                except Refused as exc:
                    self._take_back(rows)
                    raise exc.error from exc
                except (StoreUnavailable, OutcomeUnknown) as exc:
                    tell_left(len(mine) - start, exc)
                    break
                answers.update(zip((one.entry_id for one in some), added, strict=False))
                self._settle(some, added)
                if added:
                    decided = {one.entry_id for one in some}
                    undecided = [one for one in undecided if one not in decided]
        if undecided:
            raise OutcomeUnknown(undecided[0], _UNDECIDED)
        tell_cold(self._stores, rows, {})
        return [answers[one.entry_id] for one in rows]

    def _settle(self, rows: Sequence[BackedRow], added: Sequence[Added]) -> None:
        """What Redis has decided by keys is true in SQL too."""
        self._rows.forget([row for row, one in zip(rows, added, strict=False) if one.is_other])
        for one in added:
            if one.replaced is not None:
                self._close_replaced(one)

    def _take_back(self, rows: Sequence[BackedRow]) -> None:
        """Undo an addition of which one part was refused."""
        self._rows.forget(rows)
        data = {"reason": "another part of the same call was refused"}
        for one in rows:
            try:
                self._stores[one.shard].cancel_backed(one.entry_id, one.epoch, data)
            except (StoreUnavailable, OutcomeUnknown):
                # without a row, and with a deadline: it stays only if it has come already
                logger.warning(
                    "%s was refused, and may be scheduled all the same",
                    one.entry_id,
                    exc_info=True,
                    extra={"event": "refused_in_doubt", "task_id": one.entry_id.task_id},
                )

    def _close_replaced(self, added: Added) -> None:
        assert added.replaced is not None
        row = self._rows.some([added.replaced.entry_id]).get(added.replaced.entry_id)
        if row is not None and is_open(row):
            self._close(row, added.due_ms)

    def _require_leader(self, shards: Sequence[int]) -> None:
        grace_ms = round(self._settings.leader_grace * 1000)
        if not all(self._stores[one].is_led(grace_ms) for one in shards):
            raise Leaderless("no beat leads, so nobody would hand the task off")

    # -- cancelling ---------------------------------------------------------------------

    def cancel(self, shard: int, task_id: str, data: Mapping[str, object]) -> Cancelled | None:
        """Cancel an entry; ``None`` if SQL has no row of it.

        Raises:
            AuditUnavailable, StoreUnavailable, OutcomeUnknown: call again for the answer.
        """
        for _ in range(ROUNDS):
            row = self._rows.read(task_id)
            if row is None:
                return None
            if not is_open(row) and row.state is not State.CANCELLED:
                return Cancelled(ended(row), None)
            answer = self._cancel_once(self._stores[shard], row, data)
            if answer is not None:
                return answer
            self._clock.sleep(PAUSE)
        raise OutcomeUnknown(task_id, UNSETTLED)

    def _cancel_once(
        self, store: BackedStore, row: BackedRow, data: Mapping[str, object]
    ) -> Cancelled | None:
        epoch = epoch_of(store)
        answer = store.cancel_backed(row.entry_id, epoch, data)
        if answer is None or answer.outcome is CancelOutcome.TOO_LATE:
            return answer
        if answer.outcome is CancelOutcome.NOT_FOUND and has_left(store.told_of(row.entry_id)):
            return Cancelled(CancelOutcome.TOO_LATE, None)
        # one that another call has cancelled may be back, in a history that has lost that
        is_new = row.state is not State.CANCELLED
        if is_new and not self._close(row, store.now_ms()):
            return None
        if is_new and answer.outcome is CancelOutcome.NOT_FOUND:
            store.record([Transition(row.entry_id, row.version, State.CANCELLED, data)])
        # decided in a history that may be over by now
        if not store.is_still(epoch):
            return None
        return Cancelled(CancelOutcome.CANCELLED, answer.entry or (_entry(row) if is_new else None))

    def _close(self, row: BackedRow, now_ms: int) -> bool:
        """Compare-and-set to CANCELLED."""
        closed = row._replace(
            state=State.CANCELLED, tier=OVER, look_ms=forget_at(now_ms), record=b""
        )
        return bool(self._rows.change([(row, closed)]))


def _asks_for_key(row: BackedRow) -> bool:
    keys = unpack(row).keys
    return keys is not None and keys != FOLLOW


def epoch_of(store: BackedStore) -> int:
    """The epoch in which a change is decided.

    Raises:
        StoreUnavailable: Redis has just been replaced, and is compared with SQL first.
    """
    epoch = store.named()
    if not epoch:
        raise StoreUnavailable(
            "this Redis is new, and no beat has compared it with SQL yet: call again"
        )
    return epoch


def has_left(told: set[str]) -> bool:
    """Whether an entry whose journal tells of these states was handed off, or has expired."""
    return bool(told & _LEFT)


def _entry(row: BackedRow) -> StoredEntry | None:
    try:
        return stored(row)
    except ValueError:
        return None  # what cannot be read can be cancelled all the same


def ended(row: BackedRow) -> CancelOutcome:
    """What a change is answered of an entry that is over."""
    if row.state.rank >= State.DISPATCHED.rank:
        return CancelOutcome.TOO_LATE
    return CancelOutcome.NOT_FOUND
