"""The app of the beat that runs beside the tests: ``celery -A beat_app beat``."""

from __future__ import annotations

import os

from celery import Celery
from interception import settings

from celery_delay.app import CeleryDelay

app = Celery("beside", broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BACKEND"])
# a beat that answers `inspect` beside the worker is one node more than those tests count
app.conf.update(settings(), delay_remote_control=False)
CeleryDelay(app)
