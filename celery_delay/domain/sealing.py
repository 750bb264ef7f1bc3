"""Payloads sealed while they rest outside Redis: in SQL, and in files that were exported.

A sealed payload is text in ASCII that names the key it needs, so that what a key cannot open is
told apart from what is broken, and what an old key has sealed is found without opening it::

    sealed:KEYID:TOKEN     TOKEN is Fernet's, of the package ``cryptography``
    plain:PAYLOAD          written while there was no key

The id of a key is the beginning of its SHA-256: it tells nothing of the key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from celery_delay.exceptions import InvalidSetting, PayloadUnreadable

__all__ = ["PLAIN", "SEALED", "SETTING", "Seal", "keys_of"]

#: What a payload begins with that was written without a key, and with one.
PLAIN, SEALED = b"plain:", b"sealed:"

#: Where the keys are.
SETTING = "delay_payload_keys"
_ENV, _FILE, _CALL = "env:", "file:", "call:"

_MAKE_ONE = (
    'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
)

#: A key, where one is, or a function that returns keys.
Given = str | Callable[[], object]


def keys_of(name: str, value: Any) -> tuple[Given, ...]:
    """Check of the setting: keys, or where they are.  Reads no file and calls nothing.

    Raises:
        InvalidSetting: the text names the setting and the place in the list, never a key.
    """
    if value is None:
        return ()
    parts = value if isinstance(value, (list, tuple)) else [value]
    for place, one in enumerate(parts):
        where = f"{name}[{place}]" if isinstance(value, (list, tuple)) else name
        if isinstance(one, str) and one.startswith((_ENV, _FILE, _CALL)):
            if not one.partition(":")[2].strip():
                raise InvalidSetting(f"{where} is {one!r} and names nothing behind the colon")
        elif isinstance(one, (str, bytes)):
            _check_key(where, one)
        elif not callable(one):
            raise InvalidSetting(
                f"{where} must be a Fernet key, 'env:NAME', 'file:/path', 'call:module:function'"
                f" or a function, not a {type(one).__name__}"
            )
    return tuple(one.decode() if isinstance(one, bytes) else one for one in parts)


class Seal:
    """Seals payloads with the newest key, and opens those of every key that is known.

    Without keys it still opens what was written plain, and writes so.  One object serves all
    threads of a process.

    Arguments:
        given: the setting's value, newest key first.

    Raises:
        InvalidSetting: a key is missing where the setting says that it is, or is none; or
            ``cryptography`` is not installed.
    """

    def __init__(self, given: Iterable[Given] = ()) -> None:
        self._given = tuple(given)
        self._keys = _loaded(self._given)

    def __bool__(self) -> bool:
        """Whether there is a key, so that what is written is encrypted."""
        return bool(self._keys)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, newest first; they may be shown."""
        return tuple(self._keys)

    def seal(self, payload: bytes) -> bytes:
        """*payload* as it may be written down: encrypted and signed if there is a key."""
        if not self._keys:
            return PLAIN + payload
        key_id, key = next(iter(self._keys.items()))
        token: bytes = key.encrypt(payload)
        return b"%b%b:%b" % (SEALED, key_id.encode(), token)

    def open(self, sealed: bytes) -> bytes:
        """The reverse of :meth:`seal`, for whichever of the keys it needs.

        Keys in files, variables and functions are looked up once more before one is said to be
        unknown, so a key that was added later needs no restart of those who read.

        Raises:
            PayloadUnreadable: the key is not known, or what was written has been changed.
                The payload is as good as before: keep it, and open it when the key is there.
            InvalidSetting: the keys cannot be read any more.
        """
        if sealed.startswith(PLAIN):
            return sealed[len(PLAIN) :]
        key_id, token = _parts(sealed)
        if key_id not in self._keys and self._given:
            self._keys = _loaded(self._given)
        try:
            key = self._keys[key_id]
        except KeyError:
            raise PayloadUnreadable(
                f"the payload is sealed with a key that {SETTING} does not have (id {key_id};"
                f" known: {', '.join(self._keys) or 'none'}): add that key at the list's end",
                key_id,
            ) from None
        try:
            payload: bytes = key.decrypt(token)
        except _invalid_token() as exc:
            raise PayloadUnreadable(
                f"the payload was changed after it was sealed, or cut short (key id {key_id})",
                key_id,
            ) from exc
        return payload

    def is_current(self, sealed: bytes) -> bool:
        """Whether :meth:`seal` would use the same key today, or none where there is none."""
        return sealed.startswith(self.mark)

    @property
    def mark(self) -> bytes:
        """What everything begins with that is sealed as it would be today."""
        newest = next(iter(self._keys), None)
        return PLAIN if newest is None else b"%b%b:" % (SEALED, newest.encode())

    def reseal(self, sealed: bytes) -> bytes:
        """*sealed* as it would be written today; *sealed* itself if it is so already.

        Raises:
            PayloadUnreadable, InvalidSetting: as for :meth:`open`.
        """
        return sealed if self.is_current(sealed) else self.seal(self.open(sealed))


