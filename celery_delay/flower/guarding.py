"""Who may look, and who may change something.

To look: whoever Flower lets in.  Its API is closed where nobody has to log in, unless
``FLOWER_UNAUTHENTICATED_API`` opens it; our page needs it even so, and proves by its token that
it is our page.

To change: only where Flower knows who asks, or where the project says that anybody may; with the
token of our page, which no other site can read; and from our own origin.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from flower.views import BaseHandler
from tornado.escape import json_decode

from celery_delay.flower.answering import Answering, Refused

__all__ = ["TOKEN_HEADER", "JsonHandler", "token_of", "why_read_only"]

TOKEN_HEADER = "X-Delayed-CSRF"
#: Of a request; a thousand ids fit into it.  Larger ones would keep Flower's loop busy.
MOST_BODY = 1_048_576
_TOKEN = "delayed_csrf"
#: How long a token is good for, in days; the page gets a new one with each overview.
_TOKEN_DAYS = 1

_CLOSED = (
    "the API is closed where nobody has to log in: start Flower with --basic-auth or --auth, or"
    " set FLOWER_UNAUTHENTICATED_API=true"
)
_STALE = f"the token ({TOKEN_HEADER}) is missing or too old: load the page again"


def token_of(handler: Answering) -> str:
    """A token for whoever asks: signed with Flower's ``cookie_secret``, for this user alone."""
    token: bytes = handler.create_signed_value(_TOKEN, handler.user)
    return token.decode()


def why_read_only(handler: Answering) -> str | None:
    """Why nothing can be changed here, and what to do about it; ``None`` if it can."""
    options = handler.application.options
    allowed = handler.delayed.settings.flower_actions
    if options.read_only:
        return "Flower runs with --read-only"
    if allowed == "off":
        return "delay_flower_actions is 'off'"
    if not _has_login(handler) and allowed != "open":
        return (
            "nobody has to log in here, so nothing can be changed: start Flower with --basic-auth"
            " or --auth, or set delay_flower_actions = 'open'"
        )
    return None


class JsonHandler(Answering):
    """A handler of our JSON; what reaches its methods may be answered."""

    def prepare(self) -> None:
        """Let nobody in who may not be."""
        # raises 401 for wrong credentials
        if not self.current_user:
            raise Refused(401, "log in first")
        if not (_has_login(self) or self.unauthenticated_api or self._has_token()):
            raise Refused(401, _CLOSED)
        if self.request.method == "POST":
            self._check_change()

    def body(self) -> dict[str, Any]:
        """The JSON object of a POST; an empty body is an empty one."""
        if not self.request.body:
            return {}
        if len(self.request.body) > MOST_BODY:
            raise Refused(400, f"the body is larger than {MOST_BODY} bytes")
        try:
            found = json_decode(self.request.body)
        except (ValueError, RecursionError) as exc:
            raise Refused(400, f"the body is no JSON: {exc}") from None
        if not isinstance(found, dict):
            raise Refused(400, "the body must be a JSON object")
        return found

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The error as JSON; never a trace."""
        exc = kwargs.get("exc_info", (None, None))[1]
        self.set_status(status_code)
        if status_code == 401 and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        if isinstance(exc, Refused):
            self.answer({"error": exc.text, **exc.more})
        elif status_code == 500:
            self.answer({"error": "that went wrong here: Flower's log says how"})
        else:
            self.answer({"error": self._reason})
        self.finish()

    def _check_change(self) -> None:
        if why := why_read_only(self):
            raise Refused(403, why)
        self._check_origin()
        if not self._has_token():
            raise Refused(403, _STALE)
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if self.request.body and kind != "application/json":
            raise Refused(400, f"Content-Type must be application/json, not {kind!r}")

    def _check_origin(self) -> None:
        headers = self.request.headers
        origin = headers.get("Origin") or headers.get("Referer") or ""
        site = headers.get("Sec-Fetch-Site", "same-origin")
        parts = urlsplit(origin)
        trusted = self.delayed.settings.flower_origins
        if trusted:
            is_ours = f"{parts.scheme}://{parts.netloc}".lower() in trusted
        else:
            is_ours = parts.netloc.lower() == self.request.host.lower() != ""
        if not is_ours or site != "same-origin":
            own = ", ".join(trusted) or self.request.host
            raise Refused(
                403,
                f"the Origin {origin!r} is not this Flower's own ({own}): behind a proxy that"
                " changes the host, set delay_flower_origins",
            )

    def _has_token(self) -> bool:
        token = self.request.headers.get(TOKEN_HEADER)
        if not token:
            return False
        found = self.get_secure_cookie(_TOKEN, value=token, max_age_days=_TOKEN_DAYS)
        return found is not None and found.decode() == self.user


def _has_login(handler: BaseHandler) -> bool:
    options = handler.application.options
    return bool(options.basic_auth or options.auth)
