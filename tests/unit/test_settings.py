"""The settings object: defaults, checks, messages."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from celery_delay.domain.settings import PREFIX, Settings
from celery_delay.exceptions import DelayError, InvalidSetting


def test_the_defaults_are_good() -> None:
    assert Settings() == Settings.from_mapping({})


def test_every_setting_says_what_it_is() -> None:
    for one in fields(Settings):
        assert len(one.metadata["doc"]) > 20, one.name
        assert one.metadata["doc"].endswith("."), one.name


def test_they_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().shards = 2  # type: ignore[misc]


def test_only_our_names_are_read() -> None:
    given = {"broker_url": "x", "delay_shards": 4, "delayed": 1, 5: 6}

    assert Settings.from_mapping(given) == Settings(shards=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("delay_redis_ulr", "delay_redis_url"),
        ("delay_shard", "delay_shards"),
        ("delay_naiv_eta", "delay_naive_eta"),
        ("delay_databse_url", "delay_database_url"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"{name}; did you mean {hint}\?"):
        Settings.from_mapping({name: 1})


def test_an_unknown_name_that_is_like_none_is_only_named() -> None:
    with pytest.raises(InvalidSetting, match=r"no setting delay_xyzzy$"):
        Settings.from_mapping({"delay_xyzzy": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", 5),
        ("redis_url", "localhost"),
        ("database_url", b"sqlite://"),
        ("key_prefix", ""),
        ("key_prefix", "a{b}"),
        ("key_prefix", "a b"),
        ("shards", 0),
        ("shards", 1.0),
        ("shards", True),
        ("audit", "on"),
        ("audit", None),
        ("intercept", 0),
        ("intercept", 1),
        ("intercept", "all"),
        ("intercept_min", -1),
        ("intercept_exclude", "shop.*"),
        ("intercept_exclude", 5),
        ("intercept_exclude", [""]),
        ("intercept_exclude", [5]),
        ("intercept_fallback", True),
        ("publish_timeout", 0),
        ("leader_grace", 0),
        ("intercept_min", "1"),
        ("naive_eta", "local"),
        ("add_window", 0.1),
        ("add_window", float("nan")),
        ("redis_timeout", float("inf")),
        ("batch_size", 1001),
        ("max_payload", 10),
        ("flower_actions", "basic"),
        ("flower_origins", "https://flower.example.com"),
        ("flower_origins", ["flower.example.com"]),
        ("flower_origins", ["https://flower.example.com/"]),
        ("flower_origins", [5]),
        ("lease", True),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match=PREFIX + name):
        Settings(**{name: value})


def test_durations_that_let_two_beats_lead_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="two beats may lead"):
        Settings(lease=1.0, lease_trust=0.9)
    with pytest.raises(InvalidSetting, match="one lost answer"):
        Settings(lease_renew=0.3)


def test_the_add_window_leaves_time_for_a_repeat() -> None:
    with pytest.raises(InvalidSetting, match="delay_add_window must be at least twice"):
        Settings(add_window=1.0, redis_timeout=0.6)
    assert Settings(add_window=1.0, redis_timeout=0.5).add_window == 1.0
    with pytest.raises(InvalidSetting, match="four times delay_redis_timeout"):
        Settings(publish_timeout=2.0, redis_timeout=0.6)


def test_numbers_become_what_the_code_expects() -> None:
    found = Settings(add_window=2)

    assert (found.add_window, type(found.add_window), found.window_ms) == (2.0, float, 2000)


def test_nothing_is_journalled_without_a_database() -> None:
    assert not Settings().audited
    assert Settings(database_url="sqlite:////tmp/x").audited
    assert not Settings(database_url="sqlite:////tmp/x", audit="off").audited


def test_the_error_is_ours_and_a_value_error() -> None:
    assert issubclass(InvalidSetting, DelayError)
    assert issubclass(InvalidSetting, ValueError)
