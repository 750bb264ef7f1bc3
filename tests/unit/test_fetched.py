"""What waits in the sockets of a worker is seen, and stays there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.worker.fetched import fetched

MESSAGE = b'{"headers": {}, "properties": {"priority": 0, "delivery_tag": "%s"}}'


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def consumer(*in_poll: Any) -> Any:
    channels = [SimpleNamespace(_in_poll=one) for one in in_poll]
    transport = SimpleNamespace(cycle=SimpleNamespace(_channels=channels))
    return SimpleNamespace(connection=SimpleNamespace(_transport=transport))


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        (b"a.b-1.1700.17", [EntryId("a.b-1", 1700)]),
        (b"a.1700.17.again.w2", [EntryId("a", 1700)]),
        (b"0ccf1c92-9bdb-4e19-a267-0bbbd25ffbc5", []),
    ],
)
def test_a_message_is_seen_and_stays(
    ends: tuple[socket.socket, socket.socket], tag: bytes, found: list[EntryId]
) -> None:
    here, there = ends
    waiting = consumer(SimpleNamespace(_sock=here), None, False)
    assert fetched(waiting) == []

    answer = b"*2\r\n$6\r\ncelery\r\n$1\r\n" + MESSAGE % tag + b"\r\n"
    there.sendall(answer)

    assert fetched(waiting) == fetched(waiting) == found
    assert here.recv(1 << 16) == answer


def test_no_connection_and_other_brokers_have_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    there.close()
    assert fetched(consumer(SimpleNamespace(_sock=here), SimpleNamespace(_sock=None))) == []
    here.close()
    assert fetched(consumer(SimpleNamespace(_sock=here))) == []
    assert fetched(SimpleNamespace(connection=None)) == []
    assert fetched(SimpleNamespace(connection=SimpleNamespace(_transport=object()))) == []
