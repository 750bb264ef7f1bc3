"""The project behind the pages: ``celery -A shop``, with what a shop puts off.

It reads ``SHOP_REDIS`` and ``SHOP_AUDIT`` (URLs), and ``SHOP_SETTINGS`` (JSON).
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from celery.schedules import crontab

from celery_delay import CeleryDelay

__all__ = ["app", "build"]

NAMES = (
    "shop.orders.cancel_unpaid", "shop.mail.remind", "shop.mail.welcome", "shop.trial.end",
    "shop.reports.daily", "shop.search.reindex",
)  # fmt: skip


def build(url: str, audit: str, **settings: Any) -> Celery:
    """The shop's app with broker, store and results on the Redis at *url*."""
    app = Celery("shop", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        delay_database_url=audit,
        delay_drain_interval=0.05,
        delay_audit_args="repr",
        worker_hijack_root_logger=True,
        broker_connection_retry_on_startup=True,
        task_routes={"shop.mail.*": "mail", "shop.reports.*": "slow"},
        beat_schedule={
            "daily report": {"task": "shop.reports.daily", "schedule": crontab(minute=0, hour=6)},
            "ask the carrier": {"task": "shop.parcels.ask_carrier", "schedule": 900.0},
            "reindex": {"task": "shop.search.reindex", "schedule": crontab(minute=30, hour=3)},
        },
    )  # fmt: skip
    app.conf.update(settings)
    CeleryDelay(app)
    for name in NAMES:
        app.task(_work, name=name, shared=False)
    app.task(_ask, name="shop.parcels.ask_carrier", bind=True, shared=False)
    return app


def _work(*args: Any, **kwargs: Any) -> str:
    return "done"


def _ask(self: Any, *args: Any, **kwargs: Any) -> str:
    """Fails once."""
    if not self.request.retries:
        raise self.retry(exc=TimeoutError("the carrier does not answer"), countdown=1)
    return "on its way"


if "SHOP_REDIS" in os.environ:
    app = build(
        os.environ["SHOP_REDIS"],
        os.environ["SHOP_AUDIT"],
        **json.loads(os.environ.get("SHOP_SETTINGS", "{}")),
    )
