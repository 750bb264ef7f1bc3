"""``celery beat -S celery_delay.Scheduler``: any number of them, one leads.

Celery's loop calls :meth:`Scheduler.tick` in the main thread; it fires periodic entries and
returns how long to wait.  Everything else runs in the replica's threads, so a slow message
of a periodic task cannot delay due tasks, and ``tick()`` keeps its contract: it never blocks
for long and raises nothing but a wrong configuration.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Mapping, Set
from typing import Any

from celery import beat as celery_beat
from celery.utils.time import humanize_seconds
from kombu.exceptions import OperationalError

from celery_delay.app import CeleryDelay
from celery_delay.beats.replica import Replica
from celery_delay.domain.entries import Addition
from celery_delay.exceptions import DelayError, StoreUnavailable, UnsupportedBroker
from celery_delay.message.collection import collecting
from celery_delay.message.delays import AT_ONCE
from celery_delay.periodic.definitions import Definition
from celery_delay.periodic.firings import addition_of, entry_of, occurrence_task_id
from celery_delay.periodic.plans import SchedulePlan, StoredPlans, of_code
from celery_delay.periodic.times import Once
from celery_delay.services.periodic import Periodic

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

#: How long ``close()`` waits for the threads, in seconds.
CLOSE_WITHIN = 0.9


class Scheduler(celery_beat.Scheduler):
    """A drop-in for Celery's schedulers that several processes may run at once.

    ``beat_schedule``, ``add_periodic_task`` and Celery's own default entries fire once per
    occurrence; delayed tasks are handed to their queues.  Where a schedule stands is kept in
    Redis, not in a file.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._delayed = CeleryDelay(app)
        self._delayed.log_format.write_all()
        self._replica: Replica | None = None
        self._periodic: Periodic | None = None
        self._ticking = False
        self._closed = False
        self._failing = False
        self._plans_known: dict[str, SchedulePlan | None] = {}
        self._stored: StoredPlans | None = None
        self._added: Mapping[str, tuple[SchedulePlan, Definition] | None] = {}
        self._shadowed: Set[str] = set()
        # Imported now, for the banner, before beat's signal handler is there: that one makes a
        # second scheduler if it comes while this one is made, amid the import of the backend
        _ = app.backend
        super().__init__(app, *args, **kwargs)

    @property
    def info(self) -> str:
        """One line for beat's banner; works with Redis down."""
        interval = humanize_seconds(self.max_interval)
        return f"       . store -> redis\n       . maxinterval -> {interval}"

    def setup_schedule(self) -> None:
        """Read the schedule; refuse a wrong configuration before anything starts.

        Raises:
            InvalidSetting, UnsupportedBroker: the only errors that end beat.
        """
        self._delayed.check()
        # in this order, as Celery's PersistentScheduler does: to merge removes what is not given
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *_args: Any, **_kwargs: Any) -> float:
        """Fire the periodic entries that are due, if this replica leads.

        Returns:
            Seconds until the next call, at most 1 and at most ``max_interval``.
        """
        self._ticking = True
        try:
            return float(min(self._tick(), self.max_interval or 1.0))
        except UnsupportedBroker:
            raise  # store and broker are two servers: no waiting will mend that
        except (DelayError, OperationalError) as exc:
            if not self._failing:
                logger.warning(
                    "periodic tasks wait, and are tried again: %s",
                    exc,
                    extra={"event": "periodic_failing"},
                )
            self._failing = True
            return 1.0
        except Exception:
            logger.exception("a tick failed; beat goes on", extra={"event": "tick_crashed"})
            return 1.0
        finally:
            self._ticking = False

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kw: Any) -> Any:
        """Celery's, keeping what went wrong: :meth:`apply_entry` only logs it."""
        self._failure = None
        try:
            return super().apply_async(entry, producer=producer, advance=advance, **kw)
        except Exception as exc:
            self._failure = exc.__cause__ or exc.__context__ or exc
            raise

    def close(self) -> None:
        """Hand over and stop; at most a second, and any number of times.

        Celery calls it inside its signal handler too, on top of whatever the main thread was
        doing: then it only tells the threads, and the second call waits for them.
        """
        self._closed = True
        if self._replica is not None:
            self._replica.stop()
            if not self._ticking:
                self._replica.join(CLOSE_WITHIN)
        if not self._ticking:
            super().close()

    # -- inside -------------------------------------------------------------------------

    def _tick(self) -> float:
        replica = self._started()
        replica.ticked_at = self._delayed.clock.boot()
        term = replica.term()
        if term is None or self._periodic is None:
            # the main loop cannot be woken: look often, it costs nothing
            return 0.1
        wait = self._periodic.run_once(term, self._plans)
        if self._failing:
            self._failing = False
            logger.info("periodic tasks run again", extra={"event": "periodic_recovered"})
        return wait

    def _started(self) -> Replica:
        if self._replica is None:
            # not before the first tick: beat may have forked into the background until then
            replica = Replica(self._delayed)
            store = self._delayed.shards[0]
            self._periodic = Periodic(store, self._build, self._delayed.meter)
            self._stored = StoredPlans(self.app, store.definitions)
            # known before it starts: a signal that comes meanwhile must find it, to give back
            # the lease
            self._replica = replica
            # what is imported by now stays: to look through all of it again and again stops every
            # thread for as long, and was a fifth of the drain's work
            gc.freeze()
            if not self._closed:
                self._replica.start()
        return self._replica

    def _plans(self, revision: int) -> dict[str, SchedulePlan | None]:
        """All schedules by name: those of code, and those that were added at run time."""
        known, plans = self._plans_known, {}
        # looked at anew each time: the user's code may have changed the schedule
        for name, entry in self.schedule.items():
            plan = known.get(name)
            plans[name] = plan if plan and plan.schedule is entry.schedule else of_code(entry)
        assert self._stored is not None
        self._added = self._stored.of(revision)
        for name in self._added.keys() & plans.keys() - self._shadowed:
            logger.warning(
                "the schedule %r of beat_schedule hides one that was added at run time",
                name,
                extra={"event": "schedule_shadowed", "schedule": name},
            )
        self._shadowed = self._added.keys() & plans.keys()
        added = {name: found[0] if found else None for name, found in self._added.items()}
        self._plans_known = {**added, **plans}
        return self._plans_known

    def _build(self, name: str, nominal_ms: int) -> Addition | None:
        own = self.schedule.get(name)
        entry = self._entry_added(name) if own is None else copy.copy(own)
        plan = self._plans_known[name]
        assert plan is not None
        entry.options = {
            **entry.options,
            "headers": dict(entry.options.get("headers") or {}),
            "task_id": occurrence_task_id(self._delayed.settings, name, plan.version, nominal_ms),
        }
        self._failure = None
        with collecting(AT_ONCE) as collection:
            self.apply_entry(entry)
        if isinstance(self._failure, (DelayError, OperationalError, ConnectionError)):
            raise StoreUnavailable(f"cannot make the message of {name!r}") from self._failure
        if own is not None:
            self.reserve(own)
        return addition_of(collection, name, nominal_ms)

    def _entry_added(self, name: str) -> Any:
        found = self._added[name]
        assert found is not None
        plan, definition = found
        schedule = None if isinstance(plan.schedule, Once) else plan.schedule
        return entry_of(self.app, name, definition, schedule)
