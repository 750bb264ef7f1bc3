"""Periodic schedules: where each stands, and firing one occurrence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from redis.exceptions import ResponseError

from celery_delay.domain.entries import Addition, template_id
from celery_delay.domain.timetable import DueSchedules, Standing, Wanted
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.additions import due_text, record_text
from celery_delay.store.connection import AnswerLost
from celery_delay.store.shard import Shard

__all__ = ["BACKFILL_LIMIT", "DUE_LIMIT", "Firing", "change_of", "standing_of"]

#: Due schedules that one look tells of; the others follow with the next.
DUE_LIMIT = 500
#: Occurrences that one script fires.
BACKFILL_LIMIT = 100


def change_of(name: str) -> str:
    """What is in doubt if the answer to a change of a schedule is never heard."""
    return f"the change of the schedule {name!r}"


def standing_of(state: Mapping[str, Any]) -> Standing:
    """A schedule's stored state, as ``lua/include/schedules.lua`` describes it."""
    cursor = state.get("cursor")
    return Standing(
        None if cursor is None else int(cursor),
        bool(state.get("paused")),
        int(state.get("resumed") or 0),
    )


class Firing(Shard):
    """The periodic schedules of a shard."""

    def sync_schedules(self, *, term: int, revision: int, schedules: Mapping[str, Wanted]) -> bool:
        """Make the stored schedules those given.

        A schedule whose stored version is the same keeps its stored next occurrence.

        Returns:
            False if *term* leads no more, or if somebody has changed the schedules since they
            were of *revision*.
        """
        rest = [part for name, one in schedules.items() for part in (name, *one)]
        values = {"now": self._given_now(), "term": term, "revision": revision}
        with self._link() as link:
            answer = self._in_epoch(link, "sync_schedules", values, rest)
        return bool(answer == b"OK")

    def due_schedules(self) -> DueSchedules:
        """The schedules that are due, :data:`DUE_LIMIT` of them at most."""
        values = {"now": self._given_now(), "limit": DUE_LIMIT}
        try:
            answer = self._call("due_schedules", values)
        except (AnswerLost, ResponseError) as exc:
            raise StoreUnavailable(f"no usable answer of due_schedules: {exc}") from exc
        revision, now, following, *due = answer
        pairs = [(due[i].decode(), int(float(due[i + 1]))) for i in range(0, len(due), 2)]
        next_ms = int(float(following))
        return DueSchedules(int(now), pairs, None if next_ms < 0 else next_ms, int(revision))

    def standing(self, name: str) -> Standing:
        """Where the schedule *name* stands."""
        stored = self._read("HGET", self.keys.schedules, name)
        return standing_of(json.loads(stored) if stored else {})

    def fire(
        self,
        *,
        term: int,
        revision: int,
        name: str,
        expected_ms: int,
        cursor_ms: int,
        next_ms: int | None,
        missed: tuple[int, int] | None,
        addition: Addition | None,
    ) -> bool:
        """Advance the schedule *name* and add its entry, in one step.

        Arguments:
            expected_ms: the occurrence that the schedule must still be waiting for.
            cursor_ms: the nominal instant that fires.
            next_ms: the occurrence after it; ``None`` ends the schedule.
            missed: the first instant that is passed over, and that after the last.
            addition: the entry; ``None`` only advances.

        Returns:
            False if another leader fired it, *term* leads no more, or somebody has changed the
            schedules since they were of *revision*.
        """
        rest = [] if addition is None else self._parts(addition)
        with self._link() as link:
            answer = self._in_epoch(
                link,
                "fire",
                {
                    "now": self._given_now(),
                    "journal_max": self._journal_max,
                    "term": term,
                    "revision": revision,
                    "name": name,
                    "expected": expected_ms,
                    "cursor": cursor_ms,
                    "next": -1 if next_ms is None else next_ms,
                    "missed_from": missed[0] if missed else 0,
                    "missed_to": missed[1] if missed else 0,
                },
                rest,
            )
        return bool(answer == b"OK")

    def backfill(
        self,
        name: str,
        *,
        revision: int,
        force: bool,
        occurrences: Sequence[tuple[int, int, Addition]],
    ) -> str:
        """Fire occurrences of the past that were not fired.

        Arguments:
            occurrences: instant in ms, that of the next one, entry; ascending, at most
                :data:`BACKFILL_LIMIT`.
            force: also those that were fired.

        Returns:
            A letter for each, see ``backfill.lua``; or ``STALE`` or ``UNSEEN``: nothing was done.

        Raises:
            StoreUnavailable: nothing was done.
            OutcomeUnknown: no answer came within ``delay_add_window``.
        """
        rest = [
            part
            for nominal_ms, next_ms, addition in occurrences
            for part in (nominal_ms, next_ms, *self._parts(addition))
        ]
        values = {
            "operation": uuid4().hex,
            "name": name,
            "revision": revision,
            "force": int(force),
        }
        answer = self._insist(change_of(name), "backfill", values, rest)
        return str(answer[2].decode() if answer[0] == b"DONE" else answer[0].decode())

    def _parts(self, addition: Addition) -> list[object]:
        """An entry as ``lua/include/occurrence.lua`` takes it."""
        return [
            addition.entry_id.task_id,
            due_text(addition.due),
            record_text(addition, self.now_ms() + self._settings.window_ms, False),
            addition.story,
            template_id(addition.template),
            addition.template,
        ]
