"""pytest plugin of every leg: writes what became of each test to the file ``SUITE_OUTCOMES``.

``{"tests": {id: outcome}, "seconds": …}``.  An outcome is pytest's own word, and ``rerun`` for a
test that passed only when its ``flaky`` mark ran it again: a difference could hide behind it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

#: From the best to the worst; of a test's parts (set-up, subtests, tear-down) the worst counts.
OUTCOMES = ("passed", "xpassed", "xfailed", "skipped", "deselected", "rerun", "failed", "error")

_begun = time.monotonic()
_tests: dict[str, str] = {}
_rerun: set[str] = set()


def worse(one: str, other: str) -> str:
    """The worse of two outcomes."""
    return max(one, other, key=OUTCOMES.index)


def pytest_runtest_logreport(report: Any) -> None:
    outcome = report.outcome
    if outcome == "rerun":
        _rerun.add(report.nodeid)
        _tests.pop(report.nodeid, None)  # what the attempt before came to is over
        return
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if outcome == "skipped" else "xpassed"
    elif outcome == "failed" and report.when != "call":
        outcome = "error"
    _tests[report.nodeid] = worse(outcome, _tests.get(report.nodeid, "passed"))


def pytest_deselected(items: list[pytest.Item]) -> None:
    _tests.update((item.nodeid, "deselected") for item in items)


def pytest_sessionfinish() -> None:
    tests = {
        test: worse(outcome, "rerun") if test in _rerun else outcome
        for test, outcome in _tests.items()
    }
    seconds = round(time.monotonic() - _begun, 1)
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps({"tests": tests, "seconds": seconds}))
