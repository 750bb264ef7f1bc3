"""Where the audit database comes from: a URL, or an engine that the project has made.

Both are looked at when beat starts, without a connection, so that a wrong one is refused
there and not found out in the night.

An engine that is given lends its recipe and not its connections: pool, listeners, URL and
driver are taken over into a pool of our own.  So the application's pool is never exhausted
by us, our time limits do not reach its connections, and a fork is our affair alone.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import URL, Dialect, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from celery_delay.audit.writable import connect_to_writable
from celery_delay.exceptions import InvalidSetting

__all__ = ["Source", "from_engine", "from_url"]

_URL, _ENGINE = "delay_database_url", "delay_database_engine"

#: What is tried, in this order, for a URL without a driver.
_DRIVERS = {
    "postgresql": ("psycopg", "psycopg2"),
    "mysql": ("pymysql", "mysqldb"),
    "mariadb": ("pymysql", "mysqldb"),
}
_SUPPORTED = ("sqlite", *_DRIVERS)
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}


class Source(NamedTuple):
    """A database that can be connected to.

    ``ready`` is the project's engine if it gave one; ``setting`` is what to blame; ``others`` are
    URLs of standbys.
    """

    setting: str
    url: URL
    ready: Engine | None = None
    others: tuple[URL, ...] = ()

    def __str__(self) -> str:
        """The URLs without their passwords."""
        urls = (self.url, *self.others)
        return ", ".join(one.render_as_string(hide_password=True) for one in urls)

    def make(self, connect_args: Mapping[str, Any]) -> Engine:
        """An engine with a pool of its own; connects to nothing.

        Arguments:
            connect_args: for the driver; those of an engine that was given stand.
        """
        if self.ready is not None:
            pool = self.ready.pool.recreate()
            return Engine(pool, self.ready.dialect, self.url, hide_parameters=True)
        engine = create_engine(
            self.url,
            connect_args=dict(connect_args),
            # one for the auditor; more only while somebody reads at the same time
            pool_size=1,
            max_overflow=9,
            # arguments of tasks do not belong into logs and tracebacks
            hide_parameters=True,
        )
        if self.others:
            connect_to_writable(engine, (self.url, *self.others), connect_args)
        return engine


def from_url(given: str | URL | Sequence[str]) -> Source:
    """The database that a URL names, or several URLs of a primary and its standbys.

    A URL without a driver gets the first one that is installed; ``postgres://``, as
    hosting platforms write it, is ``postgresql://``.

    Raises:
        InvalidSetting: no URL, an unsupported database, a driver that is asynchronous or not
            installed, or an SQLite file without an absolute path; URLs of different kinds.
    """
    if isinstance(given, (str, URL)):
        return _of_one(given)
    first, *others = (_of_one(one) for one in given)
    for one in others:
        if one.url.drivername != first.url.drivername:
            raise InvalidSetting(
                f"{_URL} has several URLs, which must name one kind of database and one driver,"
                f" but {first} and {one} differ"
            )
        if first.url.get_backend_name() == "sqlite":
            raise InvalidSetting(f"{_URL} must be one URL for SQLite, which has no standbys: {one}")
    return first._replace(others=tuple(one.url for one in others))


def _of_one(given: str | URL) -> Source:
    try:
        url = make_url(given)
    except ArgumentError as exc:
        raise InvalidSetting(f"{_URL} is not a URL that SQLAlchemy reads") from exc
    backend, plus, driver = url.drivername.partition("+")
    if backend == "postgres":
        backend = "postgresql"
        url = url.set(drivername=backend + plus + driver)
    source = Source(_URL, url)
    _check_backend(source, backend)
    if driver or backend not in _DRIVERS:
        _load(source)
    else:
        source = _with_installed_driver(source, backend)
    return source


def from_engine(given: Any) -> Source:
    """The database of an engine that the project has made.

    Arguments:
        given: an SQLAlchemy engine, a function that returns one, or the dotted path of
            either, as in ``"shop.db:engine"``.

    Raises:
        InvalidSetting: it is none of these, or an asynchronous engine, or one for a database
            that is not supported.
    """
    engine = _resolve(given)
    source = Source(_ENGINE, engine.url, engine)
    if engine.dialect.is_async:
        _refuse_async(source, engine.dialect)
    _check_backend(source, engine.url.get_backend_name())
    return source


def _resolve(given: Any) -> Engine:
    found = given
    try:
        if isinstance(found, str):
            found = pkgutil.resolve_name(found)
        if callable(found) and not isinstance(found, Engine):
            found = found()
    except Exception as exc:  # the project's own code
        reason = f"{type(exc).__name__}: {exc}"
        raise InvalidSetting(f"{_ENGINE} = {given!r} gives no engine: {reason}") from exc
    # an AsyncEngine; known without importing SQLAlchemy's asyncio
    found = getattr(found, "sync_engine", found)
    if not isinstance(found, Engine):
        raise InvalidSetting(
            f"{_ENGINE} must be an SQLAlchemy engine, a function that returns one, or the"
            f" dotted path of either; {given!r} is or gives {type(found).__name__}"
        )
    return found


def _check_backend(source: Source, backend: str) -> None:
    if backend not in _SUPPORTED:
        names = ", ".join(_SUPPORTED)
        raise InvalidSetting(f"{source.setting} must name one of {names}: {source}")
    if backend == "sqlite" and not _is_absolute(source.url.database or ""):
        raise InvalidSetting(
            f"{source.setting} must have the absolute path of a file, as in"
            f" sqlite:////var/lib/shop/delay.db: {source}"
        )


def _is_absolute(path: str) -> bool:
    return os.path.isabs(path.removeprefix("file:").partition("?")[0])


def _with_installed_driver(source: Source, backend: str) -> Source:
    missing = []
    for driver in _DRIVERS[backend]:
        one = source._replace(url=source.url.set(drivername=f"{backend}+{driver}"))
        try:
            _load(one)
        except InvalidSetting as exc:
            missing.append(exc)
        else:
            return one
    raise missing[0]


def _load(source: Source) -> None:
    """Import the driver of a URL, and refuse it if it cannot be used from a thread."""
    try:
        dialect = source.url.get_dialect()
        if dialect.is_async:
            _refuse_async(source, dialect)
        dialect.import_dbapi()
    except (ImportError, NoSuchModuleError) as exc:
        extra = _EXTRAS.get(source.url.drivername.partition("+")[0])
        remedy = f"; try pip install 'celery-delay[{extra}]'" if extra else ""
        raise InvalidSetting(f"the driver for {source} is not installed: {exc}{remedy}") from exc


def _refuse_async(source: Source, dialect: Dialect | type[Dialect]) -> None:
    blocking = {name: f"{name}+{drivers[0]}" for name, drivers in _DRIVERS.items()}
    wanted = blocking.get(dialect.name, dialect.name)
    raise InvalidSetting(
        f"{source.setting} uses the asynchronous driver {dialect.driver}, but the audit is"
        " written by a thread: give the same database with a blocking driver, as in"
        f' {_URL} = "{wanted}://…" or create_engine("{wanted}://…")'
    )
