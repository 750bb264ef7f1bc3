"""Words about keys, as callers and tasks say them."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from celery_delay.domain.entries import Due
from celery_delay.domain.labels import Labels
from celery_delay.domain.uniqueness import NOTHING_SAID, Keys, Said, Unique, take_said
from celery_delay.message.delays import Delay
from celery_delay.message.runs import following

pytestmark = pytest.mark.unit


def task(**attributes: Any) -> Any:
    return SimpleNamespace(name="shop.remind", **{f"delay_{k}": v for k, v in attributes.items()})


def test_words_are_taken_out_of_the_options() -> None:
    options = {"unique_key": "k", "idempotency_for": 5, "queue": "slow"}

    assert take_said(options) == Said("k", idempotency_for=5)
    assert options == {"queue": "slow"}
    assert take_said(options) is NOTHING_SAID


def test_a_call_without_words_costs_nothing() -> None:
    delay = Delay(Due(0, True))

    assert delay.with_keys(NOTHING_SAID, task(), (), {}) is delay
    assert (delay.keys, delay.key) == (None, "")


def test_what_is_said_of_a_unique_key() -> None:
    said = Said("k", "error", "done", timedelta(seconds=1.5))

    assert said.keys(None, None, None) == (Unique("k", "done", 1_500), Keys("error"))
    assert Said("k").keys(None, (), {}) == (Unique("k"), Keys("keep"))


def test_what_is_said_of_an_idempotency_key() -> None:
    assert Said(idempotency_key="i").keys(None, (), {}) == (None, Keys("keep", "i", 86_400_000))
    both = Said("k", "extend", idempotency_key="i", idempotency_for=2)
    delay = Delay(Due(0, True)).with_keys(both, None, (), {})
    assert (delay.labels.unique, delay.keys) == (Unique("k"), Keys("extend", "i", 2_000))
    assert delay.key == "k"
    assert Delay(Due(0, True)).with_keys(Said(idempotency_key="i"), None, (), {}).key == "i"


def test_the_tasks_words_count_where_the_call_is_silent() -> None:
    keyed = task(unique_key="r:{0}:{x}", on_conflict="extend", unique_until="started", unique_for=9)

    unique, keys = NOTHING_SAID.keys(keyed, (1,), {"x": "y"})
    assert (unique, keys) == (Unique("r:1:y", "started", 9_000), Keys("extend"))
    unique, keys = Said("own", unique_until="dispatched").keys(keyed, (), {})
    assert (unique, keys) == (Unique("own"), Keys("extend"))


@pytest.mark.parametrize(
    ("said", "error", "names"),
    [
        (Said(""), ValueError, "unique_key"),
        (Said("a\nb"), ValueError, "unique_key"),
        (Said("a" * 256), ValueError, "unique_key"),
        (Said(5), TypeError, "unique_key"),  # type: ignore[arg-type]
        (Said("k", "kept"), ValueError, "on_conflict.*'keep'"),
        (Said("k", unique_until="ever"), ValueError, "unique_until"),
        (Said("k", unique_until="done"), ValueError, "unique_for=seconds"),
        (Said("k", unique_for=5), ValueError, "unique_for.*started"),
        (Said("k", None, "done", 0), ValueError, "unique_for=0"),
        (Said("k", None, "done", "9"), TypeError, "unique_for"),  # type: ignore[arg-type]
        (Said("k", None, "done", True), TypeError, "unique_for"),
        (Said("k", None, "done", 1e9), ValueError, "unique_for"),
        (Said(on_conflict="keep"), ValueError, "on_conflict needs unique_key"),
        (Said(unique_for=5), ValueError, "unique_for needs unique_key"),
        (Said(idempotency_for=5), ValueError, "idempotency_for needs idempotency_key"),
        (Said(idempotency_key=" \t"), ValueError, "idempotency_key"),
        (Said(idempotency_key="i", idempotency_for=-1), ValueError, "idempotency_for"),
    ],
)
def test_wrong_words_are_refused_by_name(said: Said, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        said.keys(None, (), {})


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("{1}", ValueError, "delay_unique_key='.1.' of shop.remind does not fit .*: IndexError"),
        ("{x}", ValueError, "KeyError: 'x'"),
        ("{0.nope}", ValueError, "AttributeError"),
        ("{", ValueError, "does not fit"),
        (5, TypeError, "delay_unique_key of shop.remind"),
        ("{0}", ValueError, "unique_key='a.nb'"),
    ],
)
def test_a_template_that_does_not_fit_is_told_with_task_and_call(
    template: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        NOTHING_SAID.keys(task(unique_key=template), ("a\nb",), {})


@pytest.mark.parametrize("unique", [Unique("k"), Unique('ü "k"', "done", 5), None])
def test_a_unique_key_comes_back_out_of_the_labels_as_it_was(unique: Unique | None) -> None:
    labels = Labels("acme", ("t",), unique)

    assert Labels.read(json.loads(labels.encode())) == labels


@pytest.mark.parametrize(
    "written", ["k", ["k"], ["k", "ever", 5], [5, "done", 5], ["k", "done", "5"]]
)
def test_what_is_not_known_in_the_labels_is_left_out(written: Any) -> None:
    assert Labels.read({"unique": written}).unique is None


@pytest.mark.parametrize(("until", "stays"), [("dispatched", 0), ("started", 0), ("done", 1)])
def test_a_retry_goes_on_with_the_key_of_a_task_that_is_not_done(until: str, stays: int) -> None:
    labels = {"tags": ["t"], "unique": ["k", until, 5]}
    copied = {"task_id": "a", "run": 7, "labels": labels}

    after = following(None, "a", copied)

    assert after.labels == Labels(None, ("t",), Unique("k", until, 5) if stays else None)
