"""Storing the entries of a call: in Redis, in SQL, or in SQL first.

A step is one transaction, or one script on one shard.  Should a later step be refused, what the
earlier ones stored is cancelled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from kombu.utils.imports import symbol_by_name

from celery_delay.delayed.operations import Operations
from celery_delay.domain.entries import Added, Addition
from celery_delay.domain.outbox import Transaction, transaction
from celery_delay.exceptions import InvalidSetting
from celery_delay.store.additions import ADD_LIMIT
from celery_delay.store.keys import shard_of

__all__ = ["Adding"]

_REFUSED = {"reason": "another part of the same call was refused"}


class Adding(Operations):
    """The part of ``app.delayed`` that every delayed call ends in."""

    _has_outbox = False

    def add(
        self,
        additions: Sequence[Addition],
        chunk: int = ADD_LIMIT,
        *,
        needs_leader: bool = False,
        until: float | None = None,
    ) -> list[Added]:
        """Store entries of one call: all of them, or an exception and none.

        A crash between two steps leaves those stored that were made.

        Arguments:
            chunk: how many one script stores at most.
            needs_leader: store nothing while no beat leads.
            until: when (boot clock) the first step ends; later ones have ``delay_publish_timeout``.

        Raises:
            AuditUnavailable: SQL, which was to have them, is away.
            StoreUnavailable, OutcomeUnknown, DelayError: as ``apply_delayed`` says.
        """
        if (wanted := transaction()) is not None:
            return self.backed.enlist(self._placed(additions), wanted)
        if self._is_one_step and len(additions) <= min(chunk, ADD_LIMIT):
            until = until or self.clock.boot() + self.settings.publish_timeout
            stored = self.shards[0].add(additions, needs_leader=needs_leader, until=until)
            for one, added in zip(additions, stored, strict=True):
                self._end_others(one, added)
            return stored
        return self._add_in_steps(additions, chunk, needs_leader, until)

    @cached_property
    def _is_one_step(self) -> bool:
        """Whether one script stores whatever a call brings."""
        return self.settings.shards == 1 and not self.settings.is_backed

    def _add_in_steps(
        self, additions: Sequence[Addition], chunk: int, needs_leader: bool, until: float | None
    ) -> list[Added]:
        answers: dict[int, Added] = {}
        in_sql = self._for_sql(additions)
        in_redis = sorted(set(range(len(additions))).difference(in_sql))
        try:
            if in_sql:
                committed = self._commit([additions[one] for one in in_sql], needs_leader)
                answers.update(zip(in_sql, committed, strict=True))
            for shard, positions in self._steps(additions, in_redis, chunk):
                until = until or self.clock.boot() + self.settings.publish_timeout
                stored = self.shards[shard].add(
                    [additions[one] for one in positions], needs_leader=needs_leader, until=until
                )
                until = None
                answers.update(zip(positions, stored, strict=True))
        except BaseException:
            self._cancel_again(answers)
            raise
        for position, added in answers.items():
            self._end_others(additions[position], added)
        return [answers[position] for position in range(len(additions))]

    def transaction(self, *, session: Any = None, using: str | None = None) -> Transaction:
        """The caller's transaction, by SQLAlchemy's session or by Django's alias.

        Raises:
            TypeError, ValueError: *session* or *using* is none.
            InvalidSetting: there is no audit database, or that is another one.
        """
        if not self.settings.audited:
            raise InvalidSetting(
                "session= and using= need the audit's database, in which they write: set"
                ' delay_database_url, and delay_audit other than "off"'
            )
        if (session is None) == (using is None):
            raise TypeError("give session=, or using= in a Django project: one of the two")
        self._has_outbox = True
        where = "celery_delay.audit.outbox" if using is None else "celery_delay.django"
        made = symbol_by_name(f"{where}:transaction_of")
        given = using if session is None else session
        found: Transaction = made(given, self.backed_rows, self.audit_log.uuid)
        return found

    def _for_sql(self, additions: Sequence[Addition]) -> Sequence[int]:
        """The positions of those that SQL is to have."""
        if self.settings.is_sync:
            return range(len(additions))
        if not self.settings.hot_window:
            return ()
        now_ms = self.now_ms()
        return [
            position
            for position, one in enumerate(additions)
            if one.keys is None
            and one.labels.unique is None
            and one.due.ms + (now_ms if one.due.is_delay else 0)
            > now_ms + self.settings.hot_window_ms
        ]

    def _commit(self, additions: Sequence[Addition], needs_leader: bool) -> list[Added]:
        """Store entries with SQL first: all or none."""
        return self.backed.add(self._placed(additions), needs_leader=needs_leader)

    def _placed(self, additions: Sequence[Addition]) -> list[tuple[int, Addition]]:
        count = self.settings.shards
        return [(shard_of(one.entry_id.task_id, count), one) for one in additions]

    def _steps(
        self, additions: Sequence[Addition], positions: Sequence[int], chunk: int
    ) -> list[tuple[int, list[int]]]:
        """Which positions go to which shard, in one script each."""
        steps: dict[tuple[int, int], list[int]] = {}
        filled: dict[int, int] = {}
        for position in positions:
            shard = shard_of(additions[position].entry_id.task_id, self.settings.shards)
            number = filled[shard] = filled.get(shard, -1) + 1
            steps.setdefault((shard, number // max(1, min(chunk, ADD_LIMIT))), []).append(position)
        return [(shard, some) for (shard, _), some in steps.items()]

    def _cancel_again(self, answers: Mapping[int, Added]) -> None:
        for added in answers.values():
            if not added.is_other:
                self._cancelled(*added.entry_id, _REFUSED)
