"""Going after tasks that have left the store: off their queue again, or revoked for good."""

from __future__ import annotations

import json
import logging

from kombu.exceptions import OperationalError

from celery_delay.delayed.steering import Steering
from celery_delay.store.revoking import TakenOff

__all__ = ["TAKEN_OFF", "Chasing"]

logger = logging.getLogger(__name__)

#: Why a task is REVOKED that was taken off its queue, in the audit.
TAKEN_OFF = "taken off its queue"


class Chasing(Steering):
    """The part of ``app.delayed`` for what cannot be cancelled any more."""

    def take_off(self, task_id: str, *, run: int = 0, reason: str | None = None) -> TakenOff:
        """Take the message of *task_id* off its queue, if no worker has had it.

        Arguments:
            run: the run that the caller knows of.
            reason: goes to the audit.

        Raises:
            StoreUnavailable: nothing was taken.
            OutcomeUnknown: no answer came.
        """
        if json.dumps(task_id)[1:-1] != task_id:
            # its delivery tag does not tell whether its message has been there before
            return TakenOff(False, None, "its id has characters that JSON escapes")
        if not self.moves():
            return TakenOff(False, None, "its queue is not on the store's Redis")
        data = {**self._who(reason), "reason": taken_off(reason), "taken": True}
        return self._shard(task_id).take_off(task_id, run=run, queues=self.queue_lists(), data=data)

    def revoke_later(self, task_id: str) -> None:
        """Have workers drop *task_id*: those that run now, and those that take it later.

        The latter look for the mark with ``delay_worker_revokes``.

        Raises:
            StoreUnavailable: it may not be marked; the workers that run now have been told.
        """
        try:
            self._shard(task_id).mark_revoked([task_id])
        finally:
            self._tell_workers(task_id)

    def _tell_workers(self, task_id: str) -> None:
        connection = self.app.connection_for_write()
        errors = (OperationalError, OSError, *connection.connection_errors)
        try:
            self.app.control.revoke_in_workers(task_id)
        except (*errors, *connection.channel_errors) as exc:
            logger.warning(
                "the workers that run now do not know that %s is revoked: %s",
                task_id,
                exc,
                extra={"event": "workers_not_told", "task_id": task_id},
            )


def taken_off(reason: str | None) -> str:
    """Why a task ended that was taken off its queue."""
    return f"{TAKEN_OFF}: {reason}" if reason else TAKEN_OFF
