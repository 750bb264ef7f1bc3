"""Tasks that beats hand off while something is broken under them, and the app that they are of."""

from __future__ import annotations

import itertools
from typing import Any

from celery import Celery

from tests.processes import wait_until

__all__ = ["APP", "Traffic"]

APP = """
import json, os
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("kept", broker=os.environ["URL"])
app.conf.update(json.loads(os.environ["CONF"]))
CeleryDelay(app)
"""


class Traffic:
    """Tasks by tens, due within a second; beats hand them off, and nobody runs them."""

    def __init__(self, app: Celery, client: Any) -> None:
        self._app, self._client = app, client
        self._numbers = itertools.count()
        self.sent: set[str] = set()

    def send(self) -> None:
        for number in itertools.islice(self._numbers, 10):
            task_id = f"task-{number}"
            self._app.delayed.send_task("any", task_id=task_id, countdown=0.05 * (number % 20))
            self.sent.add(task_id)

    def flows(self, messages: int) -> None:
        """Go on until so many more of them are on the queue."""
        goal = self._client.llen("celery") + messages

        def enough() -> bool:
            self.send()
            return bool(self._client.llen("celery") >= goal)

        wait_until(enough, 30, f"{messages} more messages")
