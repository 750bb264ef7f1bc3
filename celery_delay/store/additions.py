"""Entries into the store, and out of it again before they are due.

What a lost answer means is decided here: both commands are repeated under the same
identity until the answer is known or their window has passed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from uuid import uuid4

from redis.exceptions import ResponseError

from celery_delay.domain.entries import Added, Addition, Due, EntryId, Record, template_id
from celery_delay.domain.labels import NO_LABELS
from celery_delay.domain.ports import Cancelled, Leaderless
from celery_delay.domain.states import CancelOutcome
from celery_delay.domain.uniqueness import FOLLOW
from celery_delay.exceptions import (
    AlreadyScheduled,
    DelayError,
    JournalFull,
    OutcomeUnknown,
    StoreUnavailable,
    UniqueConflict,
)
from celery_delay.store.connection import AnswerLost
from celery_delay.store.heartbeat import Heartbeat
from celery_delay.store.records import decode
from celery_delay.store.shard import REPEAT_AFTER, Shard

__all__ = ["ADD_LIMIT", "TEMPLATE_CAP", "Additions", "Attempt", "due_text", "record_text"]
__all__ += ["refusal"]

#: Templates a shard keeps; more shapes than this are stored inside their records.
TEMPLATE_CAP = 3_000
#: Entries that one add script takes; above this Redis would be busy for too long.
ADD_LIMIT = 1_000
#: Time-outs that one attempt takes at most: to connect, to look at the server, to add.
ATTEMPT = 3
#: How often an add that came too late, with certainty without effect, is drawn anew.
REDRAWS = 3


class Additions(Shard):
    """Adding and cancelling."""

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """What the answers say of the leader."""
        return Heartbeat(self.keys.shard, self._settings.leader_grace)

    def add(
        self,
        additions: Sequence[Addition],
        *,
        needs_leader: bool = False,
        until: float = math.inf,
    ) -> list[Added]:
        """Store *additions*, all or none, at most :data:`ADD_LIMIT` of them.

        An addition with run 0 gets its run here, once; a lost answer is followed by repeats
        with the same identities until ``delay_add_window`` has passed.

        Arguments:
            needs_leader: store nothing when no beat has led for ``delay_leader_grace``.
            until: when (boot clock) the call ends at the latest; the first attempt is always
                made, and may take :data:`ATTEMPT` time-outs.

        Raises:
            Leaderless: *needs_leader*, and no beat leads; nothing was stored.
            StoreUnavailable: nothing was stored.
            ValueError: a task id has a line break or a tab; nothing was stored.
            AlreadyScheduled: one task id has a live entry; nothing was stored.
            UniqueConflict: one unique key has another entry, which stays; nothing was stored.
            JournalFull: with ``delay_journal_full = "refuse"``; nothing was stored.
            OutcomeUnknown: no answer within the window, or the script broke.
        """
        if not additions:
            return []
        attempt, redraws = self._draw(additions), 0
        last = until - ATTEMPT * self._settings.redis_timeout
        give_up = min(self._clock.boot() + self._settings.add_window, last)
        while True:
            # what an earlier attempt may have stored is better stored than in doubt
            answer = self._try(attempt, needs_leader and not attempt.unknown)
            if answer is None:
                if self._clock.boot() >= give_up:
                    raise OutcomeUnknown(attempt.drawn[0].entry_id, attempt.unknown)
                self._clock.sleep(REPEAT_AFTER)
                continue
            status = answer[0].decode()
            if status == "OK":
                self.heartbeat.seen(int(answer[3]))
                return attempt.added(answer)
            if status == "TEMPLATE":
                attempt.offer(answer[2:])
            elif status == "INLINE":
                attempt.inline, attempt.offered = True, {}
            elif status == "BUSY" and self._clock.boot() < give_up:
                self._clock.sleep(REPEAT_AFTER)
            elif status != "LATE" or attempt.unknown or redraws == REDRAWS:
                raise refusal(status, answer, attempt)
            else:  # LATE, and certainly without effect
                redraws += 1
                self._offset_ms = None
                attempt = self._draw(additions)

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
        values = {"task_id": task_id, "run": run, "data": json.dumps(data)}
        answer = self._insist(EntryId(task_id, run), "cancel", values)
        # should this id be used again, its run must be told from the one that is refused
        self._not_before = max(self._not_before, int(answer[1]) + 1)
        outcome = CancelOutcome(answer[0].decode())
        if len(answer) < 6:
            return Cancelled(outcome, None)
        return Cancelled(outcome, decode(task_id, int(answer[5] or 0), answer[3], answer[4]))

    def _draw(self, additions: Sequence[Addition]) -> Attempt:
        """Give the new entries among *additions* their run, and the call its deadline."""
        now = self.now_ms()
        if now < self._not_before < now + 1000:  # unless the clock was set back since
            now = self._not_before
        for one in additions:
            task_id = one.entry_id.task_id
            if "\n" in task_id or "\t" in task_id:
                raise ValueError(f"the task id {task_id!r} cannot be stored")
        drawn = [
            one if one.entry_id.run else Addition(EntryId(one.entry_id.task_id, now), *one[1:])
            for one in additions
        ]
        return Attempt(drawn, now + self._settings.window_ms)

    def _when_full(self) -> dict[str, int]:
        """At how many events in the journal additions are refused, or left out of it."""
        settings = self._settings
        refuses = settings.is_sync or settings.journal_full == "refuse"
        return {
            "journal_max": settings.journal_max if settings.is_sync else self._journal_max,
            "refuse_when_full": int(refuses),
        }

    def _try(self, attempt: Attempt, needs_leader: bool) -> Any:
        """The script's answer; ``None`` if it was lost, or once one was and Redis is away."""
        try:
            return self._call(
                "add",
                {
                    "now": self._given_now(),
                    "window": self._settings.window_ms,
                    "tombstone_ms": self._tombstone_ms,
                    **self._when_full(),
                    "template_cap": TEMPLATE_CAP,
                    "template_count": len(attempt.offered),
                    "leader_grace": self.heartbeat.grace_ms if needs_leader else 0,
                    "epoch": 0,
                },
                attempt.rest(),
                steady=True,
            )
        except AnswerLost as exc:
            attempt.unknown = attempt.unknown or str(exc) or "the answer was lost"
        except StoreUnavailable:
            if not attempt.unknown:
                raise
        except ResponseError as exc:
            entry_id = attempt.drawn[0].entry_id
            raise OutcomeUnknown(entry_id, f"Redis says: {exc}") from exc
        return None


