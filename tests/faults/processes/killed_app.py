"""The app of workers that are killed: its tasks and its worker shoot themselves at bad moments.

A *bullet* is a file; who removes it dies by SIGKILL, with its whole worker or as a child alone, and
has written so on the page ``kills`` before.  Where it strikes, by the file's first word:

* ``fetched``: between taking a message and writing down that the worker has it;
* ``copy``: the same, of a message that the watchdog has sent;
* ``claimed``: between a worker's claim (with the guard) and its pool;
* ``accepted``: when an early task is acknowledged, before or after its beginning was reported;
* ``unbegun``: a child, between accepting an early task and saying that it begins;
* ``reported``: between the report of an early task's beginning and its first line;
* ``requeued``: when a message is about to go back, for the process of its task was lost;
* ``before``, ``after``: a child, before and after the effect of a task that is acknowledged late;
* ``finished``: a whole worker, after the effect of such a task.

All but ``unbegun``, ``before`` and ``after`` strike a whole worker.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from book import Page
from celery import Celery
from celery.concurrency.base import BasePool
from celery.signals import task_failure, task_prerun
from celery.worker.request import Request
from kombu.transport.redis import QoS

from celery_delay import CeleryDelay

WORLD = json.loads(os.environ["WORLD"])
FOLDER = Path(WORLD["folder"])
#: How likely a moment is taken for which there is a bullet.
CHANCE = 0.1

app = Celery("killed", broker=WORLD["url"])
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": WORLD["visibility"],
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    **WORLD["conf"],
)


#: Opened once, and shared by the pool's processes: each line is one write at the end.
WORK, KILLS = Page(FOLDER / "work"), Page(FOLDER / "kills")


def tell(what: str, task_id: str) -> None:
    WORK.write(what=what, id=task_id, pid=os.getpid(), group=os.getpgrp())


def on_prerun(task: Any, **_: Any) -> None:
    if not task.acks_late:
        shoot("unbegun", whole=False)
    tell("begun", task.request.id)


def on_failure(task_id: str, **_: Any) -> None:
    tell("failed", task_id)


# connected before celery-delay's own receivers: what they report is in the ledger for certain
task_prerun.connect(on_prerun, weak=False)
task_failure.connect(on_failure, weak=False)
CeleryDelay(app)


def shoot(kind: str, *, whole: bool, chance: float = CHANCE) -> None:
    """Die here, if there is a bullet for it and chance wants it."""
    for bullet in FOLDER.glob(f"{kind} *"):
        if random.random() < chance:
            try:
                bullet.unlink()
            except FileNotFoundError:
                continue  # another was first
            KILLS.write(kind=kind, pid=os.getpid(), group=os.getpgrp() * whole)
            if whole:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


_append, _reject = QoS.append, QoS.reject
_on_accepted, _apply = Request.on_accepted, BasePool.apply_async


def append(self: Any, message: Any, delivery_tag: Any) -> None:
    if "celery_delay" in str(message._raw["headers"]):
        if ".w" in delivery_tag:
            shoot("copy", whole=True, chance=1.0)
        shoot("fetched", whole=True)
    _append(self, message, delivery_tag)


def reject(self: Any, delivery_tag: Any, requeue: bool = False) -> None:
    if requeue:
        shoot("requeued", whole=True, chance=0.3)
    _reject(self, delivery_tag, requeue)


def on_accepted(self: Any, pid: int, time_accepted: float) -> None:
    _on_accepted(self, pid, time_accepted)
    if not self.task.acks_late:
        shoot("accepted", whole=True)


def apply_async(self: Any, target: Any, *arguments: Any, **options: Any) -> Any:
    shoot("claimed", whole=True)
    return _apply(self, target, *arguments, **options)


QoS.append, QoS.reject = append, reject
Request.on_accepted, BasePool.apply_async = on_accepted, apply_async


@app.task(name="early", bind=True, shared=False)
def early(self: Any) -> None:
    """Acknowledged when it begins."""
    shoot("reported", whole=True)
    tell("effect", self.request.id)


@app.task(name="late", bind=True, shared=False, acks_late=True, reject_on_worker_lost=True)
def late(self: Any, seconds: float) -> None:
    """Acknowledged when it is over."""
    shoot("before", whole=False)
    time.sleep(seconds)
    tell("effect", self.request.id)
    shoot("after", whole=False)
    shoot("finished", whole=True)
