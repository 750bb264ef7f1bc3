"""The committed report on Celery's own tests is whole, and each difference in it is explained."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "docs/reports/celery-suite.json").read_text())
EXPLAINED = json.loads((ROOT / "tests/celery_suite/differences.json").read_text())
JUDGES = {
    f"t/integration/test_{name}.py": {"stock", "intercepted"}
    for name in ("tasks", "canvas", "beat", "inspect")
}


def test_the_report_has_stock_and_ours_of_each_file() -> None:
    legs: dict[str, set[str]] = {}
    for run in REPORT["runs"]:
        legs.setdefault(run["file"], set()).add(run["leg"])

    assert {file for file, wanted in JUDGES.items() if not wanted <= legs.get(file, set())} == set()


def test_tasks_went_through_the_store_where_the_report_says_so() -> None:
    stored = {
        run["file"]: sum(run["entries"].values())
        for run in REPORT["runs"]
        if run["leg"] == "intercepted"
    }

    assert min(stored[f"t/integration/test_{name}.py"] for name in ("tasks", "canvas")) > 0


def test_each_difference_in_the_report_has_an_explanation_that_is_in_force() -> None:
    known = {(one["leg"], one["why"]) for one in EXPLAINED}

    assert {(one["leg"], one["why"]) for one in REPORT["differences"]} == known


def test_what_a_differing_test_asks_for_is_tested_in_a_file_that_exists() -> None:
    assert [one["why"] for one in EXPLAINED if not one["again"]] == []
    assert [file for one in EXPLAINED for file in one["again"] if not (ROOT / file).exists()] == []


def test_the_report_is_of_the_celery_that_is_supported_first() -> None:
    assert REPORT["celery"].split(".")[:2] == version("celery").split(".")[:2]
