"""What an error from Redis means to us, and what an operator can do about it.

A failure is of two kinds, by whether the command can have had its effect:
:class:`~celery_delay.exceptions.StoreUnavailable` (it cannot) and :class:`AnswerLost` (it may).
"""

from __future__ import annotations

import os
import re

from redis.connection import SSLConnection
from redis.exceptions import (
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = [
    "AnswerLost",
    "denied_in_script",
    "explain",
    "is_denied",
    "is_refusal",
    "replica",
    "unreachable",
]

#: Answers by which a server says that it did nothing and will not do it now.
_REFUSALS = (OutOfMemoryError, ReadOnlyError, NoPermissionError)
#: The codes of those without a class.  Redis 6.2 lets a script run up to its first write,
#: and tells of the refusal in the middle of the error's text.
_REFUSED = re.compile(r"(?:^| -)(?:BUSY|CLUSTERDOWN|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY)\b")
#: Where a script was when an ACL stopped it.  7.2 and later name the command themselves.
_DENIED = re.compile(r"The user executing the script can't|ACL failure in script")
_LINE = re.compile(r"@user_script:\s?(\d+)")
_CALL = re.compile(r"redis\.p?call\('(\w+)'")

_PAGE = "see the page on Redis, ACL users"


class AnswerLost(Exception):
    """The command was sent, and no answer came: it may or may not have had its effect."""


def is_refusal(error: ResponseError) -> bool:
    """Whether the server says that it did nothing, and may do it later or elsewhere."""
    return isinstance(error, _REFUSALS) or _REFUSED.search(str(error)) is not None


def is_denied(error: BaseException) -> bool:
    """Whether an ACL has refused it."""
    return isinstance(error, NoPermissionError) or _DENIED.search(str(error)) is not None


def explain(error: Exception, command: object, where: object, user: str | None) -> str:
    """The server's words, and what to do where that is known.

    Arguments:
        where: the server, as its link calls it.
        user: who we are to it; ``None`` where that is not known.
    """
    if isinstance(error, ReadOnlyError):
        return replica(where)
    if not isinstance(error, NoPermissionError):
        return f"Redis refuses: {error}"
    who = f"the user {user!r}" if user else "this user"
    named = re.search(r"the '([\w|]+)' command", str(error))
    if named:
        what = f"the command {named[1].upper()}"
        grant = f"grant it +{named[1].lower()}"
    else:
        what = f"a key of {command}"
        grant = "grant it the pattern of celery-delay's keys"
    return f"Redis does not allow {who} {what}: {grant} ({_PAGE}); it says: NOPERM {error}"


def replica(where: object, of: str = "") -> str:
    """What to say of a server that only follows another one."""
    return (
        f"{where} is a replica{of}, and nothing can be written there: give the primary's"
        " address, or that of its Sentinels"
    )


def denied_in_script(error: Exception, name: str, text: str, user: str | None) -> str | None:
    """What an ACL has kept the script *name* from doing; ``None`` if *error* is another one."""
    said = str(error)
    if not _DENIED.search(said):
        return None
    what = "a command or key"
    if line := _LINE.search(said):
        lines = text.splitlines()[int(line[1]) - 1 : int(line[1])]
        if call := _CALL.search("".join(lines)):
            what = call[1]
    who = f"the user {user!r}" if user else "this user"
    return (
        f"Redis does not allow {who} {what} in {name}.lua: grant it the command and the keys"
        f" ({_PAGE}); it says: NOPERM {said}"
    )


def unreachable(where: object, error: Exception, connection: object) -> str:
    """Why there is no connection; names a file of the TLS options that is not there."""
    text = f"cannot connect to Redis at {where}: {error}"
    for name in ("ca_certs", "certfile", "keyfile"):
        path = getattr(connection, name, None)
        if path and not os.access(path, os.R_OK):
            text += f" (ssl_{name} = {path!r} cannot be read)"
    if isinstance(error, RedisTimeoutError) and isinstance(connection, SSLConnection):
        text += " (a port that does not speak TLS is silent too)"
    return text
