"""The claim path keeps its promises under random interleavings; without any one rule it does not.

As in ``test_protocol.py``: ``DELAY_MODEL_RUNS`` and ``DELAY_MODEL_SEED`` for more runs, and
``ClaimSimulation(seed, faults, broken).run()`` plays a failure again.
"""

from __future__ import annotations

import os

import pytest

from .claim_protocol import RULES, ClaimSimulation

RUNS = int(os.environ.get("DELAY_MODEL_RUNS", "1000")) // 5
FIRST_SEED = int(os.environ.get("DELAY_MODEL_SEED", "0"))
MUTANT_RUNS = 1_500

FAULTS = {
    "none": "",
    "stalls": "stall",
    "crashes": "stall crash",
    "network": "stall crash network",
    "broker": "stall crash network broker",
    "rollback": "stall crash network broker rollback",
}


def simulation(seed: int, faults: str, *broken: str) -> ClaimSimulation:
    return ClaimSimulation(seed, frozenset(faults.split()), frozenset(broken))


@pytest.mark.parametrize("faults", FAULTS)
def test_claims_keep_their_promises(faults: str) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
        broken = simulation(seed, FAULTS[faults]).run()
        assert broken is None, broken


@pytest.mark.parametrize("rule", RULES)
def test_claims_without_a_rule_are_caught(rule: str) -> None:
    says, faults = RULES[rule]
    runs = (simulation(seed, faults, rule).run() for seed in range(MUTANT_RUNS))
    assert any(runs), f"{MUTANT_RUNS} runs kept every promise without the rule: {says}"
