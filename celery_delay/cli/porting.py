"""``export`` and ``import``: what waits, into a file and out of it."""

from __future__ import annotations

import os
import stat
import sys
from typing import IO, TYPE_CHECKING, Any

import click

from celery_delay.cli.filtering import filter_options, filters_of, meant, said
from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.verb import NO, UNAVAILABLE, YES, option, say_error, verb
from celery_delay.exceptions import DelayError, ExportUnreadable, InvalidSetting

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.porting.outcomes import ExportOutcome, ImportOutcome

__all__ = ["export_command", "import_command"]

#: Refused lines that are shown.
_SHOWN = 20


@verb("export")
@click.argument("file", metavar="FILE")
@filter_options
@option("--resume", is_flag=True, help="Go on with FILE, which was cut short.")
@option("--encrypted", is_flag=True, help="Seal each line with the newest of delay_payload_keys.")
@option("--with-schedules", is_flag=True,
        help="Also the pauses, and the schedules that were added at run time.")  # fmt: skip
@option("--dry-run", is_flag=True, help="Count, and write nothing.")
def export_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    file: str,
    resume: bool,
    encrypted: bool,
    with_schedules: bool,
    dry_run: bool,
    **given: Any,
) -> int:
    """Write what waits into FILE, a JSON object on each line, for `import`; - is stdout.

    Written is what is SCHEDULED, HELD or QUARANTINED, with all that is needed to have it elsewhere:
    message, eta, state, labels and keys; without a filter also the keys that still count for calls
    to come.  The file can be read by its owner only.  Nothing in the store changes.

    It may run while tasks come and go.  For a move to another Redis stop the beats first: what they
    hand off after it was written would run here and there.

    \b
    Examples:
      celery -A proj delay export waiting.jsonl
      celery -A proj delay export waiting.jsonl --resume
      celery -A proj delay export acme.jsonl --namespace acme --with-schedules
      celery -A proj delay export - --encrypted | gzip > waiting.jsonl.gz

    The exit code is 0; 1 if some entries cannot be read, the file cannot be written, or you have
    interrupted it; 2 for wrong usage; 69 if Redis gave no answer (go on with --resume).
    """
    to_stdout = file == "-"
    if to_stdout and (out.as_json or resume):
        raise click.UsageError("--json and --resume need a FILE: stdout has the export itself")
    with meant():
        filters = filters_of(delayed, given)
        if resume and said(given):
            raise click.UsageError("--resume: the file has the filters it was begun with")
        states = filters.get("state") or ["SCHEDULED", "HELD"]
        quick = not filters.keys() - {"state", "after_ms", "before_ms"}
        total = int(delayed.count(**{**filters, "state": states})) if quick else None
    target = sys.stdout.buffer if to_stdout else file
    try:
        with meant(), progress_bar("exporting", total) as show:
            outcome = delayed.export(
                target,
                resume=resume,
                encrypted=encrypted,
                with_schedules=with_schedules,
                dry_run=dry_run,
                progress=lambda number: show(number, f"{number} tasks"),
                **filters,
            )
    except ExportUnreadable as exc:
        raise click.UsageError(str(exc)) from None
    except FileExistsError:
        raise click.UsageError(f"{file} is there already: --resume, or another name") from None
    except OSError as exc:
        say_error(f"{file} cannot be written: {exc.strerror or exc}")
        return NO
    except KeyboardInterrupt:
        say_error("interrupted" + ("" if to_stdout or dry_run else "; go on with --resume"))
        return NO
    return _tell_export(out, outcome, to_stdout)


def _tell_export(out: Output, outcome: ExportOutcome, to_stdout: bool) -> int:
    if out.as_json:
        out.document(
            {
                "export_id": outcome.export_id,
                "entries": outcome.entries,
                "resumed": outcome.resumed,
                "keys": outcome.keys,
                "pauses": outcome.pauses,
                "schedules": outcome.schedules,
                "unreadable": outcome.unreadable,
                "unreadable_count": outcome.unreadable_count,
                "in_flight": outcome.in_flight,
                "dry_run": outcome.dry_run,
            }
        )
    else:
        more = ", ".join(
            f"{number} {what}"
            for number, what in (
                (outcome.keys, "keys"),
                (outcome.pauses, "pauses"),
                (outcome.schedules, "schedules"),
            )
            if number
        )
        told = f"{outcome.entries} tasks {'would be ' if outcome.dry_run else ''}exported"
        # stdout may have the export itself
        click.echo(told + (f", {more}" if more else ""), err=to_stdout)
    if outcome.unreadable_count:
        some = ", ".join(outcome.unreadable[:5])
        say_error(
            f"{outcome.unreadable_count} records cannot be read and are not in the file: {some}"
        )
    if outcome.in_flight:
        say_error(
            f"{outcome.in_flight} tasks are being published and are not in the file: for a move,"
            " stop the beats first"
        )
    return YES if outcome or outcome.dry_run else NO


