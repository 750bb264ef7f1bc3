"""The pages.  They have no data: what they show they ask for, so they come at once."""

from __future__ import annotations

from functools import partial
from typing import Any

from tornado.web import authenticated

from celery_delay.flower.answering import Answering, Refused
from celery_delay.flower.files import address_of
from celery_delay.flower.guarding import token_of, why_read_only

__all__ = ["ListPage", "SchedulesPage", "TaskPage"]


class _Page(Answering):
    template: str

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        exc = kwargs.get("exc_info", (None, None))[1]
        if isinstance(exc, Refused):
            self.set_status(status_code)
            self.render("404.html", message=exc.text)
            return
        super().write_error(status_code, **kwargs)

    @authenticated
    def get(self, task_id: str | None = None) -> None:
        """The page."""
        self.render(
            self.template,
            task_id=task_id,
            csrf=token_of(self),
            read_only=why_read_only(self),
            delayed_file=partial(address_of, self),
        )


class ListPage(_Page):
    """What waits, and how it stands."""

    template = "delayed.html"


class TaskPage(_Page):
    """One task and its history."""

    template = "delayed_task.html"


class SchedulesPage(_Page):
    """The periodic schedules."""

    template = "delayed_schedules.html"
