"""A small shop that delays tasks.  ``celery -A shop …`` finds the app by this line."""

from shop.app import app as celery

__all__ = ["celery"]
