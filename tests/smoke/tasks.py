"""The tasks of the nodes.  Each run leaves a line in a file, which is what tests count.

``python -m tests.smoke.tasks`` on a node prints the file.
"""

from __future__ import annotations

import os
from typing import Any

from celery import shared_task

EFFECTS = os.environ.get("SMOKE_EFFECTS", "/tmp/effects.log")


def _leave(line: str) -> None:
    file = os.open(EFFECTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode() + b"\n")
    os.close(file)


@shared_task(name="smoke.note")
def note(what: str) -> str:
    """Leave a line."""
    _leave(what)
    return what


@shared_task(name="smoke.tick", bind=True)
def tick(self: Any) -> None:
    """Leave the task's own id, which is the same for one occurrence whoever fires it."""
    _leave(self.request.id)


@shared_task(name="smoke.stubborn", bind=True, max_retries=None)
def stubborn(self: Any, what: str, times: int, countdown: float) -> int:
    """Leave a line, and ask to run again *times* times."""
    _leave(f"{what} {self.request.retries}")
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


if __name__ == "__main__" and os.path.exists(EFFECTS):
    with open(EFFECTS) as lines:
        print(lines.read(), end="")
