"""Entries into the store, and out of it again before they are due.

What a lost answer means is decided here: both commands are repeated under the same
identity until the answer is known or their window has passed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from redis.exceptions import ResponseError

from celery_delay.entries import Addition, Due, EntryId, Record, template_id
from celery_delay.exceptions import (
    AlreadyScheduled,
    JournalFull,
    OutcomeUnknown,
    StoreUnavailable,
)
from celery_delay.ports import Added, Cancelled, Leaderless
from celery_delay.states import CancelOutcome
from celery_delay.store.connection import AnswerLost
from celery_delay.store.heartbeat import Heartbeat
from celery_delay.store.records import decode
from celery_delay.store.shard import REPEAT_AFTER, Shard

__all__ = ["ADD_LIMIT", "TEMPLATE_CAP", "Additions", "due_text", "record_text"]

#: Templates a shard keeps; more shapes than this are stored inside their records.
TEMPLATE_CAP = 1_000
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
                codes = answer[2].decode()
                self.heartbeat.seen(int(answer[3]))
                return [
                    Added(one.entry_id, code, int(due))
                    for one, code, due in zip(attempt.drawn, codes, answer[4:], strict=True)
                ]
            if status == "TEMPLATE":
                attempt.offer(answer[2:])
            elif status == "INLINE":
                attempt.inline, attempt.offered = True, {}
            elif attempt.unknown:
                # this attempt wrote nothing, but an earlier one may have, or may still arrive
                raise OutcomeUnknown(attempt.drawn[0].entry_id, attempt.unknown)
            elif status == "LEADERLESS":
                raise Leaderless("no beat leads, so nobody would hand the task off")
            elif status == "CONFLICT":
                raise AlreadyScheduled(answer[2].decode())
            elif status == "FULL":
                raise JournalFull("the journal is full; see `celery delay status`")
            elif redraws == REDRAWS:
                raise StoreUnavailable("each add came later to Redis than delay_add_window allows")
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

    def _draw(self, additions: Sequence[Addition]) -> _Attempt:
        """Give the new entries among *additions* their run, and the call its deadline."""
        now = self.now_ms()
        if now < self._not_before < now + 1000:  # unless the clock was set back since
            now = self._not_before
        for one in additions:
            task_id = one.entry_id.task_id
            if "\n" in task_id or "\t" in task_id:
                raise ValueError(f"the task id {task_id!r} cannot be stored")
        drawn = [
            one if one.entry_id.run else one._replace(entry_id=EntryId(one.entry_id.task_id, now))
            for one in additions
        ]
        return _Attempt(drawn, now + self._settings.window_ms)

    def _try(self, attempt: _Attempt, needs_leader: bool) -> Any:
        """The script's answer; ``None`` if it was lost, or once one was and Redis is away."""
        try:
            return self._call(
                "add",
                {
                    "now": self._given_now(),
                    "window": self._settings.window_ms,
                    "tombstone_ms": self._tombstone_ms,
                    "journal_max": self._journal_max,
                    "refuse_when_full": int(self._settings.journal_full == "refuse"),
                    "template_cap": TEMPLATE_CAP,
                    "template_count": len(attempt.offered),
                    "leader_grace": self.heartbeat.grace_ms if needs_leader else 0,
                },
                attempt.rest(),
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


@dataclass
class _Attempt:
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

    def rest(self) -> list[object]:
        """The script's arguments after the named ones."""
        rest: list[object] = [part for pair in self.offered.items() for part in pair]
        for one in self.drawn:
            record = record_text(one, self.deadline_ms, self.inline)
            rest += [one.entry_id.task_id, due_text(one.due), record, one.story]
        return rest


def record_text(one: Addition, deadline_ms: int, inline: bool) -> str:
    """The record of an addition; *inline* puts the template into it."""
    template, values = template_id(one.template), one.values
    if inline:
        template = "=" + one.template.replace("\n", "\x02")
    return Record(
        one.entry_id.run, one.version, deadline_ms, one.expires_ms, template, values
    ).encode()


def due_text(due: Due) -> str:
    """When an entry is due, as the scripts take it."""
    return f"{'+' if due.is_delay else '@'}{due.ms}"
