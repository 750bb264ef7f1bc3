"""``forecast`` and ``stats``: how much waits, when it becomes due, what has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.output import Output
from celery_delay.cli.times import fields, local, relative
from celery_delay.cli.verb import YES, option, verb
from celery_delay.delayed.overview import MOST_PERIODS
from celery_delay.domain.clock import from_ms
from celery_delay.domain.periods import UNITS
from celery_delay.domain.spans import span

if TYPE_CHECKING:
    from datetime import tzinfo

    from celery_delay.app import CeleryDelay
    from celery_delay.domain.answers import Forecast, RecentPast, Stats

__all__ = ["forecast_command", "stats_command"]

# --- forecast ----------------------------------------------------------------------------


@verb("forecast")
@option("--by", type=click.Choice(list(UNITS)), default="hour", show_default=True,
        help="The length of a period.")  # fmt: skip
@option("--periods", type=click.IntRange(1, MOST_PERIODS), default=24, show_default=True,
        help="How many of them.")  # fmt: skip
def forecast_command(delayed: CeleryDelay, out: Output, *, by: str, periods: int) -> int:
    """Tell how many tasks become due in each minute, hour or day to come.

    The first period is what is left of the current one.  Hours and days are those of the
    app's timezone.  "overdue" has an eta that has passed, "later" one after the last period; held
    and blocked tasks, and those that a pause keeps back, are in none of them.  Redis only counts:
    it is not slowed down.

    \b
    Examples:
      celery -A proj delay forecast
      celery -A proj delay forecast --by minute --periods 60
      celery -A proj delay forecast --by day --periods 14 --json |
          jq -r '.periods[] | [.start, .entries] | @tsv'

    The exit code is 0, or 69 if Redis cannot be reached.
    """
    found = delayed.forecast(by, periods)
    if out.as_json:
        out.document(_forecast_document(found))
    else:
        _print_forecast(out, found, delayed.app.timezone)
    return YES


def _forecast_document(found: Forecast) -> dict[str, Any]:
    return {
        "by": found.by,
        **fields("now", found.now_ms),
        "total": found.total,
        "overdue": found.overdue,
        "periods": [
            {**fields("start", one.start_ms), **fields("end", one.end_ms), "entries": one.entries}
            for one in found.periods
        ],
        "later": found.later,
        "held": found.held,
        "blocked": found.blocked,
        "gated": found.gated,
    }


#: Length of an instant up to its minutes.
_MINUTES = len("2030-01-31 09:00")


def _print_forecast(out: Output, found: Forecast, zone: tzinfo) -> None:
    def name(ms: int) -> str:
        text = from_ms(ms).astimezone(zone).isoformat(" ", "seconds")
        return text[:_MINUTES] + text[len("2030-01-31 09:00:00") :]

    out.bars(
        [
            ("overdue", found.overdue, True),
            *((name(one.start_ms), one.entries, True) for one in found.periods),
            ("later", found.later, False),
        ]
    )
    kept = {"held": found.held, "blocked": found.blocked, "kept back at gates": found.gated}
    apart = [f"{n} {what}" for what, n in kept.items() if n]
    out.line(", ".join([f"{found.total} tasks wait for their eta", *apart]), "dim")


# --- stats -------------------------------------------------------------------------------


@verb("stats")
def stats_command(delayed: CeleryDelay, out: Output) -> int:
    """Tell how many tasks wait and in which state, and how the last hour went.

    The first numbers are Redis', of all shards: how many tasks are scheduled (overdue ones among
    them), held, set aside, at gates (paused), parked, being published; how much memory they
    take, by samples.  The last are the audit's: how many tasks have come to each state in the
    last hour, and how long after their eta they were handed to their queues.  At most the latest
    10 000 events of a shard are looked at, so "since" may be less than an hour ago.

    \b
    Examples:
      celery -A proj delay stats
      celery -A proj delay stats --json | jq .past.lag.p99

    The exit code is 0, or 69 if Redis cannot be reached.  `status` tells what is wrong.
    """
    found = delayed.stats()
    if out.as_json:
        out.document(_stats_document(found))
    else:
        _print_stats(out, found)
    return YES


def _stats_document(found: Stats) -> dict[str, Any]:
    return {
        **fields("now", found.now_ms),
        "entries": found.entries,
        "scheduled": found.scheduled,
        "overdue": found.overdue,
        **fields("next_due", found.next_due_ms),
        "held": found.held,
        "blocked": found.blocked,
        "gated": found.gated,
        "quarantined": found.quarantined,
        "claimed": found.claimed,
        "cold": found.cold,
        "schedules": found.schedules,
        "templates": found.templates,
        "memory": found.memory,
        "entry_bytes": found.entry_bytes,
        "journal": found.journal,
        "drain_lag_ms": found.drain_lag_ms,
        "gap": found.gap,
        "past": _past_document(found.past) if found.past is not None else None,
        "past_error": found.past_error or None,
    }


def _past_document(past: RecentPast) -> dict[str, Any]:
    return {
        **fields("since", past.since_ms),
        "reached": past.reached,
        "lag": past.lag._asdict() if past.lag is not None else None,
    }


def _print_stats(out: Output, found: Stats) -> None:
    next_due, memory = found.next_due_ms, found.memory
    due = f"{local(next_due)} ({relative(next_due, found.now_ms)})" if next_due else "-"
    each = f", {found.entry_bytes} for each task" if found.entry_bytes else ""
    out.facts(
        [
            ("scheduled", found.scheduled),
            ("overdue", found.overdue),
            ("next due", due),
            ("held", found.held),
            ("blocked", found.blocked),
            ("at gates", found.gated),
            ("quarantined", found.quarantined),
            ("being published", found.claimed),
            ("in SQL alone", found.cold if found.cold is not None else "could not be asked"),
            ("periodic", found.schedules),
            ("memory", f"{memory} bytes{each}" if memory is not None else "may not be asked"),
            ("journal", f"{found.journal} entries, {span(found.drain_lag_ms)} behind"),
            ("gap", found.gap or None),
        ]
    )
    if found.past is not None:
        out.line()
        _print_past(out, found.past)
    elif found.past_error:
        out.line(f"the audit could not be asked: {found.past_error}", "red")


def _print_past(out: Output, past: RecentPast) -> None:
    lag = past.lag
    out.line(f"since {local(past.since_ms)}, by the audit", "dim")
    facts: list[tuple[str, object]] = sorted(past.reached.items())
    if lag is not None:
        late = [f"{name} {span(getattr(lag, name))}" for name in ("p50", "p95", "p99", "max")]
        facts.append(("handed off after", f"{', '.join(late)}, of {lag.handoffs}"))
    out.facts(facts or [("nothing", "happened")])
