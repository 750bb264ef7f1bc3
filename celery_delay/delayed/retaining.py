"""What leaves the audit: tasks that are old enough, and a task that must be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery_delay.delayed.overview import Overview
from celery_delay.domain.retention import EVERY, PRUNABLE, age_of, ages
from celery_delay.exceptions import AuditUnavailable, InvalidSetting, StillAlive
from celery_delay.store.keys import shard_of

__all__ = ["Retaining"]

#: Seconds between two looks at how far the journal was drained.
_LOOK = 0.1


class Retaining(Overview):
    """The part of ``app.delayed`` that deletes from the audit."""

    def prune(
        self,
        older_than: float | str | None = None,
        *,
        states: Iterable[str] = (),
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Mapping[str, int]:
        """Delete what the audit knows of old tasks, in short transactions.

        The leader does it by itself where ``delay_retention`` is set.  A task's age counts from
        its end, and that of one that may run yet (DISPATCHED, STARTED, RETRIED) from its last
        change or its eta, whichever is later.  Tasks that wait are never deleted.  GAP events go by
        ``*``, or by an age of their own.
        A crash leaves whole tasks; repeat the call.

        Arguments:
            older_than: seconds, or a text such as ``30d``; ``None``: as ``delay_retention`` says.
            states: only tasks in these states.
            dry_run: delete nothing, and count.
            progress: called after each batch with the number of tasks so far.

        Returns:
            How many tasks, by state.

        Raises:
            ValueError: about the argument it names.
            InvalidSetting: the project keeps no audit, or *older_than* and ``delay_retention``
                are both missing.
            AuditUnavailable: its database cannot be asked; what was deleted before stays deleted.
        """
        wanted = self._ages(older_than, list(states))
        pruning, done = self._pruning(), dict.fromkeys(wanted, 0)
        now = self.clock.wall()
        for state, age in wanted.items():
            before_ms = round((now - age) * 1000)
            if dry_run:
                done[state] = pruning.count(state, before_ms)
                continue
            more = True
            while more:
                deleted = pruning.prune(state, before_ms)
                done[state] += deleted
                more = deleted > 0
                if progress is not None:
                    progress(sum(done.values()))
        return {state: number for state, number in done.items() if number}

    def forget(self, task_id: str, *, force: bool = False, timeout: float = 10.0) -> bool:
        """Delete all that the audit knows of a task that is over: for a right to be forgotten.

        First the journal must have been drained up to now, so that no late event writes the task
        down again.  The result in your result backend, the workers' logs and backups are not
        touched.

        Arguments:
            force: also a task that was handed off and of whose end nobody has told.
            timeout: seconds to wait for the drain.

        Returns:
            Whether there was anything.

        Raises:
            StillAlive: the task waits, or may run; nothing was deleted.
            InvalidSetting: the project keeps no audit.
            AuditUnavailable: the database cannot be asked, or no beat has drained the journal.
            StoreUnavailable: Redis could not be reached.
        """
        pruning = self._pruning()
        shard = self.shards[shard_of(task_id, self.settings.shards)]
        waiting = shard.get(task_id)
        if waiting is not None:
            raise StillAlive(task_id, waiting.state.value)
        if self.settings.audited:
            self._wait_for_drain(timeout)
        return bool(pruning.forget(task_id, force=force))

    def _ages(self, older_than: float | str | None, states: list[str]) -> dict[str, float]:
        for one in states:
            if one not in PRUNABLE:
                raise ValueError(f"state {one!r} is none of {', '.join(PRUNABLE)}")
        if older_than is not None:
            found = ages({EVERY: age_of(older_than)})
        elif self.settings.retention:
            found = ages(self.settings.retention)
        else:
            raise InvalidSetting(
                "say what is old (older_than, --older-than), or set delay_retention"
            )
        return {state: age for state, age in found.items() if not states or state in states}

    def _pruning(self) -> Any:
        self.audit_queries().require()
        from celery_delay.audit.pruning import SQLPruning

        return SQLPruning(self.audit_log.database)

    def _wait_for_drain(self, timeout: float) -> None:
        until = self.clock.monotonic() + timeout
        asked = [one.now_ms for one in self.inspect_shards()]
        while True:
            shards = self.inspect_shards()
            drained = (one.now_ms - one.drain_lag_ms for one in shards)
            if all(now >= then for now, then in zip(drained, asked, strict=True)):
                return
            if self.clock.monotonic() >= until:
                raise AuditUnavailable(
                    "the journal has not been drained: is a beat running, and its database up?"
                    " Nothing was deleted, since what is in the journal would come back"
                )
            self.clock.sleep(_LOOK)
