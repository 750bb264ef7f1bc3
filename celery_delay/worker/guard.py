"""The worker's side of ``delay_guard``: signs of life, and a claim before each run.

With ``guard`` a worker's main process claims a run in the store right before it gives the task
to its pool, whatever the pool: Celery calls the request's ``execute_using_pool`` then, and takes
:exc:`~celery.exceptions.TaskRevokedError` for "not now, and the place in the pool is free".

===================================================  ==========================================
the run …                                            and then this message …
===================================================  ==========================================
nobody has                                           runs
is over                                              is dropped: acknowledged, and journalled
a worker has that is dead, and had not begun it      runs
a worker has that is dead, and had begun it          runs if the broker delivers it again by
                                                     itself, else is dropped
a worker has that lives                              waits in this worker, unacknowledged, if it
                                                     may be all that is left; else is dropped
===================================================  ==========================================

"Delivers it again": ``acks_late``, or it bears the mark of a redelivery.  To wait instead of to
drop costs a place in a worker's memory; to drop could cost the task, should the other one die.

While the store does not answer, tasks run unclaimed: nothing is lost for that, and a copy may run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import uuid4

from celery import signals
from celery.exceptions import TaskRevokedError

from celery_delay.domain.clock import Clock
from celery_delay.domain.entries import EntryId
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import DelayError
from celery_delay.message.runs import entry_id_of
from celery_delay.services.loops import Loop
from celery_delay.store.guarding import Claim
from celery_delay.store.keys import ShardKeys, shard_of
from celery_delay.store.redis import RedisStore
from celery_delay.worker.fetched import fetched

__all__ = ["Guard"]

logger = logging.getLogger(__name__)

#: Signs of life within one ``delay_guard_patience``, so that some may get lost.
_SIGNS = 5


class Delayer(Protocol):
    """What the composition root offers to this module."""

    @property
    def clock(self) -> Clock: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def shards(self) -> Sequence[RedisStore]: ...

    @property
    def shard_keys(self) -> Sequence[ShardKeys]: ...

    def links(self) -> Any: ...


class Guard:
    """Receivers of one app's worker signals."""

    def __init__(self, app: Any, delayed: Delayer) -> None:
        self._app = app
        self._delayed = delayed
        #: What this worker is called in the store; "" while it guards nothing.
        self._name = ""
        self._signs: Loop | None = None
        self._not_before = -math.inf
        self._broken = False

    def connect(self) -> None:
        """Listen.  Connecting twice has no effect; nothing is paid outside of workers."""
        for signal, receiver in (
            (signals.worker_ready, self.on_ready),
            (signals.worker_shutdown, self.on_shutdown),
            (signals.worker_process_init, self.on_process_init),
            (signals.task_received, self.on_received),
        ):
            uid = ("celery-delay", id(self._app), f"guard.{receiver.__name__}")
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    # -- signs of life ------------------------------------------------------------------

    def on_ready(self, sender: Any = None, **_: Any) -> None:
        """The worker takes messages: give signs of life from now on, in a thread."""
        if sender is None or sender.app is not self._app or self._signs is not None:
            return
        try:
            settings = self._delayed.settings
            if not settings.tracks:
                return
            # connections of its own: a fork may come at any moment
            links, clock = self._delayed.links(), self._delayed.clock
            shards = [RedisStore(links, one, settings, clock) for one in self._delayed.shard_keys]
        except DelayError as exc:
            logger.error("this worker guards nothing: %s", exc, extra={"event": "guard_unready"})
            return
        name = self._named(sender.hostname)
        queues = list(sender.app.amqp.queues.consume_from)

        def give_signs() -> float:
            for shard in shards:
                shard.give_sign(name, queues)
            for entry_id in fetched(sender):
                number = shard_of(entry_id.task_id, settings.shards)
                shards[number].tell_fetched([entry_id])
            return settings.guard_patience / _SIGNS

        def end() -> None:
            for shard in shards:
                shard.give_sign(name, ())
            links.close()

        self._signs = Loop("guard", give_signs, clock, last=end)
        self._signs.start()

    def on_process_init(self, **_: Any) -> None:
        """A pool's process begins: signs are its parent's business."""
        self._signs = None

    def on_shutdown(self, **_: Any) -> None:
        """The worker ends, and what it had may run elsewhere at once."""
        signs, self._signs = self._signs, None
        if signs is not None and signs.is_alive():
            signs.stop()
            signs.join(1.0)

    def _named(self, hostname: str) -> str:
        if not self._name:
            self._name = f"{hostname} {uuid4().hex[:8]}"
        return self._name

    # -- claims -------------------------------------------------------------------------

    def on_received(self, sender: Any = None, request: Any = None, **_: Any) -> None:
        """A worker has taken a message: when its turn comes, its run is claimed first."""
        entry_id = entry_id_of(request)
        if entry_id is None or getattr(request.task, "app", self._app) is not self._app:
            return
        try:
            guards = self._delayed.settings.guards
        except DelayError:
            return
        if guards:
            _Turn(self, sender, request, entry_id)

    def claim(self, request: Any, entry_id: EntryId, token: str) -> Claim:
        """What is to become of a message whose turn has come; RUN if the store is silent."""
        clock = self._delayed.clock
        begun = clock.monotonic()
        if begun < self._not_before:
            return Claim.RUN
        comes_again = bool(request.task.acks_late or request.delivery_info.get("redelivered"))
        try:
            answer = self._shard(entry_id).begin_run(
                entry_id,
                token=token,
                worker=self._named(request.hostname),
                comes_again=comes_again,
            )
        except DelayError as exc:
            now = clock.monotonic()
            self._not_before = now + 2 * (now - begun)
            if not self._broken:
                self._broken = True
                logger.warning(
                    "tasks run unguarded: the store cannot be asked: %s",
                    exc,
                    extra={"event": "guard_blind"},
                )
            return Claim.RUN
        if self._broken:
            self._broken = False
            logger.warning("tasks are guarded again", extra={"event": "guard_sees"})
        return answer

    def give_back(self, entry_id: EntryId, token: str) -> None:
        """The message goes back to its queue, so that its run is nobody's."""
        try:
            self._shard(entry_id).unclaim(entry_id, token)
        except DelayError as exc:
            logger.warning(
                "%s waits until this worker counts as dead: its claim cannot be given back: %s",
                entry_id.task_id,
                exc,
                extra={"event": "claim_kept", "task_id": entry_id.task_id},
            )

    @property
    def look_again(self) -> float:
        """After how many seconds a message that waits asks again."""
        return self._delayed.settings.guard_patience / _SIGNS

    def _shard(self, entry_id: EntryId) -> RedisStore:
        return self._delayed.shards[shard_of(entry_id.task_id, self._delayed.settings.shards)]


