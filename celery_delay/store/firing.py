"""Periodic schedules: where each stands, and firing one occurrence."""

from __future__ import annotations

import json
from collections.abc import Mapping

from celery_delay.entries import Addition, template_id
from celery_delay.store.additions import due_text, record_text
from celery_delay.store.shard import Shard

__all__ = ["Firing"]


class Firing(Shard):
    """The periodic schedules of a shard."""

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
        due = self._read("ZRANGE", self.keys.occurrences, "-inf", now, "BYSCORE", "WITHSCORES")
        pairs = [(due[i].decode(), int(float(due[i + 1]))) for i in range(0, len(due), 2)]
        after = self._read(
            "ZRANGE",
            self.keys.occurrences,
            f"({now}",
            "+inf",
            "BYSCORE",
            "LIMIT",
            0,
            1,
            "WITHSCORES",
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
            record = record_text(addition, self.now_ms() + self._settings.window_ms, False)
            rest = [
                addition.entry_id.task_id,
                due_text(addition.due),
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
