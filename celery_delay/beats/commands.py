"""What ``celery inspect`` and ``celery control`` ask of workers, answered for stored tasks.

The answers have a worker's forms, so that whatever reads those reads these.  Each beat tells of
the shards that it leads, so nothing is told twice; a revoke is carried out by every beat, for it
can be repeated, and one that is just taking over must not miss it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from celery_delay.app import CeleryDelay
from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import StoredEntry
from celery_delay.domain.filters import LAST_MS
from celery_delay.domain.settings import PREFIX, Settings
from celery_delay.domain.states import State
from celery_delay.exceptions import DelayError
from celery_delay.store.redis import RedisStore

__all__ = ["MOST", "Commands", "has_stamp", "info", "scheduled_form"]

logger = logging.getLogger(__name__)

#: How many entries ``scheduled`` lists, and how many ids ``query_task`` looks up.
MOST = 300
#: Entries that are looked at between two commands, in search of stamps.
_PAGE = 200
#: Larger messages are told by Celery's own short texts of their arguments; in bytes.
_LARGEST_BODY = 4_096
_BROKER = ("hostname", "port", "virtual_host", "transport")
_SECRET = {"redis_url", "redis_options", "database_url", "database_engine", "payload_keys"}
#: What a worker's timer gives every task that it holds until its eta.
_PRIORITY = 6


#: A search for stamps: where, for which, from which eta on, after how many of that eta.
_Search = tuple[RedisStore, Mapping[str, Any], int, int]


class Commands:
    """Carries the commands out; called by one thread.

    Arguments:
        term: the term in which this beat leads a shard now; ``None``: it does not.
        holder: what this beat is called in the lease.
        name: what its node is called.
    """

    def __init__(
        self, delayed: CeleryDelay, term: Callable[[int], int | None], holder: str, name: str
    ) -> None:
        self._delayed = delayed
        self._term = term
        self._holder = holder
        self._name = name
        self._searches: deque[_Search] = deque()
        self.handlers: dict[str, Callable[..., Any]] = {
            "ping": self._ping,
            "stats": self._stats,
            "report": self._report,
            "conf": self._conf,
            "dump_conf": self._conf,
            "scheduled": self._scheduled,
            "dump_schedule": self._scheduled,
            "query_task": self._query_task,
            "revoke": self._revoke,
            "revoke_by_stamped_headers": self._revoke_by_stamped_headers,
        }

    @property
    def is_searching(self) -> bool:
        """Whether :meth:`go_on` has something to do."""
        return bool(self._searches)

    def go_on(self) -> None:
        """Do one step of what takes longer than a caller waits for his answer.

        Raises:
            StoreUnavailable, OutcomeUnknown: the next call takes the step again.
        """
        if self._searches:
            after = self._search(*self._searches[0])
            self._searches.popleft()
            if after is not None:
                self._searches.appendleft(after)

    @property
    def _led(self) -> list[RedisStore]:
        shards = enumerate(self._delayed.shards)
        return [shard for number, shard in shards if self._term(number) is not None]

    def _ping(self, _state: Any, **_: Any) -> Any:
        return {"ok": "pong"}

    def _stats(self, _state: Any, **_: Any) -> Any:
        shards, sizes = [], []
        for number, shard in enumerate(self._delayed.shards):
            term = self._term(number)
            sizes.append(shard.sizes())
            role = "standby" if term is None else "leader"
            shards.append({"shard": number, "role": role, "term": term, **sizes[-1]})
        leads = any(one["role"] == "leader" for one in shards)
        told = ("pending", "held", "claimed", "blocked", "gated", "quarantined")
        broker = self._delayed.app.connection_for_read().info()
        return {
            "role": "leader" if leads else "standby",
            "holder": self._holder,
            "version": version("celery-delay"),
            **{name: sum(one[name] for one in sizes) for name in told},
            "shards": shards,
            # what readers of a worker's stats look into without asking whether it is there
            "pid": os.getpid(),
            "clock": str(self._delayed.app.clock.value),
            "total": {},
            "prefetch_count": 0,
            "pool": {"implementation": __name__, "max-concurrency": 0, "processes": []},
            "broker": {one: broker.get(one) for one in _BROKER},
        }

    def _report(self, _state: Any, **_: Any) -> Any:
        software = [f"{one}:{version(one)}" for one in ("celery-delay", "celery", "kombu")]
        told = " ".join([*software, f"py:{platform.python_version()}"])
        return {"ok": f"software -> {told}\nplatform -> {platform.platform()}\n"}

    def _conf(self, _state: Any, with_defaults: bool = False, **_: Any) -> Any:
        settings = self._delayed.settings
        told = {}
        for one in fields(Settings):
            value = getattr(settings, one.name)
            if with_defaults or value != one.default:
                hidden = one.name in _SECRET and value is not None
                told[PREFIX + one.name] = "********" if hidden else value
        return told

    def _scheduled(self, _state: Any, **_: Any) -> Any:
        bounds: dict[str, Any] = {"after_ms": 0, "before_ms": LAST_MS, "state": State.SCHEDULED}
        led = self._led
        found = [one for shard in led for one in shard.between(limit=MOST, offset=0, **bounds)]
        listed = sorted(found, key=lambda one: one.eta_ms)[:MOST]
        told = [scheduled_form(one, self._name) for one in listed]
        more = sum(shard.count(**bounds) for shard in led) - len(told)
        if told and more > 0:
            told[-1]["more"] = more
        return told

    def _query_task(self, _state: Any, ids: Any = (), **_: Any) -> Any:
        told = {}
        for task_id in _listed(ids)[:MOST]:
            for shard in self._led:
                if not shard.keys.has(task_id, self._delayed.settings.shards):
                    continue
                entry = shard.get(task_id)
                if entry is not None:
                    told[task_id] = (entry.state.lower(), info(entry, self._name))
        return told

    def _revoke(self, _state: Any, task_id: Any = (), **_: Any) -> Any:
        failures = []
        for one in _listed(task_id):
            try:
                self._delayed.revoke(one)
            except DelayError as exc:
                text = f"{one} was not revoked in the store: {exc}"
                logger.error("%s", text, extra={"event": "revoke_failed", "task_id": one})
                failures.append(text)
        if failures:
            return {"error": failures[0]}
        return {"ok": f"tasks {set(_listed(task_id))} flagged as revoked"}

    def _revoke_by_stamped_headers(self, _state: Any, headers: Any = (), **_: Any) -> Any:
        if not isinstance(headers, Mapping):
            headers = dict(one.split("=", 1) for one in headers)
        # it may take longer than the caller waits; the next commands come in between
        self._searches += [(shard, headers, 0, 0) for shard in self._delayed.shards]
        return {"ok": f"headers {headers} flagged as revoked, but not terminated"}

    def _search(
        self, shard: RedisStore, stamps: Mapping[str, Any], after_ms: int, offset: int
    ) -> _Search | None:
        """Take the entries with one of *stamps* out of a page; the next page.

        A page begins with the eta at which the last one ended, which is looked at again: what
        leaves the store meanwhile shifts nothing.
        """
        page = shard.between(after_ms=after_ms, before_ms=LAST_MS, limit=_PAGE, offset=offset)
        stamped = [one.entry_id.task_id for one in page if has_stamp(one.headers, stamps)]
        for task_id in stamped:
            self._delayed.cancel(task_id, reason="revoked")
        last_ms = page[-1].eta_ms if page else after_ms
        if last_ms > after_ms:
            return shard, stamps, last_ms, 0
        if len(page) < _PAGE:
            return None
        return shard, stamps, after_ms, offset + len(page) - len(stamped)


# --- forms of a worker ---------------------------------------------------------------------


def scheduled_form(entry: StoredEntry, name: str) -> dict[str, Any]:
    """An entry as ``inspect scheduled`` lists what a worker holds; *name*: the node's."""
    eta = from_ms(entry.eta_ms).isoformat()
    return {"eta": eta, "priority": _PRIORITY, "request": info(entry, name)}


