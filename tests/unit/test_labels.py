"""Labels, and the words about a delay, as callers give them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_delay.domain.entries import Due
from celery_delay.domain.labels import NO_LABELS, Labels, labels_for
from celery_delay.message.delays import Delay, take_words

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "labels",
    [NO_LABELS, Labels("acme"), Labels(None, ("a", "b")), Labels("acme käse", ('quo"te', "~"))],
)
def test_labels_come_back_as_they_were(labels: Labels) -> None:
    assert Labels.read(json.loads(labels.encode() or "null")) == labels


def test_no_label_costs_nothing() -> None:
    assert NO_LABELS.encode() == ""
    assert labels_for(None, ()) is NO_LABELS


def test_each_tag_counts_once() -> None:
    assert labels_for("acme", ["b", "a", "b"]) == Labels("acme", ("b", "a"))


@pytest.mark.parametrize(
    ("namespace", "tags", "error", "names"),
    [
        (1, (), TypeError, "namespace"),
        ("", (), ValueError, "namespace"),
        ("a\nb", (), ValueError, "namespace"),
        ("a" * 256, (), ValueError, "namespace"),
        (None, "word", TypeError, "tags"),
        (None, 5, TypeError, "tags"),
        (None, ["fine", ""], ValueError, "tags"),
        (None, ["a" * 101], ValueError, "tags"),
        (None, [None], TypeError, "tags"),
        (None, [str(n) for n in range(21)], ValueError, "tags"),
    ],
)
def test_bad_labels_are_refused_by_name(
    namespace: Any, tags: Any, error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=names):
        labels_for(namespace, tags)


def test_words_about_the_delay_are_taken_out_of_the_options() -> None:
    options: dict[str, Any] = {
        "window": timedelta(minutes=1), "tags": ["a"], "expires_from": "eta", "queue": "slow",
    }  # fmt: skip

    delay = take_words(options)

    assert options == {"queue": "slow"}
    assert delay == Delay(Due(0, True), 60_000, Labels(None, ("a",)), True)


@pytest.mark.parametrize(
    "options",
    [
        {"window": -1},
        {"window": 366 * 86_400},
        {"window": True},
        {"window": "1"},
        {"expires_from": "now"},
        {"expires_from": "eta", "expires": datetime(2030, 1, 1, tzinfo=timezone.utc)},
        {"expires_from": "eta", "expires": "2030-01-01T00:00Z"},
    ],
)
def test_bad_words_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="expires|" + next(iter(options))):
        take_words(dict(options))


def test_a_window_spreads_evenly_and_the_same_way_each_time() -> None:
    delay = Delay(Due(5_000, True), window_ms=60_000)
    ids = [f"task-{n}" for n in range(6_000)]

    dues = [delay.due_of(one) for one in ids]

    assert dues == [delay.due_of(one) for one in ids]
    assert {one.is_delay for one in dues} == {True}
    per_second = [0] * 61
    for one in dues:
        per_second[(one.ms - 5_000) // 1_000] += 1
    assert max(per_second) <= 150  # 100 on average
    assert min(per_second[:60]) >= 50


def test_a_window_does_not_go_beyond_time_itself() -> None:
    last = Due(253_402_300_799_000, False)

    assert Delay(last, window_ms=60_000).due_of("any") == last


def test_a_hundred_thousand_for_one_instant_stay_below_the_bound() -> None:
    delay = Delay(Due(1_700_000_000_000, False), window_ms=60_000)

    per_second = [0] * 61
    for number in range(100_000):
        due = delay.due_of(f"remind-{number}")
        per_second[(due.ms - delay.due.ms) // 1_000] += 1

    assert max(per_second) <= 2_500
