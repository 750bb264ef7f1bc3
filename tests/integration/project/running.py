"""The project that integration tests run workers and beats on.

``celery -A running`` reads its settings from the variable ``PROJECT`` (JSON).  Effects are
lines in the file ``effects``: what a task did is never asked of our own audit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject

from celery_delay import CeleryDelay

__all__ = ["build"]


def build(url: str, effects: str, **conf: Any) -> Celery:
    """The project's app with its broker and results on the Redis at *url*."""
    app = Celery("running", broker=url, backend=url, set_as_current=False)
    app.conf.update(worker_hijack_root_logger=True, broker_connection_retry_on_startup=True, **conf)
    CeleryDelay(app)

    def effect(*words: Any) -> None:
        with Path(effects).open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def task(function: Any, **options: Any) -> Any:
        return app.task(function, shared=False, name=function.__name__, **options)

    def note(what: Any = "note") -> Any:
        effect("note", what)
        return what

    def add(x: Any, y: Any = 0) -> Any:
        effect("add", x, y)
        return x + y

    def total(numbers: Any) -> Any:
        effect("total", *numbers)
        return sum(numbers)

    def flaky(self: Any, times: int, countdown: float = 0.05) -> int:
        effect("flaky", self.request.retries)
        if self.request.retries < times:
            raise self.retry(countdown=countdown, max_retries=times)
        return int(self.request.retries)

    def labelled(self: Any, times: int, seen: Any = ()) -> Any:
        seen = [*seen, self.request.celery_delay["labels"]]
        if self.request.retries < times:
            raise self.retry(args=(times, seen), countdown=0.05)
        return seen

    def hopeless(self: Any) -> None:
        raise self.retry(exc=KeyError("no hope"), countdown=0.05, max_retries=1)

    def autoretried(self: Any, times: int) -> int:
        effect("autoretried", self.request.retries)
        if self.request.retries < times:
            raise OSError("not yet")
        return int(self.request.retries)

    def replacing(self: Any, x: int) -> Any:
        effect("replacing", x)
        queue = self.request.delivery_info["routing_key"]
        return self.replace(app.signature("add", args=(x, 1), queue=queue))

    def dies_once(self: Any, flag: str, where: int) -> str:
        """Retry, and in run *where* wait to be killed the first time."""
        effect("dies_once", self.request.retries)
        if self.request.retries == where and not Path(flag).exists():
            Path(flag).touch()
            time.sleep(60)
        if self.request.retries < 2:
            raise self.retry(countdown=0.05)
        return "survived"

    def fails() -> None:
        effect("fails")
        raise KeyError("no such thing")

    def sleeps(seconds: float) -> None:
        effect("sleeps")
        time.sleep(seconds)

    def rejects() -> None:
        effect("rejects")
        raise Reject("not mine", requeue=False)

    def ignores() -> None:
        effect("ignores")
        raise Ignore

    def is_first(flag: str) -> bool:
        """Whether this is the first run that asks for this file."""
        try:
            Path(flag).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def waits(seconds: float) -> str:
        effect("waits", seconds)
        time.sleep(seconds)
        return "waited"

    def rejects_once(flag: str) -> None:
        if is_first(flag):
            raise Reject("not yet", requeue=True)

    def dies(how: str, flag: str | None = None) -> str:
        """Take the process along; with *flag*, only the first time."""
        if flag is None or is_first(flag):
            effect("dies", how)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "sys.exit":
                sys.exit(3)
            os._exit(3)
        return "survived"

    def overruns_once(flag: str) -> str:
        if is_first(flag):
            time.sleep(30)
        return "in time"

    def tells(self: Any) -> dict[str, Any]:
        """What the task knows of its message."""
        request = self.request
        names = ("id", "eta", "expires", "timelimit", "root_id", "parent_id", "group", "stamps")
        return {name: getattr(request, name) for name in names}

    def tomorrows(*args: Any, **kwargs: Any) -> Any:
        return [args, kwargs]

    if "PROJECT_IS_NEW" in os.environ:
        task(tomorrows)
    task(tells, bind=True)
    for function in (note, add, total, fails, rejects, ignores, waits, dies):
        task(function)
    late: dict[str, Any] = {"acks_late": True}
    app.task(waits, shared=False, name="waits_late", acks_late=True)
    app.task(rejects_once, shared=False, name="rejects_early")
    for name, options in {
        "dies_late": late,
        "dies_requeued": {**late, "reject_on_worker_lost": True},
        "dies_retried": {"retry_on_worker_lost": True, "default_retry_delay": 0.05},
        "dies_retried_late": {**late, "retry_on_worker_lost": True, "default_retry_delay": 0.6},
    }.items():
        app.task(dies, shared=False, name=name, **options)
    task(rejects_once, acks_late=True)
    task(overruns_once, acks_late=True, acks_on_timeout=False, time_limit=1)
    task(flaky, bind=True)
    task(labelled, bind=True)
    task(hopeless, bind=True)
    task(replacing, bind=True)
    task(dies_once, bind=True, acks_late=True)
    task(sleeps, time_limit=1)
    task(
        autoretried,
        bind=True,
        autoretry_for=(OSError,),
        retry_backoff=False,
        default_retry_delay=0.05,
        max_retries=5,
    )
    return app


if "PROJECT" in os.environ:
    app = build(**json.loads(os.environ["PROJECT"]))
