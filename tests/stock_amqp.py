"""A stock Celery in another process that publishes to RabbitMQ: ``python stock_amqp.py URL``.

The module is imported by the tests as well, so that both sides make the same calls.  It must
not import celery-delay.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

__all__ = ["CALLS", "QUEUES", "apply", "make_app", "publish_all"]

#: Those that a message of the table below ends on; the last is bound to a fanout.
QUEUES = (
    Queue("plain", Exchange("plain")),
    Queue("urgent", Exchange("urgent"), max_priority=10),
    Queue("safe", Exchange("safe"), queue_arguments={"x-queue-type": "quorum"}),
    Queue("bounded", Exchange("bounded"), queue_arguments={"x-max-length": 1000}, expires=600),
    Queue("eu", Exchange("regions", type="topic"), routing_key="orders.*.eu"),
    Queue("all", Exchange("news", type="fanout")),
)
_THEN = datetime(2099, 1, 1, tzinfo=timezone.utc)

#: Options of ``apply_async``; ``args`` and ``kwargs`` beside them.
CALLS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "priority": {"queue": "urgent", "priority": 7},
    "quorum": {"queue": "safe"},
    "queue with arguments": {"queue": "bounded"},
    "topic": {"exchange": "regions", "routing_key": "orders.1.eu"},
    "fanout": {"exchange": "news", "routing_key": "any"},
    "expires": {"expires": 3600},
    "expiration": {"expiration": 90},
    "compressed": {"compression": "zlib", "args": ("x" * 5_000,)},
    "pickled": {"serializer": "pickle", "args": ({1, 2}, Decimal("1.10"))},
    "yaml": {"serializer": "yaml", "args": ("käse",)},
    "text beyond ASCII": {"args": ("日本語", "\x00\udcff".encode("utf-8", "replace").decode())},
    "big": {"args": ("y" * 80_000,)},
    "transient": {"delivery_mode": 1},
    "links": {"link": "plain.linked", "link_error": "plain.linked"},
    "headers": {"headers": {"x-number": 2**40, "x-part": {"list": [1, "a", None, 1.5, True]}}},
    "instant in headers": {"headers": {"x-when": _THEN}},
    "reply to": {"reply_to": "somewhere", "correlation_id": "mine"},
    "stamps": {"stamped_headers": ["ticket"], "ticket": "T-1"},
    "properties": {"user_id": "guest", "app_id": "shop", "message_id": "m-1", "type": "t"},
    "limits": {"time_limit": 30, "soft_time_limit": 20, "shadow": "other", "ignore_result": True},
}


def make_app(url: str) -> Celery:
    """An app that knows the queues."""
    app = Celery("stock", broker=url, set_as_current=False)
    app.conf.update(task_queues=QUEUES, task_default_queue="plain")
    for name in ("plain.add", "plain.linked"):
        app.task(_nothing, shared=False, name=name)
    return app


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def apply(app: Celery, name: str, method: str = "apply_async", **when: Any) -> Any:
    """Make one call of the table."""
    options = dict(CALLS[name])
    args, kwargs = options.pop("args", (1,)), options.pop("kwargs", {"y": 2})
    for link in {"link", "link_error"} & set(options):
        options[link] = app.signature(options[link], args=(1,))
    task_id = name.replace(" ", "-")
    return getattr(app.tasks["plain.add"], method)(args, kwargs, task_id=task_id, **when, **options)


def publish_all(url: str) -> None:
    """Make every call in another process."""
    subprocess.run([sys.executable, __file__, url], check=True, timeout=60)


def main(url: str) -> None:
    """Declare the queues, and make every call."""
    app = make_app(url)
    with app.connection_for_write() as connection:
        for queue in QUEUES:
            queue(connection.channel()).declare()
    for name in CALLS:
        apply(app, name)
    assert "celery_delay" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1])
