"""Three beats, killed, frozen and stopped under load, against a ledger outside the system."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_delay.embedded import EmbeddedRedis
from tests.faults.run import publish, run

#: Both variants share it; CI runs them in about two minutes.
SECONDS = float(os.environ.get("DELAY_SOAK_SECONDS", "100"))
SEED = int(os.environ.get("DELAY_SOAK_SEED", random.SystemRandom().randrange(10**6)))


def _check(report: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled():
        publish(report)
    wrong = {
        f"{part}: {name}": (len(ids), ids[:5])
        for part in ("wrong", "audit")
        for name, ids in report[part].items()
        if ids
    }
    assert wrong == {}
    assert report["leftovers"] == {}
    # a run in which little happened proves little
    assert report["scheduled"] > 20 * report["seconds"]
    assert report["cancelled"] > report["seconds"]
    assert sum(report["faults"].values()) > report["seconds"] / 5
    # not a measurement, only a bound that a stalled dispatcher would miss
    assert report["lateness_ms"]["p99"] < 5_000


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_is_lost_early_or_doubled_while_beats_die(
    tmp_path: Path,
    new_redis: Callable[..., EmbeddedRedis],
    harness: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """GIVEN three beats and producers that schedule, cancel and retry
    WHEN beats are killed, frozen for longer than the lease, and stopped
    THEN each task is handed off once, not before its eta, and never after its cancellation
    AND SQL tells the same story as the ledger.
    """
    server = new_redis()
    _check(
        run(tmp_path, server, harness, seed=SEED, seconds=SECONDS * 0.7, disturb_redis=False),
        capfd,
    )


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_is_lost_early_or_doubled_while_redis_goes_away(
    tmp_path: Path,
    new_redis: Callable[..., EmbeddedRedis],
    harness: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """GIVEN the same, and a Redis that keeps each acknowledged write (AOF, fsync always)
    WHEN Redis too is paused, frozen, killed and started again
    THEN the same holds for every hand-off.
    """
    server = new_redis("redis", "--appendfsync", "always")
    _check(
        run(tmp_path, server, harness, seed=SEED, seconds=SECONDS * 0.3, disturb_redis=True),
        capfd,
    )
