"""Loads the Lua files and gives their KEYS and ARGV names.

A file starts with its contract, which is also what this loader reads::

    --- One sentence.
    -- @include clock journal        functions from include/, in this order
    -- @allow-oom                    runs on a Redis that is full
    -- KEYS: mark schedule           become the locals mark, schedule
    -- ARGV: now:int:ms id:str       become locals; :int ones are numbers, ms tells the reader
    -- RETURNS: …

so that no body mentions a position.  ``rest:*`` as the last argument takes all that follow.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from celery_delay.exceptions import StoreUnavailable, UnsupportedBroker
from celery_delay.store.connection import AnswerLost, Link
from celery_delay.store.failures import denied_in_script, replica
from celery_delay.store.keys import ShardKeys
from celery_delay.store.wire import Opening

__all__ = ["Script", "load", "run", "server_of", "sha1"]

_LUA = files("celery_delay.store").joinpath("lua")
#: Redis from this version on knows script flags.
FLAGS_SINCE = (7, 0)


@dataclass(frozen=True)
class Script:
    """One Lua command.

    Attributes:
        keys: the names that its KEYS have in ``keys.ShardKeys``.
        arguments: the names of its ARGV.
        allow_oom: whether it runs when Redis has reached ``maxmemory``.
        body: prologue, includes and the file's own text, without a shebang.
    """

    name: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    takes_rest: bool
    allow_oom: bool
    body: str

    @cached_property
    def names(self) -> frozenset[str]:
        """The arguments' names, in no order."""
        return frozenset(self.arguments)

    def text(self, server_version: tuple[int, ...]) -> str:
        """The script as that server takes it.

        Redis 7 lets a flagged script run when memory is full.  Redis 6.2 does not know flags
        and answers them with a compile error, but once a script has tried a write that needs
        no memory it does not refuse the later ones: hence the HDEL of nothing.
        """
        if server_version >= FLAGS_SINCE:
            return f"#!lua{' flags=allow-oom' if self.allow_oom else ''}\n{self.body}"
        if self.allow_oom:
            return f"redis.call('HDEL', KEYS[1], '')\n{self.body}"
        return self.body

    def argv(self, values: Mapping[str, object]) -> list[object]:
        """*values* in the order of ARGV; a missing or surplus name is a programming error."""
        if values.keys() != self.names:
            raise TypeError(f"{self.name}.lua takes {self.arguments}, not {tuple(values)}")
        return [values[name] for name in self.arguments]


@cache
def sha1(text: str) -> str:
    """What EVALSHA calls a script by."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@cache
def load(name: str) -> Script:
    """The script in ``lua/<name>.lua``.

    Raises:
        ValueError: the file's header is not as described above.
    """
    source = _LUA.joinpath(f"{name}.lua").read_text(encoding="utf-8")
    keys = tuple(_header(source, "KEYS").split())
    declared = [one.split(":") for one in _header(source, "ARGV").split()]
    if not keys:
        raise ValueError(f"{name}.lua declares no KEYS")
    takes_rest = bool(declared) and declared[-1] == ["rest", "*"]
    if takes_rest:
        declared.pop()
    lines = [f"local {key} = KEYS[{i}]" for i, key in enumerate(keys, 1)]
    for i, (argument, kind, *_unit) in enumerate(declared, 1):
        if kind not in ("int", "str"):
            raise ValueError(f"{name}.lua: {argument} has the unknown type {kind}")
        value = f"tonumber(ARGV[{i}])" if kind == "int" else f"ARGV[{i}]"
        lines.append(f"local {argument} = {value}")
    if takes_rest:
        # not unpack(): a bulk add has more arguments than Lua's stack has room for
        lines += [
            "local rest = {}",
            f"for i = {len(declared) + 1}, #ARGV do rest[#rest + 1] = ARGV[i] end",
        ]
    for include in _header(source, "@include", optional=True).split():
        lines.append(_LUA.joinpath("include", f"{include}.lua").read_text(encoding="utf-8"))
    return Script(
        name,
        keys,
        tuple(argument for argument, *_ in declared),
        takes_rest,
        re.search(r"^-- @allow-oom$", source, re.MULTILINE) is not None,
        "\n".join([*lines, source]),
    )


def server_of(link: Link) -> dict[str, Any]:
    """``version`` and ``run_id`` of the server behind *link*, asked for once a connection.

    Raises:
        UnsupportedBroker: it is a Sentinel or a node of a Cluster.
        StoreUnavailable: it is a replica, or did not answer.
    """
    link.connect()
    if "run_id" not in link.learnt:
        info = {**_info(link, "server"), **_info(link, "replication")}
        _check(link, info)
        link.learnt["version"] = tuple(int(one) for one in info["redis_version"].split(".")[:2])
        link.learnt["run_id"] = info["run_id"]
    return link.learnt


def _info(link: Link, section: str) -> dict[str, str]:
    try:
        text = link.call("INFO", section).decode()
    except AnswerLost as exc:
        raise StoreUnavailable(f"lost the answer of INFO: {exc}") from exc
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _check(link: Link, info: Mapping[str, str]) -> None:
    mode = info.get("redis_mode")
    if mode == "sentinel":
        raise UnsupportedBroker(
            f"{link} is a Sentinel, not a Redis: say sentinel://{link} and the master_name"
        )
    if mode == "cluster":
        raise UnsupportedBroker(f"{link} is a node of a Redis Cluster, which is not supported")
    if info.get("role") == "slave":
        # the next connection may lead elsewhere
        link.close()
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise StoreUnavailable(replica(link, f", of {primary}"))


def run(
    link: Link,
    script: Script,
    keys: ShardKeys,
    values: Mapping[str, object],
    rest: Sequence[object] = (),
    *,
    steady: bool = False,
) -> Any:
    """Run *script* on the server behind *link*; loads it there when it is not known.

    Arguments:
        steady: *values* are nearly always the same, so they are packed once, like the keys.

    Raises:
        StoreUnavailable: it certainly did not run.
        AnswerLost: it may have run.
    """
    version = server_of(link)["version"]
    argv = script.argv(values)
    try:
        try:
            if steady:
                return link.call(_opening(script.name, version, keys, *argv), *rest)
            return link.call(_opening(script.name, version, keys), *argv, *rest)
        except NoScriptError:
            named = _named(script, keys)
            text = _text(script.name, version)
            return link.call("EVAL", text, len(named), *named, *argv, *rest)
    except ResponseError as exc:
        text = _text(script.name, version)
        if (denied := denied_in_script(exc, script.name, text, link.user)) is None:
            raise
        raise ResponseError(denied) from exc


def _named(script: Script, keys: ShardKeys) -> list[str]:
    return [getattr(keys, key) for key in script.keys]


@lru_cache(maxsize=4096)
def _opening(name: str, server_version: tuple[int, ...], keys: ShardKeys, *argv: object) -> Opening:
    """What a script's command begins with, each time."""
    named = _named(load(name), keys)
    return Opening("EVALSHA", sha1(_text(name, server_version)), len(named), *named, *argv)


@cache
def _text(name: str, server_version: tuple[int, ...]) -> str:
    return load(name).text(server_version)


def _header(source: str, field: str, *, optional: bool = False) -> str:
    found = re.search(rf"^-- {field}:? ?(.*)$", source, re.MULTILINE)
    if found is None:
        if optional or field == "ARGV":
            return ""
        raise ValueError(f"no {field} line in {source[:60]!r}")
    return found.group(1)
