import os
from pathlib import Path

from celery_delay.django import database_url

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "only for the example"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "proj.urls"
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"},
    "delay": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "delay.sqlite3"},
}

CELERY_BROKER_URL = "redis://localhost:6379/0"
CELERY_RESULT_BACKEND = "redis://localhost:6379/1"
CELERY_DELAY_DATABASE_URL = database_url(DATABASES["delay"])
CELERY_DELAY_INTERCEPT = "retry"

#: Seconds in which an order must be paid.
PAY_WITHIN = float(os.environ.get("PAY_WITHIN", "1800"))
