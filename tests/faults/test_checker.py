"""The checker sees what it is there for: a doctored ledger is never called clean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import Ledger, judge, lateness


def added(task_id: str, kind: str = "tap", **facts: Any) -> dict[str, Any]:
    line = {"op": "added", "id": task_id, "kind": kind, "not_before": 1_000, "due": 1_001}
    return {**line, "acked": 500, **facts}


CLEAN = Ledger(
    additions=[added("a"), added("b"), added("w", "work"), added("r", "retry", times=2)],
    cancellations=[{"op": "cancelled", "id": "b", "outcome": "CANCELLED"}],
    handed=[{"id": "a", "at": 1_005}],
    effects=[
        {"id": "w", "at": 1_010},
        {"id": "r", "at": 1_010},
        {"id": "r", "at": 2_210},
        {"id": "r", "at": 3_500},
    ],
)


def found(ledger: Ledger) -> dict[str, list[str]]:
    return {name: ids for name, ids in judge(ledger).items() if ids}


def test_clean_ledger() -> None:
    """GIVEN a ledger in which all promises are kept THEN nothing is found."""
    assert found(CLEAN) == {}
    assert lateness(CLEAN) == {"p50": 4, "p99": 4, "max": 4}


@pytest.mark.parametrize(
    ("wrong", "changes"),
    [
        ({"lost": ["a"]}, {"handed": []}),
        ({"early": ["a"]}, {"handed": [{"id": "a", "at": 999}]}),
        ({"doubled": ["a"]}, {"handed": [{"id": "a", "at": 1_005}] * 2}),
        ({"after_cancel": ["b"]}, {"handed": [*CLEAN.handed, {"id": "b", "at": 1_005}]}),
        ({"effect_lost": ["w"]}, {"effects": CLEAN.effects[1:]}),
        ({"effect_lost": ["r"]}, {"effects": CLEAN.effects[:-1]}),
        ({"effect_doubled": ["r"]}, {"effects": [*CLEAN.effects, {"id": "r", "at": 5_000}]}),
        (
            {"effect_early": ["r"]},
            {"effects": [*CLEAN.effects[:-1], {"id": "r", "at": 3_000}]},
        ),
        ({"eta_wrong": ["a"]}, {"additions": [added("a", due=999), *CLEAN.additions[1:]]}),
        ({"phantom": ["a"]}, {"additions": [added("a", op="refused"), *CLEAN.additions[1:]]}),
        (
            {"cancel_contradicted": ["b"], "lost": ["b"]},
            {"cancellations": [{"op": "cancelled", "id": "b", "outcome": "NOT_FOUND"}]},
        ),
    ],
)
def test_each_broken_promise_is_found(wrong: dict[str, list[str]], changes: dict[str, Any]) -> None:
    """GIVEN a ledger with one broken promise THEN exactly that one is found."""
    assert found(replace(CLEAN, **changes)) == wrong


def test_unknown_outcome_may_be_either() -> None:
    """GIVEN an addition whose outcome is unknown THEN it may have been handed off, or not."""
    unknown = added("a", op="unknown", due=None)
    ledger = replace(CLEAN, additions=[unknown, *CLEAN.additions[1:]])
    assert found(ledger) == {}
    assert found(replace(ledger, handed=[])) == {}
    assert found(replace(ledger, handed=[*CLEAN.handed] * 2)) == {"doubled": ["a"]}
