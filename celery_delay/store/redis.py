"""One shard of the store in Redis: a method per Lua command.

What a lost answer means is decided here, command by command.  ``add`` and ``cancel`` are
repeated under the same identity until the answer is known or their window has passed;
``move`` needs no answer, since the next pass sees what is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import ascii_uppercase
from typing import Any

from redis.exceptions import ResponseError

from celery_delay.clock import Clock
from celery_delay.entries import (
    Addition,
    EntryId,
    Event,
    Record,
    StoredEntry,
    Template,
    decode_lines,
    encode_lines,
    template_id,
)
from celery_delay.exceptions import (
    AlreadyScheduled,
    JournalFull,
    OutcomeUnknown,
    StoreUnavailable,
)
from celery_delay.ports import (
    Added,
    Cancelled,
    JournalPosition,
    Moved,
    StaleEpoch,
    Transition,
)
from celery_delay.settings import Settings
from celery_delay.states import CancelOutcome
from celery_delay.store import scripts
from celery_delay.store.connection import AnswerLost, Link, Links
from celery_delay.store.keys import ShardKeys

__all__ = ["RedisStore"]

#: Templates a shard keeps; more shapes than this are stored inside their records.
TEMPLATE_CAP = 1_000
#: Entries that one add script takes; above this Redis would be busy for too long.
ADD_LIMIT = 1_000
#: Pause before a command whose answer was lost is repeated.
REPEAT_AFTER = 0.05
#: How often an add that came too late, with certainty without effect, is drawn anew.
REDRAWS = 3


class RedisStore:
    """One shard.  Safe for threads; every public method may raise StoreUnavailable.

    Arguments:
        links: connections to the server.
        test_now: gives the store's clock in ms in tests; ``None``: Redis' own TIME.
    """

    def __init__(
        self,
        links: Links,
        keys: ShardKeys,
        settings: Settings,
        clock: Clock,
        test_now: Callable[[], int] | None = None,
    ) -> None:
        self._links = links
        self.keys = keys
        self._settings = settings
        self._clock = clock
        self._test_now = test_now
        self._offset_ms: float | None = None
        self._not_before = 0
        self._tombstone_ms = settings.window_ms + 1_000
        self._journal_max = settings.journal_max if settings.audited else 0

    # -- scheduling ---------------------------------------------------------------------

    def now_ms(self) -> int:
        """The store's clock in ms, estimated from the last answer; never ahead of it."""
        if self._test_now:
            return self._test_now()
        # another thread may forget it meanwhile
        offset = self._offset_ms
        if offset is None:
            offset = self._learn(self.time_ms())
        return int(offset + self._clock.boot() * 1000)

    def add(self, additions: Sequence[Addition]) -> list[Added]:
        """Store *additions*, all or none, at most :data:`ADD_LIMIT` of them.

        An addition with run 0 gets its run here, once; a lost answer is followed by repeats
        with the same identities until ``delay_add_window`` has passed.

        Raises:
            StoreUnavailable: nothing was stored.
            ValueError: a task id has a line break or a tab; nothing was stored.
            AlreadyScheduled: one task id has a live entry; nothing was stored.
            JournalFull: with ``delay_journal_full = "refuse"``; nothing was stored.
            OutcomeUnknown: no answer within the window, or the script broke.
        """
        unknown = ""
        redraws = 0
        inline = False
        offered: dict[str, str] = {}
        if not additions:
            return []
        now = self._time_to_draw()
        drawn = self._draw(additions, now)
        give_up = self._clock.boot() + self._settings.add_window
        while True:
            try:
                answer = self._call(
                    "add",
                    {
                        "now": self._given_now(),
                        "window": self._settings.window_ms,
                        "tombstone_ms": self._tombstone_ms,
                        "journal_max": self._journal_max,
                        "refuse_when_full": int(self._settings.journal_full == "refuse"),
                        "template_cap": TEMPLATE_CAP,
                        "template_count": len(offered),
                    },
                    self._add_rest(drawn, now + self._settings.window_ms, offered, inline),
                )
            except AnswerLost as exc:
                unknown = unknown or str(exc) or "the answer was lost"
                self._pause_or_give_up(give_up, drawn, unknown)
                continue
            except StoreUnavailable:
                if not unknown:
                    raise
                self._pause_or_give_up(give_up, drawn, unknown)
                continue
            except ResponseError as exc:
                raise OutcomeUnknown(drawn[0].entry_id, f"Redis says: {exc}") from exc
            status = answer[0].decode()
            if status == "OK":
                codes = answer[2].decode()
                return [
                    Added(one.entry_id, code, int(due))
                    for one, code, due in zip(drawn, codes, answer[3:], strict=True)
                ]
            if unknown and status not in ("TEMPLATE", "INLINE"):
                # this attempt wrote nothing, but an earlier one may have, or may still arrive
                raise OutcomeUnknown(drawn[0].entry_id, unknown)
            if status == "CONFLICT":
                raise AlreadyScheduled(answer[2].decode())
            if status == "FULL":
                raise JournalFull("the journal is full; see `celery delay status`")
            if status == "TEMPLATE":
                wanted = {one.decode() for one in answer[2:]}
                offered = {
                    template_id(one.template): one.template
                    for one in drawn
                    if template_id(one.template) in wanted
                }
            elif status == "INLINE":
                inline, offered = True, {}
            elif redraws == REDRAWS:
                raise StoreUnavailable("each add came later to Redis than delay_add_window allows")
            else:
                redraws += 1
                self._offset_ms = None
                now = self._time_to_draw()
                drawn = self._draw(additions, now)

    def cancel(self, task_id: str, *, run: int = 0, data: Mapping[str, object]) -> Cancelled:
        """Take the live entry of *task_id* out, or keep a late add of it from arriving.

        Arguments:
            run: the run of an add whose outcome is unknown, so that it is refused too.
            data: who and why; goes to the journal.

        The entry in the answer is ``None`` if an earlier call took it out, or if its record
        could not be read.

        Raises:
            StoreUnavailable: nothing was cancelled.
            OutcomeUnknown: no answer came; calling again gives the final one.
        """
        unknown = ""
        deadline = self.now_ms() + self._settings.window_ms
        give_up = self._clock.boot() + self._settings.add_window
        while True:
            try:
                answer = self._cancel_once(task_id, run, deadline, json.dumps(data))
            except (AnswerLost, StoreUnavailable, ResponseError) as exc:
                if isinstance(exc, StoreUnavailable) and not unknown:
                    raise
                unknown = unknown or str(exc) or "the answer was lost"
                if isinstance(exc, ResponseError) or self._clock.boot() >= give_up:
                    raise OutcomeUnknown(EntryId(task_id, run), unknown) from exc
                self._clock.sleep(REPEAT_AFTER)
                continue
            if answer[0] not in (b"EPOCH", b"LATE"):
                break
            if answer[0] == b"LATE" and unknown:
                raise OutcomeUnknown(EntryId(task_id, run), unknown)
            if self._clock.boot() >= give_up:
                raise StoreUnavailable("each cancel came later to Redis than delay_add_window")
            self._offset_ms = None
            deadline = self.now_ms() + self._settings.window_ms
        # should this id be used again, its run must be told from the one that is refused
        self._not_before = max(self._not_before, int(answer[1]) + 1)
        outcome = CancelOutcome(answer[0].decode())
        if len(answer) < 6:
            return Cancelled(outcome, None)
        return Cancelled(outcome, _stored(task_id, int(answer[5] or 0), answer[3], answer[4]))

    # -- reading ------------------------------------------------------------------------

    def get(self, task_id: str) -> StoredEntry | None:
        """The live entry of *task_id*."""
        return next(iter(self._stored([task_id])), None)

    def between(
        self, *, after_ms: int, before_ms: int, limit: int, offset: int
    ) -> list[StoredEntry]:
        """Live entries with ``after_ms <= eta <= before_ms``, the earliest first."""
        found: list[tuple[float, bytes]] = []
        for key in (self.keys.schedule, self.keys.blocked):
            bounds = (after_ms, before_ms, "BYSCORE", "LIMIT", 0, offset + limit, "WITHSCORES")
            pairs = self._read("ZRANGE", key, *bounds)
            found += zip(map(float, pairs[1::2]), pairs[::2], strict=True)
        ids = [task_id.decode() for _, task_id in sorted(found)[offset : offset + limit]]
        return list(self._stored(ids))

    def count(self, *, after_ms: int, before_ms: int) -> int:
        """How many live entries have ``after_ms <= eta <= before_ms``."""
        return sum(
            int(self._read("ZCOUNT", key, after_ms, before_ms))
            for key in (self.keys.schedule, self.keys.blocked)
        )

    def sizes(self) -> dict[str, int]:
        """Numbers of what the shard holds: pending, blocked, quarantined, journal, templates."""
        return {
            "pending": self._read("ZCARD", self.keys.schedule),
            "blocked": self._read("ZCARD", self.keys.blocked),
            "quarantined": self._read("HLEN", self.keys.quarantine),
            "journal": self._read("XLEN", self.keys.journal),
            "templates": self._read("HLEN", self.keys.templates),
        }

    def quarantined(self) -> dict[str, str]:
        """Task id → why, of what could not be handed off."""
        parked = self._read("HGETALL", self.keys.quarantine)
        return {
            task_id.decode(): json.loads(parked[i + 1].decode(errors="replace"))[0]
            for i, task_id in enumerate(parked)
            if i % 2 == 0
        }

    def leader(self) -> tuple[str, int, int]:
        """Holder ("" for none), term and epoch, as the shard bears them now."""
        holder, term = self._read("HMGET", self.keys.lease, "holder", "term")
        epoch = self._read("HGET", self.keys.mark, "epoch")
        return (holder or b"").decode(), int(term or 0), int(epoch or 0)

    # -- dispatching --------------------------------------------------------------------

    def run_id(self) -> str:
        """The server's run id over the connection that the next call will use."""
        with self._link() as link:
            return str(scripts.server_of(link)["run_id"])

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

    def begin_epoch(self, *, term: int, known_epoch: int) -> tuple[int, str] | None:
        """Name the server's present history; only the leader of *term* can.

        Returns:
            The epoch, and the run id that the mark bore before ("" for none); ``None`` if
            *term* leads no more.
        """
        with self._link() as link:
            answer = self._sure(
                link,
                "begin_epoch",
                {
                    "now": self._given_now(),
                    "term": term,
                    "run_id": scripts.server_of(link)["run_id"],
                    "known_epoch": known_epoch,
                },
            )
            link.learnt.pop("epoch", None)
        if answer[0] == b"TERM":
            return None
        return int(answer[0]), answer[1].decode()

    def merge_back(self, *, term: int) -> int:
        """Return blocked entries to the schedule; how many, at most a batch."""
        with self._link() as link:
            answer = self._in_epoch(
                link, "merge_back", {"term": term, "limit": self._settings.batch_size}
            )
        return answer if isinstance(answer, int) else 0

    # -- periodic tasks -----------------------------------------------------------------

    def sync_schedules(self, *, term: int, schedules: Mapping[str, tuple[str, int]]) -> bool:
        """Make the stored schedules those given: name → (version, next occurrence in ms).

        A schedule whose stored version is the same keeps its stored next occurrence.  Instead
        of an instant: ``ports.ENDED``, or ``ports.UNKNOWN``, which leaves the schedule alone.

        Returns:
            False if *term* leads no more.
        """
        rest = [part for name, (version, due) in schedules.items() for part in (name, version, due)]
        with self._link() as link:
            answer = self._in_epoch(
                link, "sync_schedules", {"now": self._given_now(), "term": term}, rest
            )
        return bool(answer == b"OK")

    def due_schedules(self) -> tuple[int, list[tuple[str, int]], int | None]:
        """The store's time, the (name, nominal ms) that are due by it, the next occurrence."""
        now = self._test_now() if self._test_now else self.time_ms()
        due = self._read(
            "ZRANGE", self.keys.occurrences, "-inf", now, "BYSCORE", "WITHSCORES"
        )
        pairs = [(due[i].decode(), int(float(due[i + 1]))) for i in range(0, len(due), 2)]
        after = self._read(
            "ZRANGE", self.keys.occurrences, f"({now}", "+inf", "BYSCORE",
            "LIMIT", 0, 1, "WITHSCORES",
        )
        return now, pairs, int(float(after[1])) if after else None

    def cursor(self, name: str) -> int | None:
        """The last nominal instant, in ms, at which the schedule *name* fired.

        Before its first: when it was first seen.  ``None``: there is no such schedule.
        """
        stored = self._read("HGET", self.keys.schedules, name)
        cursor = json.loads(stored).get("cursor") if stored else None
        return None if cursor is None else int(cursor)

    def fire(
        self,
        *,
        term: int,
        name: str,
        expected_ms: int,
        cursor_ms: int,
        next_ms: int | None,
        addition: Addition | None,
    ) -> bool:
        """Advance the schedule *name* and add its entry, in one step.

        Arguments:
            expected_ms: the occurrence that the schedule must still be waiting for.
            cursor_ms: the nominal instant that fires.
            next_ms: the occurrence after it; ``None`` ends the schedule.
            addition: the entry; ``None`` only advances.

        Returns:
            False if another leader fired it or *term* leads no more.
        """
        rest: list[object] = []
        if addition is not None:
            record = self._record(addition, self.now_ms() + self._settings.window_ms, False)
            rest = [
                addition.entry_id.task_id,
                _due(addition),
                record,
                addition.story,
                template_id(addition.template),
                addition.template,
            ]
        with self._link() as link:
            answer = self._in_epoch(
                link,
                "fire",
                {
                    "now": self._given_now(),
                    "journal_max": self._journal_max,
                    "term": term,
                    "name": name,
                    "expected": expected_ms,
                    "cursor": cursor_ms,
                    "next": -1 if next_ms is None else next_ms,
                },
                rest,
            )
        return bool(answer == b"OK")

    # -- journal ------------------------------------------------------------------------

    def record(self, transitions: Sequence[Transition]) -> None:
        """Journal transitions that happened outside the store, in workers.

        An answer that is lost is not repeated: the audit may miss the transition or has it
        once; it never has it twice.
        """
        if not self._journal_max:
            return
        rest: list[str] = []
        for one in transitions:
            rest += [one.state.value, encode_lines([(one.entry_id, one.version, None, one.data)])]
        try:
            self._call(
                "record", {"now": self._given_now(), "journal_max": self._journal_max}, rest
            )
        except (AnswerLost, ResponseError) as exc:
            raise StoreUnavailable(f"the journal may miss a transition: {exc}") from exc

    def read_journal(self, after: str, limit: int) -> list[tuple[str, list[Event]]]:
        """Journal entries behind the stream id *after* ("0" for all), at most *limit*.

        What cannot be read in one comes as events in the state GAP.
        """
        start = "-" if after == "0" else f"({after}"
        found = []
        for stream_id, pairs in self._read("XRANGE", self.keys.journal, start, "+", "COUNT", limit):
            parts = dict(zip(pairs[::2], pairs[1::2], strict=True))
            state, epoch, at_ms, text = (
                parts.get(name, b"").decode(errors="replace") for name in (b"s", b"e", b"t", b"d")
            )
            events = decode_lines(
                self.keys.shard, _number(epoch), stream_id.decode(), state, _number(at_ms), text
            )
            found.append((stream_id.decode(), events))
        return found

    def trim_journal(self, position: JournalPosition, *, term: int) -> int:
        """Forget the journal up to and including *position*, which SQL has committed."""
        with self._link() as link:
            answer = self._sure(
                link,
                "trim",
                {"epoch": position.epoch, "term": term, "last_id": position.last_id},
            )
        return answer if isinstance(answer, int) else 0

    def audit_id(self, proposed: str | None = None) -> str | None:
        """The id of the audit database this shard belongs to; *proposed* becomes it if none is."""
        if proposed is not None:
            self._read("HSETNX", self.keys.mark, "audit_id", proposed)
        stored = self._read("HGET", self.keys.mark, "audit_id")
        return stored.decode() if stored else None

    def close(self) -> None:
        """Close the idle connections."""
        self._links.close()

    # -- inside -------------------------------------------------------------------------

    @contextmanager
    def _link(self) -> Iterator[Link]:
        link = self._links.take()
        try:
            link.connect()
            yield link
        finally:
            self._links.give(link)

    def _epoch(self, link: Link) -> int | None:
        """The epoch of the history behind *link*; ``None`` while the leader has not named it."""
        if "epoch" not in link.learnt:
            run_id = scripts.server_of(link)["run_id"]
            try:
                marked, epoch = link.call("HMGET", self.keys.mark, "run_id", "epoch")
            except AnswerLost as exc:
                raise StoreUnavailable(str(exc)) from exc
            if not epoch or not marked or marked.decode() != run_id:
                return None
            link.learnt["epoch"] = int(epoch)
        epoch_known: int = link.learnt["epoch"]
        return epoch_known

    def _script(
        self, link: Link, name: str, values: Mapping[str, object], rest: Sequence[object] = ()
    ) -> Any:
        return scripts.run(link, scripts.load(name), self.keys, values, rest)

    def _call(self, name: str, values: Mapping[str, object], rest: Sequence[object] = ()) -> Any:
        with self._link() as link:
            answer = self._script(link, name, values, rest)
        if not self._test_now and isinstance(answer, list) and len(answer) > 1:
            self._learn(int(answer[1]))
        return answer

    def _sure(
        self, link: Link, name: str, values: Mapping[str, object], rest: Sequence[object] = ()
    ) -> Any:
        """Run a script for which a lost answer is just a failed attempt."""
        try:
            return self._script(link, name, values, rest)
        except AnswerLost as exc:
            raise StoreUnavailable(f"lost the answer of {name}: {exc}") from exc
        except ResponseError as exc:
            raise StoreUnavailable(f"Redis fails in {name}: {exc}") from exc

    def _in_epoch(
        self, link: Link, name: str, values: Mapping[str, object], rest: Sequence[object] = ()
    ) -> Any:
        """Run a script that checks the epoch, with that of the history behind *link*."""
        answer: Any = None
        for _ in range(2):
            answer = self._sure(link, name, {**values, "epoch": self._epoch(link) or 0}, rest)
            if answer != b"EPOCH":
                break
            # what this link has learnt is out of date: somebody has emptied Redis meanwhile
            link.learnt.pop("epoch", None)
        return answer

    def _read(self, *command: object) -> Any:
        with self._link() as link:
            try:
                return link.call(*command)
            except AnswerLost:
                # reading again has no effect; the connection may merely have been idle too long
                try:
                    return link.call(*command)
                except AnswerLost as exc:
                    raise StoreUnavailable(f"lost the answer of {command[0]}: {exc}") from exc
            except ResponseError as exc:
                raise StoreUnavailable(f"Redis fails in {command[0]}: {exc}") from exc

    def time_ms(self) -> int:
        """The store's clock in ms, asked for now."""
        seconds, micros = self._read("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def _learn(self, store_ms: int) -> float:
        # the answer took a while to come, so this offset is never too high; of several the
        # highest is nearest, unless somebody has set Redis' clock back
        offset = store_ms - self._clock.boot() * 1000
        known = self._offset_ms
        if known is None or offset > known or offset < known - 1000:
            self._offset_ms = known = offset
        return known

    def _time_to_draw(self) -> int:
        """The instant from which an add draws its runs and its deadline."""
        now = self.now_ms()
        # unless the clock was set back since
        return self._not_before if now < self._not_before < now + 1000 else now

    def _given_now(self) -> int:
        return self._test_now() if self._test_now else 0

    @staticmethod
    def _draw(additions: Sequence[Addition], now_ms: int) -> list[Addition]:
        for one in additions:
            task_id = one.entry_id.task_id
            if "\n" in task_id or "\t" in task_id:
                raise ValueError(f"the task id {task_id!r} cannot be stored")
        return [
            one
            if one.entry_id.run
            else one._replace(entry_id=EntryId(one.entry_id.task_id, now_ms))
            for one in additions
        ]

    @staticmethod
    def _record(one: Addition, deadline_ms: int, inline: bool) -> str:
        template, values = template_id(one.template), one.values
        if inline:
            template = "=" + one.template.replace("\n", "\x02")
        return Record(
            one.entry_id.run, one.version, deadline_ms, one.expires_ms, template, values
        ).encode()

    def _cancel_once(self, task_id: str, run: int, deadline: int, data: str) -> Any:
        with self._link() as link:
            answer = self._script(
                link,
                "cancel",
                {
                    "now": self._given_now(),
                    "tombstone_ms": self._tombstone_ms,
                    "journal_max": self._journal_max,
                    "epoch": self._epoch(link) or 0,
                    "deadline": deadline,
                    "task_id": task_id,
                    "run": run,
                    "data": data,
                },
            )
            if answer[0] == b"EPOCH":
                link.learnt.pop("epoch", None)
        return answer

    def _add_rest(
        self, drawn: Sequence[Addition], deadline_ms: int, offered: Mapping[str, str], inline: bool
    ) -> list[object]:
        rest: list[object] = [part for pair in offered.items() for part in pair]
        for one in drawn:
            rest += [
                one.entry_id.task_id,
                _due(one),
                self._record(one, deadline_ms, inline),
                one.story,
            ]
        return rest

    def _pause_or_give_up(self, give_up: float, drawn: Sequence[Addition], why: str) -> None:
        if self._clock.boot() >= give_up:
            raise OutcomeUnknown(drawn[0].entry_id, why)
        self._clock.sleep(REPEAT_AFTER)

    def _stored(self, task_ids: Sequence[str]) -> Iterator[StoredEntry]:
        if not task_ids:
            return
        records = self._read("HMGET", self.keys.entries, *task_ids)
        dues = self._read("ZMSCORE", self.keys.schedule, *task_ids)
        asides = self._read("ZMSCORE", self.keys.blocked, *task_ids)
        texts: dict[str, bytes] = {}
        for task_id, record, due, aside in zip(task_ids, records, dues, asides, strict=True):
            if record is None or (due is None and aside is None):
                continue
            try:
                name = Record.decode(record.decode()).template
            except ValueError:
                continue
            if name not in texts:
                texts[name] = self._read("HGET", self.keys.templates, name) or b""
            entry = _stored(task_id, int(float(aside if due is None else due)), record, texts[name])
            if entry is not None:
                yield entry


def _due(one: Addition) -> str:
    return f"{'+' if one.due.is_delay else '@'}{one.due.ms}"


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _stored(task_id: str, eta_ms: int, stored: bytes, template_text: bytes) -> StoredEntry | None:
    """The entry of a stored record; ``None`` if the record or its template cannot be read."""
    try:
        record = Record.decode(stored.decode())
        text = template_text.decode()
        if record.template.startswith("="):
            text = record.template[1:].replace("\x02", "\n")
        template = Template.decode(text)
        slots = {"i": task_id, "r": str(record.run), "d": str(eta_ms), "n": "0"}
        slots.update(zip(ascii_uppercase, record.values, strict=False))
        envelope = json.loads(template.fill(slots))
    except (KeyError, ValueError):
        return None
    return StoredEntry(
        EntryId(task_id, record.run),
        record.version,
        eta_ms,
        record.expires_ms,
        envelope["headers"],
        template.queue,
        envelope,
    )
