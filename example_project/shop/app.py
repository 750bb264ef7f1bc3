"""The Celery app.  The second line is all that celery-delay asks for."""

from celery import Celery

from celery_delay import CeleryDelay

app = Celery("shop", include=["shop.tasks"])
CeleryDelay(app)
app.config_from_object("shop.config")
