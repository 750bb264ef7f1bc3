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

from celery_delay import calls, canvas, configuration
from celery_delay.amqp import AMQP, Capturing
from celery_delay.broker import RedisBroker
from celery_delay.chords import Chords
from celery_delay.clock import SystemClock
from celery_delay.collection import OPTION, Call
from celery_delay.control import Control, Revoking
from celery_delay.entries import Addition, StoredEntry
from celery_delay.envelope import check_task_id
from celery_delay.ports import Added, Ending, Transition
from celery_delay.result import DelayedResult
from celery_delay.results import ResultBackend
from celery_delay.settings import Settings
from celery_delay.states import CancelOutcome, State
from celery_delay.store.additions import ADD_LIMIT
from celery_delay.store.connection import Links
from celery_delay.store.keys import ShardKeys, shard_of
from celery_delay.store.redis import RedisStore
from celery_delay.worker import WorkerSignals

__all__ = ["CeleryDelay", "install"]

logger = logging.getLogger(__name__)

#: ``list`` is a method's name below.
_Entries = list[StoredEntry]

#: eta of the earliest and the latest entry there can be, in ms.
_ALL_TIMES = {"after_ms": 0, "before_ms": 253_402_300_800_000}


class CeleryDelay:
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

    # -- one task -----------------------------------------------------------------------

    def result(self, task_id: str) -> DelayedResult:
        """The result of a delayed task, known by its id alone."""
        return DelayedResult(task_id, app=self.app)

    def get(self, task_id: str) -> StoredEntry | None:
        """The live entry of *task_id*; ``None`` when the store has none (any more)."""
        return self._shard(task_id).get(task_id)

    def cancel(
        self, task_id: str, *, run: int = 0, eta_ms: int | None = None, reason: str | None = None
    ) -> CancelOutcome:
        """Take a task out before it is handed off; see :meth:`DelayedResult.cancel`.

        Arguments:
            run, eta_ms: what the caller knows of the entry; they make the answer for a task
                that has left the store long ago more exact.
            reason: goes to the audit and into the exception that ``get()`` raises.
        """
        data = {"by": self.app.oid, "reason": reason} if reason else {"by": self.app.oid}
        outcome, entry = self._shard(task_id).cancel(task_id, run=run, data=data)
        if entry is not None:
            self.results.end(self._ending(entry, reason or "cancelled"))
            self._tell_monitors(task_id)
        if outcome is CancelOutcome.NOT_FOUND:
            known = self.results.seen(task_id)
            if known in (State.REVOKED, State.CANCELLED):
                return CancelOutcome.CANCELLED
            if known or (eta_ms is not None and self.now_ms() >= eta_ms):
                return CancelOutcome.TOO_LATE
        return outcome

    # -- many tasks ---------------------------------------------------------------------

    def list(self, *, limit: int = 100, **between: int) -> _Entries:
        """Live entries, the earliest eta first.

        Arguments:
            limit: how many at most.
            after_ms, before_ms: bounds of their eta.
        """
        bounds = {**_ALL_TIMES, **between}
        found = [
            one for shard in self.shards for one in shard.between(**bounds, limit=limit, offset=0)
        ]
        return sorted(found, key=lambda one: one.eta_ms)[:limit]

    def count(self, **between: int) -> int:
        """How many entries are live, with the same bounds as :meth:`list`."""
        bounds = {**_ALL_TIMES, **between}
        return sum(shard.count(**bounds) for shard in self.shards)

    def now_ms(self) -> int:
        """The store's clock, in ms."""
        return self.shards[0].now_ms()

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
        if self.settings.redis_url is not None:
            self._broker.check_server(links)
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
        if self.settings.redis_url is not None:
            self.links()
        if self.settings.audited:
            _ = self.audit_log
        self._broker.check()

    def went_native(self, task_id: str, run: int) -> None:
        """A run of *task_id* was sent natively from inside the run before it."""
        self._signals.went_native(task_id, run)

    def keep_chords(self, group_ids: Iterable[str], due_ms: int) -> None:
        """Let the counters of chords whose headers wait until *due_ms* live long enough."""
        for group_id in group_ids:
            self._chords.keep(group_id, (due_ms - self.now_ms()) / 1000)

    @cached_property
    def _broker(self) -> RedisBroker:
        return RedisBroker(self.app)

    def _shard(self, task_id: str) -> RedisStore:
        return self.shards[shard_of(task_id, self.settings.shards)]

    def _tell_monitors(self, task_id: str) -> None:
        """Let Flower know, which learnt of the task by its task-sent event."""
        if not self.app.conf.task_send_sent_event:
            return
        try:
            with self.app.events.default_dispatcher() as events:
                events.send(
                    "task-revoked", uuid=task_id, terminated=False, signum=None, expired=False
                )
        except Exception:
            logger.debug("no task-revoked event for %s", task_id, exc_info=True)

    def _end_cancelled(self, addition: Addition, added: Added) -> None:
        facts = addition.facts
        self.results.end(
            Ending(
                added.entry_id,
                State.CANCELLED,
                str(facts.get("name", "")),
                facts.get("group"),
                facts.get("group_index"),
                facts.get("chord"),
                bool(facts.get("ignore_result")),
                "cancelled",
            )
        )

    @staticmethod
    def _ending(entry: StoredEntry, reason: str) -> Ending:
        headers: Any = entry.headers
        return Ending(
            entry.entry_id,
            State.CANCELLED,
            entry.task,
            headers.get("group"),
            headers.get("group_index"),
            entry.chord,
            bool(headers.get("ignore_result")),
            reason,
        )


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


calls.install_methods()
canvas.install_methods()
