"""Which commands an ACL lets us use, tried out on keys of a shard that is nobody's.

A trial, and not ``ACL DRYRUN``: that needs Redis 7 and a right that no user of a project should
have.  What is refused appears in ``ACL LOG``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import ResponseError

from celery_delay.exceptions import StoreUnavailable
from celery_delay.store import scripts
from celery_delay.store.connection import AnswerLost, Link
from celery_delay.store.failures import is_denied
from celery_delay.store.keys import ShardKeys

__all__ = ["COMMANDS", "Refusal", "refusals", "user_of"]

#: command → its arguments after the key, if it has one.  Each is one that our scripts, or we, send.
_HASH: dict[str, tuple[object, ...]] = {
    "HSET": ("field", "1"), "HSETNX": ("field", "1"), "HGET": ("field",), "HMGET": ("field",),
    "HGETALL": (), "HEXISTS": ("field",), "HINCRBY": ("field", 1), "HKEYS": (), "HLEN": (),
    "HSCAN": ("0",), "HDEL": ("field",), "PEXPIRE": (1_000,), "TYPE": (), "UNLINK": (), "DEL": (),
    "EXISTS": (),
}  # fmt: skip
_ZSET: dict[str, tuple[object, ...]] = {
    "ZADD": (1, "member"), "ZSCORE": ("member",), "ZMSCORE": ("member",), "ZCARD": (),
    "ZCOUNT": ("-inf", "+inf"), "ZRANGE": (0, 0), "ZREM": ("member",),
}  # fmt: skip
_STREAM: dict[str, tuple[object, ...]] = {
    "XADD": ("1-1", "field", "1"), "XLEN": (), "XRANGE": ("-", "+", "COUNT", 1),
    "XDEL": ("1-1",), "XTRIM": ("MAXLEN", 0),
}  # fmt: skip
_LIST: dict[str, tuple[object, ...]] = {
    "LPUSH": ("1",), "LLEN": (), "LRANGE": (0, 0), "LREM": (1, "0"), "LTRIM": (0, 0),
}  # fmt: skip

_BITS: dict[str, tuple[object, ...]] = {"SETBIT": (0, 1), "GETBIT": (0,)}

#: All that a beat, or the command line, sends to the store.
COMMANDS = frozenset(
    {*_HASH, *_ZSET, *_STREAM, *_LIST, *_BITS, "BLPOP", "EVAL", "EVALSHA", "INFO", "SELECT", "TIME"}
)


class Refusal(NamedTuple):
    """A command that is not allowed, and the server's words."""

    command: str
    words: str


def refusals(link: Link, keys: ShardKeys, database: int) -> list[Refusal]:
    """The commands that the user behind *link* may not send.

    Arguments:
        keys: of a shard that is nobody's; they are gone afterwards.
        database: number of the DB, for SELECT.

    Raises:
        StoreUnavailable: that cannot be found out now.
    """
    samples = [
        [command, key, *rest]
        for key, some in (
            (keys.entries, _HASH),
            (keys.schedule, _ZSET),
            (keys.journal, _STREAM),
            (keys.wake, _LIST),
            (keys.imports, _BITS),
        )
        for command, rest in some.items()
    ]
    samples += [["TIME"], ["SELECT", database]]
    refused = [*_direct(link, keys)]
    if not any(one.command in ("EVAL", "EVALSHA", "INFO") for one in refused):
        refused += _in_script(link, keys, samples)
    return refused


def user_of(link: Link) -> str | None:
    """Who we are to the server; ``None`` if nobody says."""
    if link.user is not None:
        return link.user
    try:  # what a credential provider gives is its secret
        name: bytes = link.call("ACL", "WHOAMI")
    except (AnswerLost, StoreUnavailable, ResponseError):
        return None
    return name.decode(errors="replace")


def _direct(link: Link, keys: ShardKeys) -> list[Refusal]:
    """Those that no script can send."""
    known = scripts.sha1("return 1")
    found = []
    for command in (
        ["INFO", "server"],
        ["EVAL", "return 1", 0],
        ["EVALSHA", known, 0],
        ["BLPOP", keys.wake, 0.01],
    ):
        try:
            link.call(*command)
        except AnswerLost as exc:
            raise StoreUnavailable(f"lost the answer of {command[0]}: {exc}") from exc
        except StoreUnavailable as exc:
            if exc.__cause__ is None or not is_denied(exc.__cause__):
                raise
            found.append(Refusal(str(command[0]), str(exc.__cause__)))
        except ResponseError:
            pass  # it was looked at, so it is allowed
    return found


def _in_script(link: Link, keys: ShardKeys, samples: Sequence[Sequence[object]]) -> list[Refusal]:
    rest = [json.dumps([str(part) for part in one]) for one in samples]
    try:
        flat = scripts.run(link, scripts.load("rights"), keys, {}, rest)
    except AnswerLost as exc:
        raise StoreUnavailable(f"lost the answer of the trial: {exc}") from exc
    except StoreUnavailable as exc:
        if exc.__cause__ is None or not is_denied(exc.__cause__):
            raise
        return [Refusal("EVAL", str(exc.__cause__))]  # the keys that it names
    except ResponseError as exc:
        # Redis 6.2 needs it at the beginning of each script that runs on a full server
        if not is_denied(exc):
            raise
        return [Refusal("HDEL", str(exc))]
    words = [one.decode(errors="replace") for one in flat]
    return [Refusal(*one) for one in zip(words[::2], words[1::2], strict=True)]
