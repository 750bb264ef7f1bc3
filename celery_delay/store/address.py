"""Where a Redis is and how to get in: from a URL and options, or from a pool of kombu's.

The spelling is the one that users of Celery know: ``redis://``, ``rediss://``, ``unix://``,
``redis+socket://`` and, for Sentinel, ``sentinel://host:port;sentinel://host:port/db`` with
``master_name`` and ``sentinel_kwargs`` among the options, as in ``broker_transport_options``.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.credentials import CredentialProvider

__all__ = ["Address", "SentinelAddress", "address_of_pool", "parse_address"]

SENTINEL_PORT = 26379

#: What says where the server is and who we are; the rest is behaviour, and ours to choose.
_PLACE = frozenset(
    "host port path db username password credential_provider client_name"
    " socket_keepalive socket_keepalive_options".split()
)
_TLS = frozenset(
    name for name in inspect.signature(SSLConnection.__init__).parameters if name.startswith("ssl_")
)
_SENTINEL = frozenset(("master_name", "min_other_sentinels", "sentinel_kwargs"))
#: What ``delay_redis_options`` may hold: the address itself is in the URL.
OPTIONS = _TLS | _SENTINEL | _PLACE - {"host", "port", "path", "db"} | {"ssl"}


@dataclass(frozen=True)
class SentinelAddress:
    """The Sentinels that know where the primary is.

    Attributes:
        nodes: each Sentinel's own address, with its own password and TLS.
        name: what they call the primary.
        others: how many other Sentinels one must see to be believed.
    """

    nodes: tuple[Address, ...]
    name: str
    others: int = 0


@dataclass(frozen=True)
class Address:
    """One Redis.

    Attributes:
        connection_class: redis-py's, by which the connection is plain, TLS or a socket.
        options: its arguments, only those that are about the address and the way in.
        sentinels: who knows host and port, if they are not fixed.
    """

    connection_class: type
    options: Mapping[str, Any]
    sentinels: SentinelAddress | None = None

    def __str__(self) -> str:
        if self.sentinels is not None:
            return f"{self.sentinels.name} (by Sentinel)"
        return str(self.options.get("path") or _host_port(self.options))


def parse_address(url: str, options: Mapping[str, Any] | None = None) -> Address:
    """The address that *url* and *options* describe.

    Arguments:
        options: see ``delay_redis_options``.  What the URL says too is taken from the URL.

    Raises:
        ValueError: one of them is wrong; the text says which part, and never a password.
    """
    options = dict(options or {})
    for name in options:
        if name not in OPTIONS:
            raise _unknown(name, OPTIONS)
    sentinel = url.startswith("sentinel://")
    found = _of_sentinel_url(url) if sentinel else _of_url(url)
    # ssl is a dict in broker_use_ssl, and a flag in redis-py
    flag = options.pop("ssl", None)
    found = {**options, **(dict(flag) if isinstance(flag, Mapping) else {}), **found}
    for name in found:
        if name.startswith("ssl_") and name not in _TLS:
            raise _unknown(name, _TLS)
    found_class = found.pop("connection_class", Connection)
    if flag or any(name.startswith("ssl_") for name in found):
        if found_class is UnixDomainSocketConnection:
            raise ValueError("there is no TLS over a unix socket: leave the ssl options out")
        found_class = SSLConnection
    _complete(found)
    if not sentinel:
        if given := sorted(_SENTINEL & found.keys()):
            raise ValueError(f"{given[0]!r} is for a sentinel:// URL")
        return Address(found_class, _ours(found))
    return Address(found_class, _ours(found), _sentinels(found))


def address_of_pool(pool: Any) -> Address:
    """The address that kombu's *pool* leads to, with its TLS, credentials, socket or Sentinels.

    kombu's pools make connections of a class of their own that reports to the channel;
    ours must not, so the class of redis-py that it is made of is taken.
    """
    kinds = (SSLConnection, UnixDomainSocketConnection, Connection)
    connection_class = next(one for one in kinds if issubclass(pool.connection_class, one))
    options = _ours(pool.connection_kwargs)
    known = getattr(pool, "sentinel_manager", None)
    if known is None:
        return Address(connection_class, options)
    nodes = tuple(address_of_pool(one.connection_pool) for one in known.sentinels)
    sentinels = SentinelAddress(nodes, pool.service_name, known.min_other_sentinels)
    return Address(connection_class, options, sentinels)


def _of_url(url: str) -> dict[str, Any]:
    if url.startswith("redis+socket://"):
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        database = query.pop("virtual_host", "0").lstrip("/") or "0"
        who = {"username": parts.username, "password": parts.password}
        return {
            **query,
            **{name: unquote(value) for name, value in who.items() if value},
            "path": unquote(parts.path),
            "db": int(database),
            "connection_class": UnixDomainSocketConnection,
        }
    return dict(parse_url(url))  # type: ignore[no-untyped-call]


def _of_sentinel_url(url: str) -> dict[str, Any]:
    """All parts of the URL together; ``nodes`` are the Sentinels' (host, port)."""
    found: dict[str, Any] = {}
    nodes = []
    for part in url.split(";"):
        if not part:
            continue
        bare = part.removeprefix("sentinel://")
        if "://" in bare:
            raise ValueError("each part of a sentinel:// URL must begin with sentinel://")
        said = parse_url(f"redis://{bare}")  # type: ignore[no-untyped-call]
        if "host" not in said:
            raise ValueError("each part of a sentinel:// URL must name a host")
        nodes.append((said.pop("host"), said.pop("port", SENTINEL_PORT)))
        for name, value in said.items():
            if found.setdefault(name, value) != value:
                raise ValueError(f"the parts of the sentinel:// URL differ in their {name}")
    return {**found, "nodes": nodes}


