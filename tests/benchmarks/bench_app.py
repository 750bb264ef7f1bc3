"""The app that the benchmarks run: one trivial task, once with celery-delay, once stock."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_delay import CeleryDelay

BROKER = os.environ.get("BENCH_BROKER", "redis://127.0.0.1:1/0")
LEDGER = os.environ.get("BENCH_LEDGER", os.devnull)


def _app(name: str, queue: str) -> Celery:
    app = Celery(name, broker=BROKER, set_as_current=False)
    app.conf.update(task_ignore_result=True, task_default_queue=queue, worker_prefetch_multiplier=4)
    return app


app = _app("ours", "ours")
app.conf.delay_database_url = os.environ.get("BENCH_DATABASE") or None
app.conf.delay_hot_window = float(os.environ.get("BENCH_HOT_WINDOW", 0))
app.conf.delay_http = os.environ.get("BENCH_HTTP") or None
if _rabbitmq := os.environ.get("BENCH_RABBITMQ"):
    app.conf.update(broker_url=_rabbitmq, delay_redis_url=BROKER)
CeleryDelay(app)
stock = _app("stock", "stock")


def note(eta: float, number: int, text: str = "") -> None:
    """Write down by how much the run is later than its eta."""
    line = f"{time.time() - eta:.6f} {number}\n"
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


note_ours = app.task(name="note", shared=False)(note)
note_stock = stock.task(name="note", shared=False)(note)