@verb("import")
@click.argument("file", type=click.File("rb"), metavar="FILE")
@option("--overdue", type=click.Choice(["run", "hold", "skip"]), default="run", show_default=True,
        help="What becomes of tasks whose eta has passed: at once, HELD, or left out.")  # fmt: skip
@option("--dry-run", is_flag=True, help="Check each line, and store nothing.")
@option("--force", is_flag=True,
        help="Also what has come of this export before and has left.")  # fmt: skip
@option("--no-audit", is_flag=True, help="Do not ask the audit here what is over.")
def import_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    file: IO[bytes],
    overdue: str,
    dry_run: bool,
    force: bool,
    no_audit: bool,
) -> int:
    """Store what `export` has written; - is stdin.

    Tasks keep their ids, eta, state, labels and keys, and go to the queues of the same names at
    this project's broker.  Each line is stored whole, found to be here already, or refused with its
    number and the reason; the others go on.

    Importing the same file again doubles nothing, also after a crash, and also what has run since:
    Redis remembers for 30 days what came of which export, and the audit is asked as well.

    \b
    Examples:
      celery -A proj delay import waiting.jsonl --dry-run
      celery -A proj delay import waiting.jsonl
      gunzip -c waiting.jsonl.gz | celery -A proj delay import - --overdue hold

    The exit code is 0; 1 if lines were refused, the file is not whole or you have interrupted it; 2
    for wrong usage or a file that cannot be imported; 69 if Redis or the audit gave no answer:
    then give the same command again.
    """
    error, code = None, YES
    try:
        with progress_bar("checking" if dry_run else "importing", _size(file)) as show:
            outcome = delayed.import_(
                file,
                overdue=overdue,
                dry_run=dry_run,
                force=force,
                audit=not no_audit,
                progress=lambda done, sofar: show(done, f"{sofar.imported} tasks"),
            )
    except ExportUnreadable as exc:
        raise click.UsageError(str(exc)) from None
    except InvalidSetting:
        raise
    except (DelayError, KeyboardInterrupt) as exc:
        if (so_far := getattr(exc, "so_far", None)) is None:
            raise
        interrupted = isinstance(exc, KeyboardInterrupt)
        outcome, code = so_far, NO if interrupted else UNAVAILABLE
        error = "interrupted" if interrupted else str(exc)
    _tell_import(out, outcome, error)
    if error is not None:
        say_error(f"{error}; what came stays: give the same command again")
        return code
    return YES if outcome else NO


def _tell_import(out: Output, outcome: ImportOutcome, error: str | None) -> None:
    for number, reason in outcome.refused[:_SHOWN]:
        say_error(f"line {number}: {reason}")
    if outcome.refused_count > _SHOWN:
        say_error(f"and {outcome.refused_count - _SHOWN} more bad lines")
    if not outcome.complete and error is None:
        say_error("the file has no last line: the export was cut short (export --resume)")
    counts = {
        name: getattr(outcome, name)
        for name in (
            "imported", "present", "before", "over", "skipped", "keys", "pauses", "schedules",
        )
    }  # fmt: skip
    if out.as_json:
        refused = [{"line": number, "error": reason} for number, reason in outcome.refused]
        out.document(
            {
                **counts,
                "refused": refused,
                "refused_count": outcome.refused_count,
                "lines": outcome.lines,
                "complete": outcome.complete,
                "dry_run": outcome.dry_run,
                "error": error,
            }
        )
        return
    words = {
        "present": "were here already",
        "before": "came before and have left",
        "over": "are over",
        "skipped": "overdue ones left out",
        "keys": "keys",
        "pauses": "pauses",
        "schedules": "schedules",
    }
    told = [f"{counts['imported']} tasks {'would be ' if outcome.dry_run else ''}imported"]
    told += [f"{counts[name]} {text}" for name, text in words.items() if counts[name]]
    out.line(", ".join(told))


def _size(file: IO[bytes]) -> int | None:
    """The bytes of a regular file; ``None`` for a pipe."""
    try:
        known = os.fstat(file.fileno())
    except OSError:
        return None
    return known.st_size if stat.S_ISREG(known.st_mode) else None
