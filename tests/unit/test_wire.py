"""Commands and answers as bytes, beside redis-py's own."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from redis import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from celery_delay.calling.shapes import _new_id
from celery_delay.store.wire import Opening, packed, read, send

parse_error = Connection()._parser.parse_error  # type: ignore[attr-defined]


class Socket:
    """Gives what a server has sent in pieces of one size, and then the end."""

    def __init__(self, text: bytes, piece: int) -> None:
        self.text, self.piece = text, piece
        self.sent: list[bytes] = []

    def sendall(self, text: bytes) -> None:
        self.sent.append(bytes(text))

    def recv(self, most: int) -> bytes:
        size = min(most, self.piece)
        came, self.text = self.text[:size], self.text[size:]
        return came


@pytest.mark.parametrize(
    "command",
    [
        ("PING",),
        ("SET", "key", "value"),
        ("SET", "käse", b"\x00\r\n\xff"),
        ("EVALSHA", "sha", 2, "a", "b", -1, 0, 2**53, "", "x" * 10_000),
    ],
)
def test_a_command_has_the_bytes_that_redis_py_sends(command: tuple[object, ...]) -> None:
    expected = b"".join(Connection().pack_command(*command))
    assert packed(command[0], command[1:]) == expected
    for cut in range(1, len(command) + 1):
        opening = Opening(*command[:cut])
        assert packed(opening, command[cut:]) == expected
        assert str(opening) == command[0]


def _written(value: Any) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n" % len(value) + b"".join(map(_written, value))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 100, 8_192, 10**7])
@pytest.mark.parametrize(
    "value",
    [
        b"", [b""], [b"a", b""], [b"$0\r\n"], [b"a\r\n$1\r\nb"], [b"\r\n", b"\r\n"], [b"$1", b"$2"],
        [b"a", 5], [b"a", None], [[b"a"], b"b"], b"one",
        b"\r\n*3\r\n$-1\r\n", None, 0, -5, 2**62, [], [[], [None]],
        [b"OK", b"1795765217449", b"A", b"-1", b"1795765217449"],
        [[b"x" * n, n] for n in range(60)], [b"a" * 9_000, b"b" * 200_000, [b"c"]],
    ],
)  # fmt: skip
def test_an_answer_is_read_however_it_comes(value: Any, piece: int) -> None:
    if piece < 7 and len(_written(value)) > 10_000:
        piece = 1_009
    sock = Socket(_written(value), piece)
    assert read(sock, parse_error) == value
    assert sock.text == b""


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_long_command_is_sent_in_pieces_that_each_have_their_time(size: int) -> None:
    sock, command = Socket(b"", 1), b"ab" * (size // 2) + b"c" * (size % 2)
    send(sock, command)
    assert b"".join(sock.sent) == command
    assert max(map(len, sock.sent)) <= 1 << 20


def test_a_status_is_its_text() -> None:
    assert read(Socket(b"+OK\r\n", 1), parse_error) == b"OK"
    assert read(Socket(b"*-1\r\n", 1), parse_error) is None


def test_an_error_is_raised_as_redis_py_knows_it() -> None:
    with pytest.raises(NoScriptError, match="No matching script"):
        read(Socket(b"-NOSCRIPT No matching script\r\n", 4), parse_error)
    with pytest.raises(ResponseError, match="MALFORMED record"):
        read(Socket(b"-MALFORMED record of x\r\n", 100), parse_error)


def test_an_error_inside_of_a_list_is_one_of_its_values() -> None:
    one, error, other = read(Socket(b"*3\r\n:1\r\n-ERR no\r\n:2\r\n", 5), parse_error)
    assert (one, other) == (1, 2)
    assert isinstance(error, ResponseError)


@pytest.mark.parametrize("text", [b"", b"$5\r\nab", b"*2\r\n:1\r\n", b"$1"])
def test_an_answer_that_ends_too_early_is_no_answer(text: bytes) -> None:
    with pytest.raises(RedisConnectionError, match="closed"):
        read(Socket(text, 3), parse_error)


def test_bytes_of_another_protocol_are_refused() -> None:
    with pytest.raises(InvalidResponse, match="HTTP"):
        read(Socket(b"HTTP/1.1 400 Bad Request\r\n", 100), parse_error)


def test_ids_are_random_uuids() -> None:
    ids = {_new_id() for _ in range(500)}
    assert len(ids) == 500
    for one in ids:
        assert str(UUID(one)) == one
        assert (UUID(one).version, UUID(one).variant) == (4, RFC_4122)


def test_an_error_holds_nothing_once_it_is_dropped() -> None:
    sock = Socket(b"-ERR no\r\n", 100)
    held = weakref.ref(sock)
    gc.disable()
    try:
        with suppress(ResponseError):
            read(sock, parse_error)
        del sock
        assert held() is None, "held by the error's traceback until the next look for garbage"
    finally:
        gc.enable()
