"""What happens in the shop, and when; and what must come of it.

The demo knows by itself what to expect: due instants are computed here, from this
process' clock and the shop's rules, and are not read from celery-delay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from shop import tasks, times, views

from celery_delay import DelayedResult
from stage.verdict import Expected

__all__ = ["Act", "Scenario"]


class Act(NamedTuple):
    """Something that happens, in seconds from the beginning."""

    at: float
    happens: Callable[[], None]


class Scenario:
    """The play.

    Attributes:
        acts: what is to be called, the earliest first.
        expected: effects that must come; grows as the play goes on.
        results: task id → (the result's handle, what it must be; None: cancelled).
        labels: task id → what to call the task on the screen.
        paid: orders that were paid.
        placed: orders that were placed.
    """

    def __init__(self, orders: int) -> None:
        minute = times.MINUTE.total_seconds()
        self.expected: list[Expected] = []
        self.results: dict[str, tuple[DelayedResult, Any]] = {}
        self.labels: dict[str, str] = {}
        self.paid: list[int] = []
        self.placed: list[int] = []
        #: Orders come in over half an hour, so cancellations fall due over half an hour.
        self.kill_at = 45 * minute
        self.acts: list[Act] = []
        for number in range(1, 4):
            self._at(number * minute, self._charge, 1000 + number)
            self._at(number * minute, self._coupon, f"SAVE{number}0", (45 + 5 * number) * minute)
            self._at(number * minute, self._greet, ("Ada", "Grace", "Mary")[number - 1], number)
        for number in range(1, orders + 1):
            placed = 30 * minute * (number - 1) / orders
            self._at(placed, self._place, number)
            if number % 4 == 0:
                self._at(placed + 15 * minute, self._pay, number)
        self.acts.sort(key=lambda act: act.at)

    def _at(self, at: float, what: Callable[..., None], *arguments: Any) -> None:
        self.acts.append(Act(at, lambda: what(*arguments)))

    # -- acts ---------------------------------------------------------------------------

    def _place(self, number: int) -> None:
        due = _from_now(times.PAYMENT_WINDOW)
        self._keep(views.place_order(number), f"cancel order {number}", f"order {number} cancelled")
        self.placed.append(number)
        self._expect("cancel_unpaid_order", f"order {number} cancelled", due)

    def _pay(self, number: int) -> None:
        """Paying calls the cancellation off: no effect any more, and no result."""
        views.pay_order(number)
        self.paid.append(number)
        result, _ = self.results[views.cancellation_id(number)]
        self.results[result.id] = (result, None)
        self.expected = [one for one in self.expected if one.what != f"order {number} cancelled"]

    def _charge(self, number: int) -> None:
        due = _from_now(times.CHARGE_AFTER)
        self._keep(
            views.charge_later(number), f"charge order {number}", f"receipt for order {number}"
        )
        again = times.ASK_BANK_AGAIN.total_seconds()
        first, second = (f"order {number}: no answer to attempt {attempt}" for attempt in (1, 2))
        self._expect("charge_card", first, due)
        self.expected += [
            Expected("charge_card", second, after=first, seconds=again),
            Expected("charge_card", f"order {number} charged", after=second, seconds=again),
        ]

    def _coupon(self, code: str, valid: float) -> None:
        expires = datetime.now(timezone.utc) + timedelta(seconds=valid)
        self._keep(views.issue_coupon(code, expires), f"remind of {code}", f"reminded of {code}")
        due = (expires - times.COUPON_REMINDER).timestamp()
        self._expect("remind_of_coupon", f"coupon {code} expires soon", due)

    def _greet(self, customer: str, number: int) -> None:
        """A customer who lives where it is almost nine o'clock."""
        due = round(_from_now((20 + 10 * number) * times.MINUTE))
        instant = datetime.fromtimestamp(due, timezone.utc)
        nine = timedelta(hours=times.GREETING_AT.hour)
        clock = timedelta(hours=instant.hour, minutes=instant.minute, seconds=instant.second)
        zone = timezone(nine - clock)
        birthday = instant.astimezone(zone).date()
        self._keep(
            views.greet_on(customer, birthday, zone), f"greet {customer}", f"greeted {customer}"
        )
        self._expect("greet", f"happy birthday, {customer}", due)

    def run_a_task_twice(self) -> None:
        """Sabotage: what must not go unnoticed."""
        tasks.remind_of_coupon.delay("SAVE10")

    # -- inside -------------------------------------------------------------------------

    def _keep(self, result: DelayedResult, label: str, value: Any) -> None:
        self.results[result.id] = (result, value)
        self.labels[result.id] = label

    def _expect(self, task: str, what: str, due: float) -> None:
        self.expected.append(Expected(task, what, due))


def _from_now(delay: timedelta) -> float:
    return time.time() + delay.total_seconds()
