"""``CeleryDelay(app)``: builds every part once and offers them as ``app.delayed``.

Installing touches neither ``app.conf`` nor the network, so it can stand right below the
line that makes the app, before or after its configuration.  Settings are read, and Redis is
connected, when something is scheduled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from kombu.utils.imports import symbol_by_name

from celery_delay import bulk, calls, canvas, configuration
from celery_delay.amqp import AMQP, Capturing
from celery_delay.broker import Broker
from celery_delay.checking import Checking
from celery_delay.chords import Chords
from celery_delay.clock import SystemClock
from celery_delay.collection import OPTION, Call
from celery_delay.control import Control, Revoking
from celery_delay.entries import Addition
from celery_delay.envelope import check_task_id
from celery_delay.operations import Operations
from celery_delay.ports import Added, Transition
from celery_delay.probe import difference
from celery_delay.result import DelayedResult
from celery_delay.results import ResultBackend
from celery_delay.settings import Settings
from celery_delay.store.additions import ADD_LIMIT
from celery_delay.store.connection import Links
from celery_delay.store.keys import ShardKeys, shard_of
from celery_delay.store.redis import RedisStore
from celery_delay.worker import WorkerSignals

__all__ = ["CeleryDelay", "install"]

logger = logging.getLogger(__name__)


class CeleryDelay(Operations, Checking):
    """Delayed tasks for *app*.  Calling it again on the same app changes nothing.

    The manager is also ``app.delayed``.
    """

    def __new__(cls, app: Any) -> CeleryDelay:
        installed = app.__dict__.get("delayed")
        if isinstance(installed, cls):
            return installed
        return super().__new__(cls)

    def __init__(self, app: Any) -> None:
        if app.__dict__.get("delayed") is self:
            return
        self.app = app
        self.clock = SystemClock()
        app.delayed = self
        app.amqp_cls = _with(Capturing, AMQP, app.amqp_cls, "celery.app.amqp:AMQP")
        app.control_cls = _with(Revoking, Control, app.control_cls, "celery.app.control:Control")
        for made_before in ("amqp", "control"):
            if not isinstance(app.__dict__.get(made_before), (Capturing, Revoking)):
                app.__dict__.pop(made_before, None)
        # an app that is unpickled, in a child process say, calls its fix-ups while it is made
        app.fixups = {*app.fixups, f"{__name__}:{CeleryDelay.__name__}"}
        self._signals = WorkerSignals(app, self)
        self._signals.connect()
        self._chords = Chords(app, self.clock)
        self._chords.connect()

    # -- scheduling ---------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Any = None,
        *,
        countdown: Any = None,
        eta: Any = None,
        tz: Any = None,
        **options: Any,
    ) -> DelayedResult:
        """``app.send_task`` with a delay: by name, for tasks that live in another project.

        Raises:
            As ``Task.apply_delayed``.
        """
        call = Call(calls.due_for(self.app, countdown, eta, tz))
        check_task_id(options.get("task_id"))
        result = self.app.send_task(name, args, kwargs, **{OPTION: call}, **options)
        assert call.added is not None
        return DelayedResult.of(result, call.added)

    def add(
        self,
        additions: Sequence[Addition],
        chunk: int = ADD_LIMIT,
        *,
        needs_leader: bool = False,
        until: float | None = None,
    ) -> list[Added]:
        """Store entries of one call: all of them, or an exception and none.

        A shard or chunk is one step.  Should a later one be refused, the earlier ones are
        cancelled again; a crash in between leaves them stored.

        Arguments:
            needs_leader: store nothing while no beat leads.
            until: when (boot clock) the first step ends at the latest; ``None``:
                ``delay_publish_timeout`` from now, which is what each later step has.
        """
        steps: dict[tuple[int, int], list[int]] = {}
        filled: dict[int, int] = {}
        for position, one in enumerate(additions):
            shard = shard_of(one.entry_id.task_id, self.settings.shards)
            number = filled[shard] = filled.get(shard, -1) + 1
            steps.setdefault((shard, number // max(1, min(chunk, ADD_LIMIT))), []).append(position)
        answers: dict[int, Added] = {}
        try:
            for (shard, _), positions in steps.items():
                if until is None:
                    until = self.clock.boot() + self.settings.publish_timeout
                stored = self.shards[shard].add(
                    [additions[one] for one in positions], needs_leader=needs_leader, until=until
                )
                until = None
                answers.update(zip(positions, stored, strict=True))
        except BaseException:
            for added in answers.values():
                self._shard(added.entry_id.task_id).cancel(
                    added.entry_id.task_id,
                    run=added.entry_id.run,
                    data={"reason": "another part of the same call was refused"},
                )
            raise
        for position, added in answers.items():
            if added.code == "C":
                self._end_cancelled(additions[position], added)
        return [answers[position] for position in range(len(additions))]

    # -- parts --------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        """The ``delay_*`` settings, read and checked on first use.

        Raises:
            InvalidSetting: see there.
        """
        return configuration.read(self.app)

    @cached_property
    def shards(self) -> tuple[RedisStore, ...]:
        """The store, shard by shard."""
        links = self.links()
        return tuple(RedisStore(links, keys, self.settings, self.clock) for keys in self.shard_keys)

    @cached_property
    def shard_keys(self) -> tuple[ShardKeys, ...]:
        """The Redis keys, shard by shard."""
        prefix, space = self.settings.key_prefix, self._broker.prefix
        return tuple(ShardKeys(prefix, number, space) for number in range(self.settings.shards))

    @cached_property
    def results(self) -> ResultBackend:
        """Writes results for tasks that no worker will ever see."""
        return ResultBackend(self.app)

    @cached_property
    def audit_log(self) -> Any:
        """The SQL side; ``delay_database_url`` or ``delay_database_engine`` must be set."""
        return symbol_by_name("celery_delay.audit.log:SQLAuditLog").of(self.settings)

    def links(self) -> Links:
        """New connections to the store.

        Raises:
            InvalidSetting: ``delay_redis_url`` or ``delay_redis_options`` is wrong.
            UnsupportedBroker: there is no ``delay_redis_url``, and the broker is no Redis.
        """
        url, timeout = self.settings.redis_url, self.settings.redis_timeout
        if url is not None:
            return Links.from_url(url, timeout, self.settings.redis_options)
        return self._broker.links(timeout)

    def moves(self) -> bool:
        """Whether due tasks reach their queues by the move: both are on one Redis server.

        Raises:
            StoreUnavailable: the store cannot be asked.
            UnsupportedBroker: there is no ``delay_redis_url``, and the broker is no Redis.
        """
        if self.settings.handoff == "claim":
            return False
        return self._broker.shares(self.links if self.settings.redis_url is not None else None)

    def move_differs(self) -> str:
        """In what a moved message would differ from a published one, tried out; "" in nothing.

        Raises:
            StoreUnavailable: the store cannot be asked.
        """
        broker = self._broker
        store = self.links()
        try:
            queues = broker.links(store.timeout)
            return difference(self.app, store, queues, self.settings, self.clock, broker.prefix)
        finally:
            store.close()

    def broker_database(self) -> int:
        """Number of the Redis DB in which the broker's queues live."""
        return self._broker.database

    def record(self, transitions: Sequence[Transition], missing: int = 0) -> None:
        """Journal transitions of one task that happened in a worker, and how many are missing
        before them; nothing with ``delay_audit = "off"``."""
        if self.settings.audited:
            task_id = transitions[0].entry_id.task_id if transitions else ""
            self._shard(task_id).record(transitions, missing)

    def check(self) -> None:
        """Refuse a wrong configuration; without a connection.

        Raises:
            InvalidSetting, UnsupportedBroker: the text says what to change.
        """
        if self.settings.redis_url is None:
            self._broker.check()
        else:
            self.links()
        if self.settings.audited:
            _ = self.audit_log

    def went_native(self, task_id: str, run: int) -> None:
        """A run of *task_id* was sent natively from inside the run before it."""
        self._signals.went_native(task_id, run)

    def keep_chords(self, group_ids: Iterable[str], due_ms: int) -> None:
        """Let the counters of chords whose headers wait until *due_ms* live long enough."""
        for group_id in group_ids:
            self._chords.keep(group_id, (due_ms - self.now_ms()) / 1000)

    @cached_property
    def _broker(self) -> Broker:
        return Broker(self.app, self.clock)


def install(app: Any) -> CeleryDelay:
    """The same as ``CeleryDelay(app)``."""
    return CeleryDelay(app)


def _with(mixin: type, ours: type, given: Any, default: str) -> Any:
    """The class to set: by name where Celery's own is used, so that the app can be pickled."""
    if given == default:
        return f"{ours.__module__}:{ours.__name__}"
    base = symbol_by_name(given)
    if issubclass(base, mixin):
        return given
    return type(base.__name__, (mixin, base), {})


bulk.install_methods()
calls.install_methods()
canvas.install_methods()
