"""``CeleryDelay(app)``: builds every part once and offers them as ``app.delayed``.

Installing touches neither ``app.conf`` nor the network, so it can stand right below the
line that makes the app, before or after its configuration.  Settings are read, and Redis is
connected, when something is scheduled.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu.utils.imports import symbol_by_name

from celery_delay import configuration
from celery_delay.broker.probe import difference
from celery_delay.broker.reach import Broker
from celery_delay.calling import bulk, calls, canvas
from celery_delay.calling.amqp import AMQP, Capturing
from celery_delay.calling.chords import Chords
from celery_delay.calling.result import DelayedResult
from celery_delay.delayed.adding import Adding
from celery_delay.delayed.checking import Checking
from celery_delay.delayed.control import Control, Revoking
from celery_delay.delayed.keyholders import KeyHolders
from celery_delay.delayed.recording import Recording
from celery_delay.delayed.retaining import Retaining
from celery_delay.delayed.updating import Updating
from celery_delay.delayed.verifying import Verifying
from celery_delay.doctor import Doctoring
from celery_delay.domain.clock import SystemClock
from celery_delay.domain.outbox import within
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import ForeignDatabase, StoreUnavailable
from celery_delay.message.collection import OPTION, Call
from celery_delay.message.redaction import Redactor
from celery_delay.metrics.exposition import require
from celery_delay.porting.importing import Importing
from celery_delay.porting.resealing import Resealing
from celery_delay.services.amending import Amending
from celery_delay.store.connection import Links
from celery_delay.store.keys import ShardKeys
from celery_delay.store.redis import RedisStore
from celery_delay.telemetry import ecs
from celery_delay.worker.guard import Guard
from celery_delay.worker.links import RunLinks
from celery_delay.worker.results import ResultBackend
from celery_delay.worker.revokes import Revokes
from celery_delay.worker.signals import WorkerSignals

if TYPE_CHECKING:
    from celery_delay.periodic.schedules import Schedules

__all__ = ["CeleryDelay", "install"]

logger = logging.getLogger(__name__)


class CeleryDelay(
    Adding,
    Verifying,
    Importing,
    Resealing,
    KeyHolders,
    Updating,
    Checking,
    Doctoring,
    Retaining,
    Recording,
):
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
        self._revokes = Revokes(app, self)
        self._revokes.connect()
        RunLinks(app).connect()
        self._guard = Guard(app, self)
        self._guard.connect()
        self._chords = Chords(app, self.clock)
        self._chords.connect()
        self.log_format = ecs.LogFormat(app, self)
        self.log_format.connect()

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
        if (transaction := calls.take_transaction(self.app, options)) is not None:
            with within(transaction):
                return self.send_task(
                    name, args, kwargs, countdown=countdown, eta=eta, tz=tz, **options
                )
        call = Call(calls.delay_of(self.app, countdown, eta, tz, options))
        result = self.app.send_task(name, args, kwargs, **{OPTION: call}, **options)
        assert call.added is not None
        return DelayedResult.of(result, call.added)

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
    def schedules(self) -> Schedules:
        """The periodic schedules: seen, steered, and added at run time."""
        from celery_delay.periodic.schedules import Schedules  # and Celery's beat with it

        return Schedules(self)

    @cached_property
    def redactor(self) -> Redactor:
        """What the audit is told of arguments; ``delay_audit_redact`` is imported now.

        Raises:
            InvalidSetting: that names nothing that can be called.
        """
        # not app.tasks: to schedule by name needs no task, and must not import any
        return Redactor(self.settings, self.app._tasks, self.app.conf.task_repr_maxlevels)

    @cached_property
    def audit_log(self) -> Any:
        """The SQL side; ``delay_database_url`` or ``delay_database_engine`` must be set."""
        return symbol_by_name("celery_delay.audit.log:SQLAuditLog").of(self.settings)

    @cached_property
    def cold_rows(self) -> Any:
        """What waits in SQL alone; as for :attr:`audit_log`."""
        made = symbol_by_name("celery_delay.audit.cold:SQLColdRows")
        return made(self.audit_log.database, self.seal)

    @cached_property
    def backed(self) -> Amending:
        """What adds and changes entries that SQL backs.

        Raises:
            AuditUnavailable: there are no tables, or (ForeignDatabase) they are another store's.
        """
        uuid = self.audit_log.prepare()
        with contextlib.suppress(StoreUnavailable):
            if self.shards[0].audit_id() not in (None, uuid):
                raise ForeignDatabase(
                    f"the delayed tasks in Redis belong to another database than {uuid}, so no beat"
                    " would see this one: check delay_database_url and delay_redis_url"
                )
        return Amending(self.shards, self.cold_rows, self.settings, self.clock)

    @cached_property
    def backed_rows(self) -> Any:
        """Their rows in SQL; as for :attr:`audit_log`."""
        made = symbol_by_name("celery_delay.audit.backed:SQLBackedRows")
        return made(self.audit_log.database, self.seal)

    def links(self) -> Links:
        """New connections to the store.

        Raises:
            InvalidSetting: ``delay_redis_url`` or ``delay_redis_options`` is wrong.
            UnsupportedBroker: there is no ``delay_redis_url``, and the broker is no Redis.
        """
        url, timeout = self.settings.redis_url, self.settings.redis_timeout
        if url is not None:
            links = Links.from_url(url, timeout, self.settings.redis_options)
        else:
            links = self._broker.links(timeout)
        links.around = self.around
        return links

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

    def list_endings(self) -> tuple[str, ...]:
        """What names the lists of a queue's priorities; without a connection."""
        return self._broker.endings() if self._broker.is_redis else ("",)

    def unacked_key(self) -> str:
        """Key of the broker's hash of what workers have; without a connection."""
        return self._broker.unacked if self._broker.is_redis else "unacked"

    def broker_database(self) -> int:
        """Number of the Redis DB in which the broker's queues live."""
        return self._broker.database

    def queue_lists(self) -> list[tuple[int, str]]:
        """DB number and key of the lists of the queues that this process knows."""
        return self._broker.lists()

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
            _ = self.audit_log, self.redactor
        ecs.check(self.settings)
        require(self.settings)

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
