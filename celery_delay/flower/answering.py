"""What all our handlers share: who answers, off Flower's loop, how errors and headers look."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from flower.views import BaseHandler
from tornado.web import HTTPError

from celery_delay.calling.calls import require
from celery_delay.domain.callers import on_behalf_of
from celery_delay.exceptions import DelayError, OutcomeUnknown, UnknownSchedule

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["Answering", "Refused"]

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: How many of our questions are asked at a time: Flower's threads are there for Flower as well.
AT_ONCE = 4
_turns = asyncio.Semaphore(AT_ONCE)

#: Of every answer.  Flower's base template loads its own scripts and styles only, from here.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # ids, names and arguments are nobody else's to keep
    "Cache-Control": "no-store",
}
#: Flower opens its own pages and API to all origins where nobody has to log in; we never do.
_FOREIGN = ("Origin", "Headers", "Methods")


class Refused(HTTPError):
    """A request that gets no answer but this.

    Arguments:
        text: what is wrong and what to do, for whoever asked.
        more: further fields of the answer.
    """

    def __init__(self, status: int, text: str, **more: object) -> None:
        super().__init__(status)
        self.text = text
        self.more = more


class Answering(BaseHandler):
    """A handler of ours."""

    def set_default_headers(self) -> None:
        """Flower's, without those that let other origins read, and ours."""
        super().set_default_headers()
        for name in _FOREIGN:
            self.clear_header(f"Access-Control-Allow-{name}")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def check_xsrf_cookie(self) -> None:
        """Not by Flower's cookie, which it asks for under OAuth only: see ``guarding``."""

    @property
    def delayed(self) -> CeleryDelay:
        """The ``CeleryDelay`` of the app that Flower was started with.

        Raises:
            Refused: it has none, or its settings are wrong.
        """
        try:
            found: CeleryDelay = require(self.capp)
            _ = found.settings
        except DelayError as exc:
            raise Refused(503, str(exc)) from exc
        return found

    @property
    def user(self) -> str:
        """Who asks: by OAuth the address, by basic auth the name; "" where nobody logs in."""
        options = self.application.options
        if options.auth:
            return str(self.current_user)
        if options.basic_auth and self.current_user:
            # current_user has looked at it: it is right
            credentials = self.request.headers["Authorization"].split()[1]
            return b64decode(credentials).decode().partition(":")[0]
        return ""

    async def ask(self, function: Callable[..., _T], *args: Any) -> _T:
        """What *function* returns; it is called in one of Flower's threads and may block.

        Raises:
            Refused: it raised; TypeError and ValueError are taken for what was asked for.
        """
        loop = asyncio.get_running_loop()
        call = partial(_for, self.user, function, *args)
        try:
            async with _turns:
                return await loop.run_in_executor(self.application.executor, call)
        except Refused:
            raise
        except UnknownSchedule as exc:
            raise Refused(404, str(exc)) from exc
        except OutcomeUnknown as exc:
            raise Refused(503, f"no answer from Redis, ask again: {exc.reason}") from exc
        except DelayError as exc:
            logger.warning(
                "Flower could not be answered: %s", exc, extra={"event": "flower_not_answered"}
            )
            raise Refused(503, str(exc)) from exc
        except (TypeError, ValueError) as exc:
            raise Refused(400, str(exc)) from exc

    def answer(self, document: Mapping[str, object]) -> None:
        """Write a JSON document; what a browser could take for a tag is escaped."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.write(json.dumps(document).replace("<", "\\u003c"))


def _for(user: str, function: Callable[..., _T], *args: Any) -> _T:
    with on_behalf_of(user):
        return function(*args)
