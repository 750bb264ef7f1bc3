import os

from celery import Celery

from celery_delay import CeleryDelay

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

app = Celery("proj")
CeleryDelay(app)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
