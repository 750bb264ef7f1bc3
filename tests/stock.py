"""A stock Celery in another process, which says what ``apply_async`` puts onto a queue.

Run as a script it reads one request per line from standard input and answers with one line
of JSON: the Redis lists that the call left, by key.  The module is imported by the tests
as well, so that both sides read a description of a call alike.  It must not import
celery-delay.
"""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import redis
import time_machine
from celery import Celery
from kombu import Exchange, Queue

__all__ = ["PROJECTS", "Refused", "Stock", "apply", "clear", "declare", "make_app", "queued"]

QUEUES = (
    Queue("celery"),
    Queue("slow", Exchange("slow-exchange", type="direct"), routing_key="slow.key"),
    Queue("brief", Exchange("brief-exchange", type="direct"), routing_key="brief", expires=3600),
    Queue("important", max_priority=10),
)

#: Settings of the projects whose messages are compared.
PROJECTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "prefixed": {
        "broker_transport_options": {"global_keyprefix": "pfx:"},
        "timezone": "Europe/Berlin",
        "enable_utc": False,
        "task_serializer": "pickle",
        "task_ignore_result": True,
    },
    "steps": {
        "broker_transport_options": {"priority_steps": list(range(10)), "sep": ":"},
        "task_default_priority": 4,
        "task_inherit_parent_priority": True,
        "task_compression": "zlib",
        "timezone": "Asia/Kolkata",
    },
    "routed": {
        "task_routes": {"project.add": {"queue": "slow", "priority": 6}},
        "task_default_delivery_mode": "transient",
        "task_serializer": "yaml",
        "task_soft_time_limit": 7,
    },
}


def make_app(project: str, url: str, db: int) -> Celery:
    """One of :data:`PROJECTS`, with its broker in DB *db* of the server at *url*."""
    app = Celery("project", set_as_current=False)
    app.conf.update(
        broker_url=f"{url.rpartition('/')[0]}/{db}",
        result_backend=f"{url.rpartition('/')[0]}/{db}",
        task_queues=QUEUES,
        task_create_missing_queues=True,
        accept_content=["json", "pickle", "yaml", "msgpack"],
        **PROJECTS[project],
    )

    app.task(_add, shared=False, name="project.add")
    app.task(
        _tuned,
        shared=False,
        name="project.tuned",
        time_limit=30,
        soft_time_limit=20,
        serializer="json",
        ignore_result=True,
        expires=100_000,
    )
    return app


def _add(x: Any = None, y: Any = None, **rest: Any) -> None: ...


def _tuned(x: Any = None, y: Any = None, **rest: Any) -> None: ...


def declare(app: Celery) -> None:
    """Bind the queues: a message to an exchange that nothing is bound to is dropped."""
    with app.connection_for_write() as connection:
        for queue in QUEUES:
            queue(connection.channel()).declare()


def apply(app: Celery, call: Mapping[str, Any], method: str, **when: Any) -> Any:
    """Make *call* by ``apply_async`` or ``apply_delayed``.

    ``call``: task, args, kwargs, options, links and errlinks (names of tasks), inside (the
    request of the task that makes the call, or None), at (the instant at which all clocks
    stand), expires (seconds from then, as a number or as a datetime).
    """
    task = app.tasks[call["task"]]
    options = dict(call["options"])
    if links := [app.signature(name, args=(1,)) for name in call["links"]]:
        options["link"] = links
    if links := [app.signature(name, immutable=True) for name in call["errlinks"]]:
        options["link_error"] = links[0] if len(links) == 1 else links
    at = datetime.fromisoformat(call["at"])
    if isinstance(options.get("expires"), timedelta):
        options["expires"] = at + options["expires"]
    outer = app.tasks["project.tuned"]
    with time_machine.travel(at, tick=False):
        if call["inside"] is None:
            return getattr(task, method)(call["args"], call["kwargs"], **when, **options)
        from celery._state import _task_stack

        _task_stack.push(outer)
        outer.push_request(**call["inside"])
        try:
            return getattr(task, method)(call["args"], call["kwargs"], **when, **options)
        finally:
            outer.pop_request()
            _task_stack.pop()


def queued(client: redis.Redis) -> dict[str, list[str]]:
    """Every list of the DB with its elements, and whether it has a time to live."""
    found = {}
    for key in sorted(client.scan_iter(count=1000, _type="list")):
        name = key.decode()
        if "delay" in name:  # our store's own lists
            continue
        lives = "with TTL" if client.pttl(key) > 0 else "forever"
        found[f"{name} {lives}"] = [one.decode() for one in client.lrange(key, 0, -1)]
    return found


def clear(client: redis.Redis) -> None:
    """Empty the DB but for kombu's bindings, which a connection declares only once."""
    keys = [key for key in client.scan_iter(count=1000) if b"_kombu." not in key]
    if keys:
        client.delete(*keys)


class Refused(Exception):
    """Stock Celery does not take the call."""


class Stock:
    """The other process."""

    def __init__(self, url: str, db: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, url, str(db)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def queued(self, project: str, call: Mapping[str, Any]) -> dict[str, list[str]]:
        """What is on the queues after ``apply_async`` of *call*.

        Raises:
            Refused: Celery itself raised; the text names the exception.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickled = base64.b64encode(pickle.dumps(call)).decode()
        self._process.stdin.write(json.dumps({"project": project, "call": pickled}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '"it died: see stderr"')
        if not isinstance(answer, dict):
            raise Refused(answer)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def main(url: str, first_db: int) -> None:
    """Answer requests until the other side closes the pipe."""
    apps = {name: make_app(name, url, first_db + i) for i, name in enumerate(PROJECTS)}
    clients = {
        name: redis.Redis.from_url(f"{url.rpartition('/')[0]}/{first_db + i}")
        for i, name in enumerate(PROJECTS)
    }
    for app in apps.values():
        declare(app)
    assert "celery_delay" not in sys.modules
    for line in sys.stdin:
        request = json.loads(line)
        call = pickle.loads(base64.b64decode(request["call"]))
        client = clients[request["project"]]
        clear(client)
        try:
            apply(apps[request["project"]], call, "apply_async")
            answer: Any = queued(client)
        except Exception as exc:
            answer = type(exc).__name__
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
