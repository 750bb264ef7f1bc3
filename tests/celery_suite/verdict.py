"""Ours against stock: what differs, and what of that is explained.

``differences.json`` lists each test that ends otherwise on ours, how it ends, and why.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from outcomes import OUTCOMES

STOCK, INTERCEPTED, EVERYTHING, SCHEDULER = "stock", "intercepted", "everything", "scheduler"
EXPLAINED = Path(__file__).with_name("differences.json")
#: Outcomes by the test's id.
Outcomes = Mapping[str, str]


class Explanation(NamedTuple):
    """Why *tests* end in *outcome* on our *leg*; what they demand is tested *again* in our files.

    A test stands there with the file that it is in, and for all its sets of parameters.
    """

    leg: str
    outcome: str
    why: str
    again: tuple[str, ...]
    tests: tuple[str, ...]


class Difference(NamedTuple):
    """A test that ends otherwise on our *leg* than on stock."""

    leg: str
    test: str
    stock: str
    ours: str

    @property
    def worse_leg(self) -> str:
        return self.leg if rank(self.ours) > rank(self.stock) else STOCK


@cache
def explanations() -> tuple[Explanation, ...]:
    """What ``differences.json`` says."""
    return tuple(
        Explanation(
            one["leg"], one["outcome"], one["why"], tuple(one["again"]), tuple(one["tests"])
        )
        for one in json.loads(EXPLAINED.read_text())
    )


def named(test: str, names: Collection[str]) -> bool:
    """Whether *test* is one of *names*, itself or without its parameters."""
    return test in names or test.split("[")[0] in names


def rank(outcome: str) -> int:
    """How bad *outcome* is; the worst is not to be there."""
    return OUTCOMES.index(outcome) if outcome in OUTCOMES else len(OUTCOMES)


def differences(leg: str, stock: Outcomes, ours: Outcomes) -> Iterator[Difference]:
    """Everything that does not end alike."""
    for test in sorted({*stock, *ours}):
        there, here = stock.get(test, "missing"), ours.get(test, "missing")
        if there != here:
            yield Difference(leg, test, there, here)


def explained(difference: Difference) -> Explanation | None:
    """The explanation of *difference*, if there is one."""
    for one in explanations():
        alike = (one.leg, one.outcome) == (difference.leg, difference.ours)
        if alike and named(difference.test, one.tests):
            return one
    return None


def needless(
    found: Iterable[Difference], ran: Collection[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The leg and name of explained tests that do not differ, of the (file, leg) that ran whole."""
    differing = {(one.leg, name) for one in found for name in (one.test, one.test.split("[")[0])}
    return [
        (one.leg, test)
        for one in explanations()
        for test in one.tests
        if (test.split("::")[0], one.leg) in ran and (one.leg, test) not in differing
    ]


def summary(tests: Outcomes) -> dict[str, int]:
    """How many tests came to which outcome, the best first."""
    counts = Counter(tests.values())
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


def not_passed(tests: Outcomes) -> dict[str, list[str]]:
    """The tests of each other outcome, by the part of their id that follows the file."""
    found: dict[str, list[str]] = {}
    for test, outcome in sorted(tests.items()):
        if outcome != "passed":
            found.setdefault(outcome, []).append(test.partition("::")[2])
    return found


def reasons(found: Iterable[Difference]) -> list[dict[str, Any]]:
    """Differences by their explanations, for the report."""
    grouped: dict[Explanation | None, list[Difference]] = {}
    for one in found:
        grouped.setdefault(explained(one), []).append(one)
    return [
        {
            "leg": differing[0].leg,
            "why": reason and reason.why,
            "again": list(reason.again) if reason else [],
            "tests": {one.test: [one.stock, one.ours] for one in differing},
        }
        for reason, differing in grouped.items()
    ]


def recorded_stock(
    report: Mapping[str, Any], ran: Mapping[tuple[str, str], Any]
) -> dict[str, dict[str, str]]:
    """What the tests that we *ran* came to on stock when *report* was made, by file."""
    stock: dict[str, dict[str, str]] = {}
    listed = {
        f"{run['file']}::{test}": outcome
        for run in report["runs"]
        if run["leg"] == STOCK
        for outcome, tests in run["not_passed"].items()
        for test in tests
    }
    for (file, _), one in ran.items():
        stock.setdefault(file, {}).update((test, listed.get(test, "passed")) for test in one.tests)
    return stock
