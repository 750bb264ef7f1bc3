"""Whole nodes, stopped and started: written against pytest-celery's API alone."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup

from celery_delay import CeleryDelay
from tests.processes import wait_until
from tests.smoke.nodes import CeleryTestBeat, DelaySetup, effects
from tests.smoke.tasks import note, stubborn

pytestmark = pytest.mark.timeout(180)


def test_delayed_task_runs(celery_setup: CeleryTestSetup, beat: CeleryTestBeat) -> None:
    """GIVEN a worker and a beat
    WHEN a task is delayed
    THEN it runs once, with its result, not before its eta.
    """
    begun = time.time()
    result = note.apply_delayed(("hello",), countdown=1.0)

    assert effects(celery_setup.worker) == []
    assert result.get(timeout=RESULT_TIMEOUT) == "hello"
    assert time.time() >= begun + 1.0
    assert effects(celery_setup.worker) == ["hello"]


def test_task_that_fell_due_while_no_beat_ran(
    celery_setup: CeleryTestSetup, beat: CeleryTestBeat
) -> None:
    """GIVEN a delayed task, and a beat that was killed before its eta
    WHEN the eta has passed and the beat is started again
    THEN the task runs, once.
    """
    result = note.apply_delayed(("late",), countdown=1.0)
    beat.kill()
    time.sleep(1.5)
    assert effects(celery_setup.worker) == []

    beat.restart()

    assert result.get(timeout=RESULT_TIMEOUT) == "late"
    assert effects(celery_setup.worker) == ["late"]


def test_retry_waits_in_the_store_while_the_worker_is_dead(
    celery_setup: CeleryTestSetup, beat: CeleryTestBeat
) -> None:
    """GIVEN a task whose retry waits
    WHEN the worker is killed and later started again
    THEN the task is run again, as often as it asks for, and ends with its result.
    """
    result = stubborn.apply_delayed(("s", 2, 2.0), countdown=0.0)
    wait_until(lambda: effects(celery_setup.worker) == ["s 0"], RESULT_TIMEOUT, "the first run")
    wait_until(lambda: app_of(celery_setup).get(result.id), RESULT_TIMEOUT, "the stored retry")
    celery_setup.worker.kill()

    celery_setup.worker.restart()

    assert result.get(timeout=RESULT_TIMEOUT) == 2
    assert effects(celery_setup.worker) == ["s 0", "s 1", "s 2"]


def test_restart_of_everything(celery_setup: CeleryTestSetup, beat: CeleryTestBeat) -> None:
    """GIVEN delayed tasks
    WHEN broker, beat and worker are all started again
    THEN each task runs once.
    """
    names = [f"n{number}" for number in range(5)]
    for number, name in enumerate(names):
        note.apply_delayed((name,), countdown=1.0 + number)

    celery_setup.worker.kill()
    beat.kill()
    celery_setup.broker.restart()
    beat.restart()
    celery_setup.worker.restart()

    wait_until(
        lambda: len(effects(celery_setup.worker)) >= len(names), RESULT_TIMEOUT, "all effects"
    )
    assert Counter(effects(celery_setup.worker)) == Counter(names)


def test_second_beat_goes_on_when_the_first_is_killed(
    celery_setup: CeleryTestSetup, beat: CeleryTestBeat, second_beat: CeleryTestBeat
) -> None:
    """GIVEN two beats and tasks that fall due one after the other
    WHEN the leading one is killed
    THEN each task runs once, and the other one leads.
    """
    results = [note.apply_delayed((f"t{n}",), countdown=0.5 + n / 5) for n in range(10)]
    time.sleep(0.8)
    beat.kill()

    assert [one.get(timeout=RESULT_TIMEOUT) for one in results] == [f"t{n}" for n in range(10)]
    assert Counter(effects(celery_setup.worker)) == Counter(f"t{n}" for n in range(10))
    second_beat.assert_log_exists("leads (term")


class TestPeriodic:
    """An entry of ``beat_schedule``."""

    @pytest.fixture
    def celery_setup_cls(self) -> type[CeleryTestSetup]:
        class Ticking(DelaySetup):
            @classmethod
            def update_app_config(cls, app: Any) -> None:
                super().update_app_config(app)
                app.conf.beat_schedule = {"tick": {"task": "smoke.tick", "schedule": 1.0}}

        return Ticking

    def test_fires_once_with_two_beats(
        self, celery_setup: CeleryTestSetup, beat: CeleryTestBeat, second_beat: CeleryTestBeat
    ) -> None:
        """GIVEN two beats with the same entry, due every second
        WHEN some seconds pass, and one beat is killed on the way
        THEN the entry goes on firing, and never twice for one occurrence.
        """
        wait_until(lambda: len(effects(celery_setup.worker)) >= 2, RESULT_TIMEOUT, "two runs")
        beat.kill()
        wait_until(lambda: len(effects(celery_setup.worker)) >= 5, RESULT_TIMEOUT, "five runs")

        assert max(Counter(effects(celery_setup.worker)).values()) == 1


def app_of(setup: CeleryTestSetup) -> CeleryDelay:
    """The test's side of celery-delay."""
    delayed: CeleryDelay = setup.app.delayed
    return delayed
