"""``celery beat -S celery_delay.Scheduler``: any number of them, one leads.

Celery's loop calls :meth:`Scheduler.tick` in the main thread; it fires periodic entries and
returns how long to wait.  Everything else runs in the replica's threads, so a slow message
of a periodic task cannot delay due tasks, and ``tick()`` keeps its contract: it never blocks
for long and raises nothing but a wrong configuration.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
from dataclasses import dataclass
from typing import Any

from celery import beat as celery_beat
from celery.utils.time import humanize_seconds
from kombu.exceptions import OperationalError

from celery_delay import occurrences
from celery_delay.app import CeleryDelay
from celery_delay.collection import collecting
from celery_delay.entries import Addition, Due
from celery_delay.exceptions import DelayError, StoreUnavailable, UnsupportedBroker
from celery_delay.periodic import Periodic, occurrence_id
from celery_delay.replica import Replica
from celery_delay.store.keys import shard_of

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

#: How long ``close()`` waits for the threads, in seconds.
CLOSE_WITHIN = 0.9


@dataclass(frozen=True)
class _EntryPlan:
    """When one entry of ``beat_schedule`` fires."""

    schedule: Any
    version: str

    def next_after(self, after_ms: int) -> int | None:
        return occurrences.next_after(self.schedule, after_ms)

    def firing(self, first_ms: int, now_ms: int, last_ms: int) -> tuple[int | None, int | None]:
        return occurrences.firing(self.schedule, first_ms, now_ms, last_ms)


class Scheduler(celery_beat.Scheduler):
    """A drop-in for Celery's schedulers that several processes may run at once.

    ``beat_schedule``, ``add_periodic_task`` and Celery's own default entries fire once per
    occurrence; delayed tasks are handed to their queues.  Where a schedule stands is kept in
    Redis, not in a file.
    """

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._delayed = CeleryDelay(app)
        self._replica: Replica | None = None
        self._periodic: Periodic | None = None
        self._ticking = False
        self._closed = False
        self._failing = False
        self._known_plans: dict[str, _EntryPlan] = {}
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
        term = replica.term()
        if term is None or self._periodic is None:
            # the main loop cannot be woken: look often, it costs nothing
            return 0.1
        wait = self._periodic.run_once(term, self._plans())
        if self._failing:
            self._failing = False
            logger.info("periodic tasks run again", extra={"event": "periodic_recovered"})
        return wait

    def _started(self) -> Replica:
        if self._replica is None:
            # not before the first tick: beat may have forked into the background until then
            replica = Replica(self._delayed)
            if not self._closed:
                replica.start()
            self._replica = replica
            self._periodic = Periodic(self._delayed.shards[0], self._build)
        return self._replica

    def _plans(self) -> dict[str, _EntryPlan]:
        # looked at anew each time: the user's code may have changed the schedule
        plans = {}
        for name, entry in self.schedule.items():
            known = self._known_plans.get(name)
            if known is None or known.schedule is not entry.schedule:
                text = occurrences.definition(entry.schedule)
                digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]
                known = _EntryPlan(entry.schedule, digest)
            plans[name] = known
        self._known_plans = plans
        return plans

    def _build(self, name: str, nominal_ms: int) -> Addition | None:
        entry = copy.copy(self.schedule[name])
        entry.options = {
            **entry.options,
            "headers": dict(entry.options.get("headers") or {}),
            "task_id": self._occurrence_id(name, nominal_ms),
        }
        self._failure = None
        with collecting(Due(0, True)) as collection:
            self.apply_entry(entry)
        if isinstance(self._failure, (DelayError, OperationalError, ConnectionError)):
            raise StoreUnavailable(f"cannot make the message of {name!r}") from self._failure
        self.reserve(self.schedule[name])
        if not collection.additions:
            return None
        [addition] = collection.additions
        return addition._replace(
            entry_id=addition.entry_id._replace(run=nominal_ms),
            story=json.dumps({**addition.facts, "periodic": name}),
        )

    def _occurrence_id(self, name: str, nominal_ms: int) -> str:
        """The task id of an occurrence, such that its entry lives where the schedules do."""
        settings, version = self._delayed.settings, self._known_plans[name].version
        salts = itertools.chain([""], (f"/{number}" for number in itertools.count(1)))
        ids = (
            occurrence_id(settings.key_prefix, name, version + salt, nominal_ms) for salt in salts
        )
        return next(one for one in ids if shard_of(one, settings.shards) == 0)
