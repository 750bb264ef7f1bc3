"""What a worker has fetched and its broker does not know of: told, so that it is not sent again.

Kombu's Redis transport stops reading when a worker has as many messages as it may: after a task
with an eta its prefetch count shrinks while a BRPOP is under way.  What Redis answers to that stays
in the socket until a task is over: on no queue, and not in ``unacked``.  So the socket is looked
into, without taking anything out of it.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from celery_delay.domain.entries import EntryId

__all__ = ["fetched"]

#: So much is looked at; of a message that is longer the tag is not found, for it comes last.
_MOST_BYTES = 1 << 20
#: "<task id>.<run>.<epoch>…": a delivery tag of a moved message.
_TAG = re.compile(rb'"delivery_tag":\s*"([^"]+)\.(\d+)\.\d+[^"]*"')


def fetched(consumer: Any) -> list[EntryId]:
    """The entries whose messages wait in the sockets of a worker's *consumer*.

    For any thread: it takes nothing, and waits for nothing.  Through TLS it sees nothing.
    """
    found = []
    for sock in _sockets(consumer):
        if isinstance(sock, ssl.SSLSocket):
            continue
        try:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if not poll.poll(0):
                continue
            answer = sock.recv(_MOST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (OSError, ValueError):
            continue  # its connection has just been lost
        found += [EntryId(one[1].decode(), int(one[2])) for one in _TAG.finditer(answer)]
    return found


def _sockets(consumer: Any) -> Iterator[socket.socket]:
    transport = getattr(consumer.connection, "_transport", None)
    cycle = getattr(transport, "cycle", None)  # only Redis' transport has one of channels
    for channel in list(getattr(cycle, "_channels", ())):
        # while a BRPOP is under way it is the connection that waits for the answer
        sock = getattr(getattr(channel, "_in_poll", None), "_sock", None)
        if sock is not None:
            yield sock
