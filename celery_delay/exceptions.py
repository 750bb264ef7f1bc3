"""Every error that celery-delay raises, under one root.

Each class says who meets it and what to do.  None of them shadows a built-in
name; drivers' errors are wrapped at the adapter, with the original as cause.
"""

from __future__ import annotations

__all__ = [
    "AlreadyScheduled",
    "AuditUnavailable",
    "DelayError",
    "ExportUnreadable",
    "ForeignDatabase",
    "InvalidSetting",
    "JournalFull",
    "NotInstalled",
    "OutcomeUnknown",
    "PartlyDone",
    "PayloadUnreadable",
    "ScheduleExists",
    "SchemaOutdated",
    "StaticSchedule",
    "StillAlive",
    "StoreUnavailable",
    "UniqueConflict",
    "UnknownSchedule",
    "UnsupportedBroker",
]


class DelayError(Exception):
    """Root of all errors of celery-delay.

    Attributes:
        stored: of a bulk call, how many of its calls were stored in chunks before the one that
            failed; they stay.
    """

    stored: int = 0


class NotInstalled(DelayError):
    """``apply_delayed`` was called on an app without celery-delay.

    Raised in the calling process, before anything is sent: Celery itself would
    ignore the delay and run the task at once.  Call ``CeleryDelay(app)`` where
    the app is made.
    """


class InvalidSetting(DelayError, ValueError):
    """A ``delay_*`` setting is unknown or has a wrong value; the text names it.

    Raised when the settings are first read: in a producer at the first delayed
    task, in beat at start.
    """


class UnsupportedBroker(DelayError):
    """The message cannot be moved to this broker or exchange by this version."""


class StoreUnavailable(DelayError):
    """Redis could not be reached, and certainly nothing was stored.

    Repeating the call is safe.
    """


class OutcomeUnknown(DelayError):
    """Redis took the request but its answer was lost, also on the repeats.

    The entry may or may not be stored.  Repeating the *call* would make a second
    task; ask for this one with ``app.delayed.result(task_id)`` or cancel it.

    Attributes:
        entry_id: the :class:`~celery_delay.domain.entries.EntryId` in doubt; of a change of a
            periodic schedule, a text that names it: that change can simply be made again.
    """

    def __init__(self, entry_id: object, reason: str = "") -> None:
        super().__init__(entry_id, reason)
        self.entry_id = entry_id
        self.reason = reason

    def __str__(self) -> str:
        return f"it is unknown whether {self.entry_id} was stored ({self.reason})"


class UnknownSchedule(DelayError, LookupError):
    """There is no periodic schedule of that name.

    Attributes:
        name: the name in question.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"there is no schedule {self.name!r}: app.delayed.schedules.list(), or"
            " `celery delay schedule list`, tells those that there are"
        )


class ScheduleExists(DelayError):
    """There is a periodic schedule of that name; it was left as it is.

    ``app.delayed.schedules.upsert`` changes it, ``update`` parts of it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"there is a schedule {self.name!r} already: upsert or update changes it"


class StaticSchedule(DelayError):
    """Code owns this periodic schedule, so it is changed and removed there; nothing was done.

    It can be paused.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"code owns the schedule {self.name!r}: change it in beat_schedule (or where"
            " add_periodic_task is called) and deploy; meanwhile it can be paused"
        )


class PartlyDone(DelayError):
    """A pause or resume has reached some shards of the store only.

    The same call may be made again: it changes nothing where it is done already.

    Attributes:
        done: numbers of the shards that have it.
        missing: numbers of those that have it not, or gave no answer.
    """

    def __init__(self, done: list[int], missing: list[int], reason: str = "") -> None:
        super().__init__(done, missing, reason)
        self.done = done
        self.missing = missing
        self.reason = reason

    def __str__(self) -> str:
        done = ", ".join(map(str, self.done)) or "none"
        missing = ", ".join(map(str, self.missing))
        return f"done in the shards {done}, not in {missing}: call again ({self.reason})"


class AlreadyScheduled(DelayError):
    """An entry with this task id waits, is being published, or is in quarantine.

    Nothing was stored.

    Attributes:
        task_id: the id in question.  Cancel that entry, or leave ``task_id`` to Celery.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"a delayed task with the id {self.task_id!r} is already scheduled"


class UniqueConflict(DelayError):
    """Another task has the unique key, and the call was not to be kept back silently.

    Raised with ``on_conflict="error"``; with ``"replace"`` and ``"extend"`` where that task cannot
    be changed any more: it has been handed to its queue, or is quarantined.  Also of two calls of
    one step of a bulk call that have the same key, unless they say ``"keep"``.  Nothing was stored.

    Attributes:
        key: the unique key.
        task_id: the id of the task that has it.
    """

    def __init__(self, key: str, task_id: str) -> None:
        super().__init__(key, task_id)
        self.key = key
        self.task_id = task_id

    def __str__(self) -> str:
        return f"the delayed task {self.task_id!r} has the unique key {self.key!r}"


class JournalFull(DelayError):
    """The journal holds ``delay_journal_max`` events that SQL has not taken yet.

    Raised only with ``delay_journal_full = "refuse"``.  Nothing was stored.  See why
    no leader drains: ``celery -A proj delay status``.
    """


class StillAlive(DelayError):
    """A task is not over, so its story cannot be deleted.  Nothing was.

    Attributes:
        task_id, state: the task, and where it stands.
    """

    def __init__(self, task_id: str, state: str) -> None:
        super().__init__(task_id, state)
        self.task_id = task_id
        self.state = state

    def __str__(self) -> str:
        waits = self.state in ("SCHEDULED", "HELD", "QUARANTINED")
        return f"the task {self.task_id!r} is {self.state}: " + (
            "cancel it first"
            if waits
            else "it may still run, and would be written down again; if you know that it is over,"
            " force it (force=True, --force)"
        )


class ExportUnreadable(DelayError, ValueError):
    """A file is none that can be imported here, and nothing of it was; the text says why.

    It is no export, of a newer release, sealed with a key that is not known, or so old that
    nobody remembers whether it has been imported before.
    """


class PayloadUnreadable(DelayError):
    """A payload that was sealed at rest cannot be opened; it is left as it is.

    Either the key that sealed it is not in ``delay_payload_keys`` (put it back, at the list's end),
    or the payload was changed or cut short.  Never tells the payload, nor a key.

    Attributes:
        key_id: the id of the key that it needs, as ``celery delay rotate-keys`` shows it; "" if
            that cannot be told.
    """

    def __init__(self, reason: str, key_id: str = "") -> None:
        super().__init__(reason, key_id)
        self.reason = reason
        self.key_id = key_id

    def __str__(self) -> str:
        return self.reason


class AuditUnavailable(DelayError):
    """The audit database could not be reached or refused the statement."""


class SchemaOutdated(AuditUnavailable):
    """The audit tables are missing or of another version.

    Run ``celery -A proj delay migrate``.
    """


class ForeignDatabase(AuditUnavailable):
    """The audit database belongs to another store.

    A beat that meets this does not lead.  ``celery -A proj delay migrate --adopt``
    takes the database over.
    """
