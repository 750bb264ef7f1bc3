"""Every error that celery-delay raises, under one root.

Each class says who meets it and what to do.  None of them shadows a built-in
name; drivers' errors are wrapped at the adapter, with the original as cause.
"""

from __future__ import annotations

__all__ = [
    "AlreadyScheduled",
    "AuditUnavailable",
    "DelayError",
    "ForeignDatabase",
    "InvalidSetting",
    "JournalFull",
    "NotInstalled",
    "OutcomeUnknown",
    "SchemaOutdated",
    "StoreUnavailable",
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
        entry_id: the :class:`~celery_delay.entries.EntryId` in doubt.
    """

    def __init__(self, entry_id: object, reason: str = "") -> None:
        super().__init__(entry_id, reason)
        self.entry_id = entry_id
        self.reason = reason

    def __str__(self) -> str:
        return f"it is unknown whether {self.entry_id} was stored ({self.reason})"


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


class JournalFull(DelayError):
    """The journal holds ``delay_journal_max`` events that SQL has not taken yet.

    Raised only with ``delay_journal_full = "refuse"``.  Nothing was stored.  See why
    no leader drains: ``celery -A proj delay status``.
    """


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
