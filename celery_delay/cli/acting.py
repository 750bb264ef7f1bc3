"""``cancel`` and ``migrate``: the verbs that change something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from celery_delay.cli.answers import ask, known_ids, remembered, tell, was_handed_off
from celery_delay.cli.audit import open_audit, shard_reports
from celery_delay.cli.completion import waiting_ids
from celery_delay.cli.output import Output
from celery_delay.cli.sweeping import by_filter, sweep, sweep_options
from celery_delay.cli.verb import NO, YES, option, verb
from celery_delay.domain.states import CancelOutcome, State
from celery_delay.exceptions import (
    DelayError,
    SchemaOutdated,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["cancel_command", "migrate_command"]

# --- cancel ------------------------------------------------------------------------------

_MEANING: Mapping[CancelOutcome, str] = {
    CancelOutcome.CANCELLED: "it never runs",
    CancelOutcome.TOO_LATE: "it was handed to its queue, and may run: `--chase` goes after it",
    CancelOutcome.NOT_FOUND: "no such task waits; a late add of it will be refused",
}
_CHASED: Mapping[CancelOutcome, str] = {
    **_MEANING,
    CancelOutcome.TOO_LATE: "it may have run, or run now; else the workers drop it",
    CancelOutcome.NOT_FOUND: "no such task is known; should one come, the workers drop it",
}


@verb("cancel")
@click.argument("task_ids", metavar="[ID...]", nargs=-1, shell_complete=waiting_ids)
@sweep_options
@option("--reason", help="Goes to the audit, and into the exception that get() raises.")
@option("--chase", is_flag=True, help="Go after a task that has been handed to its queue.")
def cancel_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task_ids: tuple[str, ...],
    reason: str | None,
    chase: bool,
    **given: Any,
) -> int:
    """Take tasks out before they are handed to their queues: by their ids, or by a filter.

    \b
    Each gets one of three answers:
      CANCELLED  it never runs
      TOO_LATE   it has been handed to its queue, and may run
      NOT_FOUND  no such task waits; should an add of it still be under way, it is refused

    With --chase, a task that has been handed to its queue is taken off it again, where that is a
    short list on the store's Redis and no worker has had it: it is CANCELLED then.  Else the
    workers are told to drop it, and with `delay_worker_revokes` those that start later do so too.

    \b
    Examples:
      celery -A proj delay cancel 5f0c6c2e-…
      celery -A proj delay cancel 5f0c6c2e-… 91a2b3c4-… --reason "order 17 was paid"
      celery -A proj delay cancel 5f0c6c2e-… --chase
      celery -A proj delay cancel --task 'campaign.*' --namespace acme --dry-run
      celery -A proj delay cancel --tag order-42 --yes --reason "order 42 was paid"

    With a filter they are shown and you are asked first.

    The exit code is 0 if all are CANCELLED, 69 if Redis gave no answer for one of them (ask
    again: cancelling is safe to repeat), else 1.
    """

    if by_filter(task_ids, given):
        if chase:
            raise click.UsageError("--chase goes with ids: a filter finds what still waits")
        change = delayed.cancel_many
        return sweep(delayed, out, change, CancelOutcome.CANCELLED, given, reason=reason)

    def cancel(task_id: str) -> CancelOutcome:
        outcome = delayed.cancel(task_id, reason=reason, chase=chase)
        if outcome is CancelOutcome.NOT_FOUND:
            state = remembered(delayed, task_id)
            if state == State.CANCELLED.value:
                return CancelOutcome.CANCELLED
            if was_handed_off(state):
                return CancelOutcome.TOO_LATE
        return outcome

    meaning = _CHASED if chase else _MEANING
    return tell(out, ask(known_ids(task_ids), cancel, meaning), CancelOutcome.CANCELLED)


# --- migrate -----------------------------------------------------------------------------


@verb("migrate")
@option("--check", is_flag=True, help="Change nothing; exit 1 if there is something to do.")
@option("--adopt", is_flag=True,
        help="Give the database to this project's Redis, whoever owned it before.")  # fmt: skip
@option("--sql", "as_sql", is_flag=True,
        help="Change nothing, connect to nothing: print what would be run.")  # fmt: skip
@option("--since", metavar="VERSION", help="With --sql: the version that the tables have, as 0001.")
def migrate_command(
    delayed: CeleryDelay, out: Output, *, check: bool, adopt: bool, as_sql: bool, since: str | None
) -> int:
    """Make the audit tables, or bring them to this release's schema.

    Safe to repeat, and while beats and workers run.  A leading beat does it by itself for an
    SQLite file; on a database server this command does it, once per release.

    The database and the delayed tasks in Redis know each other by a uuid, so that one project's
    journal never ends up in another's tables.  After Redis was emptied, or the database was
    restored or replaced, they differ and the leader does not drain: --adopt makes this database
    the one of this Redis.  Rows stay; another Redis that used it will find it foreign.

    \b
    Examples:
      celery -A proj delay migrate
      celery -A proj delay migrate --check
      celery -A proj delay migrate --adopt
      celery -A proj delay migrate --sql > delay.sql

    With --sql the statements are for the database and the schema of the settings, to be run once by
    whoever may; with --since they are those behind that version (SELECT version_num FROM
    celery_delay_version).

    The exit code is 1 if the tables are another Redis', and with --check also if they need this
    command.
    """
    if as_sql or since is not None:
        if not as_sql or check or adopt or out.as_json:
            raise click.UsageError("--sql goes with --since alone, and --since with --sql")
        return _print_sql(delayed, since)
    if check and adopt:
        raise click.UsageError("--check changes nothing: leave --adopt out")
    audit = open_audit(delayed)
    before = audit.schema()
    owner, store_error = _owner(delayed)
    if adopt and store_error is not None:
        raise StoreUnavailable(store_error)
    if before.state == "newer":
        raise SchemaOutdated(
            f"the audit tables in {audit.database} are of a newer release: upgrade celery-delay"
        )
    uuid = before.uuid if check else delayed.audit_log.migrate(adopt=owner if adopt else None)
    state = before.state if check else "current"
    foreign = owner is not None and uuid is not None and owner != uuid
    document = {
        "database": str(audit.database),
        "state_before": before.state,
        "state": state,
        "changed": not check and before.state != state,
        "uuid": uuid,
        "store_uuid": owner,
        "foreign": foreign,
        "adopted": adopt and uuid != before.uuid,
        "store_error": store_error,
    }
    if out.as_json:
        out.document(document)
    else:
        _print_migration(out, document)
    return NO if state != "current" or foreign else YES


def _print_sql(delayed: CeleryDelay, since: str | None) -> int:
    from celery_delay.audit import schema

    database = open_audit(delayed).database
    dialect = database.url.get_backend_name()
    try:
        click.echo(schema.as_sql(dialect, database.schema, since), nl=False)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    return YES


_FOREIGN = (
    "the tables belong to another Redis, and are not written: check delay_database_url and"
    " delay_redis_url, or take them over with `celery -A proj delay migrate --adopt`"
)


def _owner(delayed: CeleryDelay) -> tuple[str | None, str | None]:
    """The uuid of the database that the store belongs to, and why it could not be asked."""
    try:
        known = {one.audit_id for one in shard_reports(delayed) if one.audit_id is not None}
    except DelayError as exc:
        # a database can be migrated while Redis is away
        return None, str(exc)
    return next(iter(sorted(known)), None), None


def _print_migration(out: Output, document: Mapping[str, Any]) -> None:
    done = {
        "missing": "made now",
        "outdated": "brought to this release's schema",
        "current": "already current",
    }
    todo = {
        "missing": "missing: run `celery -A proj delay migrate`",
        "outdated": "of an older release: run `celery -A proj delay migrate`",
        "current": "current",
    }
    was = document["state_before"]
    told = done[was] if document["state"] == "current" and document["changed"] else todo[was]
    out.facts(
        [
            ("database", document["database"]),
            ("tables", told),
            ("uuid", document["uuid"]),
            ("this Redis'", document["store_uuid"] if document["foreign"] else None),
            ("taken over", "yes" if document["adopted"] else None),
            ("note", _FOREIGN if document["foreign"] else None),
            ("Redis", document["store_error"]),
        ]
    )
