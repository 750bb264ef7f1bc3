"""``POST /api/delayed/many/<verb>``: the same change of many, by ids or by a filter.

At most :data:`MOST` entries in one request, so that none takes longer than a browser waits; for
more there is the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_delay.delayed.sweeping import ManyOutcome
from celery_delay.exceptions import DelayError
from celery_delay.flower.acting import FIELDS, VERBS, log_change, when_of
from celery_delay.flower.answering import Refused
from celery_delay.flower.asking import FILTERS, Asked
from celery_delay.flower.documents import stored_row
from celery_delay.flower.guarding import JsonHandler

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["ManyHandler"]

#: Entries that one request changes, and ids that it names, at most.
MOST, MOST_IDS = 10_000, 1_000
_FIELDS = (*FIELDS, "ids", "filter", "everything", "dry_run", "expected")


class ManyHandler(JsonHandler):
    """One verb on many tasks."""

    async def post(self, name: str) -> None:
        """How many got which answer."""
        body = self.body()
        asked = Asked({one: [value] for one, value in body.items()}, _FIELDS)
        if ("ids" in body) == ("filter" in body):
            raise Refused(400, "say which: either ids or filter")
        change = _named if "ids" in body else _meant
        told = await self.ask(change, self.delayed, name, asked)
        if not told["dry_run"]:
            what = f"{told['matched']} tasks"
            log_change(self, name, what, f"done with {told['done']}")
        self.answer(told)


def _named(delayed: CeleryDelay, name: str, asked: Asked) -> dict[str, Any]:
    ids = asked.value("ids")
    if not isinstance(ids, list) or not all(isinstance(one, str) and one for one in ids):
        raise Refused(400, "ids must be a list of task ids")
    if not 1 <= len(ids) <= MOST_IDS:
        raise Refused(400, f"ids: {len(ids)} were given, 1 to {MOST_IDS} can be")
    if asked.flag("dry_run"):
        raise Refused(400, "dry_run goes with filter: ids are known")
    verb, outcome = VERBS[name], ManyOutcome()
    if verb.moves:
        when_of(asked)
    try:
        for one in dict.fromkeys(ids):
            outcome.take(one, verb.change(delayed, one, asked))  # type: ignore[arg-type]
    except DelayError as exc:
        raise _interrupted(exc, outcome) from exc
    return _document(delayed, outcome)


def _meant(delayed: CeleryDelay, name: str, asked: Asked) -> dict[str, Any]:
    verb = VERBS[name]
    which = _which(delayed, name, asked)
    when = when_of(asked) if verb.moves else {}
    change = getattr(delayed, verb.many)
    told: ManyOutcome = change(**which, **when, dry_run=True, limit=MOST + 1)
    if asked.flag("dry_run"):
        return _document(delayed, told)
    matched = told.looked_at
    expected = asked.number("expected", MOST, 0, MOST)
    if matched > MOST:
        raise Refused(
            409,
            f"more than {MOST} tasks are meant: narrow the filter, or use `celery delay {name}`",
            matched=matched,
        )
    if matched > expected:
        raise Refused(
            409, f"{matched} tasks are meant by now, not {expected}: look again", matched=matched
        )
    if not matched:
        return _document(delayed, ManyOutcome())
    try:
        done: ManyOutcome = change(**which, **when, reason=asked.text("reason"), limit=matched)
    except DelayError as exc:
        raise _interrupted(exc, getattr(exc, "so_far", ManyOutcome())) from exc
    return _document(delayed, done)


def _which(delayed: CeleryDelay, name: str, asked: Asked) -> dict[str, Any]:
    given = asked.value("filter")
    if not isinstance(given, Mapping):
        raise Refused(400, "filter must be an object")
    several = {one: value if isinstance(value, list) else [value] for one, value in given.items()}
    which: dict[str, Any] = Asked(several, FILTERS).filters(delayed)
    if name == "resend":
        which["state"] = ["QUARANTINED"]
    if asked.flag("everything"):
        which["everything"] = True
    return which


def _interrupted(exc: DelayError, so_far: ManyOutcome) -> Refused:
    told = f"{exc}; {so_far.done} tasks were changed before: ask again for the others"
    return Refused(503, told, done=so_far.done, outcomes=dict(so_far.outcomes))


def _document(delayed: CeleryDelay, told: ManyOutcome) -> dict[str, Any]:
    now_ms = delayed.now_ms() if told.sample else 0
    return {
        "matched": told.looked_at,
        "done": told.done,
        "outcomes": dict(told.outcomes),
        "failed": {name: list(ids) for name, ids in told.failed.items()},
        "dry_run": told.dry_run,
        "sample": [stored_row(delayed, one, now_ms) for one in told.sample],
    }
