"""The protocol keeps its promises under random interleavings; with any one rule off it does not.

``DELAY_MODEL_RUNS`` is the number of runs per fault set (1 000 take about 10 s in all), and
``DELAY_MODEL_SEED`` the first seed: a nightly job sets both. A failure prints its seed, its fault
set and every step that led there; ``Simulation(seed, faults, broken).run()`` plays it again.
"""

from __future__ import annotations

import os

import pytest

from .protocol import RULES
from .simulation import Simulation
from .stores import WINDOW

RUNS = int(os.environ.get("DELAY_MODEL_RUNS", "1000"))
FIRST_SEED = int(os.environ.get("DELAY_MODEL_SEED", "0"))
MUTANT_RUNS = 1_500  # several times what the most elusive mutant needs

FAULTS = {
    "stalls": frozenset[str](),
    "crashes": frozenset({"crash"}),
    "lost_and_late": frozenset({"crash", "network"}),
    "sql_down": frozenset({"crash", "network", "sql"}),
    "restart": frozenset({"crash", "network", "sql", "restart"}),
    "wipe": frozenset({"crash", "network", "sql", "restart", "wipe"}),
}

# Rules about telling two histories apart cannot matter while there is only one.
NEEDS_WIPE = {"unmarked_epoch", "trim_epoch", "cursor_per_epoch", "event_epoch"}


@pytest.mark.parametrize("faults", FAULTS)
def test_protocol_holds(faults: str) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
        broken = Simulation(seed, FAULTS[faults], frozenset()).run()
        assert broken is None, broken


@pytest.mark.parametrize("rule", RULES)
def test_mutant_is_caught(rule: str) -> None:
    faults = FAULTS["wipe" if rule in NEEDS_WIPE else "restart"]
    runs = (Simulation(seed, faults, frozenset({rule})).run() for seed in range(MUTANT_RUNS))
    assert any(runs), f"{MUTANT_RUNS} runs kept every promise without the rule: {RULES[rule]}"


def test_runs_reach_what_the_rules_are_for() -> None:
    """Green is worth little if nothing happened: the rare paths are walked, and often."""
    seen: set[tuple[str, str]] = set()
    for seed in range(200):
        run = Simulation(seed, FAULTS["wipe"], frozenset())
        assert run.run() is None
        seen |= {(what, str(answer)) for _, _, what, _, answer in run.system.trace}
        seen |= {("heard", call.answer) for call in run.system.ledger.adds}
        seen |= {("state", state) for state in run.system.audit.states.values()}
    expected = {
        *(("add", answer) for answer in ("OK", "GONE", "LATE", "ALREADY", "CANCELLED")),
        *(("cancel", answer) for answer in ("CANCELLED", "TOO_LATE", "NOT_FOUND", "EPOCH", "LATE")),
        *(("state", state) for state in ("SUCCEEDED", "RETRIED", "CANCELLED", "LOST")),
        ("heard", "UNKNOWN"),
        ("commit", "False"),
        ("move", "EPOCH"),
    }
    assert expected <= seen, expected - seen


def test_a_seed_is_replayed_exactly() -> None:
    """A story printed by CI is worth reading only if the same seed tells it again."""
    stories = {Simulation(3, FAULTS["wipe"], frozenset({"move_journals"})).run() for _ in "ab"}
    assert len(stories) == 1
    assert None not in stories


def test_a_cancel_that_came_too_late_spares_a_later_retry() -> None:
    """Random runs meet this about once in 8 000, too rarely for a mutant, so it is played out."""
    system = Simulation(0, FAULTS["stalls"], frozenset()).system
    store, now = system.store, system.clock.now
    first = system.ledger.add_called("a", now, retry=False)
    cancel = system.ledger.cancel_called("a", None)
    system.ledger.drawn(first, now)
    # Given a run that was handed off and a cancel that came too late for it
    store.add(first, now, now + WINDOW)
    store.move(store.read_epoch(), False, now)
    assert store.cancel(cancel, now + 1, now + WINDOW, store.read_epoch()) == "TOO_LATE"
    # when the run retries, and another attempt at the same cancel arrives,
    retry = system.ledger.add_called("a", now, retry=True)
    system.ledger.drawn(retry, now + 1)
    assert store.add(retry, now + 1, now + WINDOW) == "OK"
    # then that attempt hears what the first one heard.
    assert store.cancel(cancel, now + 1, now + WINDOW, store.read_epoch()) == "TOO_LATE"
    assert store.entries["a"].run == now + 1