def _parts(sealed: bytes) -> tuple[str, bytes]:
    head, _, rest = sealed.partition(b":")
    key_id, found, token = rest.partition(b":")
    if head + b":" != SEALED or not found or not key_id.isalnum():
        raise PayloadUnreadable("this is no payload that was sealed, nor one written plain")
    return key_id.decode("ascii", "replace"), token


def _invalid_token() -> type[Exception]:
    from cryptography.fernet import InvalidToken

    found: type[Exception] = InvalidToken
    return found


def _loaded(given: Iterable[Given]) -> dict[str, Any]:
    """Key id → Fernet, newest first."""
    found: dict[str, Any] = {}
    for where, text in _found(given):
        raw = _check_key(where, text)
        found.setdefault(hashlib.sha256(raw).hexdigest()[:8], _fernet(raw))
    return found


def _fernet(raw: bytes) -> Any:
    try:
        from cryptography.fernet import Fernet
    except ImportError as exc:
        raise InvalidSetting(
            f"{SETTING} is set and the package cryptography is missing:"
            " pip install 'celery-delay[encryption]'"
        ) from exc
    return Fernet(base64.urlsafe_b64encode(raw))


def _found(given: Iterable[Given]) -> Iterator[tuple[str, str]]:
    """Where a key was found, and its text."""
    for place, one in enumerate(given):
        if isinstance(one, str) and not one.startswith((_ENV, _FILE, _CALL)):
            yield f"{SETTING}[{place}]", one
            continue
        source, texts = _looked_up(one)
        if not texts:
            raise InvalidSetting(f"{SETTING}: {source} has no key")
        yield from ((f"{SETTING}: {source}", text) for text in texts)


def _looked_up(one: Given) -> tuple[str, list[str]]:
    """A source's name, and the texts of its keys."""
    if not isinstance(one, str):
        return _called(one, getattr(one, "__qualname__", type(one).__name__))
    _, _, name = one.partition(":")
    if one.startswith(_ENV):
        if name not in os.environ:
            raise InvalidSetting(f"{SETTING}: the environment variable {name} is not set")
        return one, os.environ[name].replace(",", " ").split()
    if one.startswith(_FILE):
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as exc:
            raise InvalidSetting(f"{SETTING}: {one} cannot be read: {exc}") from exc
        return one, [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise InvalidSetting(f"{SETTING}: {one} cannot be imported: {exc}") from exc
    return _called(function, one)


def _called(function: Any, name: str) -> tuple[str, list[str]]:
    try:
        keys = function()
    except Exception as exc:
        raise InvalidSetting(f"{SETTING}: {name} failed: {type(exc).__name__}: {exc}") from exc
    if isinstance(keys, (str, bytes)):
        keys = [keys]
    if not isinstance(keys, (list, tuple)) or not all(isinstance(k, (str, bytes)) for k in keys):
        raise InvalidSetting(f"{SETTING}: {name} must return a key or a list of them")
    return name, [key.decode() if isinstance(key, bytes) else key for key in keys]


def _check_key(where: str, text: str | bytes) -> bytes:
    """The 32 bytes of a key.  What is wrong is never shown: it may be most of a key."""
    try:
        raw = base64.urlsafe_b64decode(text)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != 32:
        raise InvalidSetting(
            f"{where} is no Fernet key (32 bytes in URL-safe base64, 44 characters);"
            f" make one: {_MAKE_ONE}"
        )
    return raw
