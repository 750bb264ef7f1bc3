"""Who asks for a change, as the audit and an operator are told: ``user@host:pid``.

A process that asks for somebody else says so: ``ann (flower@host:pid)``.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["caller", "on_behalf_of"]

#: Longest name of somebody else.
_LONGEST = 100
_behalf: ContextVar[str] = ContextVar("celery_delay_behalf", default="")


def caller() -> str:
    """This process: its user's name (or number, where it has none), its machine, its id.

    In :func:`on_behalf_of`, who that is, and this process.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user is often nobody that has a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "?"
    process = f"{user}@{socket.gethostname()}:{os.getpid()}"
    behalf = _behalf.get()
    return f"{behalf} ({process})" if behalf else process


@contextmanager
def on_behalf_of(name: str) -> Iterator[None]:
    """Let :func:`caller` name somebody else first, in this context; "": nobody."""
    shown = "".join(one if one.isprintable() else "?" for one in name[:_LONGEST])
    token = _behalf.set(shown)
    try:
        yield
    finally:
        _behalf.reset(token)
