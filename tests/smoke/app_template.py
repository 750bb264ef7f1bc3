"""The app of the nodes; pytest-celery fills in the three placeholders."""

from __future__ import annotations

from celery import Celery

from celery_delay import CeleryDelay

imports = None

app = Celery("celery_test_app")
config = None

if config:
    app.config_from_object(config)
CeleryDelay(app)
