"""A producer: schedules and cancels at random and writes down what it was told.

``python producer.py NAME SEED SECONDS``; the app's settings come from the environment.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any
from uuid import uuid4

from book import Page, client, redis_ms
from ledger_app import FOLDER, URL, app, effect, handed, stubborn

from celery_delay.calling.calls import DelayedCall
from celery_delay.domain.states import CancelOutcome
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: The longest delay, in seconds; a run waits so long for its end.
HORIZON = 8.0
#: For how long the answer to a cancellation is sought.
PATIENCE = 60.0


class Producer:
    """One process' part of the ledger."""

    def __init__(self, name: str, seed: int) -> None:
        self._page = Page(FOLDER / f"{name}.jsonl")
        self._redis = client(URL)
        self._random = random.Random(f"{seed}/{name}")
        self._waiting: list[tuple[str, Callable[[], CancelOutcome]]] = []

    def run(self, seconds: float) -> None:
        """Schedule and cancel for *seconds*."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            dice = self._random.random()
            if dice < 0.50:
                self._single()
            elif dice < 0.65:
                self._bulk()
            elif dice < 0.95:
                self._cancel()
            else:
                self._retrying()
            time.sleep(self._random.uniform(0.0, 0.06))

    def _delay(self) -> float:
        """Seconds: sometimes none, often less than a second."""
        if self._random.random() < 0.1:
            return 0.0
        longest = 1.0 if self._random.random() < 0.3 else HORIZON
        return round(self._random.uniform(0.0, longest), 3)

    def _single(self) -> None:
        task, kind = (handed, "tap") if self._random.random() < 0.85 else (effect, "work")
        task_id, delay, now = str(uuid4()), self._delay(), redis_ms(self._redis)
        when: dict[str, Any] = {"countdown": delay}
        if self._random.random() < 0.5:
            when = {"eta": _EPOCH + timedelta(milliseconds=now) + timedelta(seconds=delay)}
        facts = {"kind": kind, "not_before": now + round(delay * 1000)}
        self._add(facts, [task_id], lambda: [task.apply_delayed(task_id=task_id, **when)])

    def _bulk(self) -> None:
        ids = [str(uuid4()) for _ in range(self._random.randint(2, 60))]
        delays = [self._delay() for _ in ids]
        now = redis_ms(self._redis)
        calls = [
            DelayedCall(countdown=delay, task_id=task_id)
            for task_id, delay in zip(ids, delays, strict=True)
        ]
        facts = {"kind": "tap", "bulk": len(ids)}
        each = [now + round(delay * 1000) for delay in delays]
        self._add(facts, ids, lambda: handed.apply_delayed_many(calls), each)

    def _retrying(self) -> None:
        task_id, delay, now = str(uuid4()), self._delay(), redis_ms(self._redis)
        times = self._random.randint(1, 3)
        facts = {"kind": "retry", "times": times, "not_before": now + round(delay * 1000)}
        self._add(
            facts,
            [task_id],
            lambda: [stubborn.apply_delayed((times,), task_id=task_id, countdown=delay)],
        )

    def _add(
        self, facts: dict[str, Any], ids: list[str], call: Any, each: list[int] | None = None
    ) -> None:
        op, dues = "added", [None] * len(ids)
        cancels: list[Callable[[], CancelOutcome]] = []
        try:
            results = call()
            dues = [round((one.eta - _EPOCH) / timedelta(milliseconds=1)) for one in results]
            cancels = [one.cancel for one in results]
        except OutcomeUnknown as exc:
            op, first = "unknown", exc.entry_id
            cancels = [partial(app.delayed.cancel, first.task_id, run=first.run)]
        except StoreUnavailable:
            op = "refused"
        acked = redis_ms(self._redis)
        for number, task_id in enumerate(ids):
            bounds = {"not_before": each[number]} if each else {}
            self._page.write(
                op=op, id=task_id, due=dues[number], acked=acked, **{**facts, **bounds}
            )
        if facts["kind"] != "retry":
            self._waiting += zip(ids, cancels, strict=False)

    def _cancel(self) -> None:
        if not self._waiting:
            return
        # most are cancelled soon after they were added, some when they have long gone
        recent = max(0, len(self._waiting) - 300)
        position = self._random.randrange(recent, len(self._waiting))
        task_id, cancel = self._waiting.pop(position)
        asked, give_up = redis_ms(self._redis), time.monotonic() + PATIENCE
        while True:
            try:
                outcome = cancel()
                break
            except (OutcomeUnknown, StoreUnavailable):
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
        answered = redis_ms(self._redis)
        self._page.write(
            op="cancelled", id=task_id, asked=asked, answered=answered, outcome=outcome.value
        )


if __name__ == "__main__":
    app.set_current()
    Producer(sys.argv[1], int(sys.argv[2])).run(float(sys.argv[3]))
