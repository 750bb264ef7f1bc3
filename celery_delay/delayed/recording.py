"""Where workers' transitions go: each to the shard of its task."""

from __future__ import annotations

from collections.abc import Sequence

from celery_delay.delayed.steering import Steering
from celery_delay.domain.ports import Transition
from celery_delay.store.redis import RedisStore

__all__ = ["Recording"]


class Recording(Steering):
    """The part of ``app.delayed`` that workers tell."""

    def record(
        self, transitions: Sequence[Transition], missing: int = 0, late: Sequence[Transition] = ()
    ) -> None:
        """Take note of transitions of one task that happened in a worker.

        Arguments:
            missing: how many are missing in the journal before them.
            late: of those, whose tasks are watched as long as nobody tells.
        """
        if self.settings.audited or self.settings.tracks:
            own = transitions[0].entry_id.task_id if transitions else ""
            by_shard: dict[RedisStore, list[Transition]] = {}
            for one in late:
                by_shard.setdefault(self._shard(one.entry_id.task_id), []).append(one)
            for shard, some in by_shard.items():
                if shard is not self._shard(own):
                    shard.record((), 0, some)
            shard = self._shard(own)
            shard.record(transitions, missing, by_shard.get(shard, ()))
