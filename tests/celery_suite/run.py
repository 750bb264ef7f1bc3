"""Celery's own tests as the judge: stock Celery, and beside it Celery with us in it.

    tox -e celery-suite                     all of FILES, some 20 minutes; writes the report
    tox -e celery-suite -- --quick          the tests of quick.txt, against the report's stock
    tox -e celery-suite -- [FILE | TEST] …  these only; no report

The tests run as they are in Celery's sdist, on four legs:

stock         as Celery's own CI runs them;
intercepted   delay_intercept = True on every app that they make, a beat of ours beside them;
everything    the same, and each message that has no delay gets one of 10 ms;
scheduler     the tests of beat, with our scheduler in the place of both of Celery's.

Some of Celery's tests are races, and its CI repeats a failed job.  So what fails on stock, and
what ends otherwise on ours, is repeated by itself on the side that did worse.  What still differs
must be in ``differences.json``.  Exit code: 0; or 1, and the reasons in the last lines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # -I leaves it out

import sdist  # noqa: E402
import verdict  # noqa: E402
from interception import settings  # noqa: E402
from job import BESIDE_BEAT, PLUGINS, Job, Ran  # noqa: E402
from job import run as run_job  # noqa: E402
from verdict import EVERYTHING, INTERCEPTED, SCHEDULER, STOCK, Difference  # noqa: E402

from celery_delay.exceptions import DelayError  # noqa: E402

REPORT = HERE.parents[1] / "docs" / "reports" / "celery-suite.json"
#: The legs of each file; the slowest first.
FILES = {
    "t/integration/test_canvas.py": (STOCK, INTERCEPTED, EVERYTHING),
    "t/integration/test_tasks.py": (STOCK, INTERCEPTED, EVERYTHING),
    "t/integration/test_inspect.py": (STOCK, INTERCEPTED),
    "t/integration/test_beat.py": (STOCK, INTERCEPTED, SCHEDULER),
    "t/unit/app/test_beat.py": (STOCK, INTERCEPTED, SCHEDULER),
}
#: How often a test is repeated.
REPEATS = 4


class Suite:
    """The jobs of one run, and what they came to."""

    def __init__(self, at_once: int) -> None:
        self.archive = sdist.fetch()
        # of its own for each run, as two may run at once
        self.logs = Path(tempfile.mkdtemp(prefix="logs-", dir=sdist.cache()))
        self.at_once = at_once
        self.ran: dict[tuple[str, str], Ran] = {}
        self.repeated: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.repeats = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """All *jobs*, several at a time."""
        with ThreadPoolExecutor(self.at_once) as pool:
            for job, ran in zip(jobs, pool.map(self._run, jobs), strict=True):
                self.ran[job.file, job.leg] = ran
                self.failures += [f"{job.label}: {one}" for one in ran.failures]

    def compare(self, stock: Mapping[str, verdict.Outcomes] | None = None) -> list[Difference]:
        """What differs from stock, or from what *stock*, by file, is known to be, to the end.

        The outcomes become those of the tests' best attempts.
        """
        found = []
        for (file, leg), ran in list(self.ran.items()):
            there = stock[file] if stock else self.ran[file, STOCK].tests
            if leg == STOCK or not ran.tests or not there:
                continue  # that a job came to nothing is among the failures
            for one in verdict.differences(leg, there, ran.tests):
                if stock and one.worse_leg == STOCK:
                    continue  # it was worse, and cannot be repeated
                if verdict.explained(one) is None:
                    self._repeat(file, one.worse_leg, one.test)
            found += verdict.differences(leg, there, ran.tests)
        return [one for one in found if not (stock and one.worse_leg == STOCK)]

    def settle_stock(self) -> None:
        """Repeat what failed on stock: only what can pass there is a demand on ours."""
        for (file, leg), ran in list(self.ran.items()):
            if leg == STOCK:
                for test, outcome in list(ran.tests.items()):
                    if verdict.rank(outcome) > verdict.rank("rerun"):
                        self._repeat(file, leg, test)

    def _repeat(self, file: str, leg: str, test: str) -> None:
        """Run *test* until it passes, a few times; its best outcome counts.

        The file's first test goes before it: some rely on another one's having started the worker.
        """
        tests = self.ran[file, leg].tests
        first = next(iter(tests), test)
        seen = [tests.get(test, "missing")]
        while len(seen) <= REPEATS and seen[-1] != "passed":
            self.repeats += 1
            ran = self._run(Job(file, leg, sorted({first, test}, key=test.__eq__), self.repeats))
            seen.append(ran.tests.get(test, "missing"))
        self.repeated.append({"leg": leg, "test": test, "outcomes": seen})
        tests[test] = min(seen, key=verdict.rank)

    def _run(self, job: Job) -> Ran:
        try:
            ran = run_job(job, self.archive, self.logs)
        except (DelayError, RuntimeError) as exc:
            ran = Ran({}, 0.0, {}, [str(exc)])
        counts = ", ".join(f"{count} {name}" for name, count in verdict.summary(ran.tests).items())
        stored = f"; {sum(ran.entries.values())} through the store" if ran.entries else ""
        print(f"{job.label}: {counts or 'nothing'} in {ran.seconds:.0f} s{stored}", flush=True)
        return ran

    def report(self, found: Iterable[Difference]) -> dict[str, Any]:
        """What is committed as the report."""
        return {
            "celery": version("celery"),
            "kombu": version("kombu"),
            "celery_delay": version("celery-delay"),
            "python": platform.python_version(),
            "settings": settings(),
            "runs": [
                {
                    "file": file,
                    "leg": leg,
                    "seconds": ran.seconds,
                    "outcomes": verdict.summary(ran.tests),
                    **({"entries": ran.entries} if leg in BESIDE_BEAT else {}),
                    "not_passed": verdict.not_passed(ran.tests),
                }
                for (file, leg), ran in self.ran.items()
            ],
            "repeated": self.repeated,
            "differences": verdict.reasons(found),
        }


def quick() -> list[str]:
    """The tests of ``quick.txt``."""
    lines = map(str.strip, HERE.joinpath("quick.txt").read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def jobs_for(names: Sequence[str], legs: Collection[str]) -> list[Job]:
    """The jobs that run the files or tests *names*, by default all, on *legs*."""
    wanted: dict[str, list[str]] = {file: [] for file in FILES if not names}
    for name in names:
        file = name.split("::")[0]
        if file not in FILES:
            raise SystemExit(f"{file} is none of {', '.join(FILES)}")
        wanted.setdefault(file, []).append(name)
    return [
        Job(file, leg, [] if file in only else only)
        for file, only in sorted(wanted.items(), key=lambda one: list(FILES).index(one[0]))
        for leg in FILES[file]
        if leg in legs
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Celery's own tests as the judge.")
    parser.add_argument("names", nargs="*", metavar="FILE|TEST", help="of Celery's tests")
    parser.add_argument("--quick", action="store_true", help="quick.txt, ours only")
    parser.add_argument(
        "--leg",
        action="append",
        choices=list(PLUGINS),
        help="by default all; without stock, the report's is taken",
    )
    parser.add_argument("--at-once", type=int, default=2 * (os.cpu_count() or 1), metavar="JOBS")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    legs = asked.leg or ([INTERCEPTED, SCHEDULER] if asked.quick else list(PLUGINS))
    recorded = None
    if STOCK not in legs:
        recorded = json.loads(REPORT.read_text())
        if recorded["celery"] != version("celery"):  # another Celery's stock is none
            recorded, legs = None, [STOCK, *legs]
    suite = Suite(asked.at_once)
    jobs = jobs_for(quick() if asked.quick else asked.names, legs)
    suite.run(jobs)
    suite.settle_stock()
    found = suite.compare(verdict.recorded_stock(recorded, suite.ran) if recorded else None)
    suite.failures += [
        f"{one.leg}: {one.test} is {one.ours}, on stock {one.stock}"
        for one in found
        if not verdict.explained(one)
    ]
    suite.failures += [
        f"{leg}: {test} no longer differs, but is explained in differences.json"
        for leg, test in verdict.needless(
            found, {(job.file, job.leg) for job in jobs if not job.only}
        )
    ]
    if jobs == jobs_for([], list(PLUGINS)):
        REPORT.write_text(json.dumps(suite.report(found), indent=2) + "\n")
        print(f"written: {REPORT}")
    if suite.failures:
        print(
            "\n".join([*suite.failures, f"Celery's tests: not as on stock; logs in {suite.logs}"])
        )
        return 1
    shutil.rmtree(suite.logs)
    print(f"Celery's tests: as on stock, but for {len(found)} explained differences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