def info(entry: StoredEntry, name: str) -> dict[str, Any]:
    """An entry as a worker tells of a task that it has."""
    args, kwargs = _arguments(entry)
    properties: Any = entry.envelope.get("properties") or {}
    return {
        "id": entry.entry_id.task_id,
        "name": entry.task,
        "args": args,
        "kwargs": kwargs,
        "type": entry.task,
        "hostname": name,
        "time_start": None,
        "acknowledged": False,
        "delivery_info": {
            **(properties.get("delivery_info") or {}),
            "priority": properties.get("priority"),
            "redelivered": False,
        },
        "worker_pid": None,
    }


def _arguments(entry: StoredEntry) -> tuple[Any, Any]:
    """Arguments as they are where they are JSON and small; else as Celery's texts of them."""
    body = str(entry.envelope.get("body") or "")
    is_json = entry.envelope.get("content-type") == "application/json"
    if is_json and not entry.headers.get("compression") and len(body) <= _LARGEST_BODY:
        with suppress(ValueError, TypeError):
            args, kwargs, _embed = json.loads(b64decode(body))
            return args, kwargs
    return entry.headers.get("argsrepr"), entry.headers.get("kwargsrepr")


def has_stamp(headers: Mapping[str, Any], stamps: Mapping[str, Any]) -> bool:
    """Whether a message bears one of *stamps*, as a worker compares them."""
    borne: Mapping[str, Any] = headers.get("stamps") or {}
    for name in headers.get("stamped_headers") or ():
        if name in stamps and borne.get(name) is not None:
            wanted = _listed(stamps[name])
            if borne[name] in wanted or any(one in wanted for one in _listed(borne[name])):
                return True
    return False


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple, set)) else [given]
