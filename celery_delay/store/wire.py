"""A command and its answer as bytes (RESP 2).

redis-py packs and reads value by value, which for a script of ours, with its twenty keys, takes
a quarter of the CPU of a call.  Here what is the same each time is packed once, and an answer is
cut out of what the socket gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

__all__ = ["Opening", "packed", "read", "send"]

#: Bytes asked for at first: nearly every answer is shorter.
_FIRST = 8_192
#: Bytes asked for where that was not all.
_MORE = 65_536


_ENDED = "Connection closed by server."
#: Bytes that are sent at a time, each time within the socket's time-out.
_PIECE = 1 << 20


class Opening:
    """The first words of a command, packed once for many commands."""

    __slots__ = ("count", "text", "words")

    def __init__(self, *words: object) -> None:
        self.words = words
        self.count = len(words)
        self.text = b"".join(map(_word, words))

    def __str__(self) -> str:
        return str(self.words[0])


def packed(first: object, rest: Sequence[object]) -> bytes:
    """A command of *first*, which may be an :class:`Opening`, and *rest*."""
    if type(first) is not Opening:
        first = Opening(first)
    count = first.count + len(rest)
    return b"".join([b"*%d\r\n" % count, first.text, *map(_word, rest)])


def send(sock: Any, command: bytes) -> None:
    """Send *command*, which may be long."""
    if len(command) <= _PIECE:
        sock.sendall(command)
        return
    whole = memoryview(command)
    for start in range(0, len(command), _PIECE):
        sock.sendall(whole[start : start + _PIECE])


def _word(one: object) -> bytes:
    if type(one) is str:
        text = one.encode()
    elif type(one) is bytes:
        text = one
    else:
        text = str(one).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


def read(sock: Any, error_of: Callable[[str], Exception]) -> Any:
    """The answer to the one command that is under way on *sock*: bytes, numbers, lists.

    Arguments:
        error_of: makes the exception of an error's text.

    Raises:
        OSError: the answer did not come in time, or the socket broke.
        redis.exceptions.RedisError: the connection ended, or the answer is an error.
    """
    came = sock.recv(_FIRST)
    if (texts := _texts(came)) is not None:
        return texts
    answer = _Answer(sock, error_of, came).value()
    if isinstance(answer, Exception):
        try:
            raise answer
        finally:
            # its traceback has this frame: a cycle, which would keep the connection until the
            # next look for garbage, and might then end its socket before the connection closes it
            del answer
    return answer


def _texts(came: bytes) -> list[bytes] | None:
    """The list of texts that *came* is from end to end; ``None`` if it is anything else.

    Most answers of scripts are, and this is half the work.  Where a text has a line break, the
    lengths before the parts do not fit.
    """
    if came[:1] != b"*":
        return None
    head, *parts = came.split(b"\r\n")
    if len(parts) % 2 == 0 or head[1:] != b"%d" % (len(parts) // 2) or parts.pop():
        return None
    texts = parts[1::2]
    return texts if parts[::2] == [b"$%d" % len(one) for one in texts] else None


class _Answer:
    """What has come of an answer and was not read yet."""

    def __init__(self, sock: Any, error_of: Callable[[str], Exception], came: bytes) -> None:
        self._sock = sock
        self._error_of = error_of
        self._data = came
        self._at = 0
        if not came:
            raise RedisConnectionError(_ENDED)

    def value(self) -> Any:
        """The next value; an error inside of a list is one of its values."""
        line = self._line()
        kind = line[:1]
        if kind == b"$":
            return self._bulk(int(line[1:]))
        if kind == b":":
            return int(line[1:])
        if kind == b"*":
            count = int(line[1:])
            return None if count < 0 else [self.value() for _ in range(count)]
        if kind == b"+":
            return line[1:]
        if kind == b"-":
            return self._error_of(line[1:].decode(errors="replace"))
        raise InvalidResponse(f"Protocol Error: {line!r}")

    def _line(self) -> bytes:
        end = self._data.find(b"\r\n", self._at)
        while end < 0:
            self._more(_MORE)
            end = self._data.find(b"\r\n")
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    def _bulk(self, size: int) -> bytes | None:
        if size < 0:
            return None
        missing = self._at + size + 2 - len(self._data)
        if missing > 0:
            self._more(missing, whole=True)
        end = self._at + size
        text = self._data[self._at : end]
        self._at = end + 2
        return text

    def _more(self, size: int, *, whole: bool = False) -> None:
        """Read on; what was read already is dropped, so that long answers cost no more."""
        parts, missing = [self._data[self._at :]], size
        while missing > 0:
            came = self._sock.recv(max(missing, _MORE) if whole else size)
            if not came:
                raise RedisConnectionError(_ENDED)
            parts.append(came)
            missing = missing - len(came) if whole else 0
        self._data, self._at = b"".join(parts), 0