class _Turn:
    """One message in a worker, from when it came until it runs or is dropped."""

    def __init__(self, guard: Guard, consumer: Any, request: Any, entry_id: EntryId) -> None:
        self._guard = guard
        self._consumer = consumer
        self._entry_id = entry_id
        self._token = uuid4().hex
        self._request = request
        self._execute = request.execute_using_pool
        self._reject = request.on_reject
        request.execute_using_pool = self.execute
        request.on_reject = self.reject

    def execute(self, pool: Any, **options: Any) -> Any:
        """In place of the request's own."""
        request, told = self._request, self._entry_id._asdict()
        claim = self._guard.claim(request, self._entry_id, self._token)
        if claim is Claim.WAIT:
            logger.info(
                "%s waits: another worker has it", request.id, extra={"event": "copy_waits", **told}
            )
            self._wait()
        elif claim is Claim.DROP:
            logger.info(
                "%s is dropped: it is one copy too many",
                request.id,
                extra={"event": "copy_dropped", **told},
            )
            self._drop()
        else:
            if claim is Claim.TAKEN:
                logger.info(
                    "%s is taken over from a worker that is gone",
                    request.id,
                    extra={"event": "run_taken_over", **told},
                )
            execute = self._execute
            self._let_go()
            return execute(pool, **options)
        raise TaskRevokedError(request.id)

    def reject(self, logger: Any, errors: Any, requeue: bool = False) -> None:
        """In place of the request's own."""
        if requeue:
            self._guard.give_back(self._entry_id, self._token)
        self._reject(logger, errors, requeue)

    def _wait(self) -> None:
        """As if the message had an eta: Celery knows such ones, and drops them on its own way out
        and when the connection is lost."""
        from celery.worker import state  # heavy, and only of use in workers

        request, consumer = self._request, self._consumer
        state.reserved_requests.discard(request)
        consumer.qos.increment_eventually()
        request._eta_timer_entry = consumer.timer.call_after(
            self._guard.look_again, consumer.apply_eta_task, (request,), priority=6
        )
        state.task_scheduled(request)

    def _drop(self) -> None:
        from celery.worker import state

        request = self._request
        self._let_go()
        request.acknowledge()
        state.task_ready(request)

    def _let_go(self) -> None:
        """Break the circle of request and turn."""
        self._request.__dict__.pop("execute_using_pool", None)
        self._request = self._consumer = self._execute = None
