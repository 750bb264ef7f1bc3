"""Which names are secret, and what is shown of arguments that have them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting
from celery_delay.message.redaction import REDACTED, Redactor, Texts, is_secret, redacted

pytestmark = pytest.mark.unit

HIDDEN = repr(REDACTED)
CELERYS = Texts("(args)", "{kwargs}")


class Login(NamedTuple):
    user: str
    password: str


@dataclass
class Payment:
    amount: int
    card_number: str


def make(mode: str = "redacted", hook: Any = None, **tasks: Any) -> Redactor:
    settings = Settings(database_url="sqlite:////x", audit_args=mode, audit_redact=hook)
    found = {name: SimpleNamespace(run=run) for name, run in tasks.items()}
    return Redactor(settings, found, 3)


@pytest.mark.parametrize(
    "name",
    [
        "password", "PASSWORD", "newPassword", "old_passwd", "token", "accessToken", "max_tokens",
        "secret", "client-secret", "api_key", "apiKey", "X-Api-Key", "Authorization", "Set-Cookie",
        "card", "card_no", "cardNumber", "pin", "PinCode", "pin2", "cvv", "CVC",
        "aws_access_key_id", "HTTPAuth", "db_credentials", "sessionid", "pwd", "user.password",
    ],
)  # fmt: skip
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["user", "discard", "postcard_id", "opinion", "spin", "author", "authority", "compass",
     "passenger", "key", "primary_key", "pinned", "", "naïve", "order"],
)  # fmt: skip
def test_other_names_are_not(name: str) -> None:
    assert not is_secret(name)


def test_values_are_left_out_at_any_depth() -> None:
    value = {"user": {"name": "bob", "login": [{"password": "x"}, ({b"token": 1},)]}, 5: "five"}

    assert redacted(value) == {
        "user": {"name": "bob", "login": [{"password": REDACTED}, ({b"token": REDACTED},)]},
        5: "five",
    }
    assert value["user"]["login"][0] == {"password": "x"}, "the call's own arguments stay"


def test_fields_of_tuples_and_dataclasses_have_names_too() -> None:
    assert redacted([Login("bob", "x"), Payment(5, "4111")]) == [
        {"user": "bob", "password": REDACTED},
        {"amount": 5, "card_number": REDACTED},
    ]


@pytest.mark.parametrize("value", [(), {}, (1, "a", [2.5, None]), {"user": {"name": b"x"}}])
def test_what_has_no_secrets_is_not_copied(value: Any) -> None:
    assert redacted(value) is value


def test_arguments_that_contain_themselves_end() -> None:
    value: dict[str, Any] = {}
    value["again"] = value

    assert REDACTED in repr(redacted(value))


def test_celerys_text_stands_where_nothing_is_hidden() -> None:
    texts = make().texts("t", (1,), {"user": 1}, CELERYS)

    assert texts.args is CELERYS.args
    assert texts.kwargs is CELERYS.kwargs


def test_a_positional_argument_has_the_name_of_its_parameter() -> None:
    def login(user: str, password: str, *tokens: str, **more: str) -> None: ...

    redactor = make(login=login)

    texts = redactor.texts("login", ("bob", "x", "y", "z"), {"more": 1}, CELERYS)
    assert texts == (f"('bob', {HIDDEN}, {HIDDEN}, {HIDDEN})", "{kwargs}")
    # by name only, in a process that does not have the task
    assert redactor.texts("elsewhere", ("bob", "x"), {}, CELERYS) == CELERYS


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("redacted", ("(args)", f"{{'password': {HIDDEN}}}")),
        ("repr", CELERYS),
        ("off", (None, None)),
    ],
)
def test_the_setting_decides(mode: str, expected: Any) -> None:
    assert make(mode).texts("t", (1,), {"password": "x"}, CELERYS) == expected


def test_without_an_audit_nothing_is_told() -> None:
    redactor = Redactor(Settings(), {}, 3)

    assert redactor.texts("t", (1,), {}, CELERYS) == (None, None)


@pytest.mark.parametrize(("mode", "told"), [("redacted", "mine"), ("repr", "mine"), ("off", None)])
def test_the_callers_own_text_is_respected(mode: str, told: Any) -> None:
    texts = make(mode).texts("t", (1,), {"password": "x"}, CELERYS, Texts("mine", None))

    assert texts.args == told


def test_a_hook_decides_what_is_shown() -> None:
    calls = []

    def hook(task: str, args: Any, kwargs: Any) -> Any:
        calls.append((task, args, kwargs))
        return f"{len(args)} of them", {"password": "x", "user": "b…"}

    shown = make("redacted", hook).texts("t", (1, 2), {"user": "bob"}, CELERYS)

    assert calls == [("t", (1, 2), {"user": "bob"})]
    assert shown == ("2 of them", f"{{'password': {HIDDEN}, 'user': 'b…'}}")
    assert (
        make("repr", hook).texts("t", (), {}, CELERYS).kwargs == "{'password': 'x', 'user': 'b…'}"
    )


def test_a_hook_may_show_nothing() -> None:
    assert make("redacted", lambda *_: (None, None)).texts("t", (1,), {}, CELERYS) == (None, None)


@pytest.mark.parametrize("bad", [lambda *_: 1 / 0, lambda *_: None, lambda *_: (1, 2, 3)])
def test_a_hook_that_fails_shows_nothing_and_says_so_once(
    bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    redactor = make("redacted", bad)

    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert redactor.texts("t", ("x",), {"a": "x"}, CELERYS) == (REDACTED, REDACTED)

    assert [one.event for one in caplog.records] == ["redact_failed"]  # type: ignore[attr-defined]


def test_a_hook_is_named_by_its_path() -> None:
    assert make("repr", "builtins:divmod").texts("t", 7, 2, CELERYS) == (REDACTED, REDACTED)
    for path in ("no.such.module:hook", "os:no_such_name", "os:sep"):
        with pytest.raises(InvalidSetting, match="delay_audit_redact"):
            make("repr", path)
