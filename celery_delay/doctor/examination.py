"""All examinations, in their order, so that none hides another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from celery_delay.delayed.supervision import Supervision, store_away
from celery_delay.doctor import broker, clocks, project, server, store, workers
from celery_delay.doctor.checks import PROBLEM, UNCHECKED, Check, Checkup
from celery_delay.doctor.visit import Visit
from celery_delay.exceptions import DelayError, StoreUnavailable

__all__ = ["examine"]

_Examination = Callable[[Visit], Iterable[Check]]

#: name → examination, and whether it needs Redis.
_EXAMINATIONS: tuple[tuple[str, _Examination, bool], ...] = (
    ("redis_version", server.server_version, True),
    ("persistence", server.persistence, True),
    ("eviction", server.eviction, True),
    ("memory", server.memory, True),
    ("rights", server.rights, True),
    ("redis_clock", clocks.redis_clock, True),
    ("shards", store.shards, True),
    ("audit", store.audit, False),
    ("database_clock", clocks.database_clock, False),
    ("autovacuum", store.autovacuum, False),
    ("broker", broker.broker, False),
    ("path", broker.path, True),
    ("visibility_timeout", broker.visibility, False),
    ("results", broker.results, False),
    ("guard", workers.guard, True),
)


def examine(delayed: Supervision) -> Checkup:
    """Everything, one after the other."""
    visit = Visit(delayed)
    checks = [*_tried("versions", lambda one: project.versions(one.delayed), visit)]
    settings = [*_tried("settings", lambda one: project.settings(one.delayed), visit)]
    checks += settings
    is_away = False
    try:
        checks += server.connection(visit)
    except StoreUnavailable as exc:
        finding = store_away(exc)
        checks.append(Check("redis", PROBLEM, finding.text, finding.remedy))
        is_away = True
    except Exception as exc:
        checks.append(_unchecked("redis", exc))
    for name, examination, needs_redis in _EXAMINATIONS:
        if is_away and needs_redis:
            checks.append(Check(name, UNCHECKED, "Redis is away"))
        else:
            checks += _tried(name, examination, visit)
    visit.close()
    return Checkup(checks, is_away)


def _tried(name: str, examination: _Examination, visit: Visit) -> Iterator[Check]:
    try:
        yield from examination(visit)
    except Exception as exc:
        yield _unchecked(name, exc)


def _unchecked(name: str, error: Exception) -> Check:
    words = str(error) if isinstance(error, DelayError) else f"{type(error).__name__}: {error}"
    return Check(name, UNCHECKED, f"could not be looked at: {words}")
