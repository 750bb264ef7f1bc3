"""What a doctor asks of the Redis server.  Reads only."""

from __future__ import annotations

from typing import NamedTuple

from redis.exceptions import ResponseError

from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.connection import AnswerLost, Link

__all__ = ["ServerFacts", "examine_server"]

_SECTIONS = ("server", "memory", "persistence", "replication")


class ServerFacts(NamedTuple):
    """The server as it is set up.  Sizes are bytes.

    ``None``: it does not let us know.
    """

    version: tuple[int, ...]
    name: str
    mode: str
    role: str
    appends_to_file: bool
    #: always, everysec or no.
    appendfsync: str | None
    #: When it takes snapshots, "" for never.
    save: str | None
    #: The last snapshot or write of the append-only file that went wrong, in words; "" for none.
    persistence_failure: str
    eviction: str
    used_memory: int
    #: 0 for no limit.
    max_memory: int
    #: Of the machine; 0 if it does not tell.
    total_memory: int


def examine_server(link: Link) -> ServerFacts:
    """The server behind *link*; StoreUnavailable if it cannot be asked."""
    info: dict[str, str] = {}
    for section in _SECTIONS:
        try:
            text = link.call("INFO", section).decode(errors="replace")
        except AnswerLost as exc:
            raise StoreUnavailable(f"lost the answer of INFO: {exc}") from exc
        info.update(line.split(":", 1) for line in text.splitlines() if ":" in line)
    failures = [
        words
        for field, words in (
            ("aof_last_write_status", "the append-only file could not be written"),
            ("aof_last_bgrewrite_status", "the append-only file could not be rewritten"),
            ("rdb_last_bgsave_status", "the last snapshot failed"),
        )
        if info.get(field, "ok") != "ok"
    ]
    return ServerFacts(
        version=tuple(int(one) for one in info["redis_version"].split(".") if one.isdigit()),
        name=f"{info.get('server_name', 'redis').capitalize()} {info['redis_version']}",
        mode=info.get("redis_mode", ""),
        role=info.get("role", ""),
        appends_to_file=info.get("aof_enabled") == "1",
        appendfsync=_config(link, "appendfsync"),
        save=_config(link, "save"),
        persistence_failure=", ".join(failures),
        eviction=info.get("maxmemory_policy", ""),
        used_memory=int(info.get("used_memory", 0)),
        max_memory=int(info.get("maxmemory", 0)),
        total_memory=int(info.get("total_system_memory", 0)),
    )


def _config(link: Link, name: str) -> str | None:
    """A setting of the server; ``None`` where it may not be asked, as at most hosting services."""
    try:
        found = link.call("CONFIG", "GET", name)
    except AnswerLost as exc:
        raise StoreUnavailable(f"lost the answer of CONFIG: {exc}") from exc
    except StoreUnavailable as exc:
        if isinstance(exc.__cause__, ResponseError):
            return None
        raise
    except ResponseError:
        return None
    return found[1].decode(errors="replace") if len(found) > 1 else None
