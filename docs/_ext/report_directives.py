"""Directives that write parts of pages from the committed reports.

``suite-runs`` and ``suite-differences`` say what ``docs/reports/celery-suite.json`` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from delay_directives import Written
from sphinx.application import Sphinx

REPORT = Path(__file__).parents[1] / "reports" / "celery-suite.json"


def suite() -> Any:
    return json.loads(REPORT.read_text())


class SuiteRuns(Written):
    """What each file came to on each leg."""

    def lines(self) -> Iterable[str]:
        report = suite()
        yield f"Celery {report['celery']}, kombu {report['kombu']}, Python {report['python']}.\n"
        yield ".. list-table::\n   :header-rows: 1\n   :widths: 32 14 34 20\n"
        yield "   * - file\n     - leg\n     - tests\n     - through the store"
        for run in report["runs"]:
            counts = ", ".join(f"{count} {name}" for name, count in run["outcomes"].items())
            stored = sum(run["entries"].values()) if "entries" in run else "none"
            yield f"   * - ``{run['file'].removeprefix('t/')}``\n     - {run['leg']}"
            yield f"     - {counts}\n     - {stored}"
        yield ""
        for one in report["repeated"]:
            outcomes = ", then ".join(one["outcomes"])
            yield f"- Repeated on {one['leg']}: ``{one['test']}``, {outcomes}."
        yield ""


class SuiteDifferences(Written):
    """What differs from stock, and why."""

    def lines(self) -> Iterable[str]:
        for one in suite()["differences"]:
            alike: dict[tuple[str, str], list[str]] = {}
            for test, outcomes in one["tests"].items():
                alike.setdefault(tuple(outcomes), []).append(test)
            for (stock, ours), tests in alike.items():
                yield f"**{one['leg']}: {ours}**, {stock} on stock."
                yield one["why"] or "Not explained."
                if one["again"]:
                    files = ", ".join(f"``{file}``" for file in one["again"])
                    yield f"What is asked for here is tested in {files}."
                yield ""
                yield from (f"- ``{test.removeprefix('t/')}``" for test in tests)
                yield ""


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("suite-runs", SuiteRuns)
    app.add_directive("suite-differences", SuiteDifferences)
    return {"parallel_read_safe": True}
