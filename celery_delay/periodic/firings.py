"""Messages of periodic tasks, made by the code of Celery's own beat."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from typing import Any

from celery import beat as celery_beat

from celery_delay.domain.entries import Addition
from celery_delay.domain.settings import Settings
from celery_delay.message.collection import Collection, collecting
from celery_delay.message.delays import AT_ONCE
from celery_delay.periodic.definitions import Definition
from celery_delay.services.periodic import occurrence_id
from celery_delay.store.keys import shard_of

__all__ = ["addition_of", "entry_of", "made_now", "occurrence_task_id"]


def occurrence_task_id(settings: Settings, name: str, version: str, nominal_ms: int) -> str:
    """The task id of an occurrence, such that its entry lives where the schedules do."""
    salts = itertools.chain([""], (f"/{number}" for number in itertools.count(1)))
    ids = (occurrence_id(settings.key_prefix, name, version + salt, nominal_ms) for salt in salts)
    return next(one for one in ids if shard_of(one, settings.shards) == 0)


def entry_of(app: Any, name: str, definition: Definition, schedule: Any = None) -> Any:
    """The entry that Celery's beat would have for *definition*."""
    return celery_beat.ScheduleEntry(
        name=name,
        task=definition.task,
        schedule=schedule,
        args=tuple(definition.args or ()),
        kwargs=dict(definition.kwargs or {}),
        options=dict(definition.options or {}),
        app=app,
    )


def addition_of(
    collection: Collection, name: str, nominal_ms: int, facts: Mapping[str, object] | None = None
) -> Addition | None:
    """The entry that was collected while a periodic task was sent; ``None`` if none was.

    Arguments:
        nominal_ms: the occurrence, which becomes the entry's run; 0: there is none.
        facts: more for the audit.
    """
    if not collection.additions:
        return None
    [addition] = collection.additions
    return addition._replace(
        entry_id=addition.entry_id._replace(run=nominal_ms),
        story=json.dumps({**addition.facts, "periodic": name, **(facts or {})}),
    )


def made_now(
    app: Any, entry: Any, task_id: str, nominal_ms: int, facts: Mapping[str, object]
) -> Addition | None:
    """The entry of one run of *entry*, made outside of a beat.

    Raises:
        celery.beat.SchedulingError: the message cannot be made; the cause says why.
    """
    entry = copy.copy(entry)
    headers = dict(entry.options.get("headers") or {})
    entry.options = {**entry.options, "headers": headers, "task_id": task_id}
    sender = celery_beat.Scheduler(app, lazy=True)
    with collecting(AT_ONCE) as collection:
        sender.apply_async(entry, advance=False)
    return addition_of(collection, entry.name, nominal_ms, facts)
