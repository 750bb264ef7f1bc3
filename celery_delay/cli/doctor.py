"""``doctor``: everything that can be wrong, looked at one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_delay.cli.output import Output
from celery_delay.cli.verb import NO, UNAVAILABLE, YES, verb

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["doctor_command"]

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red", "not checked": "yellow"}


@verb("doctor")
def doctor_command(delayed: CeleryDelay, out: Output) -> int:
    """Look at everything that can be wrong, and say what to do about it.

    \b
    here       versions, settings
    Redis      connection, version, persistence, eviction, memory, rights (ACL), clock
    shards     leader, overdue, blocked, held and quarantined tasks, journal
    audit      database, tables and their owner, clock
    Celery     broker, the way that due tasks take to it, visibility_timeout, results

    Each is ok, a note, a problem, or was not checked; one that fails hides no other.  Nothing is
    changed.  Like a beat that starts, it sends a message to a queue of its own and tries commands
    on keys of its own; what Redis refuses is seen in its ACL LOG.  Run it where a beat runs,
    as its user.  `celery purge` empties queues and leaves alone what waits in the store.

    \b
    Examples:
      celery -A proj delay doctor
      celery -A proj delay doctor --json | jq '.checks[] | select(.result == "problem")'

    The exit code is 0 if there is no problem, 1 if there is one, 69 if Redis is away (the rest is
    told all the same).
    """
    found = delayed.doctor()
    if out.as_json:
        out.document(
            {
                "ok": found.ok,
                "store_away": found.store_away,
                "checks": [{**one._asdict(), "remedy": one.remedy or None} for one in found.checks],
            }
        )
    else:
        for one in found.checks:
            out.named(one.result, f"{one.name}: {one.text}", _STYLES[one.result], list(_STYLES))
            if one.remedy:
                out.line(f"{'':11}  -> {one.remedy}")
        problems = sum(one.result == "problem" for one in found.checks)
        out.line()
        out.line(f"problems: {problems}" if problems else "no problem", "bold")
    if found.store_away:
        return UNAVAILABLE
    return YES if found.ok else NO
