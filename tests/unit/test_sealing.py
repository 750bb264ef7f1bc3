"""Payloads sealed at rest: keys from everywhere, rotation, and errors that help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from celery_delay.domain.sealing import PLAIN, Seal
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting, PayloadUnreadable

OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))


def from_code() -> list[str]:
    return [NEW]


def nothing() -> None:
    return None


def broken() -> str:
    raise OSError("the vault is shut")


def seal(*keys: Any) -> Seal:
    return Seal(Settings(payload_keys=keys).payload_keys)


ONE = seal(NEW)


@given(st.binary(max_size=2_000))
def test_what_is_sealed_opens_again(payload: bytes) -> None:
    for one in (ONE, seal()):
        sealed = one.seal(payload)

        assert one.open(sealed) == payload
        assert one.is_current(sealed)


def test_nothing_of_the_payload_is_readable() -> None:
    payload = b'{"password": "hunter2"}'
    sealed = ONE.seal(payload)

    assert b"hunter2" not in sealed
    assert sealed.isascii()
    assert sealed != ONE.seal(payload), "one text for one payload tells that two are the same"


def test_without_keys_the_payload_stays_and_opens_when_there_are_some() -> None:
    plain = seal().seal(b"abc")

    assert not seal()
    assert plain == PLAIN + b"abc"
    assert ONE.open(plain) == b"abc"
    assert not ONE.is_current(plain)
    assert ONE.open(ONE.reseal(plain)) == b"abc"


def test_the_first_key_seals_and_all_open() -> None:
    old = seal(OLD).seal(b"abc")
    both = seal(NEW, OLD)

    assert both.open(old) == b"abc"
    assert both.seal(b"x").startswith(both.mark)
    assert both.mark == ONE.mark != seal(OLD).mark
    assert ONE.open(both.reseal(old)) == b"abc"
    fresh = both.seal(b"x")
    assert both.reseal(fresh) is fresh


def test_an_unknown_key_is_named_by_its_id_with_the_setting_and_the_remedy() -> None:
    [missing], [known] = seal(OLD).key_ids, ONE.key_ids

    with pytest.raises(PayloadUnreadable) as found:
        ONE.open(seal(OLD).seal(b"hunter2"))

    text = str(found.value)
    assert f"does not have (id {missing}; known: {known})" in text
    assert "delay_payload_keys" in text
    assert "add that key at the list's end" in text
    assert found.value.key_id == missing
    assert not any(secret in text for secret in (OLD, NEW, "hunter2"))
    with pytest.raises(PayloadUnreadable, match="known: none"):
        seal().open(ONE.seal(b""))


@pytest.mark.parametrize("place", [10, 20, 60, -1])
def test_a_changed_payload_is_not_opened(place: int) -> None:
    sealed = bytearray(ONE.seal(b"pay 10 to bob"))
    sealed[place] ^= 1

    with pytest.raises(PayloadUnreadable):
        ONE.open(bytes(sealed))


@pytest.mark.parametrize("text", [b"", b"{}", b"sealed:", b"sealed:x", b"seal", b"sealed:\xff:x"])
def test_what_is_no_sealed_payload_is_not_opened(text: bytes) -> None:
    with pytest.raises(PayloadUnreadable, match=r"this is no payload|does not have"):
        ONE.open(text)
    with pytest.raises(PayloadUnreadable, match="changed after it was sealed, or cut short"):
        ONE.open(ONE.seal(b"abc")[:-5])


# --- where keys come from ----------------------------------------------------------------


def test_keys_come_from_variables_files_and_functions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# newest first\n{NEW}\n\n  {OLD}\n")
    monkeypatch.setenv("SHOP_KEYS", f"{NEW}, {OLD}")
    monkeypatch.setitem(sys.modules, "shop_keys", sys.modules[__name__])
    both = seal(NEW, OLD).key_ids

    assert seal(f"file:{file}").key_ids == both
    assert seal("env:SHOP_KEYS").key_ids == both
    assert seal(from_code, OLD).key_ids == both
    assert seal("call:shop_keys:from_code", OLD.encode()).key_ids == both
    assert seal(f"file:{file}", "env:SHOP_KEYS", OTHER).key_ids == (*both, *seal(OTHER).key_ids)
    assert Settings(payload_keys=NEW).payload_keys == (NEW,)


def test_a_key_that_comes_later_is_found_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    reader = seal(f"file:{file}")
    sealed = ONE.seal(b"abc")
    with pytest.raises(PayloadUnreadable):
        reader.open(sealed)

    file.write_text(f"{OLD}\n{NEW}\n")

    assert reader.open(sealed) == b"abc"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["hunter2"], r"delay_payload_keys\[0\] is no Fernet key"),
        ([NEW, NEW[:-4]], r"delay_payload_keys\[1\] is no Fernet key"),
        ([NEW, 5], r"delay_payload_keys\[1\] must be a Fernet key, 'env:NAME'.*not a int"),
        (7, "delay_payload_keys must be a Fernet key"),
        ("env:", "names nothing behind the colon"),
        (["schlüssel"], "is no Fernet key"),
    ],
)
def test_a_wrong_setting_is_refused_without_showing_it(keys: Any, text: str) -> None:
    with pytest.raises(InvalidSetting, match=text) as found:
        Settings(payload_keys=keys)

    assert not any(secret in str(found.value) for secret in ("hunter2", NEW[:-4]))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("env:NO_SUCH_KEYS", "the environment variable NO_SUCH_KEYS is not set"),
        ("env:EMPTY_KEYS", "env:EMPTY_KEYS has no key"),
        ("env:BAD_KEYS", "env:BAD_KEYS is no Fernet key"),
        ("file:/no/such/keys", "file:/no/such/keys cannot be read"),
        ("call:no_such_module:keys", "call:no_such_module:keys cannot be imported"),
        (nothing, "nothing must return a key or a list of them"),
        (broken, "broken failed: OSError: the vault is shut"),
    ],
)
def test_a_key_that_is_not_where_it_should_be(
    monkeypatch: pytest.MonkeyPatch, source: Any, text: str
) -> None:
    monkeypatch.setenv("EMPTY_KEYS", " ")
    monkeypatch.setenv("BAD_KEYS", "hunter2")
    chosen = Settings(payload_keys=[source]).payload_keys

    with pytest.raises(InvalidSetting, match=f"delay_payload_keys: {text}"):
        Seal(chosen)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)

    with pytest.raises(InvalidSetting, match=r"pip install 'celery-delay\[encryption\]'"):
        seal(NEW)
    assert seal().open(PLAIN) == b""


def test_keys_are_not_shown_with_the_settings() -> None:
    assert NEW not in repr(Settings(payload_keys=[NEW]))
