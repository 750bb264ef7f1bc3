"""How long is kept what, and who deletes it when."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from celery_delay.domain.retention import PRUNABLE, age_of, ages
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import AuditUnavailable, InvalidSetting
from celery_delay.services.pruner import BATCH, PAUSE, Pruner
from tests.fakes import FakeClock

pytestmark = pytest.mark.unit

DAY = 86_400.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (60, 60),
        (90.5, 90.5),
        ("2m", 120),
        ("12h", 43_200),
        ("30d", 30 * DAY),
        (" 2w ", 14 * DAY),
    ],
)
def test_an_age_is_seconds_or_a_text(value: Any, seconds: float) -> None:
    assert age_of(value) == seconds


@pytest.mark.parametrize("value", [59, 0, -1, "30", "d", "30 days", None, True, float("inf"), "0d"])
def test_other_ages_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="30d"):
        age_of(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("30d", "a mapping"),
        ({"SCHEDULED": "30d"}, "wait"),
        ({"DONE": "30d"}, "DONE"),
        ({"FAILED": "x"}, "FAILED"),
    ],
)
def test_a_wrong_retention_is_refused(value: Any, says: str) -> None:
    with pytest.raises(InvalidSetting, match=says) as caught:
        Settings(retention=value)
    assert "delay_retention" in str(caught.value)


def test_a_star_stands_for_all_others() -> None:
    retention = Settings(retention={"SUCCEEDED": "1d", "*": "2d"}).retention
    assert retention is not None

    found = ages(retention)

    assert found["SUCCEEDED"] == DAY
    assert {found[one] for one in PRUNABLE if one != "SUCCEEDED"} == {2 * DAY}
    assert ages({"FAILED": DAY}) == {"FAILED": DAY}


class Log:
    def __init__(self, **rows: int) -> None:
        self.rows = rows
        self.calls: list[tuple[str, int, int]] = []
        self.broken = False

    def prune(self, state: str, before_ms: int, limit: int) -> int:
        self.calls.append((state, before_ms, limit))
        if self.broken:
            raise AuditUnavailable("away")
        some = min(limit, self.rows.get(state, 0))
        self.rows[state] = self.rows.get(state, 0) - some
        return some


def test_a_round_deletes_all_that_is_old_in_batches(caplog: pytest.LogCaptureFixture) -> None:
    clock, log = FakeClock(), Log(SUCCEEDED=2 * BATCH + 1, FAILED=1)
    pruner = Pruner(log, {"SUCCEEDED": DAY, "FAILED": 2 * DAY}, clock)

    with caplog.at_level(logging.INFO):
        answers = [pruner.run_once() for _ in range(5)]

    assert answers == [True, True, True, False, False]
    assert log.rows == {"SUCCEEDED": 0, "FAILED": 0}
    now = round(clock.wall() * 1000)
    assert log.calls[0] == ("SUCCEEDED", now - 86_400_000, BATCH)
    assert log.calls[-1] == ("FAILED", now - 2 * 86_400_000, BATCH)
    assert [(one.event, one.tasks) for one in caplog.records] == [  # type: ignore[attr-defined]
        ("audit_pruned", 2 * BATCH + 2)
    ]
    clock.advance(PAUSE)
    pruner.run_once()
    assert len(log.calls) == 5


def test_a_database_that_is_away_is_left_alone_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, log = FakeClock(), Log(FAILED=1)
    pruner = Pruner(log, {"FAILED": DAY}, clock)
    log.broken = True

    assert pruner.run_once() is False
    assert pruner.run_once() is False
    assert [one.event for one in caplog.records] == ["prune_failed"]  # type: ignore[attr-defined]
    assert len(log.calls) == 1

    log.broken = False
    clock.advance(PAUSE)
    pruner.run_once()
    assert log.calls[1][2] == BATCH // 2
    assert log.rows == {"FAILED": 0}
