"""The clocks of this machine, of Redis and of the database server, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from celery_delay.doctor.checks import NOTE, OK, PROBLEM, Check
from celery_delay.doctor.visit import Visit
from celery_delay.domain.clock import Clock
from celery_delay.domain.spans import span

__all__ = ["database_clock", "redis_clock"]

#: Differences in ms that are worth a word, and a problem.
NOTED_MS, PROBLEM_MS = 500, 2_000

_SYNC = "let NTP (chrony, systemd-timesyncd) keep the clocks of both: chronyc tracking, timedatectl"


def redis_clock(visit: Visit) -> Iterator[Check]:
    """Redis' clock decides when a task is due."""
    shard = visit.delayed.shards[0]
    yield _compared(
        "redis_clock", "Redis", visit.delayed.clock, shard.time_ms,
        "tasks are due by Redis' clock: an eta that this machine reckons from its own, an"
        " `expires`, and a worker's eta are off by as much",
    )  # fmt: skip


def database_clock(visit: Visit) -> Iterator[Check]:
    """What SQL compares with now() is off by its difference."""
    delayed = visit.delayed
    if not delayed.settings.has_database:
        return
    queries = delayed.audit_queries()
    if queries.clock_ms() is None:  # also so that the next one finds a connection
        yield Check("database_clock", OK, "SQLite has the clock of the machine it is on")
        return

    def ask() -> int:
        return queries.clock_ms() or 0

    yield _compared(
        "database_clock", "the audit database", delayed.clock, ask,
        "instants in the audit are Redis'; queries that compare them with now() are off by as"
        " much",
    )  # fmt: skip


def _compared(
    name: str, whose: str, clock: Clock, ask_ms: Callable[[], int], meaning: str
) -> Check:
    before = clock.wall()
    theirs = ask_ms()
    after = clock.wall()
    ahead = theirs - round((before + after) * 500)
    # an answer that takes long can be from any instant on its way
    difference = max(0, abs(ahead) - round((after - before) * 500))
    way = "ahead of" if ahead > 0 else "behind"
    if difference <= NOTED_MS:
        return Check(name, OK, f"{whose} and this machine differ by {span(abs(ahead))}")
    text = f"the clock of {whose} is {span(abs(ahead))} {way} this machine's: {meaning}"
    return Check(name, PROBLEM if difference > PROBLEM_MS else NOTE, text, _SYNC)
