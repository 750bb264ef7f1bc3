"""Several servers for one audit, of which one takes writes: a primary and its standbys.

They are tried in their order, beginning with the one that was good last.  A server that is up but
takes no writes (a standby, a replica, a primary that was demoted) is passed over, also for those
who might write there all the same.  So nobody has to be told of a promotion: the next connection
finds the new primary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import URL, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext

__all__ = ["connect_to_writable", "leave_read_only"]

#: Answers no (or 0, or OFF) where the server takes writes.
_READ_ONLY = {
    "postgresql": "SHOW transaction_read_only",
    "mysql": "SELECT @@global.read_only",
    "mariadb": "SELECT @@global.read_only",
}
_WRITABLE = {"off", "0", "no_lock"}
#: How a server says that it takes no writes: SQLSTATE, and MySQL's and MariaDB's numbers.
_REFUSALS = {"25006", 1290, 1792, 1836}


def connect_to_writable(
    engine: Engine, urls: Sequence[URL], connect_args: Mapping[str, Any]
) -> None:
    """Let *engine* connect to whichever of *urls* takes writes.

    Where none does, connecting fails as it does for one server.  A server that does not answer at
    all costs its connection time-out first.
    """
    places = list(urls)

    def connect(dialect: Dialect, _record: Any, _args: Any, _params: Any) -> Any:
        errors: Any = dialect.loaded_dbapi
        refused = []
        for url in tuple(places):
            args, params = dialect.create_connect_args(url)
            try:
                raw = dialect.connect(*args, **{**params, **connect_args})
                if _takes_writes(dialect, raw):
                    # another thread may do the same; whichever comes last stands
                    places.sort(key=lambda one: one != url)
                    return raw
                raw.close()
            except errors.Error as exc:
                refused.append(f"{url.host}:{url.port}: {_first_line(exc)}")
            else:
                refused.append(f"{url.host}:{url.port}: takes no writes")
        raise errors.OperationalError("no server takes writes (" + "; ".join(refused) + ")")

    event.listen(engine, "do_connect", connect)


def leave_read_only(engine: Engine) -> None:
    """Let go of a connection whose server has stopped taking writes."""

    def failed(context: ExceptionContext) -> None:
        error: Any = context.original_exception
        code = error.args[0] if error.args else None
        states = {code, getattr(error, "sqlstate", None), getattr(error, "pgcode", None)}
        if states & _REFUSALS:
            # as if it were gone: the pool's other connections to it go, too
            context.is_disconnect = True

    event.listen(engine, "handle_error", failed)


def _takes_writes(dialect: Dialect, raw: Any) -> bool:
    cursor = raw.cursor()
    try:
        cursor.execute(_READ_ONLY[dialect.name])
        [answer] = cursor.fetchone()
    finally:
        cursor.close()
        raw.rollback()
    return str(answer).lower() in _WRITABLE


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
