"""The judge of Celery's own tests (``tests/celery_suite``): nothing that differs escapes it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SUITE = Path(__file__).parents[1] / "celery_suite"
FILE = "t/integration/test_x.py"


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module, with explanations of its own."""
    monkeypatch.syspath_prepend(SUITE)
    module = importlib.import_module("verdict")
    explained = tmp_path / "differences.json"
    explained.write_text(
        json.dumps(
            [
                {
                    "leg": "intercepted",
                    "outcome": "failed",
                    "why": "It looks into the worker.",
                    "again": [],
                    "tests": [f"{FILE}::test_a"],
                }
            ]
        )
    )
    monkeypatch.setattr(module, "EXPLAINED", explained)
    module.explanations.cache_clear()
    yield module
    module.explanations.cache_clear()


def differ(verdict: ModuleType, stock: dict[str, str], ours: dict[str, str]) -> list[Any]:
    return list(verdict.differences("intercepted", stock, ours))


def test_what_ends_alike_does_not_differ(verdict: ModuleType) -> None:
    both = {f"{FILE}::test_a": "passed", f"{FILE}::test_b": "failed"}

    assert differ(verdict, both, dict(both)) == []


@pytest.mark.parametrize("ours", ["failed", "error", "rerun", "skipped", "deselected", "xfailed"])
def test_a_test_that_ends_otherwise_differs(verdict: ModuleType, ours: str) -> None:
    [found] = differ(verdict, {f"{FILE}::test_b": "passed"}, {f"{FILE}::test_b": ours})

    assert (found.stock, found.ours, found.worse_leg) == ("passed", ours, "intercepted")
    assert verdict.explained(found) is None


def test_a_test_that_did_not_run_differs(verdict: ModuleType) -> None:
    there, here = f"{FILE}::test_only_there", f"{FILE}::test_only_here"

    found = differ(verdict, {there: "passed"}, {here: "passed"})

    assert [(one.test, one.stock, one.ours) for one in found] == [
        (here, "missing", "passed"),
        (there, "passed", "missing"),
    ]


def test_where_stock_does_worse_it_is_stock_that_is_repeated(verdict: ModuleType) -> None:
    [found] = differ(verdict, {"a": "rerun"}, {"a": "passed"})

    assert found.worse_leg == "stock"


def test_an_explanation_is_for_one_leg_and_one_outcome(verdict: ModuleType) -> None:
    explained = verdict.Difference("intercepted", f"{FILE}::test_a[1]", "passed", "failed")

    assert verdict.explained(explained).why == "It looks into the worker."
    assert verdict.explained(explained._replace(ours="error")) is None
    assert verdict.explained(explained._replace(leg="everything")) is None
    assert verdict.explained(explained._replace(test=f"{FILE}::test_ab")) is None


def test_an_explanation_that_is_no_longer_needed_is_told(verdict: ModuleType) -> None:
    whole = {(FILE, "intercepted")}
    found = verdict.Difference("intercepted", f"{FILE}::test_a", "passed", "failed")

    assert verdict.needless([], whole) == [("intercepted", f"{FILE}::test_a")]
    assert verdict.needless([found], whole) == []
    assert verdict.needless([], {(FILE, "stock")}) == []


def test_a_report_says_again_what_stock_came_to(verdict: ModuleType) -> None:
    stock = {f"{FILE}::test_a": "passed", f"{FILE}::test_b[1]": "skipped", f"{FILE}::c": "xfailed"}
    run = {"file": FILE, "leg": "stock", "not_passed": verdict.not_passed(stock)}
    ours = type("Ran", (), {"tests": dict.fromkeys(stock, "failed")})

    again = verdict.recorded_stock({"runs": [run]}, {(FILE, "intercepted"): ours})

    assert again == {FILE: stock}


def report(when: str, outcome: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(nodeid="test_it", when=when, outcome=outcome, **more)


SET_UP, TORN_DOWN = report("setup", "passed"), report("teardown", "passed")
PASSED, FAILED, RERUN = (report("call", one) for one in ("passed", "failed", "rerun"))


@pytest.mark.parametrize(
    ("reports", "outcome"),
    [
        ([SET_UP, PASSED, TORN_DOWN], "passed"),
        ([SET_UP, FAILED, TORN_DOWN], "failed"),
        ([report("setup", "skipped"), TORN_DOWN], "skipped"),
        ([report("setup", "failed"), TORN_DOWN], "error"),
        ([SET_UP, PASSED, report("teardown", "failed")], "error"),
        ([SET_UP, report("call", "skipped", wasxfail=""), TORN_DOWN], "xfailed"),
        ([SET_UP, report("call", "passed", wasxfail=""), TORN_DOWN], "xpassed"),
        # a subtest that fails comes before its test, which passes
        ([SET_UP, FAILED, PASSED, TORN_DOWN], "failed"),
        ([SET_UP, RERUN, TORN_DOWN, SET_UP, PASSED, TORN_DOWN], "rerun"),
        ([SET_UP, RERUN, TORN_DOWN, SET_UP, FAILED, TORN_DOWN], "failed"),
    ],
)
def test_the_worst_of_a_tests_parts_is_its_outcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reports: list[Any], outcome: str
) -> None:
    monkeypatch.syspath_prepend(SUITE)
    outcomes = importlib.reload(importlib.import_module("outcomes"))
    monkeypatch.setenv("SUITE_OUTCOMES", str(tmp_path / "outcomes.json"))

    for one in reports:
        outcomes.pytest_runtest_logreport(one)
    outcomes.pytest_sessionfinish()

    written = json.loads((tmp_path / "outcomes.json").read_text())
    assert written["tests"] == {"test_it": outcome}