def refusal(status: str, answer: Sequence[bytes], attempt: Attempt) -> DelayError:
    """What to raise for an answer that says that this attempt stored nothing."""
    if status == "UNIQUE":
        # no earlier attempt stored anything, nor will one that is still on its way
        return UniqueConflict(answer[2].decode(), answer[3].decode())
    if attempt.unknown:
        # this attempt wrote nothing, but an earlier one may have, or may still arrive
        return OutcomeUnknown(attempt.drawn[0].entry_id, attempt.unknown)
    if status == "LEADERLESS":
        return Leaderless("no beat leads, so nobody would hand the task off")
    if status == "CONFLICT":
        return AlreadyScheduled(answer[2].decode())
    if status == "FULL":
        return JournalFull("the journal is full; see `celery delay status`")
    if status == "BUSY":
        key, task_id = answer[2].decode(), answer[3].decode()
        return StoreUnavailable(
            f"the task {task_id!r}, which has the unique key {key!r}, is being published; whether"
            " it can be changed is not known yet: call again"
        )
    return StoreUnavailable("each add came later to Redis than delay_add_window allows")


@dataclass
class Attempt:
    """One logical add, which may be sent several times under the same identities.

    Attributes:
        deadline_ms: until when, on the store's clock, it may arrive.
        unknown: why the outcome of an earlier sending is not known; "" while all are.
        offered: id → text of the templates that the server asked for.
        inline: whether the templates go into the records.
    """

    drawn: list[Addition]
    deadline_ms: int
    unknown: str = ""
    offered: dict[str, str] = field(default_factory=dict)
    inline: bool = False

    def offer(self, ids: Sequence[bytes]) -> None:
        """Bring the templates of *ids* along next time."""
        wanted = {one.decode() for one in ids}
        texts = {template_id(one.template): one.template for one in self.drawn}
        self.offered = {name: text for name, text in texts.items() if name in wanted}

    @cached_property
    def operation(self) -> str:
        """Names the attempt, where it has to be known again."""
        return uuid4().hex

    def added(self, answer: Sequence[bytes]) -> list[Added]:
        """What became of each addition, by the script's answer."""
        ends = 4 + len(self.drawn)
        replaced = {}
        if len(answer) > ends:
            replaced = {
                int(position): decode(task_id.decode(), int(due or 0), record, template)
                for position, task_id, record, template, due in zip(
                    *[iter(answer[ends:])] * 5, strict=True
                )
            }
        told = []
        for number, one in enumerate(self.drawn):
            code, due = chr(answer[2][number]), answer[4 + number]
            entry_id = one.entry_id
            if code in "KE":
                due, run, task_id = due.split(b" ", 2)
                entry_id = EntryId(task_id.decode(), int(run))
            told.append(Added(entry_id, code, int(due), replaced.get(number + 1)))
        return told

    def _keys_of(self, number: int, one: Addition) -> str:
        keys, unique = one.keys, one.labels.unique
        if keys is None:
            if unique is None:
                return ""
            keys = FOLLOW
        named = unique.key if unique is not None else keys.idempotency or ""
        return keys.encode(self._operation_of(number), named)

    def _operation_of(self, number: int) -> str:
        return f"{self.operation}/{number}"

    def rest(self) -> list[object]:
        """The script's arguments after the named ones."""
        rest: list[object] = [part for pair in self.offered.items() for part in pair]
        for number, one in enumerate(self.drawn):
            record = record_text(one, self._deadline_of(number), self.inline)
            keys = self._keys_of(number, one)
            rest += [one.entry_id.task_id, self._due_of(number), record, one.story, keys]
        return rest

    def _deadline_of(self, _number: int) -> int:
        return self.deadline_ms

    def _due_of(self, number: int) -> str:
        return due_text(self.drawn[number].due)


def record_text(one: Addition, deadline_ms: int, inline: bool) -> str:
    """The record of an addition; *inline* puts the template into it."""
    template = _known_id(one.template)
    if inline:
        template = "=" + one.template.replace("\n", "\x02")
    head = (one.entry_id.run, one.version, deadline_ms, one.expires_ms)
    labels = "" if one.labels is NO_LABELS else one.labels.encode()
    return Record(*head, template, one.values, labels).encode()


#: A process has few templates, and uses each many times.
_known_id = lru_cache(maxsize=256)(template_id)


def due_text(due: Due) -> str:
    """When an entry is due, as the scripts take it."""
    return f"{'+' if due.is_delay else '@'}{due.ms}"
