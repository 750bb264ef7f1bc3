"""Whether Redis has what SQL says it should have: compared, told, and mended.

Redis is read as digests of stretches (``digest.lua``), SQL by an index.  Only where the two differ
are entries looked at one by one, and a difference counts only if it is still there after a look
at the journal: entries come, go and move all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from celery_delay.delayed.steering import Parts
from celery_delay.domain.entries import EntryId
from celery_delay.domain.filters import LAST_MS, Filter
from celery_delay.domain.states import State
from celery_delay.exceptions import InvalidSetting, StoreUnavailable
from celery_delay.store.digests import Line, Stretch, digest
from celery_delay.store.redis import RedisStore

if TYPE_CHECKING:
    from celery_delay.audit.comparing import RowKey, SQLComparable

__all__ = ["MISSING", "OLDER", "OVER", "Difference", "Verification", "Verifying"]

#: Redis has not what SQL says is there; has an older version of it; has what is over by SQL.
MISSING, OLDER, OVER = "MISSING", "OLDER", "OVER"
#: Ids of one question to Redis.
_AT_ONCE = 500
#: Seconds in which a difference may go by itself, and between two looks at a rebuild.
_SETTLE, _LOOK = 1.0, 0.2


class Difference(NamedTuple):
    """One entry about which Redis and SQL differ.

    Attributes:
        kind: :data:`MISSING`, :data:`OLDER` or :data:`OVER`.
        redis_version, sql_version: 0 where there is none.
    """

    entry_id: EntryId
    shard: int
    kind: str
    redis_version: int
    sql_version: int


class Verification(NamedTuple):
    """What a comparison has found.

    Attributes:
        in_redis: entries that wait in Redis; in_sql: rows that belong there.
        stretches: how many stretches of Redis were compared; differing: of these, so many
            had to be looked at entry by entry.
        unbacked: entries that only Redis has, such as those from before ``sync``: no difference.
        differences: those that are still there after a second look.
        repaired: how many of them are given to the leader to mend, or were taken out.
    """

    in_redis: int
    in_sql: int
    stretches: int
    differing: int
    unbacked: int
    differences: Sequence[Difference]
    repaired: int = 0


class Verifying(Parts):
    """The part of ``app.delayed`` that compares Redis with SQL.

    All methods raise InvalidSetting where SQL backs nothing, StoreUnavailable (also while Redis
    is being compared by the leader), and AuditUnavailable.
    """

    def verify(
        self, *, repair: bool = False, progress: Callable[[int], None] | None = None
    ) -> Verification:
        """Compare Redis with SQL.

        Memory is that of the differences.  What changes meanwhile is no difference.

        Arguments:
            repair: mend what differs: the leader brings back what is missing or older, within a
                second or two, by the protocol; what is over is taken out at once.
            progress: told how many entries of Redis were compared so far.
        """
        rows = self._comparable()
        found = Verification(0, 0, 0, 0, 0, [])
        for store in self.shards:
            one = self._verify_shard(store, rows, progress or (lambda _: None), found.in_redis)
            found = Verification(
                found.in_redis + one.in_redis,
                found.in_sql + one.in_sql,
                found.stretches + one.stretches,
                found.differing + one.differing,
                found.unbacked + one.unbacked,
                [*found.differences, *one.differences],
            )
        if repair and found.differences:
            found = found._replace(repaired=self._repair(found.differences))
        return found

    def rebuild(
        self, *, timeout: float = 600.0, progress: Callable[[int], None] | None = None
    ) -> None:
        """Let the leader compare all of Redis with SQL anew, and wait until it has.

        With ``delay_audit = "sync"`` nothing is handed off meanwhile: what is due waits.  What
        this does first, and what for, is told by :meth:`verify`.

        Arguments:
            timeout: seconds to wait; the leader goes on after that.
            progress: told how many entries Redis has.

        Raises:
            StoreUnavailable: also if it takes longer: is there a leader?
        """
        self._comparable()
        epochs = [(one, _epoch_of(one)) for one in self.shards]
        until = self.clock.monotonic() + timeout

        def await_leader() -> None:
            while not all(store.compared() == (epoch, True) for store, epoch in epochs):
                if self.clock.monotonic() > until:
                    raise StoreUnavailable(
                        f"the leader has not compared Redis with SQL within {timeout:g} s;"
                        " see `celery -A proj delay leader`"
                    )
                if progress is not None:
                    progress(sum(one.sizes()["pending"] for one in self.shards))
                self.clock.sleep(_LOOK)

        await_leader()  # a comparison that is under way does not come back to what it has passed
        for store, epoch in epochs:
            if not store.compare_again(epoch):
                raise StoreUnavailable("Redis was replaced meanwhile, and is compared anyway")
        await_leader()

    # -- comparing ----------------------------------------------------------------------

    def _comparable(self) -> SQLComparable:
        if not self.settings.is_backed:
            raise InvalidSetting(
                'SQL backs nothing here: with delay_audit = "async" it only tells the story; set'
                ' delay_audit = "sync", or delay_hot_window'
            )
        from celery_delay.audit.comparing import SQLComparable

        return SQLComparable(self.audit_log.database)

    def _verify_shard(
        self,
        store: RedisStore,
        rows: SQLComparable,
        progress: Callable[[int], None],
        before: int,
    ) -> Verification:
        shard, epoch = store.keys.shard, _epoch_of(store)
        in_redis = stretches = differing = unbacked = 0
        suspects: set[EntryId] = set()
        for one in store.stretches(LAST_MS):
            stretches, in_redis = stretches + 1, in_redis + one.number
            after, until = _place(one.after), _place(one.until) if one.until else None
            there = list(rows.between(shard, after, until))
            if digest(map(_line, there)) != one.digest:
                differing += 1
                some, unknown = self._compare(store, one, there)
                suspects |= some
                unbacked += unknown
            progress(before + in_redis)
        differences = list(self._confirmed(store, rows, sorted(suspects), epoch))
        number = rows.count(shard)
        return Verification(in_redis, number, stretches, differing, unbacked, differences)

    def _compare(
        self, store: RedisStore, stretch: Stretch, there: Sequence[RowKey]
    ) -> tuple[set[EntryId], int]:
        """Ids about which the two differ in a stretch, and how many only Redis has."""
        last_ms = stretch.until.eta_ms if stretch.until else LAST_MS
        known: dict[EntryId, tuple[str, ...]] = {
            one.entry_id: tuple(map(str, _line(one))) for one in there
        }
        suspects, others = set(known), set()
        for found in store.walk(Filter(before_ms=last_ms), stretch.after):
            if stretch.until is not None and found.position > stretch.until:
                break
            entry = found.entry()
            if entry is None:
                continue
            mine = Line(
                found.task_id, str(entry.entry_id.run), str(entry.version), entry.eta_ms,
                entry.state is State.HELD,
            )  # fmt: skip
            if known.get(entry.entry_id) == tuple(map(str, mine)):
                suspects.discard(entry.entry_id)
            elif entry.entry_id not in known:
                others.add(entry.entry_id)
        over = self._over(sorted(others))
        return suspects | set(over), len(others) - len(over)

    def _over(self, entry_ids: Sequence[EntryId]) -> dict[EntryId, int]:
        return {
            entry_id: version
            for some in _parts(entry_ids)
            for entry_id, version in self.backed_rows.over(some).items()
        }

    def _confirmed(
        self, store: RedisStore, rows: SQLComparable, suspects: Iterable[EntryId], epoch: int
    ) -> Iterator[Difference]:
        """Those of *suspects* that differ, and go on to."""
        still = list(self._differing(store, rows, suspects, epoch))
        if not still:
            return
        self.clock.sleep(_SETTLE)
        again = list(self._differing(store, rows, [one.entry_id for one in still], epoch))
        told = store.told([one.entry_id for one in again])
        yield from (one for one in again if one.entry_id not in told)

    def _differing(
        self, store: RedisStore, rows: SQLComparable, suspects: Iterable[EntryId], epoch: int
    ) -> Iterator[Difference]:
        shard = store.keys.shard
        for some in _parts(suspects):
            known = rows.some([one.task_id for one in some])
            looked = store.look(some, epoch)
            if looked is None:
                raise StoreUnavailable("Redis was replaced meanwhile: call again")
            over = self._over([one for one in some if one not in known])
            for entry_id, (letter, version) in zip(some, looked.places, strict=True):
                row = known.get(entry_id)
                if row is not None and letter == "-" and row.is_settled:
                    yield Difference(entry_id, shard, MISSING, 0, row.version)
                elif row is not None and letter in "LP" and 0 < version < row.version:
                    if row.is_settled:
                        yield Difference(entry_id, shard, OLDER, version, row.version)
                elif row is None and letter in "LP" and over.get(entry_id, 0) >= version:
                    yield Difference(entry_id, shard, OVER, version, 0)

    def _repair(self, differences: Sequence[Difference]) -> int:
        repaired = 0
        for store in self.shards:
            mine = [one for one in differences if one.shard == store.keys.shard]
            now_ms, epoch = store.now_ms(), _epoch_of(store)
            for some in _parts([one.entry_id for one in mine if one.kind != OVER]):
                rows = self.backed_rows.some(some).values()
                self.backed_rows.look_again([one._replace(look_ms=now_ms) for one in rows])
                repaired += len(rows)
            for some in _parts([one.entry_id for one in mine if one.kind == OVER]):
                repaired += store.drop(list(self.backed_rows.over(some).items()), epoch)
        return repaired


def _epoch_of(store: RedisStore) -> int:
    epoch, is_compared = store.compared()
    if not is_compared:
        raise StoreUnavailable(
            "Redis is new, and no leader has compared it with SQL yet: call again later"
        )
    return epoch


def _place(position: tuple[int, bytes]) -> tuple[int, str]:
    return position[0], position[1].decode()


def _line(row: RowKey) -> Line:
    held = row.state == State.HELD.value
    return Line(row.task_id, str(row.run), str(row.version), row.eta_ms, held)


def _parts(entry_ids: Iterable[EntryId]) -> Iterator[list[EntryId]]:
    left = iter(entry_ids)
    while some := list(islice(left, _AT_ONCE)):
        yield some
