"""What the shop does later.  Ordinary Celery tasks: nothing here knows of celery-delay.

A task can run late (the workers were busy), and after a worker's crash it can run twice.
So each one looks at the state of things when it runs, not at that of the day it was
scheduled.
"""

from typing import Any

from shop import bank, orders
from shop.app import app
from shop.effects import effect
from shop.times import ASK_BANK_AGAIN


@app.task
def cancel_unpaid_order(number: int) -> str:
    """Give the goods back to the shelf, unless the order was paid meanwhile."""
    if not orders.set_cancelled(number):
        return f"order {number} kept"
    effect("cancel_unpaid_order", f"order {number} cancelled")
    return f"order {number} cancelled"


@app.task
def remind_of_coupon(code: str) -> str:
    """Tell a coupon's owner that it will expire soon."""
    effect("remind_of_coupon", f"coupon {code} expires soon")
    return f"reminded of {code}"


@app.task
def greet(customer: str) -> str:
    """Wish a happy birthday."""
    effect("greet", f"happy birthday, {customer}")
    return f"greeted {customer}"


@app.task(bind=True, max_retries=5)
def charge_card(self: Any, number: int) -> str:
    """Charge the card for an order; ask again later while the bank does not answer."""
    attempt = self.request.retries + 1
    try:
        receipt = bank.charge(number, attempt)
    except bank.BankAway as exc:
        effect("charge_card", f"order {number}: no answer to attempt {attempt}")
        # With delay_intercept = "retry" this delay waits in Redis as well.
        raise self.retry(exc=exc, countdown=ASK_BANK_AGAIN.total_seconds()) from exc
    effect("charge_card", f"order {number} charged")
    return receipt


@app.task
def clean_up() -> int:
    """Delete what nobody needs any more; beat_schedule in config.py says when."""
    deleted = orders.delete_cancelled()
    effect("clean_up", "cleaned up")
    return deleted
