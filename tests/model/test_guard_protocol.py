"""Tracking and guard keep their promises under random interleavings; without a rule they do not.

As in ``test_protocol.py``: ``DELAY_MODEL_RUNS`` and ``DELAY_MODEL_SEED`` for more runs, and
``GuardSimulation(seed, faults, broken).run()`` plays a failure again.
"""

from __future__ import annotations

import os

import pytest

from .guard_protocol import RULES, GuardSimulation

RUNS = int(os.environ.get("DELAY_MODEL_RUNS", "1000")) // 10
FIRST_SEED = int(os.environ.get("DELAY_MODEL_SEED", "0"))
MUTANT_RUNS = 600

FAULTS = {
    "none": "",
    "kills": "kill",
    "requeues": "kill requeue",
    "stalls": "kill stall requeue",
    "network": "kill stall requeue network",
    "children": "kill child requeue",
    "ends": "kill child end requeue",
    "all at once": "kill child end stall requeue network",
    "another broker": "elsewhere kill child end requeue",
    "tracking": "track kill",
    "tracking, requeues": "track kill requeue network",
    "tracking, children": "track kill child end requeue network",
}


def simulation(seed: int, faults: str, *broken: str) -> GuardSimulation:
    return GuardSimulation(seed, frozenset(faults.split()), frozenset(broken))


@pytest.mark.parametrize("faults", FAULTS)
def test_guard_keeps_its_promises(faults: str) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
        broken = simulation(seed, FAULTS[faults]).run()
        assert broken is None, broken


@pytest.mark.parametrize("rule", RULES)
def test_guard_without_a_rule_is_caught(rule: str) -> None:
    says, faults = RULES[rule]
    runs = (simulation(seed, faults, rule).run() for seed in range(MUTANT_RUNS))
    assert any(runs), f"{MUTANT_RUNS} runs kept every promise without the rule: {says}"
