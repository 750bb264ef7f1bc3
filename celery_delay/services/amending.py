"""Changes of entries that SQL backs: another eta, held or let go, another message.

Each is a compare-and-set in SQL that raises the version, and then an ``apply`` in Redis.  What
Redis has not got then is looked for in its journal before it is added: it may have been handed
off, or its first add may still be under way, which the ``apply`` keeps out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from celery_delay.domain.backing import COLD, BackedRow, is_open, pack, placed, unpack
from celery_delay.domain.entries import Addition
from celery_delay.domain.mirrors import BackedStore, Refused
from celery_delay.domain.ports import Change, Steered
from celery_delay.domain.states import State
from celery_delay.exceptions import AuditUnavailable, OutcomeUnknown
from celery_delay.services.committing import (
    LAST_MS,
    LOOK_AFTER_MS,
    PAUSE,
    ROUNDS,
    UNSETTLED,
    ended,
    epoch_of,
    has_left,
)
from celery_delay.services.enlisting import Enlisting
from celery_delay.services.telling import tell_cold

__all__ = ["Amending"]

DONE, TOO_LATE, NOT_FOUND, QUARANTINED = "DONE", "TOO_LATE", "NOT_FOUND", "QUARANTINED"
DAMAGED, STALE, AGAIN = "DAMAGED", "STALE", ""


class _Wish(NamedTuple):
    """What a row is to become; what is ``None`` stays as it is."""

    eta_ms: int | None = None
    hold: bool | None = None
    message: Addition | None = None
    #: Whether one that is parked goes back to its schedule.
    release: bool = False
    #: Whether SQL has it already, and Redis has perhaps not.
    again: bool = False

    def of(self, row: BackedRow) -> BackedRow:
        """*row* as it is wanted, in its present version."""
        if self.eta_ms is not None:
            row = row._replace(eta_ms=min(max(0, self.eta_ms), LAST_MS))
        if self.hold is not None:
            row = row._replace(state=State.HELD if self.hold else State.SCHEDULED)
        if self.message is not None:
            row = row._replace(record=pack(self.message))
        return row


class Amending(Enlisting):
    """What changes entries that SQL backs.

    All methods raise AuditUnavailable or StoreUnavailable (nothing has changed, unless SQL broke
    amid its commit), and OutcomeUnknown: the change may have been made, or be made soon.
    """

    def change(
        self, shard: int, task_id: str, change: Change, data: Mapping[str, object]
    ) -> Steered | None:
        """Make *change*; ``None`` if SQL has no row of the task."""
        wish: _Wish | None = None
        for _ in range(ROUNDS):
            row = self._rows.read(task_id)
            if row is None:
                return None
            if not is_open(row):
                return Steered(ended(row).value)
            if wish is None:
                wish = self._wish(shard, row, change)
            answer, row = self._amend(self._stores[shard], row, wish, data)
            if answer == DONE:
                return Steered(DONE, row.eta_ms, unpack(row).expires_ms)
            if answer == STALE:
                wish = None  # somebody was first: a shift counts from what it is now
            elif answer != AGAIN:
                return Steered(answer)
            else:
                wish = wish._replace(again=True)
            self._clock.sleep(PAUSE)
        raise OutcomeUnknown(task_id, UNSETTLED)

    def _wish(self, shard: int, row: BackedRow, change: Change) -> _Wish:
        due, shift_ms, hold = change
        eta_ms = None
        if due is not None:
            now_ms = self.moment(shard).now_ms + (1 if due.ms else 0) if due.is_delay else 0
            eta_ms = now_ms + due.ms
        elif shift_ms is not None:
            eta_ms = row.eta_ms + shift_ms
        return _Wish(eta_ms, hold)

    def release(self, shard: int, task_id: str, data: Mapping[str, object]) -> bool | None:
        """Let an entry go that is held or parked; ``None`` if SQL has no row of it.

        Returns:
            Whether there was something to be released.
        """
        wish, store = _Wish(hold=False, release=True), self._stores[shard]
        for _ in range(ROUNDS):
            row = self._rows.read(task_id)
            if row is None:
                return None
            if not is_open(row):
                return False
            looked = store.look([row.entry_id], epoch_of(store))
            if looked is not None:
                if not wish.again and row.state is not State.HELD and looked.places[0][0] != "P":
                    return False
                answer, _ = self._amend(store, row, wish, data)
                if answer in (DONE, TOO_LATE):
                    return answer == DONE
                wish = wish._replace(again=answer == AGAIN)
            self._clock.sleep(PAUSE)
        raise OutcomeUnknown(task_id, UNSETTLED)

    def open_row(self, task_id: str) -> BackedRow | None:
        """The row of a task's latest run, if that is still to be handed off.

        Raises:
            AuditUnavailable: also if the row cannot be read.
        """
        row = self._rows.read(task_id)
        if row is None or not is_open(row):
            return None
        _check(row)
        return row

    def replace(
        self, shard: int, row: BackedRow, message: Addition, data: Mapping[str, object]
    ) -> str:
        """Give an entry another message, which was made of that in *row*.

        Returns:
            DONE, TOO_LATE, NOT_FOUND; or STALE, where the row has changed meanwhile.
        """
        wish, seen = _Wish(message=message), row
        for _ in range(ROUNDS):
            if not is_open(row):
                return ended(row).value
            answer, row = self._amend(self._stores[shard], row, wish, data)
            if answer != AGAIN:
                return answer
            now = self._rows.some([seen.entry_id]).get(seen.entry_id)
            if now is None:
                return NOT_FOUND
            row, wish = now, wish._replace(again=True)
            self._clock.sleep(PAUSE)
        raise OutcomeUnknown(row.entry_id, UNSETTLED)

    # -- the protocol -------------------------------------------------------------------

    def _amend(
        self, store: BackedStore, seen: BackedRow, wish: _Wish, data: Mapping[str, object]
    ) -> tuple[str, BackedRow]:
        """One round; the answer, and the row as it is then.

        STALE: somebody was first, nothing has changed.  AGAIN: SQL has the change, and Redis is
        not certain to: the next round makes it once more.
        """
        epoch = epoch_of(store)
        _check(seen)  # or Redis could not be told of the change
        if not wish.release:
            looked = store.look([seen.entry_id], epoch)
            if looked is None:
                return STALE, seen
            letter = looked.places[0][0]
            # one that has left is not raised in SQL, where it would be seen until the next drain
            if letter == "C" or (letter == "-" and has_left(store.told_of(seen.entry_id))):
                return TOO_LATE, seen
            if letter == "P" and wish.message is None:
                return QUARANTINED, seen
        wanted = wish.of(seen)
        if wanted == seen and not (wish.release or wish.again):
            return DONE, seen
        row = self._raised(store, seen, wanted, epoch)
        if row is None:
            return STALE, seen
        try:
            return self._mirrored(store, row, epoch, wish, data), row
        except OutcomeUnknown:
            raise
        except Exception as exc:
            # SQL has it, and the relay brings it to Redis; the old one may leave before
            raise OutcomeUnknown(row.entry_id, str(exc)) from exc

    def _raised(
        self, store: BackedStore, seen: BackedRow, wanted: BackedRow, epoch: int
    ) -> BackedRow | None:
        now_ms = store.now_ms()
        raised = wanted._replace(
            version=seen.version + 1, epoch=epoch, deadline_ms=now_ms + self._settings.window_ms
        )
        hot_window_ms, look_ms = self._settings.hot_window_ms, now_ms + LOOK_AFTER_MS
        raised = placed(raised, now_ms, hot_window_ms, look_ms)
        return next(iter(self._rows.change([(seen, raised)])), None)

    def _mirrored(
        self,
        store: BackedStore,
        row: BackedRow,
        epoch: int,
        wish: _Wish,
        data: Mapping[str, object],
    ) -> str:
        found = store.apply(row, epoch, data, release=wish.release)
        if found == "OK":
            return DONE
        if found in ("GONE", "GOING"):
            return TOO_LATE
        if found.startswith("STALE"):
            # Redis has raised it by itself (a unique key was extended): above that, then
            higher = int(found.split()[1])
            if higher > row.version:
                self._rows.change([(row, row._replace(version=higher))])
            return AGAIN
        if found != "ABSENT":
            return AGAIN
        # either it has been handed off, or it was not there yet
        if has_left(store.told_of(row.entry_id)):
            return TOO_LATE
        now = self._rows.some([row.entry_id]).get(row.entry_id)
        if now is None or not is_open(now):
            return TOO_LATE if now is None else ended(now).value
        if row.tier == COLD:
            tell_cold(self._stores, [row], data)
            return DONE
        try:
            added = store.add_backed([row], epoch)
        except Refused as exc:
            raise OutcomeUnknown(row.entry_id, str(exc.error)) from exc
        return DONE if added and added[0].code in ("A", "D") else AGAIN


def _check(row: BackedRow) -> None:
    """Raise AuditUnavailable for one that cannot be read."""
    try:
        unpack(row)
    except ValueError as exc:
        raise AuditUnavailable(f"{row.entry_id.task_id} cannot be read: {exc}") from exc
