"""pytest plugin of our legs: celery-delay on every app that the tests make, interception on.

The tests and their worker's processes, which are forked from here, then send through the store;
``run.py`` starts the beat that hands the tasks off.  ``settings`` is that beat's, too.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from celery.contrib.testing import app as testing

from celery_delay.app import CeleryDelay

_TestApp = testing.TestApp


def settings() -> dict[str, Any]:
    """Everything with a delay goes through the store, be it 10 ms, and is audited."""
    database = os.environ.get("SUITE_DATABASE")
    return {
        "delay_intercept": True,
        "delay_intercept_min": 0.0,
        **({"delay_database_url": database} if database else {}),
    }


def delayed_app(name: Any = None, config: Any = None, **options: Any) -> Any:
    """Celery's ``TestApp``, which all fixtures make their apps by, with us on it."""
    app = _TestApp(name, {**settings(), **(config or {})}, **options)
    CeleryDelay(app)
    return app


class Warnings(logging.Handler):
    """Notes what we warn of, in whichever process: a message that went past the store, say."""

    def emit(self, record: logging.LogRecord) -> None:
        with open(os.environ["SUITE_WARNINGS"], "a") as notes:
            notes.write(record.getMessage().replace("\n", " ") + "\n")


def pytest_configure() -> None:
    testing.TestApp = delayed_app
    logging.getLogger("celery_delay").addHandler(Warnings(logging.WARNING))


@pytest.fixture(autouse=True)
def _any_broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit tests' broker is kombu's memory transport, which we refuse; none of them ticks."""
    if "t/unit/" in request.node.nodeid:
        monkeypatch.setattr(CeleryDelay, "check", lambda self: None)
