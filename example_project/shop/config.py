"""Celery's settings, celery-delay's among them.

Each beat, each worker and each web process reads this file.  What differs between your
laptop and your servers comes from the environment.
"""

import os
from datetime import timedelta
from pathlib import Path

from celery.schedules import crontab

HERE = Path(__file__).resolve().parent.parent

_redis = os.environ.get("SHOP_REDIS_URL", "redis://localhost:6379/0")
broker_url = os.environ.get("SHOP_BROKER_URL", _redis)
result_backend = _redis

# Delayed tasks wait in Redis: the broker's, unless the broker is another.
if broker_url != _redis:
    delay_redis_url = _redis

# Their story goes here.  The path must be
# absolute: beat, workers and the command line may run in different folders.
delay_database_url = os.environ.get("SHOP_AUDIT_URL", f"sqlite:///{HERE / 'audit.sqlite3'}")

# A retry with a delay waits in Redis too, instead of in a worker's memory.
delay_intercept = "retry"

# Numbers and health of each beat, and how its log lines are written.
delay_http = os.environ.get("SHOP_HTTP")
delay_log_format = os.environ.get("SHOP_LOG_FORMAT", "human")

timezone = "UTC"

# At night, unless a demo cannot wait so long and says how often: in seconds.
_every = os.environ.get("SHOP_NIGHT")
beat_schedule = {
    "nightly-clean-up": {
        "task": "shop.tasks.clean_up",
        "schedule": timedelta(seconds=float(_every)) if _every else crontab(hour=3, minute=0),
    },
}

# For Flower, and to be found in `celery -A shop events`.
task_send_sent_event = True
worker_send_task_events = True

# Only where several projects share one Redis database …
if _prefix := os.environ.get("SHOP_KEY_PREFIX"):
    result_backend_transport_options = {"global_keyprefix": _prefix}
    if broker_url == _redis:
        broker_transport_options = {"global_keyprefix": _prefix}
    else:
        delay_key_prefix = f"{_prefix}celery-delay:"

# … or one RabbitMQ.
if _name := os.environ.get("SHOP_QUEUE"):
    task_default_queue = _name
    event_exchange = f"{_name}.event"
    control_exchange = f"{_name}.control"
