"""Which address is whose.

A task id in an address is percent-encoded, slashes too.  Every route is a ``url``: Flower, which
puts its ``--url-prefix`` before each, would lose the arguments of a plain tuple.
"""

from __future__ import annotations

from tornado.web import url

from celery_delay.flower.acting import VERBS, ActHandler
from celery_delay.flower.files import FOLDER, FilesHandler
from celery_delay.flower.forecasting import ForecastHandler
from celery_delay.flower.listing import ListHandler
from celery_delay.flower.many import ManyHandler
from celery_delay.flower.metrics import MetricsHandler
from celery_delay.flower.overview import OverviewHandler
from celery_delay.flower.pages import ListPage, SchedulesPage, TaskPage
from celery_delay.flower.pausing import PAUSE_VERBS, PauseHandler
from celery_delay.flower.schedules import (
    SCHEDULE_VERBS,
    ScheduleActHandler,
    ScheduleHandler,
    SchedulesHandler,
)
from celery_delay.flower.story import TaskHandler

__all__ = ["ROUTES"]

_ID = "([^/]+)"
_VERB, _SCHEDULE_VERB, _PAUSE_VERB = (
    f"({'|'.join(verbs)})" for verbs in (VERBS, SCHEDULE_VERBS, PAUSE_VERBS)
)

#: The first that fits is taken: what has a name of its own comes before what takes any id.
ROUTES = [
    url(r"/metrics", MetricsHandler, {"known": {}}),
    url(r"/delayed", ListPage, name="delayed"),
    url(f"/delayed/task/{_ID}", TaskPage, name="delayed_task"),
    url(r"/delayed/schedules", SchedulesPage, name="delayed_schedules"),
    url(r"/delayed/static/(.*)", FilesHandler, {"path": str(FOLDER)}, name="delayed_files"),
    url(r"/api/delayed", ListHandler),
    url(r"/api/delayed/overview", OverviewHandler, {"known": {}}),
    url(r"/api/delayed/forecast", ForecastHandler),
    url(r"/api/delayed/schedules", SchedulesHandler),
    url(f"/api/delayed/schedules/{_ID}", ScheduleHandler),
    url(f"/api/delayed/schedules/{_ID}/{_SCHEDULE_VERB}", ScheduleActHandler),
    url(f"/api/delayed/pauses/{_PAUSE_VERB}", PauseHandler),
    url(f"/api/delayed/many/{_VERB}", ManyHandler),
    url(f"/api/delayed/{_ID}", TaskHandler),
    url(f"/api/delayed/{_ID}/{_VERB}", ActHandler),
]
