"""Log lines as JSON in the Elastic Common Schema (``delay_log_format = "ecs"``).

In beat every line is written so; in a worker only ours are, since the others are the
project's.  Celery's own set-up of logging is left as it is: the handlers that it makes get
one more formatter in front of theirs.  A project that sets logging up by itself (Celery's
signal ``setup_logging``, or Django's ``LOGGING``) puts :class:`Formatter` where it wants it.

The fields are those of ecs-logging, and our own below ``celery_delay``: see
``docs/howto/logs.rst`` and the schema there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from celery import signals
from celery._state import get_current_task

from celery_delay.domain.settings import Settings
from celery_delay.exceptions import DelayError, InvalidSetting

__all__ = ["Formatter", "LogFormat", "check"]

logger = logging.getLogger(__name__)

_OURS = __name__.partition(".")[0]
_LIBRARY = "ecs_logging"
#: What every record has; all else was given with ``extra``.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Delayer(Protocol):
    """What the composition root offers to this module."""

    @property
    def settings(self) -> Settings: ...


def check(settings: Settings) -> None:
    """Refuse a format whose library is missing.

    Raises:
        InvalidSetting: it is.
    """
    if settings.log_format == "ecs" and find_spec(_LIBRARY) is None:
        raise InvalidSetting(
            'delay_log_format = "ecs" needs the package ecs-logging:'
            ' pip install "celery-delay[ecs]", or leave the setting out'
        )


class Formatter(logging.Formatter):
    """Writes a record as one line of JSON.

    Never a task's arguments: of what other loggers give with ``extra`` (Celery's worker
    gives arguments there) nothing is written.

    Arguments:
        service: the ``service.name`` of each line; the app's name, say.
        plain: writes the records that are none of ours; ``None``: they are written as JSON too.

    Raises:
        ImportError: ecs-logging is not installed.
    """

    def __init__(self, service: str = "celery", plain: logging.Formatter | None = None) -> None:
        super().__init__()
        from ecs_logging import StdlibFormatter

        self._ecs = StdlibFormatter(exclude_fields=["log.original"])
        self._service = service
        self.plain = plain

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        ours = record.name == _OURS or record.name.startswith(f"{_OURS}.")
        if self.plain is not None and not ours:
            return self.plain.format(record)
        given = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        written = logging.makeLogRecord(
            {name: value for name, value in vars(record).items() if name in _PLAIN}
        )
        vars(written).update(self._fields(given if ours else {}))
        return self._ecs.format(written)

    def _fields(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in facts.items() if name != "event"}
        task = get_current_task()
        if "task_id" not in own and task is not None and task.request.id:
            own["task_id"] = task.request.id
        fields: dict[str, Any] = {"service": {"name": self._service, "type": "celery"}}
        fields["event"] = {"dataset": f"{self._service}.log"}
        if "event" in facts:
            fields["event"]["action"] = facts["event"]
        if own:
            fields[_OURS] = own
        return fields


class LogFormat:
    """Receivers of Celery's signals that logging was set up; one per app."""

    def __init__(self, app: Any, delayed: Delayer) -> None:
        self._app = app
        self._delayed = delayed
        self._whole = False
        self._told = False

    def connect(self) -> None:
        """Listen.  Connecting twice has no effect."""
        receivers: Mapping[Any, Callable[..., None]] = {
            signals.after_setup_logger: self.on_setup,
            signals.after_setup_task_logger: self.on_setup,
        }
        for signal, receiver in receivers.items():
            # weak: a bound method of an object that only the app holds would be dropped silently
            uid = ("celery-delay", id(self._app), "log format")
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def write_all(self) -> None:
        """This process is a beat: each of its lines is to be JSON."""
        self._whole = True
        for handler in logging.getLogger().handlers:
            if isinstance(handler.formatter, Formatter):
                handler.formatter.plain = None

    def on_setup(self, logger: Any = None, **_: Any) -> None:
        """Celery has given *logger* its handlers; in a child process it may do so again."""
        try:
            settings = self._delayed.settings
        except DelayError:
            return  # who needs them says it
        if settings.log_format != "ecs":
            return
        try:
            check(settings)
        except InvalidSetting as exc:
            self._tell(exc)  # beat does not start with it; a worker works
            return
        for handler in logger.handlers:
            if not isinstance(handler.formatter, Formatter):
                plain = None if self._whole else handler.formatter or logging.Formatter()
                handler.setFormatter(Formatter(str(self._app.main or "celery"), plain))

    def _tell(self, exc: DelayError) -> None:
        if not self._told:
            self._told = True
            logger.error(
                "log lines are written as ever: %s", exc, extra={"event": "log_format_refused"}
            )
