"""The Redis server: is it one that keeps what it is given, and lets us work?"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from celery_delay.doctor.checks import NOTE, OK, PROBLEM, Check
from celery_delay.doctor.visit import Visit
from celery_delay.store.keys import ShardKeys
from celery_delay.store.rights import refusals, user_of

__all__ = ["connection", "eviction", "memory", "persistence", "rights", "server_version"]

#: Shares of the memory that are worth a word, and a problem.
_FULL_NOTED, _FULL_PROBLEM = 0.75, 0.9
_MB = 1_048_576
_FILE = "and write it into its configuration file"


def connection(visit: Visit) -> Iterator[Check]:
    """Whether there is a server, and it is a primary."""
    clock = visit.delayed.clock
    began = clock.monotonic()
    server = visit.server
    took = (clock.monotonic() - began) * 1000
    where = f"{visit.link} as {user_of(visit.link) or 'an unknown user'}"
    if server.mode in ("sentinel", "cluster"):
        what = "a Sentinel" if server.mode == "sentinel" else "a node of a Redis Cluster"
        yield Check("redis", PROBLEM, f"{where}: that is {what}, not the store",
                    "see the page on Redis, Sentinel")  # fmt: skip
    elif server.role == "slave":
        yield Check("redis", PROBLEM, f"{where}: a replica, and nothing can be written there",
                    "give the primary's address, or that of its Sentinels")  # fmt: skip
    else:
        yield Check("redis", OK, f"{where}, asked in {took:.0f} ms")


def server_version(visit: Visit) -> Iterator[Check]:
    """6.2 is the floor."""
    server = visit.server
    if server.version[:2] < (6, 2):
        yield Check("redis_version", PROBLEM, f"{server.name} is too old",
                    "celery-delay needs Redis 6.2 or newer")  # fmt: skip
    else:
        yield Check("redis_version", OK, server.name)


def persistence(visit: Visit) -> Iterator[Check]:
    """What a crash of the server costs."""
    server = visit.server
    on = f"CONFIG SET appendonly yes, {_FILE}"
    if server.persistence_failure:
        yield Check(
            "persistence", PROBLEM,
            f"{server.persistence_failure}: a crash loses what came since, and Redis may refuse"
            " writes until then",
            "see its log; most often the disk is full or the folder cannot be written",
        )  # fmt: skip
    if server.appends_to_file and server.appendfsync == "no":
        yield Check(
            "persistence", NOTE,
            "the append-only file is written when the kernel likes: a power cut loses up to half a"
            " minute of tasks",
            f"CONFIG SET appendfsync everysec, {_FILE}",
        )  # fmt: skip
    elif server.appends_to_file and not server.persistence_failure:
        how = f", appendfsync {server.appendfsync}" if server.appendfsync else ""
        yield Check("persistence", OK, f"appendonly yes{how}")
    elif not server.appends_to_file and server.save == "":
        yield Check(
            "persistence", PROBLEM,
            "Redis keeps nothing on disk: when it ends, every task that waits is lost", on,
        )  # fmt: skip
    elif not server.appends_to_file:
        when = f" (save {server.save})" if server.save else ""
        yield Check(
            "persistence", NOTE,
            f"Redis keeps snapshots only{when}: a crash loses the tasks added since the last one",
            on,
        )  # fmt: skip


def eviction(visit: Visit) -> Iterator[Check]:
    """Whether tasks may be thrown away when the memory is full."""
    server = visit.server
    if server.eviction in ("noeviction", ""):
        yield Check("eviction", OK, "maxmemory-policy noeviction")
        return
    remedy = f"CONFIG SET maxmemory-policy noeviction, {_FILE}"
    what = f"maxmemory-policy is {server.eviction}"
    if server.max_memory:
        yield Check(
            "eviction", PROBLEM,
            f"{what}: Redis may throw delayed tasks away when its memory is full", remedy,
        )  # fmt: skip
    else:
        yield Check(
            "eviction", NOTE, f"{what}: without maxmemory it does no harm, with one it does", remedy
        )


def memory(visit: Visit) -> Iterator[Check]:
    """How much room is left."""
    server = visit.server
    limit = server.max_memory or server.total_memory
    whose = "maxmemory" if server.max_memory else "the machine's memory"
    share = server.used_memory / limit if limit else 0
    used = f"{server.used_memory / _MB:.0f} MB"
    told = f"Redis uses {share:.0%} of {whose} ({used} of {limit / _MB:.0f} MB)" if limit else used
    remedy = (
        "raise maxmemory, or find out what fills it: redis-cli --bigkeys;"
        " `celery -A proj delay stats` tells what delayed tasks take"
    )
    if not server.max_memory and share > _FULL_PROBLEM:
        yield Check("memory", PROBLEM, f"{told}, without maxmemory: the kernel will end it", remedy)
    elif share > _FULL_PROBLEM:
        yield Check(
            "memory", PROBLEM,
            f"{told}; when it is full, new tasks are refused (those that wait go out)", remedy,
        )  # fmt: skip
    elif share > _FULL_NOTED:
        yield Check("memory", NOTE, told, remedy)
    else:
        yield Check("memory", OK, told if server.max_memory else f"{told}, no maxmemory")


def rights(visit: Visit) -> Iterator[Check]:
    """Whether an ACL lets us do all that a beat does.  Writes to keys of its own."""
    delayed = visit.delayed
    space = delayed.shard_keys[0].space
    name = f"{delayed.settings.key_prefix}probe-{uuid.uuid4().hex}:"
    links = delayed.links()
    refused = refusals(visit.link, ShardKeys(name, 0, space), links.database)
    user = user_of(visit.link) or "this user"
    if not refused:
        yield Check("rights", OK, f"{user} may do all that a beat does")
        return
    by_key = [one for one in refused if "key" in one.words.replace("keyspace", "")]
    commands = sorted({one.command.lower() for one in refused} - {
        one.command.lower() for one in by_key
    })  # fmt: skip
    grants = [f"+{one}" for one in commands]
    if by_key:
        grants.append(f"~{space}{{{delayed.settings.key_prefix}*")
    what = ", ".join(commands or sorted({one.command.lower() for one in by_key}))
    yield Check(
        "rights", PROBLEM,
        f"Redis does not allow {user}: {what}" + (" (for want of keys)" if not commands else ""),
        f"ACL SETUSER {user} {' '.join(grants)}; the page on Redis has whole rules for each kind"
        " of process. A producer or worker needs less than a beat: run this as beat's user",
    )  # fmt: skip
