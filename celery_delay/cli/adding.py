"""``add``: delayed tasks from the command line, one or a file of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING, Any

import click

from celery_delay.cli.completion import task_names
from celery_delay.cli.jsons import LIST, OBJECT
from celery_delay.cli.lines import Call, Default, Line, LineError, build, chunks, parse
from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.times import DATETIME, SECONDS, fields, local
from celery_delay.cli.verb import (
    NO,
    UNAVAILABLE,
    USAGE,
    YES,
    option,
    say_error,
    tasks_load,
    verb,
)
from celery_delay.domain.uniqueness import Said
from celery_delay.exceptions import (
    AlreadyScheduled,
    DelayError,
    InvalidSetting,
    OutcomeUnknown,
    UniqueConflict,
    UnsupportedBroker,
)

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay
    from celery_delay.domain.entries import Addition

__all__ = ["add_command"]

#: Refusals that are told of one chunk.
_TOLD = 20


@verb("add")
@click.argument("task", required=False, shell_complete=task_names)
@option("--args", "args", type=LIST, help="The arguments: '[42, \"x\"]'.")
@option("--kwargs", "kwargs", type=OBJECT,
        help="The keyword arguments: '{\"order\": 42}'.")  # fmt: skip
@option("--countdown", type=SECONDS, help="Due in so many seconds from now, or 30m, 2h, 1d.")
@option("--eta", type=DATETIME, help="Due then.")
@option("--queue", help="Instead of the queue that the routes give.")
@option("--task-id", help="Instead of a new one.")
@option("--unique-key", help="No other task may have it at the same time.")
@option("--on-conflict", type=click.Choice(["error", "keep", "replace", "extend"]),
        help="What to do if another task has the key; keep if it is not said.")  # fmt: skip
@option("--unique-until", type=click.Choice(["dispatched", "started", "done"]),
        help="When the key is free; dispatched if it is not said.")  # fmt: skip
@option("--unique-for", type=SECONDS,
        help="With started and done: so long after the hand-off in any case.")  # fmt: skip
@option("--idempotency-key", help="Names this call: repeated, it gets the same result.")
@option("--idempotency-for", type=SECONDS, help="For so long; a day if it is not said.")
@option("--by-name", is_flag=True, help="Also tasks that are not registered here.")
@option("--from", "source", type=click.File("rb"), metavar="FILE",
        help="A file with a JSON object on each line; - for stdin.")  # fmt: skip
@option("--chunk", type=click.IntRange(1, 1_000), default=500, show_default=True,
        help="With --from: lines that are stored in one step.")  # fmt: skip
@option("--skip", type=click.IntRange(0), default=0, metavar="N",
        help="With --from: leave out the first N lines, which are stored already.")  # fmt: skip
@option("--dry-run", is_flag=True, help="Check everything, store nothing.")
def add_command(
    delayed: CeleryDelay,
    out: Output,
    *,
    task: str | None,
    source: IO[bytes] | None,
    chunk: int,
    skip: int,
    dry_run: bool,
    by_name: bool,
    countdown: timedelta | None,
    eta: datetime | None,
    **one: Any,
) -> int:
    """Add one delayed task, or those of a file.

    A line of the file is an object with "task", and if wanted "args", "kwargs", "countdown"
    (seconds) or "eta" (ISO 8601; without an offset as delay_naive_eta says), "task_id",
    "queue", "unique_key", "on_conflict", "unique_until", "unique_for", "idempotency_key" and
    "idempotency_for".  Lines without a time are due as --countdown or --eta says.

    The file is read and stored in chunks, each whole or not at all.  A chunk with a bad line is
    refused before anything of it is stored, with the numbers of its bad lines; those before it
    stay, and the summary tells with which --skip to go on.  --dry-run finds all bad lines first.

    \b
    Examples:
      celery -A proj delay add shop.remind --args '[42]' --countdown 30m
      celery -A proj delay add shop.remind --kwargs '{"order": 42}' --eta 2030-01-31T09:00
      celery -A proj delay add --from reminders.jsonl --dry-run
      make-reminders | celery -A proj delay add --from - --json

    The exit code is 0 if all were stored, 1 if something was refused or you have interrupted it,
    2 for wrong usage, 69 if Redis gave no answer.
    """
    if (task is None) == (source is None):
        raise click.UsageError("name a task, or give --from FILE")
    if countdown is not None and eta is not None:
        raise click.UsageError("say when, in one way: --countdown or --eta")
    if task is not None and countdown is None and eta is None:
        raise click.UsageError("say when: --countdown or --eta")
    if source is not None and any(value is not None for value in one.values()):
        raise click.UsageError("--args, --kwargs, --queue, --task-id and keys are for one task")
    if task is not None and skip:
        raise click.UsageError("--skip goes with --from")
    if delayed.app.conf.task_always_eager:
        raise InvalidSetting("task_always_eager is set, so nothing would wait")
    if not tasks_load(delayed):
        return USAGE
    if source is None:
        said = Said(*(one[name] for name in Said._fields))
        call = Call(task or "", one["args"] or [], one["kwargs"] or {}, countdown, eta,
                    one["task_id"], one["queue"], said)  # fmt: skip
        return _add_one(delayed, out, call, by_name, dry_run)
    adding = _Adding(delayed, Default(countdown, eta), by_name, dry_run, next_line=skip + 1)
    _add_lines(adding, source, chunk, skip)
    return adding.tell(out)


def _add_lines(adding: _Adding, source: IO[bytes], chunk: int, skip: int) -> None:
    what = "checking" if adding.dry_run else "adding"
    try:
        with progress_bar(what, _size(source)) as show:
            for some in chunks(source, chunk, skip):
                if not adding.take(some):
                    break
                show(some[-1].end, f"{adding.good} tasks")
    except KeyboardInterrupt:
        # between two chunks: what is stored is known
        adding.fail("interrupted", NO)


def _add_one(delayed: CeleryDelay, out: Output, call: Call, by_name: bool, dry_run: bool) -> int:
    try:
        addition = build(delayed, call, by_name=by_name)
    except LineError as exc:
        raise click.UsageError(str(exc)) from None
    task_id, eta_ms, is_other = addition.entry_id.task_id, None, False
    if not dry_run:
        try:
            [added] = delayed.add([addition])
        except (AlreadyScheduled, UniqueConflict) as exc:
            say_error(exc)
            return NO
        task_id, eta_ms, is_other = added.entry_id.task_id, added.due_ms, added.is_other
    if out.as_json:
        stored = {
            "stored": int(not dry_run and not is_other),
            "task_id": task_id,
            "task": call.task,
        }
        out.document({**stored, **fields("eta", eta_ms)})
    elif dry_run:
        out.line("it could be added")
    elif is_other:
        why = ("nothing new", "this task has the key")
        out.facts([("task id", task_id), why, ("eta", local(eta_ms))])
    else:
        out.facts([("task id", task_id), ("task", call.task), ("eta", local(eta_ms))])
    return YES


def _size(source: IO[bytes]) -> int | None:
    """The bytes of a regular file; ``None`` for a pipe."""
    try:
        known = os.fstat(source.fileno())
    except OSError:
        return None
    return known.st_size if stat.S_ISREG(known.st_mode) else None


@dataclass
class _Adding:
    """A file on its way into the store.

    Attributes:
        good: lines that are stored, or would be in a dry run.
        others: those among them of which nothing was stored, since another task has the key.
        next_line: the first line of which nothing is stored.
        in_doubt: first and last line of a chunk of which nobody knows.
        error, code: what ended it, other than a refusal, and the exit code for that.
    """

    delayed: CeleryDelay
    default: Default
    by_name: bool
    dry_run: bool
    next_line: int
    good: int = 0
    others: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)
    refusals: int = 0
    in_doubt: tuple[int, int] | None = None
    error: str | None = None
    code: int = YES

    def take(self, lines: Sequence[Line]) -> bool:
        """Store a chunk; whether to go on."""
        additions = self._build(lines)
        if self.dry_run:
            self.good += len(additions)
            return True
        if len(additions) < len(lines):
            return False
        try:
            told = self.delayed.add(additions)
        except AlreadyScheduled as exc:
            ids = [one.entry_id.task_id for one in additions]
            # the last of twins in one file: the first would have been stored
            at = len(ids) - 1 - ids[::-1].index(exc.task_id)
            self._refuse(lines[at].number, str(exc))
            return False
        except UniqueConflict as exc:
            keys = [one.labels.unique and one.labels.unique.key for one in additions]
            at = len(keys) - 1 - keys[::-1].index(exc.key)
            self._refuse(lines[at].number, str(exc))
            return False
        except (InvalidSetting, UnsupportedBroker):
            raise
        except (DelayError, KeyboardInterrupt) as exc:
            is_interrupt = isinstance(exc, KeyboardInterrupt)
            self.fail(str(exc) or "interrupted", NO if is_interrupt else UNAVAILABLE)
            if is_interrupt or isinstance(exc, OutcomeUnknown):
                self.in_doubt = (lines[0].number, lines[-1].number)
            return False
        self.good += len(additions)
        self.others += sum(one.is_other for one in told)
        self.next_line = lines[-1].number + 1
        return True

    def _build(self, lines: Sequence[Line]) -> list[Addition]:
        built = []
        for one in lines:
            try:
                call = parse(one.text, self.default)
                built.append(build(self.delayed, call, by_name=self.by_name))
            except LineError as exc:
                self._refuse(one.number, str(exc))
        return built

    def _refuse(self, number: int, error: str) -> None:
        self.refusals += 1
        if len(self.refused) < _TOLD:
            self.refused.append({"line": number, "error": error})

    def fail(self, error: str, code: int) -> None:
        """Remember what ended it."""
        self.error, self.code = error, code

    def tell(self, out: Output) -> int:
        """The summary; the exit code."""
        stored = 0 if self.dry_run else self.good - self.others
        for one in self.refused:
            say_error(f"line {one['line']}: {one['error']}")
        if self.refusals > len(self.refused):
            say_error(f"and {self.refusals - len(self.refused)} more bad lines")
        if self.error is not None:
            say_error(self.error)
        if self.in_doubt is not None:
            say_error("lines {} to {} are stored, or none of them is".format(*self.in_doubt))
        is_whole = not self.refusals and self.error is None
        if out.as_json:
            out.document(
                {
                    "stored": stored,
                    "checked": self.good,
                    "refused": self.refused,
                    "refusals": self.refusals,
                    "next_line": None if is_whole else self.next_line,
                    "in_doubt": self.in_doubt,
                    "error": self.error,
                }
            )
        elif self.dry_run:
            out.line(f"{self.good} tasks could be added, {self.refusals} lines could not")
        else:
            kept = f", {self.others} were there by their keys" if self.others else ""
            rest = "" if is_whole else f"; go on with --skip {self.next_line - 1}"
            out.line(f"{stored} tasks added{kept}{rest}")
        if self.error is not None:
            return self.code
        return NO if self.refusals else YES
