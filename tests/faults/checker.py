"""Judges a run by the ledger alone.

Column 1, *handed off*: what the tap saw on the raw queue.  Column 2, *effect*: the lines that
tasks wrote when a real worker ran them.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.processes.book import read

__all__ = ["Ledger", "audit_mismatches", "judge", "lateness"]

Line = Mapping[str, Any]

#: A retry waits so long, in ms (processes/ledger_app.py).
RETRY_AFTER_MS = 1_200


@dataclass
class Ledger:
    """All that was written down."""

    #: answers to additions: op added, unknown or refused
    additions: Sequence[Line] = ()
    #: answers to cancellations
    cancellations: Sequence[Line] = ()
    #: hand-offs, as seen by the tap
    handed: Sequence[Line] = ()
    #: runs, as seen by the tasks
    effects: Sequence[Line] = ()
    #: whether column 2 must agree: a Redis that goes away costs Celery itself messages
    effects_count: bool = field(default=True)

    @classmethod
    def of(cls, folder: Path, effects_count: bool) -> Ledger:
        """Read the pages in *folder*."""
        lines = [line for page in sorted(folder.glob("producer*.jsonl")) for line in read(page)]
        return cls(
            [line for line in lines if line["op"] != "cancelled"],
            [line for line in lines if line["op"] == "cancelled"],
            read(folder / "tap.jsonl"),
            read(folder / "effects.jsonl"),
            effects_count,
        )

    @property
    def outcomes(self) -> dict[str, str]:
        """Task id → the answer to its cancellation."""
        return {line["id"]: line["outcome"] for line in self.cancellations}

    def seen(self, kind: str) -> dict[str, list[int]]:
        """Task id → the instants at which it was handed off (tap) or ran."""
        found: dict[str, list[int]] = defaultdict(list)
        for line in self.handed if kind == "tap" else self.effects:
            found[line["id"]].append(line["at"])
        return found


def judge(ledger: Ledger) -> dict[str, list[str]]:
    """What is wrong, by kind; each value a list of task ids.  All empty: all promises kept."""
    wrong: dict[str, list[str]] = {
        name: []
        for name in (
            "lost",
            "early",
            "doubled",
            "after_cancel",
            "phantom",
            "cancel_contradicted",
            "eta_wrong",
            "effect_lost",
            "effect_early",
            "effect_doubled",
            "effect_after_cancel",
        )
    }
    outcomes, tapped, ran = ledger.outcomes, ledger.seen("tap"), ledger.seen("work")
    for line in ledger.additions:
        if line["op"] == "added" and not line["not_before"] <= line["due"] <= line["acked"] + 8_001:
            wrong["eta_wrong"].append(line["id"])
        if line["kind"] == "tap":
            _judge_entry(line, tapped[line["id"]], outcomes.get(line["id"]), wrong, "")
        elif ledger.effects_count:
            times = 1 + line.get("times", 0)
            runs = ran[line["id"]]
            _judge_entry(line, runs[:1], outcomes.get(line["id"]), wrong, "effect_")
            if len(runs) > times:
                wrong["effect_doubled"].append(line["id"])
            if line["op"] == "added" and line["kind"] == "retry":
                _judge_retries(line, runs, times, wrong)
    return wrong


def _judge_entry(
    line: Line,
    instants: Sequence[int],
    outcome: str | None,
    wrong: dict[str, list[str]],
    column: str,
) -> None:
    task_id, op = line["id"], line["op"]
    if len(instants) > 1:
        wrong[column + "doubled"].append(task_id)
    if instants and min(instants) < line["not_before"]:
        wrong[column + "early"].append(task_id)
    if outcome == "CANCELLED":
        if instants:
            wrong[column + "after_cancel"].append(task_id)
    elif op == "added" and not instants:
        wrong[column + "lost"].append(task_id)
    elif op == "refused" and instants:
        wrong["phantom"].append(task_id)
    if op == "added" and outcome == "NOT_FOUND":
        # it was stored, nobody else cancelled it, and before its eta it cannot have gone
        wrong["cancel_contradicted"].append(task_id)


def _judge_retries(
    line: Line, runs: Sequence[int], times: int, wrong: dict[str, list[str]]
) -> None:
    if 0 < len(runs) < times:
        wrong["effect_lost"].append(line["id"])
    pairs = itertools.pairwise(sorted(runs))
    if any(later - earlier < RETRY_AFTER_MS for earlier, later in pairs):
        wrong["effect_early"].append(line["id"])


def lateness(ledger: Ledger) -> dict[str, int]:
    """How long after their eta tasks were handed off, in ms."""
    due = {line["id"]: line["due"] for line in ledger.additions if line["op"] == "added"}
    late = sorted(line["at"] - due[line["id"]] for line in ledger.handed if line["id"] in due)
    if not late:
        return {}
    count = len(late)
    return {
        "p50": late[count // 2],
        "p99": late[min(count - 1, count * 99 // 100)],
        "max": late[-1],
    }


def audit_mismatches(ledger: Ledger, database: Path) -> dict[str, list[str]]:
    """Where the story in SQL differs from the ledger; read without our own code."""
    with closing(sqlite3.connect(database)) as connection:
        events = connection.execute("SELECT task_id, run, state FROM celery_delay_event").fetchall()
        states = dict(connection.execute("SELECT task_id, state FROM celery_delay_task"))
    counted: Counter[tuple[str, int, str]] = Counter(map(tuple, events))
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for (task_id, _, state), count in counted.items():
        told[task_id][state] += count
    wrong: dict[str, list[str]] = {
        "event_doubled": [
            f"{task_id} {state}"
            for (task_id, _, state), count in counted.items()
            # STARTED may follow itself: a broker delivers again what a worker did not finish
            if count > 1 and state != "STARTED"
        ],
        # a worker that cannot reach Redis says how many of its transitions are missing: so it
        # must be where Redis was away (effects do not count there), and nowhere else
        "events_missing": [
            task_id for task_id, each in told.items() if each["GAP"] and ledger.effects_count
        ],
        "dispatch_differs": [],
        "cancel_differs": [],
        "unknown_to_audit": [],
    }
    tapped, outcomes = ledger.seen("tap"), ledger.outcomes
    for line in ledger.additions:
        task_id = line["id"]
        if line["op"] == "added" and not told[task_id]["SCHEDULED"]:
            wrong["unknown_to_audit"].append(task_id)
        if line["kind"] != "tap":
            continue
        handed = len(tapped[task_id])
        if told[task_id]["DISPATCHED"] != handed:
            wrong["dispatch_differs"].append(task_id)
        if handed and states.get(task_id) != "DISPATCHED":
            wrong["dispatch_differs"].append(task_id)
        if line["op"] == "added" and outcomes.get(task_id) == "CANCELLED":
            if states.get(task_id) != "CANCELLED":
                wrong["cancel_differs"].append(task_id)
        elif states.get(task_id) == "CANCELLED" and outcomes.get(task_id) != "CANCELLED":
            wrong["cancel_differs"].append(task_id)
    return wrong
