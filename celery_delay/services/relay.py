"""SQL → Redis: what a crash, a lost request or a lost Redis has left in SQL alone.

One step at a time, in the auditor's thread, and only when the journal was drained to its end:

* **A history without a name** (with ``delay_audit = "sync"``) is named in SQL, then in Redis;
  nothing is moved in it yet.
* **A history that was not compared with SQL**: every row that belongs into Redis is mirrored, and
  what is over is taken out; then it is ready.
* **From then on** the rows are looked at whose mirroring nobody has confirmed, and the cold ones
  whose time to come to Redis has come.

To mirror a row is: look in Redis; drain the journal; read the row again; and then repeat the add
within its deadline, or else raise the version by compare-and-set and add that.  Two beats that do
so at once do no harm, nor does a crash anywhere: the next one begins with the look.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from celery_delay.domain.backing import COLD, HOT, OVER, OVER_MS, BackedRow, is_open, unpack
from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.mirrors import BackedRows, BackedStore, Refused
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import JournalFull, StoreUnavailable

__all__ = ["PAGE", "Relay"]

logger = logging.getLogger(__name__)

#: Rows looked at in one step.
PAGE = 500
#: When a row is looked at again of which nothing can be done now, in ms; and one that cannot be
#: read, of which there may be many, and which stays so until somebody puts a key back.
_LATER_MS, _UNREADABLE_LATER_MS = 1_000, 60_000
#: Unreadable rows that are named in the log.
_TOLD_MOST = 100


class _Turn(NamedTuple):
    term: int
    epoch: int


class _Suspect(NamedTuple):
    """A row whose entry Redis had not; *is_over*: nor can that version come any more."""

    row: BackedRow
    is_over: bool


class Relay:
    """Mirrors one shard's rows; called by the auditor's thread.

    Arguments:
        store: the mirror.
        rows: the truth.

    """

    def __init__(
        self, shard: int, store: BackedStore, rows: BackedRows, settings: Settings, clock: Clock
    ) -> None:
        self._shard, self._store, self._rows = shard, store, rows
        self._settings, self._clock = settings, clock
        self._ahead_ms = settings.hot_window_ms
        self._turn: _Turn | None = None
        self._after: EntryId | None = None
        self._suspects: Sequence[_Suspect] = ()
        self._mirrored = 0
        self._begun = 0.0
        #: Unreadable rows that were told of.
        self._told: set[EntryId] = set()

    def run_once(self, term: int) -> bool:
        """One step, as the leader of *term*; the journal was drained to its end before.

        Returns:
            Whether there is more to do, after the journal was drained again.

        Raises:
            AuditUnavailable, StoreUnavailable, OutcomeUnknown: the step is made again.
        """
        epoch, is_compared = self._store.compared()
        if not epoch:
            return self._settings.is_sync and self._begin(term)
        if self._turn != (term, epoch):
            self._turn, self._after, self._suspects = _Turn(term, epoch), None, ()
            self._mirrored, self._begun = 0, self._clock.monotonic()
        if self._suspects:
            # kept until that is done: a rebuild does not come back to their page
            self._mirrored += self.take_up(self._suspects, epoch)
            self._suspects = ()
        if is_compared:
            return self.look(epoch)
        return self.rebuild(epoch)

    # -- the steps ----------------------------------------------------------------------

    def _begin(self, term: int) -> bool:
        """Name this Redis history, in SQL first."""
        now_ms = self._store.now_ms()
        _, _, marked = self._store.leader()  # a name that another server bore here
        epoch = self._rows.begin_epoch(self._shard, marked + 1, now_ms)
        if not self._store.begin_named(term=term, epoch=epoch):
            return False  # another leads, or has named it; the next step sees that
        logger.warning(
            "a new Redis history: nothing is handed off before it was compared with SQL",
            extra={"event": "epoch_began", "epoch": epoch, "run_id_before": ""},
        )
        return True

    def rebuild(self, epoch: int) -> bool:
        """One page of rows of a history that was not compared yet; at the end it is ready."""
        page = self._rows.hot(self._shard, self._after, PAGE)
        if page:
            self._suspects = self.mirror(page, epoch)
            self._after = page[-1].entry_id
            logger.info(
                "rebuilding: %d entries were brought to Redis so far",
                self._mirrored,
                extra={"event": "rebuild_progress", "count": self._mirrored},
            )
            return True
        dropped = self.drop(epoch)
        self._store.ready(epoch)
        self._turn = None  # a comparison that is asked for later begins with the first row
        if self._mirrored or dropped:
            logger.warning(
                "Redis was compared with SQL: %d entries were brought back, %d taken out",
                self._mirrored,
                dropped,
                extra={
                    "event": "rebuilt",
                    "count": self._mirrored,
                    "dropped": dropped,
                    "seconds": self._clock.monotonic() - self._begun,
                },
            )
        return False

    def drop(self, epoch: int) -> int:
        """Take out of Redis what SQL says is over, or cold; how many."""
        if not self._rows.has_any(self._shard):
            return 0
        dropped = 0
        for page in self._store.live():
            over = self._rows.over([one for one, _ in page])
            if over:
                dropped += self._store.drop(list(over.items()), epoch)
        return dropped

    def look(self, epoch: int) -> bool:
        """One page of rows whose time to be looked at has come; whether there is more to do.

        Only where there is no more of them, a page of those that are over is forgotten.
        """
        now_ms = self._store.now_ms()
        page = self._rows.to_look_at(self._shard, 0, now_ms, PAGE)
        self._suspects = self.mirror([one for one in page if one.tier != OVER], epoch)
        # an earlier release had those that are over among the others
        self._rows.forget([one for one in page if one.tier == OVER])
        if self._suspects or len(page) == PAGE:
            return True
        over = self._rows.to_look_at(self._shard, OVER_MS, OVER_MS + now_ms, PAGE)
        self._rows.forget(over)
        return len(over) == PAGE

    # -- mirroring ----------------------------------------------------------------------

    def mirror(self, rows: Sequence[BackedRow], epoch: int) -> list[_Suspect]:
        """Look for *rows* in Redis: those that are there are brought to SQL's version.

        Returns:
            Those that are not there, to be taken up when the journal was drained.
        """
        rows = self._readable([one for one in rows if is_open(one)])
        looked = self._store.look([one.entry_id for one in rows], epoch) if rows else None
        if looked is None:
            return []
        there, later, suspects, sleeping = [], [], [], []
        for row, (letter, version) in zip(rows, looked.places, strict=True):
            if letter == "-":
                # decided by the time of the look: an add that came later could leave unseen
                is_over = row.epoch != epoch or looked.now_ms > row.deadline_ms
                if row.tier == HOT or row.eta_ms - self._ahead_ms <= looked.now_ms:
                    suspects.append(_Suspect(row, is_over or row.tier == COLD))
                else:
                    sleeping.append(row)
            elif version >= row.version:
                there.append(row)
            elif letter == "C" or self._store.apply(row, epoch, {}) != "OK":
                later.append(row)
            else:
                there.append(row)
        self._rows.confirm(there)
        at_ms = looked.now_ms + _LATER_MS
        self._rows.look_again([one._replace(look_ms=at_ms) for one in later])
        self._rows.look_again(
            [one._replace(look_ms=one.eta_ms - self._ahead_ms) for one in sleeping]
        )
        return suspects

    def take_up(self, suspects: Sequence[_Suspect], epoch: int) -> int:
        """Add what Redis had not, and SQL still has, though the journal was drained since.

        Returns:
            How many were added.
        """
        known = self._rows.some([one.row.entry_id for one in suspects])
        still = [one for one in suspects if one.row.is_same(known.get(one.row.entry_id))]
        again = [one.row for one in still if not one.is_over]
        taken_back = self.take_back([one.row for one in still if one.is_over], epoch)
        return self.add([*again, *taken_back], epoch)

    def take_back(self, rows: Sequence[BackedRow], epoch: int) -> list[BackedRow]:
        """Raise the versions of *rows* in SQL, so that they may be added to this history.

        They were looked for, and the journal after that; those that have changed since stay.
        """
        if not rows:
            return []
        now_ms = self._store.now_ms()
        deadline_ms = now_ms + self._settings.window_ms
        return self._rows.change(
            [
                (one, one._replace(
                    version=one.version + 1, tier=HOT, epoch=epoch, deadline_ms=deadline_ms,
                    look_ms=now_ms,
                ))
                for one in rows
            ]
        )  # fmt: skip

    def add(self, rows: Sequence[BackedRow], epoch: int) -> int:
        """Add *rows* to Redis; how many of them it took."""
        if not rows:
            return 0
        try:
            added = self._store.add_backed(rows, epoch, patient=False)
        except Refused as exc:
            if isinstance(exc.error, JournalFull):
                raise exc.error from exc  # what is committed waits for the journal to be drained
            if len(rows) > 1:
                return sum(self.add([one], epoch) for one in rows)
            if isinstance(exc.error, StoreUnavailable):
                # who has its key is being published
                at_ms = self._store.now_ms() + _LATER_MS
                self._rows.look_again([rows[0]._replace(look_ms=at_ms)])
            else:
                self._refuse(rows[0], str(exc))
            return 0
        for row, one in zip(rows, added or (), strict=False):
            if one.is_other:
                self._refuse(row, f"the task {one.entry_id.task_id!r} has its key")
        return sum(one.code == "A" for one in added or ())

    def _refuse(self, row: BackedRow, why: str) -> None:
        """Give up an addition that its caller was not told of, or had committed himself."""
        logger.error(
            "%s was committed in SQL, but cannot be scheduled: %s",
            row.entry_id,
            why,
            extra={"event": "backed_refused", "task_id": row.entry_id.task_id},
        )
        self._rows.forget([row])

    def _readable(self, rows: Sequence[BackedRow]) -> list[BackedRow]:
        """Those of *rows* that can be read; the others are looked at again, behind the rest."""
        readable, others = [], []
        for row in rows:
            try:
                unpack(row)
            except ValueError as exc:
                others.append(row)
                self._tell_unreadable(row, exc)
            else:
                readable.append(row)
        if others:
            at_ms = self._store.now_ms() + _UNREADABLE_LATER_MS
            self._rows.look_again([one._replace(look_ms=at_ms) for one in others])
        return readable

    def _tell_unreadable(self, row: BackedRow, exc: ValueError) -> None:
        if row.entry_id in self._told or len(self._told) == _TOLD_MOST:
            return
        self._told.add(row.entry_id)
        logger.error(
            "the row of %s cannot be read, and stays in SQL: %s%s",
            row.entry_id,
            exc,
            "; more of them are not told of" if len(self._told) == _TOLD_MOST else "",
            extra={"event": "backed_unreadable", "task_id": row.entry_id.task_id},
        )