def _sentinels(found: Mapping[str, Any]) -> SentinelAddress:
    name = found.get("master_name")
    if not name:
        raise ValueError(
            "a sentinel:// URL needs the primary's name: put it into delay_redis_options as"
            ' {"master_name": …}, or into the URL as ?master_name=…'
        )
    given = found.get("sentinel_kwargs") or {}
    if not isinstance(given, Mapping):
        raise ValueError("'sentinel_kwargs' must be a mapping")
    own = dict(given)
    tls = own.pop("ssl", False) or any(one.startswith("ssl_") for one in own)
    _complete(own)
    nodes = tuple(
        Address(SSLConnection if tls else Connection, {**_ours(own), "host": host, "port": port})
        for host, port in found["nodes"]
    )
    return SentinelAddress(nodes, str(name), int(found.get("min_other_sentinels") or 0))


def _complete(options: dict[str, Any]) -> None:
    """Make objects of what a URL or a settings file can only name."""
    reqs = options.get("ssl_cert_reqs")
    if isinstance(reqs, str):  # the ssl module's names are taken by Celery's URLs too
        options["ssl_cert_reqs"] = reqs.removeprefix("CERT_").lower()
        if options["ssl_cert_reqs"] not in ("none", "optional", "required"):
            raise ValueError(f"ssl_cert_reqs must be none, optional or required, not {reqs!r}")
    provider = options.get("credential_provider")
    if provider is None:
        return
    if isinstance(provider, str):
        try:
            provider = pkgutil.resolve_name(provider)
        except (ImportError, AttributeError, ValueError) as exc:
            raise ValueError(
                f"credential_provider: cannot import {options['credential_provider']!r}: {exc}"
            ) from exc
    if isinstance(provider, type):
        provider = provider()
    if not isinstance(provider, CredentialProvider):
        raise ValueError(f"credential_provider is no redis.CredentialProvider: {provider!r}")
    if options.get("username") or options.get("password"):
        raise ValueError("credential_provider excludes a user and a password")
    options["credential_provider"] = provider


def _unknown(name: object, known: Iterable[str]) -> ValueError:
    near = difflib.get_close_matches(str(name), sorted(known), n=1)
    return ValueError(
        f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _ours(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _PLACE or name in _TLS}


def _host_port(options: Mapping[str, Any]) -> str:
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
