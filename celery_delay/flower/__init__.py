"""The *Delayed* tab of Flower: its pages, its JSON, and the way into Flower.

Two lines in ``flowerconfig.py`` put it there, or ``celery -A proj delay flower`` does::

    from celery_delay.flower import install
    install()

Nothing of Flower is replaced: its list of handlers gets ours, and its navigation bar one more
entry.  What is shown is read from the store, not from events, which can be missed.
"""

from __future__ import annotations

__all__ = ["install"]


def install() -> None:
    """Add the tab to the Flower that this process is about to start; twice is once.

    To be called before Flower makes its application, which ``flowerconfig.py`` is.  What the tab
    shows is that of the app that Flower was started with; that is looked at when a page is asked
    for, so this neither connects nor raises because something is away.

    Raises:
        ImportError: Flower is not there; ``pip install 'celery-delay[flower]'``.
    """
    from flower import urls

    from celery_delay.flower.routes import ROUTES
    from celery_delay.flower.templating import Templates

    if any(one in urls.handlers for one in ROUTES):
        return
    # before its last one, which takes whatever no other has taken
    urls.handlers[0:0] = ROUTES
    urls.settings["template_loader"] = Templates.over(urls.settings)
