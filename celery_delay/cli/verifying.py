"""``verify`` and ``rebuild``: Redis, against what SQL says it should have."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.verb import NO, YES, option, verb

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.delayed.verifying import Verification

__all__ = ["rebuild_command", "verify_command"]

_QUESTION = "Nothing is handed off meanwhile. Rebuild Redis from SQL?"
_WORDS = {
    "MISSING": "missing: SQL has them, Redis has not",
    "OLDER": "older in Redis than in SQL",
    "OVER": "over by SQL, and still in Redis",
}


@verb("verify")
@option("--repair", is_flag=True, help="Mend what differs.")
@option("--limit", type=click.IntRange(1), default=20, show_default=True,
        help="Ids shown for each kind; --json has them all.")  # fmt: skip
def verify_command(delayed: CeleryDelay, out: Output, *, repair: bool, limit: int) -> int:
    """Compare the tasks in Redis with what SQL says should be there.

    For delay_audit = "sync" and delay_hot_window.  Redis is read as digests of a thousand tasks
    each; only where they differ from SQL's, tasks are looked at one by one.  A difference is told
    if it is still there after a second, and the journal does not explain it: so a busy system
    has none.

    --repair gives what is missing or older to the leading beat, which brings it back within a
    second or two, and takes out what is over.  Nobody waits for either.

    \b
    Examples:
      celery -A proj delay verify
      celery -A proj delay verify --repair
      celery -A proj delay verify --json | jq -r '.differences[].task_id'

    The exit code is 0 if both agree (after a repair: if all could be given to be mended), 1 if they
    do not, 69 if one of them cannot be reached, or the leader is comparing them just now.
    """
    found = _verified(delayed, repair)
    if out.as_json:
        out.document(_document(found))
    else:
        _print(out, found, limit)
    return YES if found.repaired == len(found.differences) else NO


@verb("rebuild")
@option("--dry-run", is_flag=True, help="Only tell what would be brought back or taken out.")
@option("--yes", is_flag=True, help="Do not ask.")
@option("--timeout", type=click.FloatRange(1.0), default=600.0, show_default=True,
        help="Seconds to wait for the leader; it goes on after that.")  # fmt: skip
def rebuild_command(
    delayed: CeleryDelay, out: Output, *, dry_run: bool, yes: bool, timeout: float
) -> int:
    """Let the leading beat make Redis anew from SQL, as after a failover.

    It does so by itself when Redis was emptied, restarted or replaced.  With delay_audit = "sync"
    nothing is handed off until it is done, some seconds for 100 000 tasks: what is due waits.  To
    mend single tasks with nobody waiting, see `verify --repair`.

    \b
    Examples:
      celery -A proj delay rebuild --dry-run
      celery -A proj delay rebuild --yes

    The exit code is 0 if it was done, 1 if it was not confirmed, 69 if there is no leader that
    does it, or Redis or SQL cannot be reached.
    """
    if dry_run:
        found = _verified(delayed, False)
        if out.as_json:
            out.document({"dry_run": True, "done": False, **_document(found)})
        else:
            _print(out, found, 20)
        return YES
    if not yes and not click.confirm(_QUESTION, err=True):
        return NO
    with progress_bar("rebuilding", None) as show:
        delayed.rebuild(timeout=timeout, progress=lambda n: show(n, f"{n} tasks in Redis"))
    found = _verified(delayed, False)
    if out.as_json:
        out.document({"dry_run": False, "done": True, **_document(found)})
    else:
        out.line("Redis was made anew from SQL", "green")
        _print(out, found, 20)
    return YES


def _verified(delayed: CeleryDelay, repair: bool) -> Verification:
    with progress_bar("comparing", None) as show:
        return delayed.verify(repair=repair, progress=lambda n: show(n, f"{n} tasks"))


def _document(found: Verification) -> dict[str, Any]:
    return {
        "in_redis": found.in_redis,
        "in_sql": found.in_sql,
        "unbacked": found.unbacked,
        "stretches": found.stretches,
        "differing": found.differing,
        "repaired": found.repaired,
        "differences": [
            {
                "task_id": one.entry_id.task_id,
                "run": one.entry_id.run,
                "shard": one.shard,
                "kind": one.kind,
                "redis_version": one.redis_version,
                "sql_version": one.sql_version,
            }
            for one in found.differences
        ],
    }


def _print(out: Output, found: Verification, limit: int) -> None:
    for kind, number in sorted(Counter(one.kind for one in found.differences).items()):
        out.line(f"{number} {_WORDS[kind]}", "bold red")
        mine = [one.entry_id.task_id for one in found.differences if one.kind == kind]
        for task_id in mine[:limit]:
            out.line(f"    {task_id}")
        if number > limit:
            out.line(f"    and {number - limit} more", "dim")
    if found.repaired:
        out.line(f"{found.repaired} of them mended, or given to the leader to mend", "yellow")
    others = f" ({found.unbacked} of them not backed by SQL)" if found.unbacked else ""
    out.line(
        f"{found.in_redis} tasks wait in Redis{others}, {found.in_sql} should by SQL;"
        f" {len(found.differences)} differ",
        "red" if found.differences else "green",
    )
