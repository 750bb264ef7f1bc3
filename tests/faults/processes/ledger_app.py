"""The app of a ledger run, for beats, producers and the worker."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from book import Page
from celery import Celery

from celery_delay import CeleryDelay

FOLDER = Path(os.environ["LEDGER_FOLDER"])
URL = os.environ["LEDGER_REDIS_URL"]

#: A retry asks to run again after so many seconds.
RETRY_AFTER = 1.2

app = Celery("ledger", broker=URL, backend=URL)
app.conf.update(
    delay_intercept="retry",
    delay_database_url=os.environ.get("LEDGER_DATABASE_URL"),
    result_expires=600,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    task_routes={"ledger.handed": {"queue": "tap"}, "*": {"queue": "work"}},
)
CeleryDelay(app)

_page: Page | None = None


def _effect(request: Any) -> None:
    global _page
    if _page is None:
        _page = Page(FOLDER / "effects.jsonl")
    _page.write(id=request.id, retries=request.retries, at=int(time.time() * 1000))


@app.task(name="ledger.handed")
def handed() -> None:
    """Never run: the tap takes it from the queue."""


@app.task(name="ledger.effect", bind=True)
def effect(self: Any) -> None:
    """Leave a line."""
    _effect(self.request)


@app.task(name="ledger.stubborn", bind=True, max_retries=None)
def stubborn(self: Any, times: int) -> None:
    """Leave a line, and ask to run again *times* times."""
    _effect(self.request)
    if self.request.retries < times:
        raise self.retry(countdown=RETRY_AFTER)
