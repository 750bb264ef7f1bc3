"""The mirror of what SQL backs: each method is one script in one Redis history.

A call is bound to the epoch that its caller has learnt before it asked SQL.  Over a connection
that leads to another history it does nothing.  All of them are safe to repeat, so an answer that
was lost is asked for once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from celery_delay.domain.backing import COLD, BackedRow, unpack
from celery_delay.domain.entries import Added, EntryId, Record
from celery_delay.domain.mirrors import Looked, Refused
from celery_delay.domain.ports import Cancelled
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store import scripts
from celery_delay.store.additions import TEMPLATE_CAP, Additions, Attempt, record_text, refusal
from celery_delay.store.connection import AnswerLost
from celery_delay.store.journal import Journal
from celery_delay.store.records import decode
from celery_delay.store.scanning import Scanning
from celery_delay.store.shard import REPEAT_AFTER

__all__ = ["Backed"]

_EPOCH, _LATE, _BUSY = b"EPOCH", b"LATE", b"BUSY"


class Backed(Additions, Scanning, Journal):
    """See :class:`celery_delay.domain.mirrors.BackedStore`."""

    # -- histories ----------------------------------------------------------------------

    def named(self) -> int:
        """See the port; costs nothing while the connection lasts."""
        with self._link() as link:
            return self._epoch(link) or 0

    def compared(self) -> tuple[int, bool]:
        """See the port."""
        with self._link() as link:
            run_id = scripts.server_of(link)["run_id"].encode()
            try:
                marked = link.call("HMGET", self.keys.mark, "run_id", "epoch", "compared")
            except (AnswerLost, ResponseError) as exc:
                raise StoreUnavailable(f"the mark cannot be read: {exc}") from exc
            epoch = int(marked[1] or 0) if marked[0] == run_id else 0
            self._forget_epoch(link)
            if epoch:
                link.learnt[self._epoch_name] = epoch
        return epoch, bool(epoch) and marked[1] == marked[2]

    def is_still(self, epoch: int) -> bool:
        """See the port."""
        with self._link() as link:
            self._forget_epoch(link)
            return self._epoch(link) == epoch

    def is_led(self, grace_ms: int) -> bool:
        """See the port."""
        alive = self._read("HGET", self.keys.mark, "alive")
        return alive is not None and abs(self.time_ms() - int(alive)) <= grace_ms

    def begin_named(self, *, term: int, epoch: int) -> bool:
        """See the port; only the leader of *term* can."""
        with self._link() as link:
            values = {
                "now": self._given_now(),
                "term": term,
                "run_id": scripts.server_of(link)["run_id"],
                "known_epoch": 0,
                "epoch": epoch,
            }
            answer = self._sure(link, "begin_epoch", values)
            self._forget_epoch(link)
        return bool(answer[0] != b"TERM" and int(answer[0]) == epoch)

    def ready(self, epoch: int) -> None:
        """See the port."""
        self._pinned("ready", {}, (), epoch)

    def note_cold(self, number: int, epoch: int) -> None:
        """See the port."""
        self._pinned("note_cold", {"number": number}, (), epoch)

    def compare_again(self, epoch: int) -> bool:
        """Let the leader compare this history with SQL once more; False: it is another one.

        With ``delay_audit = "sync"`` nothing is handed off meanwhile.
        """
        values = {"sync": int(self._settings.is_sync)}
        return bool(self._pinned("compare_again", values, (), epoch) == b"OK")

    # -- entries ------------------------------------------------------------------------

    def add_backed(
        self, rows: Sequence[BackedRow], epoch: int, *, patient: bool = True
    ) -> list[Added] | None:
        """See the port."""
        attempt = _Attempt([unpack(one) for one in rows], 0, rows=rows)
        give_up = self._clock.boot() + (self._settings.add_window if patient else 0.0)
        while True:
            values = {
                "window": self._settings.window_ms,
                **self._when_full(),
                "template_cap": TEMPLATE_CAP,
                "template_count": len(attempt.offered),
                "leader_grace": 0,
            }
            answer = self._pinned("add", values, attempt.rest(), epoch)
            status = answer[0] if isinstance(answer, list) else answer
            if status == b"OK":
                self.heartbeat.seen(int(answer[3]))
                return attempt.added(answer)
            if status in (_EPOCH, _LATE):
                return None
            if status == b"TEMPLATE":
                attempt.offer(answer[2:])
            elif status == b"INLINE":
                attempt.inline, attempt.offered = True, {}
            elif status == _BUSY and self._clock.boot() < give_up:
                self._clock.sleep(REPEAT_AFTER)
            else:
                raise Refused(refusal(status.decode(), answer, attempt))

    def taken(self, task_ids: Sequence[str]) -> list[str]:
        """See the port."""
        records = self._read("HMGET", self.keys.entries, *task_ids)
        return [one for one, record in zip(task_ids, records, strict=True) if record is not None]

    def scheduled(self) -> int:
        """See the port."""
        return int(self.sizes()["pending"])

    def apply(
        self, row: BackedRow, epoch: int, data: Mapping[str, object], *, release: bool = False
    ) -> str:
        """See the port.  For one that is cold: ``OK`` if it is out now."""
        addition, template, inline = unpack(row), "", False
        while True:
            values = {
                "task_id": row.entry_id.task_id,
                "due": _due_text(row),
                "cold": int(row.tier == COLD),
                "record": record_text(addition, row.deadline_ms, inline),
                "template": template,
                "template_cap": TEMPLATE_CAP,
                "release": int(release),
                "data": json.dumps(data, separators=(",", ":")),
            }
            answer = self._pinned("apply", values, (), epoch)
            status = (answer[0] if isinstance(answer, list) else answer).decode()
            if status == "TEMPLATE":
                template = addition.template
            elif status == "INLINE":
                template, inline = "", True
            elif status == "STALE":
                return f"STALE {answer[2].decode()}"
            else:
                return str(status)

    def cancel_backed(
        self, entry_id: EntryId, epoch: int, data: Mapping[str, object]
    ) -> Cancelled | None:
        """See the port."""
        task_id, run = entry_id
        values = {
            "deadline": self.now_ms() + self._settings.window_ms,
            "task_id": task_id,
            "run": run,
            "data": json.dumps(data),
        }
        answer = self._pinned("cancel", values, (), epoch)
        if answer == _EPOCH or answer[0] in (_EPOCH, _LATE):
            return None
        self._not_before = max(self._not_before, int(answer[1]) + 1)
        outcome = CancelOutcome(answer[0].decode())
        if len(answer) < 6:
            return Cancelled(outcome, None)
        return Cancelled(outcome, decode(task_id, int(answer[5] or 0), answer[3], answer[4]))

    def look(self, entry_ids: Sequence[EntryId], epoch: int) -> Looked | None:
        """See the port."""
        rest = [part for task_id, run in entry_ids for part in (task_id, str(run))]
        answer = self._pinned("look", {}, rest, epoch)
        if answer == _EPOCH or answer[0] == _EPOCH:
            return None
        places = [one.decode().split(" ") for one in answer[2:]]
        return Looked(int(answer[1]), [(letter, int(version)) for letter, version in places])

    def told_of(self, entry_id: EntryId) -> set[str]:
        """See the port."""
        return {one.state for one in self.journalled() if one.entry_id == entry_id}

    def live(self) -> Iterator[list[tuple[EntryId, int]]]:
        """See the port."""
        for fields in self._fields(self.keys.entries):
            yield _versions(fields)
        for fields in self._fields(self.keys.quarantine):
            parked = ((task_id, _parked_record(text)) for task_id, text in fields)
            yield _versions([(task_id, record) for task_id, record in parked if record])

    def drop(self, entries: Sequence[tuple[EntryId, int]], epoch: int) -> int:
        """See the port."""
        rest = [
            part for entry_id, version in entries for part in (*map(str, entry_id), str(version))
        ]
        answer = self._pinned("drop", {}, rest, epoch)
        return answer if isinstance(answer, int) else 0

    def _pinned(
        self, name: str, values: Mapping[str, object], rest: Sequence[object], epoch: int
    ) -> Any:
        """Run a script in the history *epoch*; the answer is ``EPOCH`` in any other.

        Raises:
            StoreUnavailable: it did nothing.
            OutcomeUnknown: it may have run.
        """
        unknown = ""
        takes = scripts.load(name).arguments
        general = {
            "now": self._given_now(),
            "tombstone_ms": self._tombstone_ms,
            "journal_max": self._journal_max,
            "epoch": epoch,
        }
        values = {**{key: one for key, one in general.items() if key in takes}, **values}
        for _ in range(2):
            try:
                with self._link() as link:
                    if self._epoch(link) != epoch:
                        return _EPOCH
                    answer = self._script(link, name, values, rest)
                    if answer == _EPOCH or (isinstance(answer, list) and answer[0] == _EPOCH):
                        self._forget_epoch(link)
                    elif not self._test_now and isinstance(answer, list):
                        self._learn(int(answer[1]))
                    return answer
            except AnswerLost as exc:
                unknown = unknown or str(exc) or "the answer was lost"
            except StoreUnavailable as exc:
                if not unknown:
                    raise
                raise OutcomeUnknown(name, unknown) from exc
            except ResponseError as exc:
                raise StoreUnavailable(f"Redis fails in {name}: {exc}") from exc
        raise OutcomeUnknown(name, unknown)


@dataclass
class _Attempt(Attempt):
    """An addition of rows: each with its own deadline, and known again by its id."""

    rows: Sequence[BackedRow] = ()

    def _deadline_of(self, number: int) -> int:
        return self.rows[number].deadline_ms

    def _due_of(self, number: int) -> str:
        return _due_text(self.rows[number])

    def _operation_of(self, number: int) -> str:
        return f"b/{self.rows[number].entry_id}"


def _due_text(row: BackedRow) -> str:
    return f"{'#' if row.state is State.HELD else '@'}{row.eta_ms}"


def _versions(fields: Sequence[tuple[str, bytes]]) -> list[tuple[EntryId, int]]:
    found = []
    for task_id, text in fields:
        try:
            record = Record.decode(text.decode())
        except ValueError:
            continue
        found.append((EntryId(task_id, record.run), record.version))
    return found


def _parked_record(text: bytes) -> bytes:
    try:
        _why, _at, record, *_ = json.loads(text)
        return bytes(record.encode())
    except (ValueError, TypeError, AttributeError):
        return b""
